"""The error of a transformer after each number of examples, beside rivals."""

import jax
from absl import flags

from metajax.batches import concatenate
from metajax.context import sequence_transformer, transformer_learner
from metajax.context.regressors import (
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
from metajax.types import Array, Params

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

  @jax.jit
  def errors(params: Params, keys: Array) -> dict[str, Array]:
    def of_task(key: Array) -> dict[str, Array]:
      batch = concatenate(*tasks(key))
      read = {"transformer": network.read(params, batch)[0]}
      read |= {name: every_prefix(f, batch) for name, f in rivals.items()}
      scores = jax.vmap(mean_squared_error, (0, 0))
      return {k: scores(v, batch.targets) / FLAGS.dims for k, v in read.items()}

    return jax.lax.map(of_task, keys, batch_size=50)

  rng = rng_keys.evaluation_key("test")
  found = errors(params, evaluation_keys(rng, FLAGS.eval_tasks))
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
