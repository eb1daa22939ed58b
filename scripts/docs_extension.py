"""Converts docstrings, flags and formulas for the documentation site.

mkdocs.yml names this file twice. The first use is as an extension of griffe,
which reads the docstrings without importing the package. The extension converts
docstrings to Markdown. It translates four forms: a block after `::` with an
equation or code, commands of Python with an indent, a link
`` `text <https://...>`_ ``, and each entry of References, which becomes a
paragraph. The second use is as a hook of mkdocs. The hook prevents line breaks
after the dashes of a flag such as `--steps`. It also converts the formulas of
notebooks to MathML, which browsers show without a script.
"""

import html
import re
import textwrap
from typing import Any

import griffe
import latex2mathml.converter

REFERENCES = re.compile(r"References:\n(?:[ ]+.*\n?)+")
COMMANDS = re.compile(r"(?m)^  python .*(?:\n  .*)*")
CODE = re.compile(r"(?s)<pre.*?</pre>|<code>.*?</code>")
FORMULA = re.compile(r"(?s)\$\$(.+?)\$\$|\$([^$\n]+)\$")
NO_TEXT = re.compile(r"(?s)(<(pre|code|script|style)\b.*?</\2>)")
FLAG = re.compile(r"(?<![\w-])--?\w[^\s<&`]*")
LINK = re.compile(r"`([^`<>]+?)\s*<(https?://[^\s>]+)>`_")


def markdown(text: str) -> str:
  """Translates a docstring.

  The lines of a block have at least two more spaces than the line with `::`.
  The block ends at the first line with fewer spaces that is not blank.
  """
  text = LINK.sub(
    lambda found: f"[{' '.join(found[1].split())}]({found[2]})", text
  )
  text = COMMANDS.sub(
    lambda found: f"```text\n{textwrap.dedent(found[0])}\n```", text
  )
  # An entry ends with a line that ends with a full stop.
  text = REFERENCES.sub(lambda found: found[0].replace(".\n", ".\n\n"), text)
  lines = text.splitlines()
  translated: list[str] = []
  while lines:
    line = lines.pop(0)
    if not line.rstrip().endswith("::"):
      translated.append(line)
      continue
    margin = line[: len(line) - len(line.lstrip())]
    before = line.rstrip()[: -1 if line.strip() != "::" else -2]
    if before.strip():
      translated += [before, ""]
    block: list[str] = []
    while lines and (
      not lines[0].strip() or lines[0].startswith(margin + "  ")
    ):
      block.append(lines.pop(0))
    while block and not block[-1].strip():
      block.pop()
    code = textwrap.dedent("\n".join(block)).strip("\n").splitlines()
    translated += [margin + x for x in ["```text", *code, "```"]] + [""]
  return "\n".join(translated)


class Markdown(griffe.Extension):
  """Translates the docstring of every object when griffe reads it."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Translates a docstring. griffe calls this method for each object."""
    del kwargs
    if obj.docstring is not None:
      obj.docstring.value = markdown(obj.docstring.value)


def mathml(page: str) -> str:
  """Converts `$...$` and `$$...$$` in the text of an HTML page to MathML."""

  def translate(found: re.Match[str]) -> str:
    whole, inline = found.groups()
    formula = html.unescape(whole or inline).replace(r"\arg", r"\text{arg }")
    display = "block" if whole else "inline"
    translated = latex2mathml.converter.convert(formula, display=display)
    if "\\" in translated:
      raise ValueError(f"{formula}: has a command that latex2mathml lacks.")
    return translated

  parts = NO_TEXT.split(page)
  # The parts alternate: text, an element without text, the element's name.
  parts[::3] = [FORMULA.sub(translate, text) for text in parts[::3]]
  del parts[2::3]
  return "".join(parts)


def whole_flags(page: str) -> str:
  """Marks the flags in inline code of an HTML page."""

  def mark(found: re.Match[str]) -> str:
    if found[0].startswith("<pre"):
      return found[0]
    return FLAG.sub(r'<span class="flag">\g<0></span>', found[0])

  return CODE.sub(mark, page)


def on_page_content(content: str, *, page: Any, **kwargs: Any) -> str:
  """Converts the HTML of a page. mkdocs calls this function for each page."""
  del kwargs
  if page.file.src_uri.endswith(".ipynb"):
    content = mathml(content)
  return whole_flags(content)
