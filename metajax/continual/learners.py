"""Continual learners: Meta-Experience Replay and its baselines."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metajax import variables
from metajax.aggregation import fisher_diagonal, interpolate
from metajax.continual.reservoir import Reservoir, add, draw, reservoir
from metajax.forward import check_stateless
from metajax.numerics import check_counts, check_number, wide
from metajax.types import Array, Batch, Params, PRNGKey

# `(params, example) -> scalar`, where the example has no leading axis.
ExampleLoss = Callable[[Params, Batch], Array]


class Learned(NamedTuple):
  """The state of a continual learner.

  Attributes:
    params: the parameters of the network.
    memory: anything else that the learner stores.
  """

  params: Params
  memory: Any


class ContinualLearner(NamedTuple):
  """An algorithm that sees the examples of a stream one at a time, each once.

  The learners of this module need a model without running statistics, and
  examples without a mask.

  Attributes:
    init: `(params, example) -> Learned`. Only the shapes and dtypes of the
      example are used. It may raise a `ValueError`.
    observe: `(learned, example, rng) -> Learned`.
    end_task: `(learned, examples [n, ...]) -> Learned`. It is called after the
      last example of a task, with all examples of the task. Only some learners
      need it.
  """

  init: Callable[[Params, Batch], Learned]
  observe: Callable[[Learned, Batch, PRNGKey], Learned]
  end_task: Callable[[Learned, Batch], Learned]


def online(loss_fn: ExampleLoss, step_size: ArrayLike) -> ContinualLearner:
  """Builds online SGD: one step an example, without a remedy for forgetting.

  Raises:
    ValueError: if the step size is negative.
  """
  check_number("step_size", step_size, at_least=0)

  def observe(learned: Learned, example: Batch, rng: PRNGKey) -> Learned:
    del rng
    params = _sgd(loss_fn, learned.params, example, step_size)
    return Learned(params, ())

  def init(params: Params, example: Batch) -> Learned:
    _check_start(params, example, "online")
    return Learned(params, ())

  return ContinualLearner(init, observe, _keep)


def replayed(
  loss_fn: ExampleLoss,
  step_size: ArrayLike,
  *,
  capacity: int,
  batch: int,
  batches: int = 1,
) -> ContinualLearner:
  """Builds experience replay: learns new examples together with earlier ones.

  For every example, the learner takes `batches` steps of SGD. The loss of a
  step is the mean over the example and `batch - 1` draws from a reservoir.

  Raises:
    ValueError: if `capacity`, `batch` or `batches` is not positive, or the step
      size is negative.
  """
  check_counts(capacity=capacity, batch=batch, batches=batches)
  check_number("step_size", step_size, at_least=0)

  def mean_loss(params: Params, examples: Batch) -> Array:
    return jax.vmap(loss_fn, (None, 0))(params, examples).mean()

  def observe(learned: Learned, example: Batch, rng: PRNGKey) -> Learned:
    add_key, draw_key = jax.random.split(rng)

    def one(params: Params, key: PRNGKey) -> tuple[Params, None]:
      drawn = _draw_with(learned.memory, example, batch, key)
      return _sgd(mean_loss, params, drawn, step_size), None

    params, _ = jax.lax.scan(
      one, learned.params, jax.random.split(draw_key, batches)
    )
    return Learned(params, add(learned.memory, example, add_key))

  init = _with_reservoir(capacity, "replayed")
  return ContinualLearner(init, observe, _keep)


def meta_experience_replay(
  loss_fn: ExampleLoss,
  step_size: ArrayLike,
  within: ArrayLike,
  across: ArrayLike = 1.0,
  *,
  capacity: int,
  batch: int,
  batches: int = 1,
) -> ContinualLearner:
  """Builds Meta-Experience Replay (MER): replay with Reptile's update.

  ::

    theta_A = theta
    repeat `batches` times:
      phi = theta;  for each of a batch in turn: phi <- phi - step_size grad L
      theta <- theta + within (phi - theta)
    theta <- theta_A + across (theta - theta_A)

  A batch has `batch - 1` draws from a reservoir, followed by the new example.
  Like Reptile, this favours parameters at which the gradients of examples
  agree, which means more transfer and less interference. With `within = across
  = 1` it is replay by SGD on single examples.

  Args:
    loss_fn: the loss of one example.
    step_size: alpha, the step size of SGD.
    within: beta, the step size after a batch.
    across: gamma, the step size after all batches.
    capacity: number of examples that the reservoir keeps.
    batch: k, number of examples of a batch.
    batches: s, number of batches for a new example.

  Raises:
    ValueError: if `capacity`, `batch` or `batches` is not positive, or a step
      size is negative.

  References:
    Riemer et al., `Learning to Learn without Forgetting by Maximizing Transfer
    and Minimizing Interference <https://arxiv.org/abs/1810.11910>`_, 2019,
    algorithm 1. Unlike in the paper, draws are with replacement. While the
    reservoir is empty, a batch repeats the new example.
  """
  check_counts(capacity=capacity, batch=batch, batches=batches)
  check_number("step_size", step_size, at_least=0)
  check_number("within", within, at_least=0)
  check_number("across", across, at_least=0)

  def one_example(params: Params, example: Batch) -> tuple[Params, None]:
    return _sgd(loss_fn, params, example, step_size), None

  def observe(learned: Learned, example: Batch, rng: PRNGKey) -> Learned:
    add_key, draw_key = jax.random.split(rng)

    def one_batch(params: Params, key: PRNGKey) -> tuple[Params, None]:
      drawn = _draw_with(learned.memory, example, batch, key)
      new, _ = jax.lax.scan(one_example, params, drawn)
      return interpolate(params, new, within), None

    params, _ = jax.lax.scan(
      one_batch, learned.params, jax.random.split(draw_key, batches)
    )
    return Learned(
      interpolate(learned.params, params, across),
      add(learned.memory, example, add_key),
    )

  init = _with_reservoir(capacity, "meta_experience_replay")
  return ContinualLearner(init, observe, _keep)


def elastic_weights(
  loss_fn: ExampleLoss, step_size: ArrayLike, strength: ArrayLike
) -> ContinualLearner:
  """Builds elastic weight consolidation (EWC): SGD with a quadratic penalty.

  ::

    theta <- theta - step_size grad [ L(theta; example)
                + strength / 2 sum_k sum_j F_kj (theta_j - theta_kj)^2 ]

  where k runs over earlier tasks. theta_k are the parameters at the end of task
  k, and F_k is the diagonal of its empirical Fisher information. Two trees hold
  the sum over k, for any number of tasks.

  Args:
    loss_fn: the negative log-likelihood of one example.
    step_size: the step size of SGD.
    strength: lambda, the strength of the penalty.

  Raises:
    ValueError: if the step size or the strength is negative.

  References:
    Kirkpatrick et al., `Overcoming Catastrophic Forgetting in Neural Networks
    <https://arxiv.org/abs/1612.00796>`_, 2017, equation 3.
  """
  check_number("step_size", step_size, at_least=0)
  check_number("strength", strength, at_least=0)

  def init(params: Params, example: Batch) -> Learned:
    _check_start(params, example, "elastic_weights")
    nothing = jax.tree.map(
      lambda x: jnp.zeros_like(wide(x)), variables.weights(params)
    )
    return Learned(params, (nothing, nothing))

  def observe(learned: Learned, example: Batch, rng: PRNGKey) -> Learned:
    del rng
    precision, pull = learned.memory  # sum_k F_k, and sum_k F_k theta_k
    grads = jax.tree.map(
      lambda g, f, b, x: g + (strength * (f * x - b)).astype(g.dtype),
      _gradient(loss_fn, learned.params, example),
      precision,
      pull,
      variables.weights(learned.params),
    )
    return Learned(_descend(learned.params, grads, step_size), learned.memory)

  def end_task(learned: Learned, examples: Batch) -> Learned:
    fisher = fisher_diagonal(
      lambda p, x, y: -loss_fn(p, Batch(x, y)), learned.params, examples
    )
    precision, pull = learned.memory
    fisher, weights = map(variables.weights, (fisher, learned.params))
    pull = jax.tree.map(lambda b, f, x: b + f * x, pull, fisher, weights)
    return Learned(learned.params, (optax.tree.add(precision, fisher), pull))

  return ContinualLearner(init, observe, end_task)


def _keep(learned: Learned, examples: Batch) -> Learned:
  del examples
  return learned


def _check_start(params: Params, example: Batch, who: str) -> None:
  check_stateless(params, who)
  if example.mask is not None:
    raise ValueError(
      f"mask: {who} learns from every example; leave the padding out."
    )


def _with_reservoir(
  capacity: int, who: str
) -> Callable[[Params, Batch], Learned]:
  def init(params: Params, example: Batch) -> Learned:
    _check_start(params, example, who)
    return Learned(params, reservoir(example, capacity))

  return init


def _draw_with(
  memory: Reservoir, example: Batch, number: int, rng: PRNGKey
) -> Batch:
  """Returns `number` examples: draws from the memory, and `example` as last."""
  return jax.tree.map(
    lambda drawn, new: jnp.append(
      jnp.where(memory.seen > 0, drawn, new), new[None], axis=0
    ),
    draw(memory, number - 1, rng),
    example,
  )


def _sgd(
  loss_fn: Callable[[Params, Batch], Array],
  params: Params,
  examples: Batch,
  step_size: ArrayLike,
) -> Params:
  return _descend(params, _gradient(loss_fn, params, examples), step_size)


def _gradient(
  loss_fn: Callable[[Params, Batch], Array], params: Params, examples: Batch
) -> Params:
  """Returns the gradient of the weights; integers have none."""
  return jax.grad(
    lambda weights: loss_fn(variables.combine(weights, params), examples)
  )(variables.weights(params))


def _descend(params: Params, grads: Params, step_size: ArrayLike) -> Params:
  weights = jax.tree.map(
    lambda x, g: jnp.asarray(x - step_size * g, jnp.result_type(x)),
    variables.weights(params),
    grads,
  )
  return variables.combine(weights, params)
