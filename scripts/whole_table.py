"""Prints whole published trainings beside the published numbers.

  python scripts/whole_table.py runs/reproduce/whole/*/results.json

The runs are those of experiments.few_shot and experiments.pretrain. A run that
was tested with other shots, by --pictures=all, has a row for each number of
shots that has a published number.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

COLUMNS = "row | published | ours | protocol | wall time | device | raw"
# Accuracies in percent, with the arXiv number of the source at the end, by data
# set, method, network, ways and shots. All were read in the paper, or in a
# paper or a list that quotes it.
PUBLISHED = {
  "omniglot maml conv4-64 20w1s": "95.8 ± 0.3 1703.03400",
  "omniglot reptile conv4-64 5w1s": "97.68 ± 0.04 1803.02999",
  "omniglot prototypical conv4-64 20w1s": "96.0, by alphabets 1703.05175",
  "cifar_fs maml conv4-32 5w1s": "58.9 ± 1.9 1805.08136",
  "cifar_fs maml conv4-32 5w5s": "71.5 ± 1.0 1805.08136",
  "cifar_fs prototypical conv4-64 5w1s": "55.5 ± 0.7 1805.08136",
  "cifar_fs prototypical conv4-64 5w5s": "72.0 ± 0.6 1805.08136",
  "cifar_fs ridge conv4-96-192-384-512 5w1s": "65.3 ± 0.2 1805.08136",
  "cifar_fs ridge conv4-96-192-384-512 5w5s": "79.4 ± 0.1 1805.08136",
  "cifar_fs rfs_simple conv4-64 5w1s": "62.7 ± 0.8 2003.11539",
  "cifar_fs rfs_simple conv4-64 5w5s": "78.7 ± 0.5 2003.11539",
  "cifar_fs rfs_distill conv4-64 5w1s": "63.8 ± 0.8 2003.11539",
  "cifar_fs rfs_distill conv4-64 5w5s": "79.5 ± 0.5 2003.11539",
  "cifar_fs prototypical resnet12 5w1s": "72.2 ± 0.7 1904.03758",
  "cifar_fs prototypical resnet12 5w5s": "83.5 ± 0.5 1904.03758",
  "cifar_fs svm resnet12 5w1s": "72.0 ± 0.7 1904.03758",
  "cifar_fs svm resnet12 5w5s": "84.2 ± 0.5 1904.03758",
  "cifar_fs rfs_simple resnet12 5w1s": "71.5 ± 0.8 2003.11539",
  "cifar_fs rfs_simple resnet12 5w5s": "86.0 ± 0.5 2003.11539",
  "cifar_fs rfs_distill resnet12 5w1s": "73.9 ± 0.8 2003.11539",
  "cifar_fs rfs_distill resnet12 5w5s": "86.9 ± 0.5 2003.11539",
  "fc100 prototypical conv4-64 5w1s": "35.3 ± 0.6 1904.03758",
  "fc100 prototypical conv4-64 5w5s": "48.6 ± 0.6 1904.03758",
  "fc100 rfs_simple conv4-64 5w1s": "39.6 ± 0.6 2003.11539",
  "fc100 rfs_simple conv4-64 5w5s": "53.5 ± 0.5 2003.11539",
  "fc100 rfs_distill conv4-64 5w1s": "40.3 ± 0.6 2003.11539",
  "fc100 rfs_distill conv4-64 5w5s": "54.1 ± 0.5 2003.11539",
  "fc100 prototypical resnet12 5w1s": "37.5 ± 0.6 1904.03758",
  "fc100 prototypical resnet12 5w5s": "52.5 ± 0.6 1904.03758",
  "fc100 svm resnet12 5w1s": "41.1 ± 0.6 1904.03758",
  "fc100 svm resnet12 5w5s": "55.5 ± 0.6 1904.03758",
  "fc100 rfs_simple resnet12 5w1s": "42.6 ± 0.7 2003.11539",
  "fc100 rfs_simple resnet12 5w5s": "59.1 ± 0.6 2003.11539",
  "fc100 rfs_distill resnet12 5w1s": "44.6 ± 0.7 2003.11539",
  "fc100 rfs_distill resnet12 5w5s": "60.9 ± 0.6 2003.11539",
}


def main(paths: list[str]) -> None:
  print(f"| {COLUMNS} |")
  print("|---" * (COLUMNS.count("|") + 1) + "|")
  for path in paths:
    try:
      rows = list(_rows(json.loads(Path(path).read_text()), path))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
      sys.exit(
        f"error: {path} is no results.json of few_shot or pretrain ({error!r})."
      )
    for row in rows:
      print("| " + " | ".join(row) + " |")


def _rows(results: dict[str, Any], path: str) -> Any:
  """Yields the rows of one run, as cells."""
  protocol = results["protocol"]
  for method, size, metric in _scores(results):
    name = _name(protocol, method, size)
    tasks = f"{metric['num_tasks']} test tasks"
    batch = protocol.get("batch_size", protocol["meta_batch"])
    unit = "images" if results["experiment"] == "pretrain" else "tasks"
    seen = "transductive" if protocol["transductive"] else "inductive"
    yield [
      name,
      _linked(PUBLISHED.get(name, "")),
      f"{100 * float(metric['mean']):.2f} ± {100 * float(metric['ci95']):.2f}",
      f"{results['steps']:,} × {batch} {unit}, {tasks}, {seen}"
      + _other_shots(results, size),
      _duration(results["wall_seconds"]),
      results["device"],
      f"[raw]({path})",
    ]


def _scores(results: dict[str, Any]) -> Any:
  """Yields (method, ways and shots, metric) of a run."""
  protocol, metrics = results["protocol"], results["metrics"]
  own = f"{protocol['ways']}w{protocol['shots']}s"
  if results["experiment"] == "pretrain":
    last = protocol["generations"]
    method = "rfs_distill" if last else "rfs_simple"
    for generation in dict.fromkeys((0, last)):
      simple = generation == 0
      metric = metrics[f"logistic_generation_{generation}"]
      yield "rfs_simple" if simple else "rfs_distill", own, metric
  else:
    method = protocol["learner"]
    kind = "transductive" if protocol["transductive"] else "inductive"
    yield method, own, metrics[f"accuracy_{kind}"]
  for name, metric in metrics.items():
    size = name.removeprefix("accuracy_")
    if size != own and _name(protocol, method, size) in PUBLISHED:
      yield method, size, metric


def _name(protocol: dict[str, Any], method: str, size: str) -> str:
  """Returns the name of a row. Another data set of the test is part of it."""
  data = protocol["data"]
  if "eval_data" in protocol:
    data += f" tested on {protocol['eval_data']}"
  return f"{data} {method} {_network(protocol)} {size}"


def _other_shots(results: dict[str, Any], size: str) -> str:
  """Returns the shots of the training tasks, if those of the test differ."""
  protocol = results["protocol"]
  if results["experiment"] == "pretrain":  # It trains on no tasks.
    return ""
  trained = protocol.get("train_shots", protocol["shots"])
  if size.endswith(f"w{trained}s"):
    return ""
  several = trained if isinstance(trained, list) else [trained]
  unit = "shot" if several == [1] else "shots"
  return f", trained with {' to '.join(map(str, several))} {unit}"


def _network(protocol: dict[str, Any]) -> str:
  if protocol["model"] != "conv4":
    return protocol["model"]
  filters = protocol["filters"]
  widths = filters if isinstance(filters, list) else [filters]
  return "-".join(map(str, ["conv4", *widths]))


def _duration(seconds: float) -> str:
  minutes = seconds / 60
  return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _linked(published: str) -> str:
  """Makes links of the arXiv numbers in a text."""
  return re.sub(
    r"\d{4}\.\d{5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", published
  )


if __name__ == "__main__":
  if not sys.argv[1:]:
    sys.exit("error: give at least one results.json.")
  main(sys.argv[1:])
