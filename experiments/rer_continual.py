"""Compares Meta-Experience Replay (MER) with other methods on streams of tasks.

  python -m experiments.rer_continual --stream=rotations

A stream has 10 tasks of scikit-learn's digits. Each task turns the digits
further, or permutes their pixels anew. Online SGD, elastic weight consolidation
(EWC), plain replay and MER see each example once. Step sizes and strengths are
chosen on streams of validation images. Each method then learns `--num_streams`
new streams, with test images. The script reports the retained accuracy (RA) and
the learning accuracy (LA) of Riemer et al. (2019), and RA - LA, backward
transfer and interference (BTI).

Each kind of stream takes 4 minutes on a shared core. On rotations online SGD
retains 46.9%, EWC 54.1, replay 84.2 and MER 85.9. On permutations they retain
36.9, 41.3, 77.0 and 77.5.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared.digit_streams import (
  Method,
  choose,
  load,
  loss,
  once,
  streams,
)
from metajax import continual
from metajax.evaluation import Estimate, estimate
from metajax.runs import folder, plots, report
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.runs.wall_clock import wall_clock

flags.DEFINE_enum(
  "stream",
  "rotations",
  ["rotations", "permutations"],
  "How tasks differ: images are turned, or their pixels are permuted.",
)
flags.DEFINE_integer("tasks", 10, "Number of tasks in a stream.", 2)
flags.DEFINE_integer("examples", 500, "Number of images of a task.", 1)
flags.DEFINE_integer(
  "capacity", 200, "Number of images in the memory of replay and MER.", 1
)
flags.DEFINE_integer(
  "batch",
  10,
  "Number of images in a step: the new one, and old ones from the memory.",
  1,
)
flags.DEFINE_integer("batches", 2, "Number of steps for each new image.", 1)
flags.DEFINE_integer(
  "hidden", 100, "Number of units of each of the two layers.", 1
)
flags.DEFINE_integer(
  "num_streams",
  10,
  "Number of test streams. Each trains a network of its own.",
  2,
)
UNUSED = (
  "learner steps meta_batch task_chunk inner_steps inner_lr outer_lr "
  "outer_schedule memory eval_tasks log_every eval_every checkpoint_every "
  "coordinator num_processes process_id must_save stall_seconds"
).split()

# Candidates for the step size of SGD, on one image or on the mean of a batch.
STEP_SIZES = (0.01, 0.03, 0.1, 0.3)


def methods() -> dict[str, Method]:
  replay = flag_values("capacity", "batch", "batches")
  return {
    "online": Method(
      functools.partial(continual.online, loss),
      ("step_size",),
      [(a,) for a in STEP_SIZES],
    ),
    "ewc": Method(
      functools.partial(continual.elastic_weights, loss),
      ("step_size", "strength"),
      [(a, c) for a in STEP_SIZES for c in (3.0, 10.0, 30.0, 100.0, 300.0)],
    ),
    "replay": Method(
      functools.partial(continual.replayed, loss, **replay),
      ("step_size",),
      [(a,) for a in STEP_SIZES],
    ),
    "mer": Method(
      functools.partial(continual.meta_experience_replay, loss, **replay),
      ("step_size", "within"),
      [(a, b) for a in STEP_SIZES[1:] for b in (0.03, 0.1, 0.3, 1.0)],
    ),
  }


def main() -> None:
  workdir = folder.start("rer_continual")
  if report.show_finished(workdir, "streams", saves_learner=False):
    return
  clock = wall_clock(workdir)
  train, validation, test = load()
  both = jax.tree.map(lambda *x: jnp.concatenate(x), train, validation)
  trial = streams(train, validation, "validation", 1 + FLAGS.num_streams // 2)
  final = streams(both, test, "test", FLAGS.num_streams)
  metrics: dict[str, Estimate] = {}
  retained: dict[str, np.ndarray] = {}
  chosen: dict[str, dict[str, float]] = {}
  curves: dict[str, dict[float, Estimate]] = {}
  for name, method in methods().items():
    best, accuracies = once(
      workdir / f"{name}.npz", lambda m=method: choose(m, trial, final)
    )
    chosen[name] = dict(zip(method.names, method.values[best], strict=True))
    last, own = accuracies[:, -1], accuracies.diagonal(axis1=1, axis2=2)
    retained[name] = last.mean(-1)
    metrics[f"{name}_ra"] = estimate(retained[name])
    metrics[f"{name}_la"] = estimate(own.mean(-1))
    metrics[f"{name}_bti"] = estimate((last - own).mean(-1))
    curves[name] = {
      i + 1: estimate(accuracies[:, i, : i + 1].mean(-1))
      for i in range(FLAGS.tasks)
    }
    print(
      f"{name}: {metrics[f'{name}_ra'].mean:.1f}% retained, {chosen[name]}, "
      f"{clock():.0f} s so far",
      file=sys.stderr,
    )
  gain = retained["mer"] - retained["replay"]
  metrics["mer_minus_replay_ra"] = estimate(gain)
  plots.curves(
    workdir / "retained.png",
    curves,
    "tasks learned so far",
    "mean accuracy on them in percent",
  )
  report.finish_whole(
    workdir,
    "rer_continual",
    {
      **flag_values("stream", "tasks", "examples", "num_streams", "hidden"),
      **flag_values("capacity", "batch", "batches"),
      "numbers_of_methods": chosen,
      "images": {
        "train": len(train.targets),
        "validation": len(validation.targets),
        "test": len(test.targets),
      },
      "eval_seed": FLAGS.eval_seed,
    },
    metrics,
    seconds=clock(),
    of="streams",
    steps=FLAGS.tasks * FLAGS.examples,
  )


if __name__ == "__main__":
  run(main, unused=UNUSED)
