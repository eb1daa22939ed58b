"""Tunes a penalty for each feature by hypergradients, and by search.

  python -m experiments.hyperparameters

There are two problems. Ridge regression has 30 features, of which 6 matter, and
100 examples. Its inner problem is solved in closed form. Logistic regression
has scikit-learn's breast cancer data, 30 features, and 100 training examples.
Its inner problem is solved by warm-started gradient descent. Hypergradients are
implicit. A grid of shared penalties and random penalties of each feature get
the same CPU time. The script reports the loss on validation and test examples
(without the penalty) over random splits, and for ridge regression the error of
the hypergradient relative to its closed form.

It takes 2 minutes on a shared core. With hypergradients the validation loss of
ridge regression is 1.87, with the grid 2.54, and with random search 2.17.
"""

import sys
import time

import numpy as np
from absl import flags

from experiments.shared import penalties, penalty_plots
from metajax.evaluation import Estimate, estimate
from metajax.runs import folder, report
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run

flags.DEFINE_integer("splits", 20, "Number of random splits.", 2)
DEFAULTS = {"steps": 300, "outer_lr": 0.1}
UNUSED = (
  "learner meta_batch task_chunk inner_steps inner_lr outer_schedule memory "
  "eval_tasks eval_seed log_every eval_every checkpoint_every coordinator "
  "num_processes process_id must_save stall_seconds"
).split()


def main() -> None:
  workdir = folder.start("hyperparameters")
  if report.show_finished(workdir, "splits", saves_learner=False):
    return
  began = time.perf_counter()
  metrics: dict[str, Estimate] = {}
  curves: dict[str, dict[str, penalties.Tuned]] = {}
  for name, problem in penalties.problems(FLAGS.splits).items():
    tuned = {"hypergradients": penalties.descend(problem)}
    budget = tuned["hypergradients"].cpu_seconds
    tuned["grid"] = penalties.search(problem, "grid", budget)
    tuned["random"] = penalties.search(problem, "random", budget)
    curves[name] = tuned
    for method, found in tuned.items():
      best = found.validation.argmin(1)
      rows = np.arange(len(best))
      for part in ("validation", "test"):
        values = getattr(found, part)[rows, best]
        metrics[f"{name}_{part}_{method}"] = estimate(values)
        if method != "hypergradients":
          first = tuned["hypergradients"]
          own = getattr(first, part)[rows, first.validation.argmin(1)]
          key = f"{name}_{part}_hypergradients_minus_{method}"
          metrics[key] = estimate(own - values)
      print(
        f"{name}, {method}: {found.validation.shape[1]} trials in "
        f"{found.cpu_seconds:.2f} CPU s, validation loss "
        f"{metrics[f'{name}_validation_{method}'].mean:.4f}",
        file=sys.stderr,
      )
  metrics["ridge_hypergradient_error"] = estimate(
    penalties.errors_of_ridge(FLAGS.splits)
  )
  penalty_plots.draw(workdir / "penalties.png", curves)
  report.finish_whole(
    workdir,
    "hyperparameters",
    {
      **flag_values("splits", "outer_lr"),
      "trials": {
        name: {k: v.validation.shape[1] for k, v in tuned.items()}
        for name, tuned in curves.items()
      },
      "cpu_seconds": {
        name: {k: v.cpu_seconds for k, v in tuned.items()}
        for name, tuned in curves.items()
      },
      "metrics": "losses without penalty; intervals over splits",
    },
    metrics,
    seconds=time.perf_counter() - began,
    of="splits",
  )


if __name__ == "__main__":
  # The inner problem of ridge regression factorises matrices.
  run(main, defaults=DEFAULTS, unused=UNUSED, spare_threads=True)
