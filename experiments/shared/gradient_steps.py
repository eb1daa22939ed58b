"""Layers of linear attention beside as many steps of gradient descent."""

import numpy as np
import optax
from absl import flags

from metajax.context import attention_descent, linear_attention
from metajax.context.regressors import best_step
from metajax.evaluation import Estimate, estimate
from metajax.learners import meta_sgd
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.runs import plots, scoring
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.stages import Stages
from metajax.tasks.linear_regression import linear_regression
from metajax.types import Array, MetaLearner, Params

KINDS = ("descent", "descent_plus_plus", "attention", "meta_sgd")
flags.DEFINE_multi_integer(
  "gradient_steps",
  [1, 2, 4],
  "Gradient steps, and layers of attention; repeat for several.",
  lower_bound=1,
)
flags.DEFINE_list(
  "rows", [], f"Learners beside descent, of {', '.join(KINDS)}; all if empty."
)
OWN_FLAGS = ("gradient_steps", "rows")


def study(experiment: str) -> tuple[Stages, dict, dict]:
  """Trains each row. Returns entries of the protocol, and metrics."""
  for name in FLAGS.rows:
    if name not in KINDS:
      raise ValueError(f"--rows={name}: must be of {', '.join(KINDS)}.")
  shots = FLAGS.points - 1
  tasks = linear_regression(
    FLAGS.dims, shots=shots, query_shots=shots, noise=FLAGS.noise
  )
  stages = Stages(experiment)
  values: dict[str, np.ndarray] = {}
  lines: dict[str, dict[float, Estimate]] = {}
  step_sizes = {}
  for kind in dict.fromkeys(["descent", *(FLAGS.rows or KINDS)]):
    for steps in FLAGS.gradient_steps:
      if kind == "descent_plus_plus" and steps == 1:
        continue  # The inputs are contracted after the only step.
      name = f"{kind}_{steps}"
      learner = _learner(kind, steps)
      params = stages.meta_train(name, learner, tasks)
      score = scoring.task_scorer(
        learner, tasks, {"error": _error}, "test", FLAGS.eval_tasks
      )
      values[name] = score(params)["error"]
      lines.setdefault(kind, {})[steps] = estimate(values[name])
      if kind != "attention":
        step_sizes[name] = _step_size(params)
  plots.curves(
    stages.workdir / "gradient_steps.png",
    lines,
    "gradient steps, or layers",
    "squared error / inputs",
  )
  pairs = [(name, f"descent_{name.split('_')[-1]}") for name in values]
  pairs = [(one, other) for one, other in pairs if one != other]
  ratios = {
    f"{one} / {other}": float(values[one].mean() / values[other].mean())
    for one, other in pairs
  }
  print("\nerrors as multiples of those of gradient descent:")
  for name, ratio in ratios.items():
    print(f"  {name:32} {ratio:.4f}")
  rate, error = best_step(FLAGS.dims, shots, FLAGS.noise)
  protocol = {
    **flag_values(*OWN_FLAGS),
    "step_sizes": step_sizes,
    "best_step": {"step_size": rate, "error": error / FLAGS.dims},
    "ratios": ratios,
  }
  metrics = {name: estimate(value) for name, value in values.items()}
  return stages, protocol, metrics | scoring.differences(values, pairs)


def _learner(kind: str, steps: int) -> MetaLearner:
  loss = mean_squared_error
  if kind == "attention":
    return linear_attention(loss, num_layers=steps)
  if kind == "meta_sgd":
    model, sgd = MLP(1, hidden=()), optax.sgd(FLAGS.inner_lr)
    return meta_sgd(model, loss, sgd, steps, memory=FLAGS.memory)
  plus_plus = kind == "descent_plus_plus"
  return attention_descent(loss, num_steps=steps, plus_plus=plus_plus)


def _step_size(params: Params) -> float:
  """Returns the learned rate of half the squared error; Meta-SGD's mean."""
  if "rate" in params:
    return float(params["rate"])
  (layer,) = params["rates"]["params"].values()
  return float(2 * FLAGS.inner_lr * layer["kernel"].mean())


def _error(predictions: Array, targets: Array) -> Array:
  return mean_squared_error(predictions, targets) / FLAGS.dims
