"""Layers of linear attention beside as many steps of gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from absl import flags
from jax.flatten_util import ravel_pytree

from metajax.context import attention_descent, linear_attention
from metajax.context.regressors import best_step
from metajax.evaluation import Estimate, estimate
from metajax.learners import meta_sgd
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.runs import plots, rng_keys, scoring, training
from metajax.runs.flags import FLAGS, define_integers, flag_values
from metajax.runs.stages import Stages
from metajax.tasks.linear_regression import linear_regression
from metajax.training.logging import waiting
from metajax.types import Array, MetaLearner, Params, TaskFamily

TRAINED = ("attention", "meta_sgd")
CLIP = 10.0  # The largest norm of a gradient, as in the paper.
TUNING_TASKS = 10_000  # Tasks on which step sizes are best.
define_integers(
  "gradient_steps",
  [1, 2, 4],
  "Gradient steps, and layers of attention.",
  lower_bound=1,
)
flags.DEFINE_list(
  "rows", [], f"What is trained, of {', '.join(TRAINED)}; all if empty."
)
OWN_FLAGS = ("gradient_steps", "rows")


def study(experiment: str) -> tuple[Stages, dict, dict]:
  """Trains each row. Returns entries of the protocol, and metrics."""
  for name in FLAGS.rows:
    if name not in TRAINED:
      raise ValueError(f"--rows={name}: must be of {', '.join(TRAINED)}.")
  shots = FLAGS.points - 1
  tasks = linear_regression(
    FLAGS.dims, shots=shots, query_shots=shots, noise=FLAGS.noise
  )
  stages = Stages(experiment)
  values: dict[str, np.ndarray] = {}
  lines: dict[str, dict[float, Estimate]] = {}
  step_sizes = {}
  for kind in ("descent", "descent_plus_plus", *(FLAGS.rows or TRAINED)):
    for steps in FLAGS.gradient_steps:
      if kind == "descent_plus_plus" and steps == 1:
        continue  # The inputs are contracted after the only step.
      name = f"{kind}_{steps}"
      learner = _learner(kind, steps)
      if kind in TRAINED:
        params = _train(stages, name, learner, tasks)
      else:
        params = _best_step_sizes(learner, tasks)
      score = scoring.task_scorer(
        learner,
        tasks,
        {"error": _error},
        "test",
        FLAGS.eval_tasks,
        task_chunk=100,
      )
      values[name] = score(params)["error"]
      lines.setdefault(kind, {})[steps] = estimate(values[name])
      if kind != "attention":
        step_sizes[name] = _step_sizes(params)
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


def _train(
  stages: Stages, name: str, learner: MetaLearner, tasks: TaskFamily
) -> Params:
  """Meta-trains as the flags say, with clipped gradients.

  The errors of several layers have heavy tails, as have their gradients.
  """
  optimizer = optax.chain(
    optax.clip_by_global_norm(CLIP),
    training.outer_optimizer(FLAGS.outer_schedule),
  )
  trained = stages.train(
    name,
    training.trainer(learner, tasks, optimizer=optimizer),
    training.schedule(),
    FLAGS.meta_batch,
    rates=training.outer_rates(),
  )
  return trained.state.meta_params


@waiting("looking for the best step sizes")
def _best_step_sizes(learner: MetaLearner, tasks: TaskFamily) -> Params:
  """Returns the step sizes of the least error on tasks of the training.

  There are one or two. The simplex finds its way in their narrow valley, in
  which Adam is slow.
  """
  keys = jax.random.split(rng_keys.task_key(), TUNING_TASKS)
  first, unravel = ravel_pytree(learner.init(keys[0], jnp.zeros((1, 1))))

  @jax.jit
  def loss(step_sizes: Array, keys: Array) -> Array:
    def of_task(key: Array) -> Array:
      support, query = tasks(key)
      task_params = learner.adapt(unravel(step_sizes), support, key)
      predictions = learner.predict(task_params, query.inputs)
      return mean_squared_error(predictions, query.targets)

    return jax.lax.map(of_task, keys, batch_size=1000).mean()

  found = scipy.optimize.minimize(
    lambda x: float(loss(jnp.asarray(x, first.dtype), keys)),
    np.full(first.shape, 0.1),
    method="Nelder-Mead",
    options={"xatol": 1e-4, "fatol": 1e-5},
  )
  return unravel(jnp.asarray(found.x, first.dtype))


def _step_sizes(params: Params) -> dict[str, float]:
  """Returns step sizes of half the squared error; of Meta-SGD, their mean."""
  if "rates" not in params:
    return {name: float(value) for name, value in params.items()}
  (layer,) = params["rates"]["params"].values()
  return {"rate": float(2 * FLAGS.inner_lr * layer["kernel"].mean())}


def _error(predictions: Array, targets: Array) -> Array:
  return mean_squared_error(predictions, targets) / FLAGS.dims
