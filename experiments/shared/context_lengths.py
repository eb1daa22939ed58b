"""The error of a transformer after each number of examples, beside rivals."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from metajax.batches import concatenate
from metajax.context import sequence_transformer, transformer_learner
from metajax.context.regressors import (
  Regressor,
  every_prefix,
  least_squares,
  nearest_neighbours,
)
from metajax.evaluation import evaluation_keys
from metajax.losses import mean_squared_error
from metajax.runs import plots, rng_keys, scoring
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.stages import Stages
from metajax.tasks.linear_regression import linear_regression
from metajax.types import Array, Batch, Params, PRNGKey, TaskFamily

flags.DEFINE_integer("width", 64, "Width of the transformer.", lower_bound=1)
flags.DEFINE_integer("layers", 3, "Layers of the transformer.", lower_bound=1)
flags.DEFINE_integer("heads", 2, "Heads of the transformer.", lower_bound=1)
OWN_FLAGS = ("width", "layers", "heads")


def study(experiment: str) -> tuple[Stages, dict, dict]:
  """Trains the transformer. Returns entries of the protocol, and metrics."""
  tasks = linear_regression(
    FLAGS.dims, shots=FLAGS.points - 1, query_shots=1, noise=FLAGS.noise
  )
  network = sequence_transformer(
    positions=FLAGS.points, hidden=4 * FLAGS.width, **flag_values(*OWN_FLAGS)
  )
  learner = transformer_learner(network, mean_squared_error)
  stages = Stages(experiment)
  params = stages.meta_train("transformer", learner, tasks)
  rivals = {
    "least_squares": least_squares,
    "3_nearest_neighbours": nearest_neighbours(3),
  }
  if FLAGS.noise:  # Without noise it is that of least squares.
    rivals["posterior_mean"] = lambda support, x: (
      tasks.posterior(support, x).mean
    )
  readers = {
    "transformer": lambda params, batch: network.read(params, batch)[0]
  }
  for name, rival in rivals.items():
    readers[name] = functools.partial(_read_by, rival)
  rng = rng_keys.evaluation_key("test")
  keys = evaluation_keys(rng, FLAGS.eval_tasks)
  # One program each. A single program of all hung on a CPU, in two of two runs.
  found = {
    name: np.asarray(_errors(tasks, read, params, keys))
    for name, read in readers.items()
  }
  lines = {
    name: plots.line(range(FLAGS.points), values)
    for name, values in found.items()
  }
  plots.curves(
    stages.workdir / "context_lengths.png",
    lines,
    "examples in context",
    "squared error / inputs",
  )
  metrics = {}
  for length in (FLAGS.dims // 2, FLAGS.dims, 2 * FLAGS.dims):
    if length < FLAGS.points:
      at = {name: values[:, length] for name, values in found.items()}
      pairs = [("transformer", name) for name in rivals]
      at_once = {name: lines[name][length] for name in lines}
      at_once |= scoring.differences(at, pairs)
      metrics |= {f"{name}_after_{length}": e for name, e in at_once.items()}
  curves = {
    name: {
      "mean": [e.mean for e in line.values()],
      "ci95": [e.ci95 for e in line.values()],
    }
    for name, line in lines.items()
  }
  return stages, {**flag_values(*OWN_FLAGS), "curves": curves}, metrics


def _read_by(rival: Regressor, params: Params, batch: Batch) -> Array:
  del params
  return every_prefix(rival, batch)


def _errors(
  tasks: TaskFamily,
  read: Callable[[Params, Batch], Array],
  params: Params,
  keys: PRNGKey,
) -> Array:
  """Returns squared errors `[num_tasks, points]`, divided by the inputs."""

  def of_task(params: Params, key: PRNGKey) -> Array:
    batch = concatenate(*tasks(key))
    errors = jax.vmap(mean_squared_error)(read(params, batch), batch.targets)
    return errors / FLAGS.dims

  @jax.jit
  def of_tasks(params: Params, keys: PRNGKey) -> Array:
    return jax.lax.map(functools.partial(of_task, params), keys, batch_size=50)

  return of_tasks(params, keys)
