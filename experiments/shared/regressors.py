"""Trains networks that each regress one sine wave."""

import functools

import jax
import jax.numpy as jnp
import optax
from absl import flags

from metajax import aggregation, inner_loop
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.runs.flags import FLAGS
from metajax.runs.stages import Stages
from metajax.tasks import sinusoid
from metajax.training import cohort_trainer
from metajax.training.loop import Schedule
from metajax.types import Array, Batch, Metrics, Params, PRNGKey

flags.DEFINE_integer(
  "regressors",
  500,
  "Number of networks to combine, each trained on one sine curve.",
  lower_bound=2,
)
flags.DEFINE_integer(
  "cohort",
  50,
  "Number of networks trained at once. Must divide --regressors. With "
  "--to_mean, networks are pulled to the mean of earlier cohorts.",
  lower_bound=1,
)
flags.DEFINE_integer(
  "regressor_steps",
  5000,
  "Number of steps of Adam for each network.",
  lower_bound=1,
)
flags.DEFINE_bool(
  "shared_init",
  True,
  "Start all networks from the same random parameters. If false, each "
  "starts from its own.",
)
flags.DEFINE_float(
  "l2",
  1e-3,
  "Weight of the squared norm of the parameters, for the rows with l2.",
  lower_bound=0.0,
)
flags.DEFINE_float(
  "to_mean",
  2e-3,
  "Weight of the squared distance to the mean of earlier networks, for the "
  "rows of that name.",
  lower_bound=0.0,
)

MODEL = MLP(num_outputs=1, hidden=(40, 40))
LAYERS = [["Dense_0"], ["Dense_1"], ["Dense_2"]]
CURVE = sinusoid(1000, 200)  # Training and test points of a regressor.
BATCH = 40
# Of the keys beside those that draw the curve, which are split from the same.
BATCHES, NOISE, START = 0x5EED1, 0x5EED2, 0x5EED3


def init(rng: PRNGKey) -> Params:
  return MODEL.init(rng, jnp.zeros((1, 1)))


def unit_axes() -> aggregation.UnitAxes:
  return aggregation.chain_axes(init(jax.random.key(0)), LAYERS)


def error(params: Params, batch: Batch) -> Array:
  return mean_squared_error(MODEL.apply(params, batch.inputs), batch.targets)


def own_error(rng: PRNGKey, params: Params) -> Array:
  """Returns the error on new points of the curve of a key."""
  return error(params, CURVE(rng).query)


def train(
  rng: PRNGKey,
  params: Params,
  mean: Params,
  count: Array,
  *,
  num_steps: int,
  penalty: float = 0.0,
  to_mean: bool = False,
) -> tuple[Params, Metrics]:
  """Fits the curve of a key by Adam, for `cohort_trainer`.

  Args:
    rng: the key of the curve and of the batches.
    params: the initial parameters.
    mean: the mean of the regressors trained before.
    count: the number of regressors trained before.
    num_steps: steps of Adam, with a cosine schedule from 0.02.
    penalty: weight of the squared distance to zero, or to `mean`.
    to_mean: if True, the distance is that to `mean`. There is then no penalty
      while `count` is 0.
  """
  support = CURVE(rng).support
  batches = jax.random.fold_in(rng, BATCHES)
  centre = mean if to_mean else optax.tree.zeros_like(mean)
  weight = penalty * ((count > 0) if to_mean else 1.0)

  def loss(params: Params, step: Array) -> Array:
    chosen = jax.random.choice(
      jax.random.fold_in(batches, step), len(support.inputs), (BATCH,)
    )
    batch = jax.tree.map(lambda x: x[chosen], support)
    distance = optax.tree.sub(params, centre)
    return error(params, batch) + weight * optax.tree.norm(
      distance, squared=True
    )

  optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
  params = inner_loop.minimize(loss, params, optimizer, num_steps).params
  return params, {"mse": own_error(rng, params)}


def train_all(
  stages: Stages, name: str, rng: PRNGKey, pull: str = ""
) -> Params:
  """Trains --regressors networks from the flags, and returns their stack.

  Args:
    stages: the trainings of the experiment.
    name: the name of this training.
    rng: the key from which the keys of the curves are derived.
    pull: the penalty: "l2" to zero, "to_mean" to the mean of the regressors
      before, or "" for none.
  """
  shared = jax.random.fold_in(rng, FLAGS.regressors)

  def start(key: PRNGKey) -> Params:
    own = jax.random.fold_in(key, START)
    return init(shared if FLAGS.shared_init else own)

  weight = {"": 0.0, "l2": FLAGS.l2, "to_mean": FLAGS.to_mean}[pull]
  trainer = cohort_trainer(
    start,
    functools.partial(
      train,
      num_steps=FLAGS.regressor_steps,
      penalty=weight,
      to_mean=pull == "to_mean",
    ),
    FLAGS.regressors,
    FLAGS.cohort,
    rng=rng,
  )
  schedule = Schedule(FLAGS.regressors // FLAGS.cohort, 1, 1, 1)
  return stages.train(name, trainer, schedule, FLAGS.cohort).state.meta_params


def fisher(rng: PRNGKey, params: Params) -> Params:
  """Returns the Fisher information of a regressor, with unit noise."""
  inputs = CURVE(rng).query.inputs
  predictions = MODEL.apply(params, inputs)
  noise = jax.random.fold_in(rng, NOISE)
  targets = predictions + jax.random.normal(noise, predictions.shape)

  def log_likelihood(params: Params, x: Array, y: Array) -> Array:
    return -jnp.sum(jnp.square(y - MODEL.apply(params, x[None])[0])) / 2

  return aggregation.fisher_diagonal(
    log_likelihood, params, Batch(inputs, targets)
  )


def lines_between_pairs(
  rng: PRNGKey, num_pairs: int, num_steps: int
) -> dict[str, Array]:
  """Measures errors on the lines between pairs of regressors of one curve.

  Returns:
    Errors `[pairs, points]`, by "as trained" and "aligned". In the second, the
    units of the second regressor are matched to those of the first.
  """

  @jax.jit
  @jax.vmap
  def pair(curve_key: PRNGKey, init_key: PRNGKey) -> tuple[Params, Params]:
    starts = [init(key) for key in jax.random.split(init_key)]
    one, other = (
      train(curve_key, s, s, 0, num_steps=num_steps)[0] for s in starts
    )
    return one, other

  @jax.jit
  @jax.vmap
  def line(curve_key: PRNGKey, one: Params, other: Params) -> Array:
    return aggregation.loss_barrier(
      lambda params: own_error(curve_key, params), one, other
    ).losses

  curve_keys, init_keys = jax.random.split(rng, (2, num_pairs))
  one, other = pair(curve_keys, init_keys)
  axes, aligned = unit_axes(), []
  for index in range(num_pairs):
    a, b = (jax.tree.map(lambda x, i=index: x[i], p) for p in (one, other))
    order = aggregation.match_units(a, b, axes)
    aligned.append(aggregation.permute_units(b, order, axes))
  return {
    "as trained": line(curve_keys, one, other),
    "aligned": line(curve_keys, one, aggregation.stack_models(aligned)),
  }
