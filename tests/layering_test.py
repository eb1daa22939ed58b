"""Who imports whom: data flows one way, and the core needs few packages."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What everything else may use: the vocabulary, and how it is handled.
BASICS = {
  "files",
  "types",
  "numerics",
  "gradient_checks",
  "batches",
  "variables",
  "forward",
  "losses",
  "predictive",
}
# Inner loops, and what they know of optimizers and of rules.
LOOPS = {
  "constant_loops",
  "custom_rules",
  "differentiability",
  "inner_loop",
  "mixed_mode",
  "optimizers",
}
# Folder or file -> what of metajax it may import.
ALLOWED = {
  "files.py": set(),
  "gradient_checks.py": {"numerics", "types", "variables"},
  "task_checks.py": {"gradient_checks", "types"},
  "types.py": set(),
  "numerics.py": set(),
  "batches.py": {"types"},
  "variables.py": {"numerics", "types"},
  # Its adapters make models of other libraries' modules.
  "forward.py": {"models", "types"},
  "losses.py": {"forward", "numerics", "types"},
  "predictive.py": {"numerics", "types"},
  "calibration.py": {"losses", "numerics", "predictive", "types"},
  **{f"{name}.py": BASICS | LOOPS for name in sorted(LOOPS)},
  "tasks": BASICS | {"task_checks", "tasks"},
  "models": BASICS | {"models"},
  "learners": BASICS
  | LOOPS
  | {"learners", "aggregation", "distillation", "models"},
  "context": BASICS | LOOPS | {"context", "learners", "models", "predictive"},
  "tabular": BASICS | {"tabular", "context", "learners", "tasks"},
  "aggregation": BASICS | {"aggregation"},
  "distillation": BASICS | LOOPS | {"distillation", "aggregation"},
  "training": BASICS | LOOPS | {"training", "aggregation", "task_checks"},
  "players": BASICS | {"models", "players", "tasks"},
  "bilevel": BASICS | LOOPS | {"bilevel", "models"},
  "learned_optimizers": BASICS | {"learned_optimizers", "models"},
  "policies": BASICS
  | LOOPS
  | {"learners", "models", "players", "policies", "tasks", "training"},
  "off_policy": BASICS
  | LOOPS
  | {"off_policy", "policies", "tasks", "training"},
  "replay": BASICS
  | LOOPS
  | {"models", "players", "replay", "task_checks", "tasks", "training"},
  "continual": BASICS | {"continual", "aggregation"},
  "evaluation.py": BASICS | {"task_checks", "training"},
}


def _imports(path):
  """Yields the modules that a file imports, as dotted names."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", ALLOWED)
def test_part_knows_only_what_comes_before_it(part):
  path = ROOT / "metajax" / part
  files = [path] if path.is_file() else sorted(path.rglob("*.py"))
  assert files
  found = {
    name.split(".")[1]
    for file in files
    for name in _imports(file)
    if name.startswith("metajax.")
  }
  assert found <= ALLOWED[part]


# Each is a folder that could be deleted without the core noticing.
FAMILIES = [
  *("bilevel", "context", "continual", "learned_optimizers", "players"),
  *("off_policy", "policies", "replay", "tabular"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_imported_by_families_alone(family):
  """But for functions of other parts, where they build what is of it."""
  for file in sorted((ROOT / "metajax").rglob("*.py")):
    names = {
      f"{node.module}.{alias.name}"
      for node in ast.parse(file.read_text()).body
      if isinstance(node, ast.ImportFrom)
      for alias in node.names
    }
    part = file.relative_to(ROOT / "metajax").parts[0]
    of_it = any(f"{name}.".startswith(f"metajax.{family}.") for name in names)
    assert not of_it or part in FAMILIES, file


def test_every_part_has_its_place():
  parts = {
    path.name
    for path in (ROOT / "metajax").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
  }
  # What wires together, the files of runs and of what they trained, and runs.
  assert parts - set(ALLOWED) == {
    "__init__.py",
    "classify.py",
    "compare_runs.py",
    "loaded.py",
    "recipes.py",
    "results.py",
    "results_table.py",
    "runs",
    "saved.py",
    "sklearn.py",
    "testing",
  }


def test_library_reads_no_flags_and_imports_no_experiment():
  """But for `runs`, which nothing else imports but a command."""
  commands = {"compare_runs.py"}
  for file in sorted((ROOT / "metajax").rglob("*.py")):
    names = set(_imports(file))
    if "runs" not in file.relative_to(ROOT).parts:
      # Grain reads its own flags.
      own = file.name == "reading_ahead.py"
      assert own or not any(n.startswith("absl.flags") for n in names), file
      of_runs = any(n.startswith("metajax.runs") for n in names)
      assert not of_runs or file.name in commands, file
    assert not any(n.startswith(("experiments", "scripts")) for n in names)


@pytest.mark.slow
def test_benchmark_needs_few_packages_and_prints_what_it_promises():
  """It runs where only jax, flax, optax, chex, absl-py and numpy are."""
  script = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in %r:
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import runpy
runpy.run_path("scripts/benchmark.py", run_name="__main__")
"""
  missing = ["orbax", "tensorboardX", "matplotlib", "PIL", "tqdm", "torch"]
  done = subprocess.run(
    [
      *[sys.executable, "-c", script % missing],
      *["--ways=2", "--shots=1", "--query_shots=1", "--tasks=2", "--repeats=1"],
      *["--inner_steps=1", "--model=mlp", "--seconds=0", "--json"],
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  (result,) = map(json.loads, done.stdout.splitlines())
  for name in (
    "seconds_per_meta_step",
    "tasks_per_second",
    "compile_seconds",
    "gflops_per_meta_step",
    "matmul_peak_gflops",
    "fraction_of_peak",
    "peak_temp_bytes",
    "task_chunk",
  ):
    assert result[name] > 0, name
  assert result["device"]
  # 2 tasks: the product of the two rates.
  assert result["tasks_per_second"] * result["seconds_per_meta_step"] == (
    pytest.approx(2)
  )
