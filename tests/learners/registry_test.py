"""Learners of other packages, and the options that are a learner's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metajax.learners import OPTIONS, Option, Setting, registry
from metajax.learners.options import values

ROOT = Path(__file__).resolve().parents[2]
SETTING = Setting(
  steps=300, normalizes=False, inner_lr=0.1, inner_optimizer="sgd"
)
PACKAGE = '''
"""A learner that is MAML with its step count squared."""
import metajax
from metajax.learners import Option, register


def mine(*arguments, twist, **options):
  print("twist", twist)
  return metajax.learners.maml(*arguments, **options)


def add():
  twist = Option("twist", 2, "How much it is twisted.", low=1)
  register("mine", mine, (twist,))
'''


@pytest.fixture
def package(tmp_path):
  """The environment of a process in which a package with a learner is."""
  (tmp_path / "my_package.py").write_text(PACKAGE)
  about = tmp_path / "my_package-1.0.dist-info"
  about.mkdir()
  (about / "METADATA").write_text("Name: my_package\nVersion: 1.0\n")
  (about / "entry_points.txt").write_text(
    "[metajax.learners]\nmine = my_package:add\n"
  )
  return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def _run(package, folder, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "experiments.maml_sinusoid", *arguments],
    cwd=ROOT,
    env=package | {"HOME": str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_a_learner_of_another_package_has_its_flags(package, tmp_path):
  shown = _run(package, tmp_path, "--help")
  assert shown.returncode == 0, shown.stderr
  assert "|mine|" in shown.stdout
  assert "--twist=<int>  mine: How much it is twisted. [2]" in shown.stdout
  refused = _run(package, tmp_path, "--learner=mine", "--twist=0")
  assert refused.returncode == 2
  assert "flag --twist=0" in refused.stderr


@pytest.mark.slow
def test_an_option_that_is_a_flag_of_every_script_is_refused(package, tmp_path):
  """Also where both are flags of one module, which absl would let pass."""
  for flag in ("steps", "dtype"):
    text = PACKAGE.replace('"twist", 2', f'"{flag}", 2')
    (tmp_path / "my_package.py").write_text(text)
    shown = _run(package, tmp_path, "--help")
    assert shown.returncode == 1
    assert shown.stderr == (
      f"error: learner 'mine': option '{flag}' is a flag of every script; "
      "rename it.\n"
    )


@pytest.mark.slow
def test_a_learner_of_another_package_is_trained_and_loaded(package, tmp_path):
  few = ("--steps=2", "--eval_tasks=4", f"--workdir={tmp_path / 'run'}")
  done = _run(package, tmp_path, "--learner=mine", "--twist=3", *few)
  assert done.returncode == 0, done.stderr
  assert "twist 3" in done.stdout
  script = (
    f"import metajax; print(metajax.load({str(tmp_path / 'run')!r}).recipe)"
  )
  loaded = subprocess.run(
    [sys.executable, "-c", script],
    env=package,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "'twist': 3" in loaded.stdout


def test_a_package_that_fails_is_named(package, tmp_path):
  (tmp_path / "my_package.py").write_text("add = 1 / 0")
  failed = subprocess.run(
    [sys.executable, "-c", "import metajax; metajax.load('x')"],
    env=package,
    capture_output=True,
    text=True,
    check=False,
  )
  assert "the entry point mine = my_package:add of metajax.learners fails " in (
    failed.stderr
  )


def test_names_that_are_taken_are_refused():
  before = dict(registry.REGISTRY)
  with pytest.raises(ValueError, match="'maml' is registered already"):
    registry.register("maml", registry.REGISTRY["maml"])
  with pytest.raises(ValueError, match="'damping' is that of 'imaml'"):
    registry.register("mine", lambda: None, (Option("damping", 1.0, ""),))
  twice = (Option("twist", 1.0, ""), Option("twist", 2.0, ""))
  with pytest.raises(ValueError, match="'twist' is that of 'mine'; rename"):
    registry.register("mine", lambda: None, twice)
  assert before == registry.REGISTRY


def test_options_become_arguments():
  found = values(OPTIONS["maml_plus_plus"], {"multi_step_part": 0.5}, SETTING)
  assert found == {
    "learned_rates": True,
    "step_normalization": False,  # The network has none.
    "multi_step_loss": 150,
    "first_order_until": 100,
  }
  said = SETTING._replace(said=frozenset({"step_normalization"}))
  assert values(OPTIONS["maml_plus_plus"], {}, said)["step_normalization"]
  assert values(OPTIONS["reptile"], {"inner_batch": 0}, SETTING) == {
    "inner_batch": None,
    "carry_optimizer": False,
  }


@pytest.mark.parametrize(
  ("learner", "given", "message"),
  [
    ("maml_plus_plus", {"multi_step_part": 1.5}, "from 0.0 to 1.0"),
    ("imaml", {"damping": float("nan")}, "damping=nan"),
    ("imaml", {"proximal_strength": 20.0}, "must be below 2"),
    ("cavia", {"num_context": 0}, "num_context=0"),
    (
      "imaml",
      {"dampening": 1.0},
      "^dampening: is no option, must be of ",
    ),
  ],
)
def test_values_that_are_not_allowed(learner, given, message):
  with pytest.raises(ValueError, match=message):
    values(OPTIONS[learner], given, SETTING)
