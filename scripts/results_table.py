"""Prints the results of runs as Markdown tables.

  python scripts/results_table.py runs/*/results.json
  python scripts/results_table.py SWEEP

If all runs are of experiments.few_shot, or have the same metrics, the script
prints one table with the published numbers. Otherwise each experiment has a
table of all its metrics, with a row for each run. If there are many metrics,
the table has a column for each run.
"""

import json
import re
import sys
from pathlib import Path

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


def main(paths: list[str]) -> None:
  paths = [file for path in paths for file in _files(path)]
  found = {path: _read(path) for path in paths}
  if all(OF_FEW_SHOT <= {*results["metrics"]} for results in found.values()):
    few_shot(list(found.values()))
    return
  for experiment in sorted({r["experiment"] for r in found.values()}):
    of_it = {p: r for p, r in found.items() if r["experiment"] == experiment}
    print(f"{experiment}:\n")
    any_experiment(of_it)


def _files(path: str) -> list[str]:
  """Returns the results in the folder of a run or of a sweep."""
  folder = Path(path)
  if not folder.is_dir():
    return [path]
  own = folder / "results.json"
  found = [own] if own.exists() else sorted(folder.glob("*/results.json"))
  if not found:
    sys.exit(f"error: {path}: no results.json in it, or in its sub-folders.")
  return [str(file) for file in found]


def _read(path: str) -> dict:
  try:
    results = json.loads(Path(path).read_text())
    for name in ("experiment", "protocol", "steps", "wall_seconds", "device"):
      results[name]
    for metric in results["metrics"].values():
      float(metric["mean"]), float(metric["ci95"])
    if OF_FEW_SHOT <= {*results["metrics"]}:
      for name in ("transductive", "learner", "ways", "shots", "model"):
        results["protocol"][name]
    return results
  except (OSError, ValueError, KeyError, TypeError) as error:
    sys.exit(f"error: {path} is no results.json of a run ({error!r}).")


def any_experiment(found: dict[str, dict]) -> None:
  """Prints runs of one experiment, by the path of their results."""
  names = list(dict.fromkeys(m for r in found.values() for m in r["metrics"]))
  table = [["row", *names, "meta-steps", "wall time", "device"]]
  for path, results in found.items():
    file = Path(path)
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
  for cells in table:
    print("| " + " | ".join(cells) + " |")
  print()


def _interval(metric: dict | None) -> str:
  if metric is None:
    return ""
  # A number that is not finite is stored as text.
  return f"{float(metric['mean']):.4g} ± {float(metric['ci95']):.2g}"


def few_shot(found: list[dict]) -> None:
  """Prints runs of few_shot beside the published numbers."""
  print(f"| {COLUMNS} |")
  print("|---" * (COLUMNS.count("|") + 1) + "|")
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
    )
    cells = [
      f"`{protocol['learner']}_{protocol['ways']}w{protocol['shots']}s`",
      _percent(together),
      _percent(alone),
      _linked(PUBLISHED.get(key, "")) if comparable else "",
      f"{results['steps']:,} × {protocol['meta_batch']}",
      f"{results['wall_seconds'] / 60:.1f} min",
    ]
    print("| " + " | ".join(cells) + " |")


def _linked(published: str) -> str:
  """Makes links of the arXiv numbers in a text."""
  return re.sub(
    r"\d{4}\.\d{5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", published
  )


def _percent(metric: dict) -> str:
  return f"{100 * metric['mean']:.2f} ± {100 * metric['ci95']:.2f}"


if __name__ == "__main__":
  if not sys.argv[1:]:
    sys.exit("error: give at least one results.json.")
  main(sys.argv[1:])
