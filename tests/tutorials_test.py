"""The notebooks of docs/tutorials run, and are stored as they ran."""

import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("docs/tutorials/*.ipynb"))
KILOBYTES = 200
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_five():
  assert len(NOTEBOOKS) == 5


@each
def test_is_stored_with_its_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  # All cells, from top to bottom, in one kernel.
  assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell.outputs]
  assert any("image/png" in output.get("data", {}) for output in outputs)
  for output in outputs:
    assert output.output_type != "error"
    # Warnings go to stderr.
    assert output.get("name") != "stderr", output.text
  assert path.stat().st_size < KILOBYTES * 1000


@each
def test_names_no_folder_of_a_machine(path):
  for cell in nbformat.read(path, as_version=4).cells:
    texts = [cell.source]
    for output in cell.get("outputs", ()):
      texts.append(output.get("text", ""))
      texts += [
        str(value)
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/")
      ]
    for text in texts:
      found = re.search(r"(?<![\w/.:<])/(?:[\w.-]+/)+|[A-Z]:\\", text)
      assert not found, (found, text)


def test_code_is_linted():
  """What test.sh and the editor see: ruff reads notebooks by itself."""
  for command in (["check"], ["format", "--check"]):
    done = subprocess.run(
      [sys.executable, "-m", "ruff", *command, *map(str, NOTEBOOKS)],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
  listed = subprocess.run(
    [sys.executable, "-m", "ruff", "check", "--show-files", "."],
    cwd=ROOT,
    capture_output=True,
    text=True,
  ).stdout
  assert all(str(path) in listed for path in NOTEBOOKS)


@pytest.mark.slow
@each
def test_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # Machine code that is made fast is slow, and training is most of it.
  monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
  nbclient.execute(
    nbformat.read(path, as_version=4),
    cwd=tmp_path,
    timeout=600,
    kernel_name="python3",
  )
