"""Prints the results of runs of experiments.few_shot as a Markdown table.

python scripts/results_table.py runs/*/results.json
"""

import json
import re
import sys
from pathlib import Path

COLUMNS = (
  "row | transductive | alone | published | meta-steps × tasks | wall time"
)
# 1-shot accuracies of Omniglot by learner and ways, of whole trainings; the
# paper last. Those of networks that normalise by the batch, as MAML's does, are
# transductive.
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
      sys.exit(f"error: {path} is no result of few_shot ({error!r}).")
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
  """Makes a link of an arXiv number."""
  return re.sub(
    r"\d{4}\.\d{5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", published
  )


def _percent(metric: dict) -> str:
  return f"{100 * metric['mean']:.2f} ± {100 * metric['ci95']:.2f}"


if __name__ == "__main__":
  if not sys.argv[1:]:
    sys.exit("error: give at least one results.json.")
  main(sys.argv[1:])
