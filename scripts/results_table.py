"""Prints the results of runs of experiments.maml_omniglot as a Markdown table.

python scripts/results_table.py runs/*/results.json
"""

import json
import sys
from pathlib import Path

COLUMNS = "run | transductive | alone | meta-steps | meta-batch | wall time"


def main(paths: list[str]) -> None:
  print(f"| {COLUMNS} |")
  print("|---" * (COLUMNS.count("|") + 1) + "|")
  for path in paths:
    try:
      results = json.loads(Path(path).read_text())
      protocol = results["protocol"]
      together, alone = (
        results["metrics"][f"accuracy_{kind}"]
        for kind in ("transductive", "inductive")
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      sys.exit(f"error: {path} is no result of maml_omniglot ({error!r}).")
    if not protocol["transductive"]:
      together = alone
    cells = [
      f"{protocol['learner']}, {protocol['ways']}-way {protocol['shots']}-shot",
      _percent(together),
      _percent(alone),
      f"{results['steps']:,}",
      str(protocol["meta_batch"]),
      f"{results['wall_seconds'] / 60:.1f} min",
    ]
    print("| " + " | ".join(cells) + " |")


def _percent(metric: dict) -> str:
  return f"{100 * metric['mean']:.2f} ± {100 * metric['ci95']:.2f}"


if __name__ == "__main__":
  if not sys.argv[1:]:
    sys.exit("error: give at least one results.json.")
  main(sys.argv[1:])
