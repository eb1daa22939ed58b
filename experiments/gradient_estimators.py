"""Compares estimators of the gradient of a long loop, as the loop grows.

  python -m experiments.gradient_estimators

The loop is influence balancing (Tallec and Ollivier 2017), whose gradient is
known: 23 units, linear in one outer parameter, with a quadratic loss. The loop
is cut into windows of `--window` steps. The script compares backpropagation,
truncated backpropagation, evolution strategies (ES), truncated ES, persistent
ES (PES, Vicol et al. 2021) and noise-reuse ES (NRES, Li et al. 2023). It
reports the estimate of a whole loop divided by the exact gradient, its
deviation between loops, and its CPU time.

It takes 7 minutes on a shared core. At 10,000 steps the truncated estimators
are -0.90 times the exact gradient, and PES 1.01 +- 0.06 times.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import estimator_plots
from metajax import bilevel
from metajax.evaluation import Estimate, estimate
from metajax.runs import folder, report
from metajax.runs.flags import FLAGS, define_integers, flag_values
from metajax.runs.script import run
from metajax.types import Array, PRNGKey

define_integers(
  "unroll",
  [10, 100, 1000, 10_000],
  "Numbers of steps in a loop.",
  lower_bound=1,
)
flags.DEFINE_integer("window", 10, "Number of steps in a window.", 1)
flags.DEFINE_integer("pairs", 10, "Number of antithetic pairs.", 1)
flags.DEFINE_float(
  "sigma", 0.1, "Deviation of the noise of the pairs.", lower_bound=1e-6
)
flags.DEFINE_float("outer", 0.5, "The outer parameter.")
flags.DEFINE_integer(
  "loops", 64, "Number of loops that the bias is measured on.", 2
)
UNUSED = (
  "learner steps meta_batch task_chunk inner_steps inner_lr outer_lr "
  "outer_schedule memory eval_tasks eval_seed log_every eval_every "
  "checkpoint_every coordinator num_processes process_id must_save "
  "stall_seconds"
).split()
WHOLE = ("backpropagation", "evolution")  # One call is a whole loop.


def estimators(horizon: int) -> dict[str, bilevel.Estimator]:
  begin, step = bilevel.influence_balancing()
  problem = begin, bilevel.of_steps(step, FLAGS.window), horizon
  noise = flag_values("sigma", "pairs")
  return {
    "backpropagation": bilevel.backpropagation(*problem),
    "truncated_backpropagation": bilevel.truncated_backpropagation(*problem),
    "evolution": bilevel.evolution(*problem, **noise),
    "truncated_evolution": bilevel.truncated_evolution(*problem, **noise),
    "persistent_evolution": bilevel.persistent_evolution(*problem, **noise),
    "noise_reuse_evolution": bilevel.noise_reuse_evolution(*problem, **noise),
  }


def of_loop(
  estimator: bilevel.Estimator, calls: int, outer: Array, rng: PRNGKey
) -> Array:
  """Averages the estimates of one loop."""

  def step(state, key):
    grads, _, state = estimator.estimate(state, outer, key)
    return state, grads

  init_key, key = jax.random.split(rng)
  state = estimator.init(outer, init_key)
  return jax.lax.scan(step, state, jax.random.split(key, calls))[1].mean()


def main() -> None:
  for steps in FLAGS.unroll:
    if steps % FLAGS.window:
      raise ValueError(
        f"--unroll={steps}: must be a multiple of --window={FLAGS.window}."
      )
    exact = bilevel.exact_gradient(FLAGS.outer, steps)
    if not exact or not np.isfinite(exact):
      raise ValueError(
        f"--outer={FLAGS.outer}: the exact gradient is {exact} there, and the "
        "results are multiples of it; give another."
      )
  workdir = folder.start("gradient_estimators")
  if report.show_finished(workdir, "loops", saves_learner=False):
    return
  began = time.perf_counter()
  metrics: dict[str, Estimate] = {}
  table: dict[str, dict[int, dict[str, float]]] = {}
  for steps in FLAGS.unroll:
    exact = bilevel.exact_gradient(FLAGS.outer, steps)
    for name, estimator in estimators(steps // FLAGS.window).items():
      calls = 1 if name in WHOLE else steps // FLAGS.window
      one = functools.partial(of_loop, estimator, calls)
      keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.loops)
      # One outer parameter for each loop: without noise of its own, a loop
      # would be computed once for all keys, and its time would be wrong.
      outer = jnp.full(FLAGS.loops, FLAGS.outer, jnp.float32)
      of_loops = jax.jit(jax.vmap(one)).lower(outer, keys).compile()
      started = time.process_time()
      grads = np.asarray(of_loops(outer, keys), np.float64)
      spent = time.process_time() - started
      metrics[f"{name}_{steps}"] = estimate(grads / exact)
      table.setdefault(name, {})[steps] = {
        "ratio": grads.mean() / exact,
        "error": grads.std(ddof=1) / np.sqrt(len(grads)) / abs(exact),
        "deviation": grads.std(ddof=1) / abs(exact),
        "cpu_seconds": spent / FLAGS.loops,
      }
      row = {k: f"{v:.3g}" for k, v in table[name][steps].items()}
      print(f"{steps} steps, {name}: {row}", file=sys.stderr)
  estimator_plots.draw(workdir / "estimators.png", table)
  report.finish_whole(
    workdir,
    "gradient_estimators",
    {
      **flag_values("unroll", "window", "pairs", "sigma", "outer", "loops"),
      "metrics": "mean estimate of a loop / exact gradient; intervals over "
      "loops",
      "table": table,
    },
    metrics,
    seconds=time.perf_counter() - began,
    of="loops",
    steps=max(FLAGS.unroll),
  )


if __name__ == "__main__":
  run(main, unused=UNUSED)
