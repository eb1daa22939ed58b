"""Networks that a learned optimizer trains."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits

from experiments.shared.optimizee_curves import Curves
from metajax.losses import accuracy
from metajax.models.mlp import MLP
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.tasks.omniglot import load_omniglot
from metajax.training.logging import waiting
from metajax.types import Array, Batch, Model, Params, PRNGKey

define_data_dir("; without it there is no test on Omniglot")

POINTS = 50  # Of a loss curve, or a divisor of the number of steps.
CHARACTERS = 20  # Of Omniglot.
STEP_SIZES = 10.0 ** np.arange(-3.5, 0, 0.25)
VALIDATION_TAG, TEST_TAG = 0x5EED1, 0x5EED2  # Of keys.
OptimizerOf = Callable[[Any], optax.GradientTransformation]


class Problem(NamedTuple):
  """A classification problem, the network, and the number of steps.

  Attributes:
    train: inputs `[n, features]`, labels `[n]`.
    test: the same.
    model: the network.
    steps: the number of steps that an optimizer gets.
  """

  train: Batch
  test: Batch
  model: Model
  steps: int


@waiting("loading data")
def problems() -> dict[str, Problem]:
  """Returns the training problem, "digits", and those of the test.

  Raises:
    ValueError: if --window does not divide --inner_steps.
  """
  if FLAGS.inner_steps % FLAGS.window:
    raise ValueError(
      f"--inner_steps={FLAGS.inner_steps}: must be a multiple of "
      f"--window={FLAGS.window}."
    )
  digits = load_digits()
  train, test = _split(digits.data / 16, digits.target, 1200)

  def network(hidden: int, classes: int = 10) -> Model:
    return MLP(classes, (hidden,))

  narrow, steps = network(FLAGS.hidden), FLAGS.inner_steps
  found = {
    "digits": Problem(train, test, narrow, steps),
    "longer": Problem(train, test, narrow, 5 * steps),
    "wider": Problem(train, test, network(4 * FLAGS.hidden), steps),
  }
  cancer = load_breast_cancer()
  train, test = _standardized(*_split(cancer.data, cancer.target, 400))
  found["breast_cancer"] = Problem(train, test, network(FLAGS.hidden, 2), steps)
  if FLAGS.data_dir or os.environ.get("METAJAX_DATA_DIR"):
    images = load_omniglot(FLAGS.data_dir, 14).images[:CHARACTERS] / 255
    labels = np.repeat(np.arange(CHARACTERS), images.shape[1])
    found["omniglot"] = Problem(
      *_split(images.reshape(len(labels), -1), labels, 15 * CHARACTERS),
      network(FLAGS.hidden, CHARACTERS),
      steps,
    )
  return found


def _split(
  inputs: np.ndarray, labels: np.ndarray, number: int
) -> tuple[Batch, Batch]:
  """Draws a training set of some examples by --eval_seed; the rest is test."""
  order = np.random.default_rng(FLAGS.eval_seed).permutation(len(labels))
  batches = [
    Batch(
      jnp.asarray(inputs[chosen], jnp.float32),
      jnp.asarray(labels[chosen], jnp.int32),
    )
    for chosen in (order[:number], order[number:])
  ]
  return batches[0], batches[1]


def _standardized(train: Batch, test: Batch) -> tuple[Batch, Batch]:
  """Gives each feature mean 0 and deviation 1 over the training set."""
  mean, deviation = train.inputs.mean(0), train.inputs.std(0)

  def scaled(batch: Batch) -> Batch:
    return batch._replace(inputs=(batch.inputs - mean) / deviation)

  return scaled(train), scaled(test)


def mean_loss(problem: Problem, params: Params, batch: Batch) -> Array:
  logits = problem.model.apply(params, batch.inputs)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch.targets
  ).mean()


def loop(problem: Problem, optimizer_of: OptimizerOf, outer: Any) -> tuple:
  """Returns `begin` and `step` of `metajax.bilevel`: a network's training.

  The loss of a step is that on its batch before the update.

  Args:
    problem: what is trained.
    optimizer_of: `(outer) -> optimizer`.
    outer: any outer parameters. The optimizer's first state is that of these.
  """

  def begin(rng: PRNGKey) -> tuple[Params, optax.OptState]:
    params = problem.model.init(rng, problem.train.inputs[:1])
    return params, optimizer_of(outer).init(params)

  def step(inner: Any, outer: Any, rng: PRNGKey) -> tuple[Any, Array]:
    params, state = inner
    number = len(problem.train.targets)
    chosen = jax.random.randint(rng, (FLAGS.batch,), 0, number)
    batch = jax.tree.map(lambda x: x[chosen], problem.train)
    loss, grads = jax.value_and_grad(
      lambda params: mean_loss(problem, params, batch)
    )(params)
    updates, state = optimizer_of(outer).update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  return begin, step


def trainer(
  problem: Problem, optimizer_of: OptimizerOf
) -> Callable[[Any, PRNGKey], Curves]:
  """Returns `(outer, keys [seeds]) -> Curves`, compiled once."""
  points = math.gcd(problem.steps, POINTS)
  length = problem.steps // points

  def one(outer: Any, rng: PRNGKey) -> Curves:
    begin, step = loop(problem, optimizer_of, outer)

    def few(inner: Any, key: PRNGKey) -> tuple[Any, Array]:
      keys = jax.random.split(key, length)
      inner, _ = jax.lax.scan(lambda x, k: step(x, outer, k), inner, keys)
      return inner, mean_loss(problem, inner[0], problem.train)

    init_key, key = jax.random.split(rng)
    inner = begin(init_key)
    first = mean_loss(problem, inner[0], problem.train)
    keys = jax.random.split(key, points)
    (params, _), losses = jax.lax.scan(few, inner, keys)
    logits = problem.model.apply(params, problem.test.inputs)
    right = accuracy(logits, problem.test.targets)
    return Curves(jnp.append(first, losses), 100 * right)

  # One after the other: batches of small networks are no faster on a CPU.
  compiled = jax.jit(
    lambda outer, keys: jax.lax.map(lambda key: one(outer, key), keys)
  )
  return lambda outer, keys: Curves(
    *(np.asarray(x, np.float64) for x in compiled(outer, keys))
  )


def validation_keys(number: int) -> PRNGKey:
  """Returns keys of trainings by which step sizes and parameters are chosen."""
  rng = jax.random.fold_in(jax.random.key(FLAGS.seed), VALIDATION_TAG)
  return jax.random.split(rng, number)


def test_keys() -> PRNGKey:
  """Returns keys of the trainings of the test."""
  rng = jax.random.fold_in(jax.random.key(FLAGS.eval_seed), TEST_TAG)
  return jax.random.split(rng, FLAGS.trainings)


def tuned(train: Callable[[Any, PRNGKey], Curves], keys: PRNGKey) -> float:
  """Returns the step size of a grid with the lowest mean loss."""
  losses = [train(jnp.float32(x), keys).losses.mean() for x in STEP_SIZES]
  return float(STEP_SIZES[np.nanargmin(losses)])
