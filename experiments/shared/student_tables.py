"""The picture and the table of distilled networks."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.shared.student_scores import few_shot_tasks
from metajax.evaluation import Estimate
from metajax.runs import plots
from metajax.runs.flags import FLAGS

Metrics = Mapping[str, Estimate]
Sizes = Mapping[int, Mapping[str, float]]  # By the filters of a network.


def draw(
  path: Path, kinds: Sequence[str], metrics: Metrics, sizes: Sizes
) -> None:
  """Draws accuracy against the number of parameters, by kind of student."""
  lines = {
    kind: {
      sizes[filters]["parameters"]: metrics[f"accuracy/{kind}_{filters}"]
      for filters in FLAGS.student_filters
    }
    for kind in kinds
  }
  size = sizes[FLAGS.filters]["parameters"]
  lines["teacher"] = {size: metrics["accuracy/teacher"]}
  plots.curves(
    path, lines, "parameters, head included", "test accuracy", log="x"
  )


def show(
  names: Iterable[str],
  metrics: Metrics,
  recovered: Mapping[str, float],
  sizes: Sizes,
) -> None:
  """Prints a line for each network, each recovered share, and each size."""
  tasks = few_shot_tasks()
  print(f"\n{'':20} accuracy  agreement  " + "  ".join(tasks))
  for name in names:
    few = [f"{metrics[f'{task}/{name}'].mean:{len(task)}.4f}" for task in tasks]
    print(
      f"{name:20} {metrics[f'accuracy/{name}'].mean:8.4f}  "
      f"{metrics[f'agreement/{name}'].mean:9.4f}  " + "  ".join(few)
    )
  print("\nrecovered of the gap between student alone and teacher:")
  for name, share in recovered.items():
    print(f"  {name:16} {share:.2f}")
  for filters, size in sizes.items():
    print(
      f"  {filters} filters: {size['parameters']} parameters "
      f"({size['parameters_without_head']} without the head), "
      f"{size['milliseconds_of_256']:.1f} ms for 256 images"
    )
