"""Prints the results of runs as Markdown tables.

  python -m metajax.results_table runs/first runs/second
  python -m metajax.results_table runs/*/results.json

Takes `results.json` files, folders of runs and folders of sweeps. If all runs
are of `experiments.few_shot`, or have the same metrics, prints one table with
the published numbers. Otherwise each experiment has a table of all its metrics,
with a row for each run. If there are many metrics, the table has a column for
each run.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
  "row | transductive | alone | published | meta-steps × tasks | wall time"
)
# Published 1-shot accuracies on Omniglot of full trainings, by learner and
# ways, with the paper's arXiv number at the end. They are transductive if the
# network normalises by the batch, as that of MAML does.
PUBLISHED = {
  ("maml", 5): "98.7 ± 0.4 1703.03400",
  ("maml", 20): "95.8 ± 0.3 1703.03400",
  ("fomaml", 5): "98.3 ± 0.5 1803.02999",
  ("reptile", 5): "97.68 ± 0.04, alone 95.39 ± 0.09 1803.02999",
  ("meta_sgd", 5): "99.53 ± 0.26 1707.09835",
  ("maml_plus_plus", 5): "99.47 1810.09502",
  ("anil", 20): "96.2 ± 0.5, deviation of 3 seeds 1909.09157",
  ("prototypical", 5): "98.8, split by alphabets 1703.05175",
  ("prototypical", 20): "96.0, split by alphabets 1703.05175",
}

# With more metrics than this number, the metrics are rows.
WIDEST = 8
OF_FEW_SHOT = {"accuracy_transductive", "accuracy_inductive"}


def read(paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
  """Reads results, by the path of their file.

  Args:
    paths: `results.json` files, folders of runs and of sweeps.

  Raises:
    ValueError: if a folder has no results, or a file is damaged.
  """
  return {file: _read(file) for path in paths for file in _files(path)}


def _files(path: Path) -> list[Path]:
  if not path.is_dir():
    return [path]
  own = path / "results.json"
  os.listdir(path)  # `glob` finds nothing where it may not look.
  found = [own] if own.exists() else sorted(path.glob("*/results.json"))
  if not found:
    raise ValueError(
      f"{path}: no results.json in it, or in its sub-folders: a run writes it "
      "at its end."
    )
  return found


def _read(path: Path) -> dict[str, Any]:
  try:
    results = json.loads(path.read_text())
    for name in ("experiment", "protocol", "steps", "wall_seconds", "device"):
      results[name]
    for metric in results["metrics"].values():
      float(metric["mean"]), float(metric["ci95"])
    if OF_FEW_SHOT <= {*results["metrics"]}:
      for name in ("transductive", "learner", "ways", "shots", "model"):
        results["protocol"][name]
    return results
  except OSError as error:
    raise ValueError(
      f"{path}: cannot be read ({error.strerror}): give a results.json, or the "
      "folder of a run or of a sweep."
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is no results.json of a run ({type(error).__name__}: {error}): "
      "delete it, and the run's command writes it anew."
    ) from error


def any_experiment(found: Mapping[Path, dict[str, Any]]) -> str:
  """Returns the table of runs of one experiment, by the path of their file."""
  names = list(dict.fromkeys(m for r in found.values() for m in r["metrics"]))
  table = [["row", *names, "meta-steps", "wall time", "device"]]
  for file, results in found.items():
    row = file.parent.name if file.name == "results.json" else file.stem
    table.append(
      [
        f"`{row}`",
        *(_interval(results["metrics"].get(name)) for name in names),
        f"{results['steps']:,}",
        f"{results['wall_seconds'] / 60:.1f} min",
        results["device"],
      ]
    )
  if len(names) > WIDEST:
    table = [list(column) for column in zip(*table, strict=True)]
  table.insert(1, ["---"] * len(table[0]))
  return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def _interval(metric: Mapping[str, Any] | None) -> str:
  if metric is None:
    return ""
  # A number that is not finite is stored as text.
  return f"{float(metric['mean']):.4g} ± {float(metric['ci95']):.2g}"


def few_shot(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of runs of few_shot beside the published numbers."""
  lines = [f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
  for results in found:
    protocol = results["protocol"]
    together, alone = (
      results["metrics"][f"accuracy_{kind}"]
      for kind in ("transductive", "inductive")
    )
    if not protocol["transductive"]:
      together = alone
    key = (protocol["learner"], protocol["ways"])
    comparable = (
      protocol["shots"] == 1
      and protocol["model"] == "conv4"
      and protocol.get("data", "omniglot") == "omniglot"
      and "eval_data" not in protocol
    )
    cells = [
      f"`{protocol['learner']}_{protocol['ways']}w{protocol['shots']}s`",
      _percent(together),
      _percent(alone),
      _linked(PUBLISHED.get(key, "")) if comparable else "",
      f"{results['steps']:,} × {protocol['meta_batch']}",
      f"{results['wall_seconds'] / 60:.1f} min",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _linked(published: str) -> str:
  """Makes links of the arXiv numbers in a text."""
  return re.sub(
    r"\d{4}\.\d{5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", published
  )


def _percent(metric: Mapping[str, Any]) -> str:
  # A number that is not finite is stored as text.
  mean, ci95 = float(metric["mean"]), float(metric["ci95"])
  return f"{100 * mean:.2f} ± {100 * ci95:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command. Bad input is an error of one line."""
  parser = argparse.ArgumentParser(
    prog="python -m metajax.results_table",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "paths",
    type=Path,
    nargs="+",
    metavar="PATH",
    help="A results.json, or the folder of a run or of a sweep.",
  )
  try:
    found = read(parser.parse_args(arguments).paths)
  except (ValueError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  if all(OF_FEW_SHOT <= {*results["metrics"]} for results in found.values()):
    print(few_shot(list(found.values())))
    return
  for experiment in sorted({r["experiment"] for r in found.values()}):
    of_it = {p: r for p, r in found.items() if r["experiment"] == experiment}
    print(f"{experiment}:\n\n{any_experiment(of_it)}")


if __name__ == "__main__":
  main()
