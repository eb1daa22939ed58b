"""The code in README and docs does what it says."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

import metajax

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def _blocks(page, language):
  fence = rf"```{language}\n(.*?)```"
  return re.findall(fence, page.read_text(), re.DOTALL)


def _run(page):
  """Runs a page's Python from top to bottom; blocks build on each other."""
  names = {"__name__": "example"}
  for code in _blocks(page, "python"):
    exec(compile(code, str(page), "exec"), names)
  return names


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_script_for_a_learner_of_ones_own_runs(tmp_path):
  page = (DOCS / "own_learner.md").read_text()
  (code,) = re.findall(r"(?s)```\n# train.py\n(.*?)```", page)
  (tmp_path / "train.py").write_text(code)
  ended = subprocess.run(
    [
      *[sys.executable, "train.py", "--learner=reptile", "--workdir=run"],
      *["--steps=2", "--eval_tasks=4"],
    ],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  assert metajax.load(tmp_path / "run").recipe.learner == "reptile"


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


@pytest.mark.slow
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


def _without_code(text):
  return re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)


def _anchors(page):
  """The ids of a page's headings, as GitHub and mkdocs make them."""
  for line in re.findall(r"(?m)^#+ (.*)$", page.read_text()):
    words = re.sub(r"[^\w\s-]", "", line.lower()).strip()
    yield re.sub(r"\s", "-", words)


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
  """And those of docs/ stay there, for the site has nothing else."""
  text = _without_code(page.read_text())
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"https?:", target):
      continue
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    assert path.exists(), target
    if DOCS in page.parents:
      assert DOCS in path.parents and path.is_file(), target
    if anchor:
      assert anchor in _anchors(path), target


@pytest.mark.parametrize(
  "page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem
)
def test_lists_are_lists_on_the_site(page):
  """Python-Markdown asks for more than GitHub.

  Blocks within a list have an indent of 4, and a list begins after a blank
  line.
  """
  text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
  assert not re.search(r"(?m)\n\n {1,3}\S.*", text)
  for block in text.split("\n\n"):
    lines = block.splitlines()
    inside = any(re.match(r"\s*(- |1\. )", line) for line in lines[:1])
    later = [line for line in lines[1:] if line.startswith("- ")]
    assert inside or not later, later


def _pages_of_nav(entry):
  if isinstance(entry, str):
    return [entry]
  parts = entry.values() if isinstance(entry, dict) else entry
  return [page for part in parts for page in _pages_of_nav(part)]


def test_every_page_is_in_the_navigation_once():
  nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
  found = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
  assert sorted(_pages_of_nav(nav)) == sorted(
    str(path.relative_to(DOCS)) for path in found
  )


def _described():
  """What the pages of the API reference name: modules and their members."""
  for page in DOCS.glob("api/*.md"):
    yield from re.findall(r"(?m)^::: (\S+)$", page.read_text())


def _module(name):
  """The file of a module, or None."""
  path = ROOT / name.replace(".", "/")
  files = path.with_suffix(".py"), path / "__init__.py"
  return next((file for file in files if file.is_file()), None)


def _defined(module):
  """The names that a module defines or imports, and where they come from."""
  names = {}
  for node in ast.parse(_module(module).read_text()).body:
    if isinstance(node, ast.ImportFrom):
      names |= {
        a.asname or a.name: f"{node.module}.{a.name}" for a in node.names
      }
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      names[node.name] = f"{module}.{node.name}"
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = getattr(node, "targets", None) or [node.target]
      names |= {t.id: f"{module}.{t.id}" for t in targets if hasattr(t, "id")}
  return names


def _exported():
  """The public names of the packages, as where they are defined."""
  for file in sorted((ROOT / "metajax").rglob("__init__.py")):
    package = ".".join(file.parent.relative_to(ROOT).parts)
    for node in ast.parse(file.read_text()).body:
      if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
        yield from (_defined(package)[n] for n in ast.literal_eval(node.value))


def test_api_reference_has_every_public_name_once():
  described = list(_described())
  assert len(described) == len(set(described)) > 100
  missing = set()
  for name in _exported():
    here = {name, name.rpartition(".")[0]} & set(described)
    inside = _module(name) and any(d.startswith(f"{name}.") for d in described)
    if not here and not inside:
      missing.add(name)
  assert not missing, "put these on a page of docs/api"


def test_api_reference_names_what_there_is():
  for name in _described():
    module, _, member = name.rpartition(".")
    assert _module(name) or member in _defined(module), name


def _imported_of_metajax(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module.split(".")[0] == "metajax":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_api_reference_has_what_pages_import():
  """What a page tells its reader to import is described."""
  described = set(_described())
  for page in PAGES:
    for code in _blocks(page, "python"):
      for name in _imported_of_metajax(ast.parse(code)):
        module, _, member = name.rpartition(".")
        if not _module(name):
          name = _defined(module)[member]
          found = {name, name.rpartition(".")[0]} & described
        else:
          found = any(d.startswith(name) for d in described)
        assert found, (page.name, name)


def test_docstrings_become_markdown(monkeypatch):
  """Equations are code, links are links, an entry of references a paragraph."""
  griffe = types.SimpleNamespace(Extension=object, Object=object)
  for name in ("griffe", "latex2mathml", "latex2mathml.converter"):
    monkeypatch.setitem(sys.modules, name, griffe)
  from scripts import docs_extension

  assert (
    docs_extension.markdown(
      "MAML.\n\n  python -m a b \\\n      c\n\n"
      "The loss::\n\n  a = b\n    + c\n\nand on.\n\nReferences:\n"
      "  Finn, `Fast\n  Adaptation <https://a.b/c>`_, 2017.\n  Raghu, 2020."
    )
    == "MAML.\n\n```text\npython -m a b \\\n    c\n```\n\n"
    "The loss:\n\n```text\na = b\n  + c\n```\n\nand on.\n\n"
    "References:\n  Finn, [Fast Adaptation](https://a.b/c), 2017.\n\n"
    "  Raghu, 2020."
  )
