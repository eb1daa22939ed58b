"""Draws the results of scripts/benchmark.py --suite=inner_loop --json.

  python scripts/benchmark.py --suite=inner_loop --blocks=8 --blocks=24 --json \
      > inner_loop.jsonl
  python scripts/plot_inner_loop.py inner_loop.jsonl inner_loop.png

The picture shows the memory of the compiled program against the inner steps of
the MLP and of the transformer, and against the blocks and the width of the
transformer. All other sizes are those of the model's first line. The script
ignores lines of other suites.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = (
  ("mlp", "inner_steps"),
  ("transformer", "inner_steps"),
  ("transformer", "blocks"),
  ("transformer", "width"),
)
SIZES = {"inner_steps", "blocks", "width"}


def main(source: str, picture: str) -> None:
  lines = Path(source).read_text().splitlines()
  found = [json.loads(line) for line in lines if line.startswith("{")]
  results = [r for r in found if "peak_temp_bytes" in r and "memory" in r]
  figure, grid = plt.subplots(2, 2, figsize=(8.4, 6.4), layout="constrained")
  for axes, (model, against) in zip(grid.flat, PANELS, strict=True):
    chosen = [r for r in results if r["model"] == model]
    if not chosen:
      sys.exit(f"error: {source} has no line of the {model}.")
    fixed = {size: chosen[0][size] for size in SIZES - {against}}
    chosen = [r for r in chosen if fixed.items() <= r.items()]
    for way in dict.fromkeys(r["memory"] for r in chosen):
      points = sorted(
        (r[against], r["peak_temp_bytes"] / 1e6)
        for r in chosen
        if r["memory"] == way
      )
      axes.plot(*zip(*points, strict=True), "o-", ms=3, label=way)
    axes.set(
      xscale="log",
      yscale="log",
      xlabel=f"{against.replace('_', ' ')} ({model})",
      ylabel="temporaries in MB",
    )
    axes.grid(alpha=0.3)
    values = sorted({r[against] for r in chosen})
    axes.set_xticks(values, map(str, values))
    axes.minorticks_off()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
  figure.savefig(picture, dpi=120)
  print(picture)


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("error: give the lines of JSON and the picture to be made.")
  try:
    main(*sys.argv[1:])
  except (OSError, ValueError) as failure:
    sys.exit(f"error: {failure}")
