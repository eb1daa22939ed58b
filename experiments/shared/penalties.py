"""Linear models with a penalty for each feature, and ways to tune it."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from metajax import bilevel
from metajax.runs.flags import FLAGS
from metajax.types import Array, Batch

FEATURES, RELEVANT = 30, 6
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 100, 100, 1000
LOW, HIGH = math.log(1e-4), math.log(10.0)  # Logarithms of penalties.
START = math.log(0.1)
COLD, WARM, RATE = 1000, 50, 0.3  # Steps of gradient descent.
CHUNK = 20  # Trials of one call of the compiled search.


class Split(NamedTuple):
  """Inputs `[n, features]` and targets `[n]` of one split, or of several."""

  train: Batch
  validation: Batch
  test: Batch


class Problem(NamedTuple):
  """A model, its splits, and how its inner problem is solved.

  Attributes:
    splits: stacked on a leading axis.
    loss: `(weights, batch) -> scalar`, without the penalty.
    warm: `(inner_loss, split) -> solver`, called with warm starts.
    cold: the same, for solves from zero.
  """

  splits: Split
  loss: Callable[[Array, Batch], Array]
  warm: Callable[..., bilevel.Solver]
  cold: Callable[..., bilevel.Solver]


class Tuned(NamedTuple):
  """Losses `[splits, trials]` in the order of the trials, and the CPU time."""

  validation: np.ndarray
  test: np.ndarray
  cpu_seconds: float


def squared(weights: Array, batch: Batch) -> Array:
  return jnp.square(batch.inputs @ weights - batch.targets).mean() / 2


def logistic(weights: Array, batch: Batch) -> Array:
  """Targets are -1 and 1."""
  return jax.nn.softplus(-batch.targets * (batch.inputs @ weights)).mean()


def problems(number: int) -> dict[str, Problem]:
  closed = lambda inner_loss, split: bilevel.implicit_minimum(  # noqa: E731
    inner_loss, lambda w, raw: ridge_minimum(raw, split.train), bilevel.direct()
  )

  def steps(num_steps: int) -> Callable[..., bilevel.Solver]:
    return lambda inner_loss, split: bilevel.implicit(
      inner_loss,
      optax.sgd(RATE, momentum=0.9),
      num_steps,
      bilevel.conjugate_gradients(2 * FEATURES),
    )

  draws = [np.random.default_rng((FLAGS.seed, i)) for i in range(number)]
  stack = lambda *x: jnp.asarray(np.stack(x), jnp.float32)  # noqa: E731
  ridge = jax.tree.map(stack, *map(_ridge_split, draws))
  cancer = jax.tree.map(stack, *map(_cancer_split, draws))
  return {
    "ridge": Problem(ridge, squared, closed, closed),
    "logistic": Problem(cancer, logistic, steps(WARM), steps(COLD)),
  }


def _parts(inputs: np.ndarray, targets: np.ndarray) -> Split:
  a, b = NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION
  slices = slice(0, a), slice(a, b), slice(b, None)
  return Split(*(Batch(inputs[s], targets[s]) for s in slices))


def _ridge_split(draw: np.random.Generator) -> Split:
  number = NUM_TRAIN + NUM_VALIDATION + NUM_TEST
  inputs = draw.normal(size=(number, FEATURES))
  weights = draw.normal(size=FEATURES) * (np.arange(FEATURES) < RELEVANT)
  return _parts(inputs, inputs @ weights + 2 * draw.normal(size=number))


def _cancer_split(draw: np.random.Generator) -> Split:
  data = load_breast_cancer()
  order = draw.permutation(len(data.target))
  inputs = data.data[order]
  known = inputs[:NUM_TRAIN]
  inputs = (inputs - known.mean(0)) / known.std(0)
  return _parts(inputs, 2.0 * data.target[order] - 1)


def ridge_minimum(raw: Array, train: Batch) -> Array:
  x, y = train.inputs, train.targets
  hessian = x.T @ x / len(y) + jnp.diag(jnp.exp(raw))
  return jnp.linalg.solve(hessian, x.T @ y / len(y))


def _gradient(problem: Problem, split: Split, make: Callable) -> tuple:
  """The solver and the hypergradient of one split."""

  def inner_loss(weights: Array, raw: Array, step: Array) -> Array:
    del step
    penalty = jnp.exp(raw) @ weights**2 / 2
    return problem.loss(weights, split.train) + penalty

  solver = make(inner_loss, split)

  def outer_loss(weights: Array, raw: Array) -> tuple[Array, Array]:
    del raw
    validation, test = split.validation, split.test
    return problem.loss(weights, validation), problem.loss(weights, test)

  return solver, bilevel.hypergradient(solver, outer_loss, has_aux=True)


def descend(problem: Problem) -> Tuned:
  """Tunes by --steps of Adam on the hypergradient, with warm starts."""
  optimizer = optax.adam(FLAGS.outer_lr)

  def one(split: Split) -> tuple[Array, Array]:
    solver, gradient = _gradient(problem, split, problem.warm)
    raw = jnp.full(FEATURES, START)

    def step(carry: tuple, _: None) -> tuple:
      raw, opt_state, state = carry
      found = gradient(state, raw)
      updates, opt_state = optimizer.update(found.grads, opt_state)
      raw = jnp.clip(optax.apply_updates(raw, updates), LOW, HIGH)
      return (raw, opt_state, found.state), (found.value, found.aux)

    state = solver.init(jnp.zeros(FEATURES), raw)
    carry = raw, optimizer.init(raw), state
    return jax.lax.scan(step, carry, None, length=FLAGS.steps)[1]

  run = jax.jit(jax.vmap(one)).lower(problem.splits).compile()
  began = time.process_time()
  found = jax.block_until_ready(run(problem.splits))
  return Tuned(*map(np.asarray, found), time.process_time() - began)


def search(problem: Problem, kind: str, budget: float) -> Tuned:
  """Tries penalties for as much CPU time as given, and one chunk at least."""

  def one(split: Split, raws: Array) -> tuple[Array, Array]:
    solver, _ = _gradient(problem, split, problem.cold)

    def trial(raw: Array) -> tuple[Array, Array]:
      state = solver.init(jnp.zeros(FEATURES), raw)
      weights = solver.solve(state, raw).params
      return (
        problem.loss(weights, split.validation),
        problem.loss(weights, split.test),
      )

    return jax.lax.map(trial, raws)

  raws = jnp.zeros((CHUNK, FEATURES))
  run = jax.jit(jax.vmap(one, (0, None)))
  run = run.lower(problem.splits, raws).compile()
  # The first draw compiles, too.
  jax.block_until_ready(run(problem.splits, _trials(kind, 0)))
  found, began, seconds = [], time.process_time(), 0.0
  while not found or seconds < budget:
    raws = _trials(kind, len(found))
    found.append(jax.block_until_ready(run(problem.splits, raws)))
    seconds = time.process_time() - began
  validation, test = jax.tree.map(lambda *x: np.concatenate(x, 1), *found)
  return Tuned(validation, test, seconds)


def _trials(kind: str, chunk: int) -> Array:
  """Logarithms of penalties, `[CHUNK, features]`."""
  shape = CHUNK, FEATURES
  if kind == "random":
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), chunk)
    return jax.random.uniform(key, shape, minval=LOW, maxval=HIGH)
  # Each halves the widest gap of those before, so any number makes a grid.
  first = 1 + chunk * CHUNK
  places = np.array(
    [
      int(f"{i:b}"[::-1], 2) / 2 ** len(f"{i:b}")
      for i in range(first, first + CHUNK)
    ]
  )
  shared = LOW + (HIGH - LOW) * jnp.asarray(places, jnp.float32)
  return jnp.broadcast_to(shared[:, None], shape)


def errors_of_ridge(number: int) -> np.ndarray:
  """Relative errors of the hypergradient, `[splits]`, in the closed form."""
  problem = problems(number)["ridge"]

  def one(split: Split) -> Array:
    solver, gradient = _gradient(problem, split, problem.warm)
    raw = jnp.full(FEATURES, START)
    found = gradient(solver.init(jnp.zeros(FEATURES), raw), raw).grads
    (x, y, _), penalty = split.train, jnp.exp(raw)
    hessian = x.T @ x / len(y) + jnp.diag(penalty)
    weights = ridge_minimum(raw, split.train)
    slope = jax.grad(squared)(weights, split.validation)
    exact = -penalty * weights * jnp.linalg.solve(hessian, slope)
    return jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)

  return np.asarray(jax.jit(jax.vmap(one))(problem.splits))
