"""The model card of a run, `card.md`: learner, training and results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metajax import saved
from metajax.evaluation import Estimate
from metajax.files import replaced
from metajax.results import read_results

NAME = "card.md"
# Entries of a protocol that do not define the result. The card omits them.
NOT_SHOWN = ("devices", "skipped_steps", "conv_lowering", "memory")


def write(workdir: Path, command: str) -> None:
  """Writes the card of a run, if the run has a saved learner.

  Args:
    workdir: the run's folder, with its `config.json` and `results.json`.
    command: the command line that made the run.
  """
  results = read_results(workdir)
  if results is None or not (workdir / saved.LEARNER).exists():
    return
  config = json.loads((workdir / "config.json").read_text())
  with replaced(workdir / NAME) as file:
    file.write_text(_text(workdir, config, results, command))


def usage(workdir: Path, folder: str, comment: str = "") -> list[str]:
  """Returns lines of Python that use the saved learner of a run.

  Args:
    workdir: the run's folder.
    folder: the folder as an expression of Python.
    comment: what is said of the folder.
  """
  about = json.loads((workdir / saved.LEARNER).read_text())
  names = ("inputs", "new_inputs")
  if len(about.get("inputs", {}).get("shape", ())) == 3:
    names = ("loaded.pixels(images)", "loaded.pixels(new_images)")
  return [
    "import metajax",
    "",
    f"loaded = metajax.load({folder}){comment}",
    f"task_params = loaded.adapt(metajax.Batch({names[0]}, targets))",
    f"predictions = loaded.predict(task_params, {names[1]})",
  ]


def _text(
  workdir: Path,
  config: Mapping[str, Any],
  results: Mapping[str, Any],
  command: str,
) -> str:
  protocol = results["protocol"]
  learner = protocol.get("learner", results["experiment"])
  commit = config.get("environment", {}).get("git_commit", "unknown")
  lines = [
    f"# {learner} of {results['experiment']}",
    "",
    f"Meta-parameters (`{saved.META_PARAMS}`) and their description "
    f"(`{saved.LEARNER}`), which `metajax.load` reads. Reading them runs no "
    "code.",
    "",
    "## Results",
    "",
    "| metric | mean | 95% interval | over |",
    "|---|---|---|---|",
    *(_row(name, value) for name, value in results["metrics"].items()),
    "",
    "## Use",
    "",
    "```",
    *usage(workdir, '"FOLDER"', "  # the folder of this file"),
    "```",
    "",
    "## Training",
    "",
    "```",
    command,
    "```",
    "",
    f"{results['steps']} meta-steps in {results['wall_seconds']:.0f} s on "
    f"{results['device']}, seed {results['seed']}, commit {commit}, metajax "
    f"{results['versions'].get('metajax', 'unknown')}, JAX "
    f"{results['versions'].get('jax', 'unknown')}.",
    "",
    "| protocol | |",
    "|---|---|",
    *(
      f"| {name} | {value} |"
      for name, value in protocol.items()
      if value is not None and name not in NOT_SHOWN
    ),
  ]
  return "\n".join(lines) + "\n"


def _row(name: str, value: Estimate) -> str:
  over = (
    f"{len(value.of_seeds)} seeds"
    if value.of_seeds
    else f"{value.num_tasks} tasks"
  )
  return f"| {name} | {value.mean:.4f} | ± {value.ci95:.4f} | {over} |"
