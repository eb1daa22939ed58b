"""Draws a metric of several runs against meta-steps and against time.

  python scripts/compare_runs.py --runs=runs/maml,runs/bmg \
      --metric=validation/accuracy --out=comparison.png

reads the `config.json` and `metrics.jsonl` of each workdir. Time is that of the
meta-steps, without compilation, validation and checkpoints. Prints where each
run stands at the end, and how far each is when the fastest has used all its
time.
"""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from absl import app, flags

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "Workdirs of runs, finished or not.")
flags.DEFINE_string("metric", "validation/accuracy", "A name in metrics.jsonl.")
flags.DEFINE_string("out", "comparison.png", "The picture, a PNG file.")
flags.DEFINE_bool("log", False, "Whether the metric's axis is logarithmic.")
flags.mark_flag_as_required("runs")


def read(folder: Path, metric: str) -> list[tuple[int, float, float]]:
  """Returns `(meta-step, seconds, value)` wherever the metric is recorded."""
  try:
    config = json.loads((folder / "config.json").read_text())["flags"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(f"--runs: {folder} is no workdir ({error}).") from error
  # Only lines that are due by --log_every have a rate: that since the last one.
  records = [json.loads(line) for line in lines]
  rated = [r for r in records if "tasks_per_second" in r]
  steps = np.array([0] + [r["step"] for r in rated])
  rates = np.array([r["tasks_per_second"] for r in rated])
  seconds = np.cumsum(np.diff(steps) * config["meta_batch"] / rates)
  points = [
    (r["step"], np.interp(r["step"], steps, [0, *seconds]), float(r[metric]))
    for r in records
    if metric in r
  ]
  if not points:
    raise ValueError(f"--metric={metric}: {folder} has none recorded.")
  return points


def main(argv: list[str]) -> None:
  del argv
  folders = [Path(name) for name in FLAGS.runs]
  if len({folder.name for folder in folders}) < len(folders):
    sys.exit(
      "error: --runs: two of the folders have the same name, by which runs are "
      "told apart: rename one."
    )
  try:
    runs = {folder.name: read(folder, FLAGS.metric) for folder in folders}
  except ValueError as error:
    sys.exit(f"error: {error}")
  figure, panels = plt.subplots(
    1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
  )
  shortest = min(points[-1][1] for points in runs.values())
  print(f"{'run':20} {'steps':>8} {'seconds':>8}  {FLAGS.metric}")
  for name, points in runs.items():
    steps, seconds, values = zip(*points, strict=True)
    for axes, places in zip(panels, (steps, seconds), strict=True):
      axes.plot(places, values, marker=".", label=name)
    print(f"{name:20} {steps[-1]:8} {seconds[-1]:8.1f}  {values[-1]:.4f}")
    near = min(points, key=lambda point: abs(point[1] - shortest))
    if len(runs) > 1:
      when = f"  after {shortest:.0f} s"
      print(f"{when:20} {near[0]:8} {near[1]:8.1f}  {near[2]:.4f}")
  panels[0].set(xlabel="meta-steps", ylabel=FLAGS.metric)
  panels[1].set(xlabel="seconds of meta-training")
  for axes in panels:
    axes.grid(alpha=0.3)
    if FLAGS.log:
      axes.set_yscale("log")
  panels[0].legend()
  figure.savefig(FLAGS.out, dpi=110)
  print(FLAGS.out)


if __name__ == "__main__":
  app.run(main)
