"""The code in README and docs does what it says."""

import ast
import functools
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def _blocks(page, language):
  fence = rf"```{language}\n(.*?)```"
  return re.findall(fence, page.read_text(), re.DOTALL)


def _run(page):
  """Runs a page's Python from top to bottom; blocks build on each other."""
  names = {"__name__": "example"}
  for code in _blocks(page, "python"):
    exec(compile(code, str(page), "exec"), names)
  return names


def test_example_learns_the_prior_of_its_tasks(capsys):
  """For lines, MAML's initialisation is the mean line: 2 x - 1."""
  params = _run(ROOT / "docs/own_model.md")["state"].meta_params
  np.testing.assert_allclose(params["slope"], [2.0], atol=0.15)
  np.testing.assert_allclose(params["offset"], -1.0, atol=0.15)
  assert "huber" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
  "page", [p for p in PAGES if _blocks(p, "python")], ids=lambda p: p.name
)
def test_examples_run(page):
  assert "jax" in _run(page)


def _commands():
  """Commands of the pages: those of bash blocks, and those within a line."""
  for page in PAGES:
    text = page.read_text()
    found = "\n".join(_blocks(page, "bash")).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`((?:python|scripts/|\./scripts/)[^`]+)`", text)
    for command in found + [" ".join(span.split()) for span in spans]:
      words = shlex.split(command, comments=True)
      if words:
        yield page.name, words


def _imported(tree):
  """The files of experiments and scripts that a program imports, anywhere."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
      for name in names:
        path = ROOT / (name.replace(".", "/") + ".py")
        if (
          re.match(r"(experiments|scripts|metajax\.runs)\b", name)
          and path.is_file()
        ):
          yield path


@functools.cache
def _flags_of(path):
  """The flags that a program and what it imports define."""
  flags, seen, left = set(), set(), [path]
  while left:
    path = left.pop()
    if path in seen:
      continue
    seen.add(path)
    tree = ast.parse(path.read_text())
    left += _imported(tree)
    for call in ast.walk(tree):
      if (
        isinstance(call, ast.Call)
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and re.search("(?i)define|add_argument", ast.unparse(call.func))
      ):
        flags.add(str(call.args[0].value).removeprefix("--"))
  return flags


def test_commands_exist_with_their_flags():
  """A command is not run here, but its program and flags are looked up."""
  seen = 0
  for page, words in _commands():
    known = set()
    for i, word in enumerate(words):
      path = None
      if word == "-m" and words[i + 1].startswith("experiments."):
        path = ROOT / (words[i + 1].replace(".", "/") + ".py")
      elif re.match(r"(\./)?scripts/", word):
        path = ROOT / word
        assert path.suffix != ".sh" or os.access(path, os.X_OK), (page, word)
      if path is not None and "NAME" not in path.name:
        assert path.is_file(), (page, words)
        if path.suffix == ".py":
          known |= _flags_of(path)
        seen += 1
    if known:
      flags = {w[2:].split("=")[0] for w in words if w.startswith("--")}
      unknown = flags - known - {f"no{flag}" for flag in known} - {"help"}
      assert not unknown, (page, words)
  assert seen > 30
