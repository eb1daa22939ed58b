"""Learns an optimizer, and tests it on longer, wider and other trainings.

  python -m experiments.learned_optimizer

The optimizer is a small MLP on features of each parameter (Metz et al. 2019).
It is meta-trained on trainings of an MLP on scikit-learn's digits, by
persistent evolution strategies (PES, Vicol et al. 2021) and by truncated
backpropagation. The objective is the mean loss of the minibatches. It is
compared with Adam, whose step size has the lowest mean loss of a grid on the
same training, and with Adam tuned so on each test. The tests are five times as
many steps, four times as many hidden units, scikit-learn's breast cancer data,
and Omniglot if --data_dir or METAJAX_DATA_DIR has it. All optimizers get the
same steps and batches. A run that was stopped goes on at the last finished
tenth of a meta-training.

It took 34 minutes on a busy shared core. With --sigma=0.01 --outer_lr=3e-3
--outer_schedule=constant the mean loss on the digits is 0.156 by truncated
backpropagation, 0.236 by PES, and 0.216 with Adam.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments.shared import descents, optimizee_curves, optimizees
from metajax import bilevel, learned_optimizers
from metajax.evaluation import Estimate, estimate_over_seeds
from metajax.runs import folder, report, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.runs.wall_clock import wall_clock
from metajax.types import PRNGKey

flags.DEFINE_integer("window", 20, "Number of inner steps in a window.", 1)
flags.DEFINE_integer("workers", 2, "Number of trainings at once.", 1)
flags.DEFINE_integer("pairs", 4, "Number of antithetic pairs, with PES.", 1)
flags.DEFINE_float(
  "sigma", 0.03, "Deviation of the noise of the pairs.", lower_bound=1e-6
)
flags.DEFINE_integer("hidden", 32, "Number of hidden units.", 1)
flags.DEFINE_integer("batch", 64, "Number of training images in a step.", 1)
flags.DEFINE_integer("trainings", 10, "Number of seeds of the tests.", 2)
DEFAULTS: dict[str, Any] = {"steps": 1000, "inner_steps": 200}
DEFAULTS |= {"outer_lr": 1e-2, "outer_schedule": "cosine"}
UNUSED = (
  "learner meta_batch task_chunk inner_lr memory eval_tasks log_every "
  "eval_every checkpoint_every coordinator num_processes process_id must_save "
  "stall_seconds"
).split()
VALIDATION = 5  # Seeds of a choice.


def meta_train(
  name: str,
  problem: optimizees.Problem,
  seed: PRNGKey,
  path: Path,
  saved: Callable[[], object],
) -> tuple[Any, float]:
  """Meta-trains, or goes on from the last checkpoint in a folder.

  `saved` is called after each checkpoint.

  Returns:
    The learned parameters with the lowest loss of validation seeds, and the
    seconds of CPU time.
  """
  learned = learned_optimizers.mlp_optimizer()
  init_key, start_key, key = jax.random.split(seed, 3)
  theta = learned.init(init_key)
  begin, step = optimizees.loop(problem, learned.optimizer, theta)
  horizon = problem.steps // FLAGS.window
  build = getattr(bilevel, name)
  if name == "persistent_evolution":
    build = functools.partial(build, **flag_values("sigma", "pairs"))
  descender = bilevel.descent(
    build(begin, bilevel.of_steps(step, FLAGS.window), horizon),
    optax.chain(
      optax.clip_by_global_norm(1.0),
      training.outer_optimizer(FLAGS.outer_schedule),
    ),
    workers=FLAGS.workers,
    horizon=horizon,
  )
  trained = optimizees.trainer(problem, learned.optimizer)
  keys = optimizees.validation_keys(VALIDATION)
  return descents.descend(
    descender,
    descender.init(theta, start_key),
    key,
    FLAGS.steps,
    lambda theta: trained(theta, keys).losses.mean(),
    path,
    saved,
  )


def main() -> None:
  problems, keys = optimizees.problems(), optimizees.test_keys()
  workdir = folder.start("learned_optimizer")
  if report.show_finished(workdir, "seeds", saves_learner=False):
    return
  clock = wall_clock(workdir)
  validation = optimizees.validation_keys(VALIDATION)
  thetas, seconds = {}, {}
  for name in ("persistent_evolution", "truncated_backpropagation"):
    thetas[name], seconds[name] = meta_train(
      name,
      problems["digits"],
      jax.random.key(FLAGS.seed),
      workdir / name,
      clock,
    )
    learned_optimizers.save(workdir / f"{name}.safetensors", thetas[name])
  curves: dict[str, dict[str, optimizee_curves.Curves]] = {}
  rates: dict[str, float] = {}
  metrics: dict[str, Estimate] = {}
  for problem_name, problem in problems.items():
    adam = optimizees.trainer(problem, optax.adam)
    rates[problem_name] = optimizees.tuned(adam, validation)
    mlp = optimizees.trainer(
      problem, learned_optimizers.mlp_optimizer().optimizer
    )
    found = {name: mlp(theta, keys) for name, theta in thetas.items()}
    found["adam"] = adam(jnp.float32(rates["digits"]), keys)
    if problem_name != "digits":
      found["adam_tuned_here"] = adam(jnp.float32(rates[problem_name]), keys)
    curves[problem_name] = found
    for name, values in found.items():
      adams = optimizee_curves.scores(found["adam"])
      for part, mine in optimizee_curves.scores(values).items():
        key = f"{problem_name}_{part}_{name}"
        metrics[key] = estimate_over_seeds(mine.tolist(), len(mine))
        if name != "adam":
          metrics[f"{key}_minus_adam"] = estimate_over_seeds(
            (mine - adams[part]).tolist(), len(mine)
          )
  optimizee_curves.draw(
    workdir / "learned_optimizer.png",
    {name: problem.steps for name, problem in problems.items()},
    curves,
  )
  report.finish_whole(
    workdir,
    "learned_optimizer",
    {
      **flag_values("window", "workers", "pairs", "sigma", "hidden", "batch"),
      **flag_values("inner_steps", "outer_lr", "outer_schedule", "trainings"),
      "adam_step_sizes": rates,
      "meta_training_cpu_seconds": seconds,
      "median_losses": {
        name: {k: optimizee_curves.medians(v) for k, v in found.items()}
        for name, found in curves.items()
      },
      "metrics": "loss: of the training set, mean over a training; last_loss: "
      "over its last tenth; accuracy: of the test set at the end, in percent; "
      "intervals of Student's t over seeds, which all optimizers share",
    },
    metrics,
    seconds=clock(),
    of="seeds",
  )


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=UNUSED)
