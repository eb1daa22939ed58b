"""Weights of training examples, learned from a small clean set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import optimizers, variables
from metajax.batches import num_examples
from metajax.bilevel.gradients import hypergradient
from metajax.bilevel.solvers import unrolled
from metajax.models.mlp import MLP
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Batch, Model, Params, PRNGKey

# (params, batch) -> the losses `[n]` of its examples.
ExampleLosses = Callable[[Params, Batch], Array]


class Weighting(NamedTuple):
  """A way to weight the examples of a training batch.

  Attributes:
    init: `(rng) -> state`.
    weigh: `(state, params, batch, clean) -> (weights, state)`, with the model's
      parameters, the batch to weight, and a batch of the clean set. `weights`
      `[n]` are at least 0, constant, and have the sum 1, or all are 0. Train on
      `sum of weights times losses`.
  """

  init: Callable[[PRNGKey], Any]
  weigh: Callable[[Any, Params, Batch, Batch], tuple[Array, Any]]


def equal_weights() -> Weighting:
  """Builds equal weights: plain training."""

  def weigh(state: Any, params: Params, batch: Batch, clean: Batch) -> tuple:
    del params, clean
    number = num_examples(batch)
    return jnp.full(number, 1 / number), state

  return Weighting(lambda rng: (), weigh)


def learning_to_reweight(losses: ExampleLosses, step_size: float) -> Weighting:
  """Builds weights by the gradient of the clean loss through one step of SGD.

  ::

    theta'(w) = theta - step_size grad sum_i w_i L_i(theta)
    u_i = max(0, - d clean loss(theta'(w)) / d w_i)   at w = 0
    weights = u / sum of u,  or 0 if all u are 0

  Args:
    losses: `(params, batch) -> [n]`.
    step_size: of the step of SGD, positive. It changes only the rounding, as
      the weights are normalised.

  Raises:
    ValueError: if the step size is not positive.

  References:
    Ren et al., `Learning to Reweight Examples for Robust Deep Learning
    <https://arxiv.org/abs/1803.09050>`_, 2018, algorithm 1.
  """
  check_number("step_size", step_size, above=0)
  losses = _checked(losses)

  def weigh(state: Any, params: Params, batch: Batch, clean: Batch) -> tuple:
    solver = unrolled(
      lambda params, weights, step: weights @ losses(params, batch),
      optax.sgd(step_size),
      1,
    )
    gradient = hypergradient(
      solver, lambda params, weights: losses(params, clean).mean()
    )
    zero = jnp.zeros(num_examples(batch))
    grads = gradient(solver.init(params, zero), zero).grads
    return _normalised(jnp.maximum(-grads, 0)), state

  return Weighting(lambda rng: (), weigh)


def meta_weight_net(
  losses: ExampleLosses,
  step_size: float,
  *,
  optimizer: optax.GradientTransformation | None = None,
  hidden: int = 100,
) -> Weighting:
  """Builds weights as a learned function of the loss: Meta-Weight-Net.

  ::

    v_i = sigmoid(MLP(L_i(theta); Theta)),  w = v / sum of v
    theta'(Theta) = theta - step_size grad sum_i w_i L_i(theta)
    Theta <- Theta - optimizer's step on  clean loss(theta'(Theta))
    weights = w with the new Theta

  where v is a constant of the inner gradient.

  Args:
    losses: `(params, batch) -> [n]`.
    step_size: of the step of SGD, positive. Take that of the training.
    optimizer: of Theta; None: Adam with 1e-3, as in the authors' code.
    hidden: the number of hidden units of the MLP.

  Raises:
    ValueError: if the step size or `hidden` is not positive.

  References:
    Shu et al., `Meta-Weight-Net: Learning an Explicit Mapping For Sample
    Weighting <https://arxiv.org/abs/1902.07379>`_, 2019, algorithm 1.
  """
  check_number("step_size", step_size, above=0)
  check_counts(hidden=hidden)
  losses = _checked(losses)
  update = optax.adam(1e-3) if optimizer is None else optimizer
  net: Model = MLP(1, (hidden,))

  def weights_of(theta: Params, params: Params, batch: Batch) -> Array:
    inputs = jax.lax.stop_gradient(losses(params, batch))[:, None]
    return _normalised(jax.nn.sigmoid(net.apply(theta, inputs)[:, 0]))

  def init(rng: PRNGKey) -> tuple[Params, optax.OptState]:
    theta = net.init(rng, jnp.zeros((1, 1)))
    return theta, optimizers.init(update, theta)

  def weigh(state: Any, params: Params, batch: Batch, clean: Batch) -> tuple:
    theta, opt_state = state

    def inner_loss(at: Params, theta: Params, step: Array) -> Array:
      del step
      return weights_of(theta, params, batch) @ losses(at, batch)

    solver = unrolled(inner_loss, optax.sgd(step_size), 1)
    gradient = hypergradient(
      solver, lambda params, theta: losses(params, clean).mean()
    )
    found = gradient(solver.init(params, theta), theta)
    updates, opt_state = optimizers.update(
      update, found.grads, opt_state, theta, value=found.value
    )
    theta = optax.apply_updates(theta, updates)
    judged = optimizers.evaluation_params(opt_state, theta)
    return weights_of(judged, params, batch), (theta, opt_state)

  return Weighting(init, weigh)


def train_weighted(
  losses: ExampleLosses,
  weighting: Weighting,
  optimizer: optax.GradientTransformation,
  params: Params,
  data: Batch,
  clean: Batch,
  rng: PRNGKey,
  *,
  num_steps: int,
  batch_size: int,
  clean_size: int,
) -> Params:
  """Trains a model on weighted batches that are drawn with replacement.

  Args:
    losses: `(params, batch) -> [n]`.
    weighting: how examples are weighted.
    optimizer: of the model.
    params: the initial parameters of the model.
    data: all training examples, `[n, ...]`.
    clean: the clean set.
    rng: a key for batches and for the weighting.
    num_steps: the number of steps.
    batch_size: examples of a step.
    clean_size: clean examples of a step.

  Returns:
    The trained parameters.

  Raises:
    ValueError: if a number is not positive; for data without examples or with a
      mask; if the losses are not those of the examples, or `optimizer` is none
      of optax.
  """
  check_counts(
    num_steps=num_steps, batch_size=batch_size, clean_size=clean_size
  )
  for name, examples in (("data", data), ("clean", clean)):
    if examples.mask is not None or not num_examples(examples):
      raise ValueError(
        f"{name}: must be one or more examples without a mask; leave the "
        "padding out."
      )
  # A traced index cannot index a numpy array.
  params, data, clean = jax.tree.map(jnp.asarray, (params, data, clean))
  losses = _checked(losses)
  init_key, key = jax.random.split(rng)

  def draw(batch: Batch, key: PRNGKey, size: int) -> Batch:
    chosen = jax.random.randint(key, (size,), 0, num_examples(batch))
    return jax.tree.map(lambda x: x[chosen], batch)

  def step(carry: tuple, key: PRNGKey) -> tuple[tuple, None]:
    learned, opt_state, state = carry
    params = variables.combine(learned, fixed)
    batch_key, clean_key = jax.random.split(key)
    batch = draw(data, batch_key, batch_size)
    trusted = draw(clean, clean_key, clean_size)
    weights, state = weighting.weigh(state, params, batch, trusted)
    weights = jax.lax.stop_gradient(weights)

    def loss(p: Params) -> Array:
      return weights @ losses(variables.combine(p, fixed), batch)

    value, grads = jax.value_and_grad(loss)(learned)
    updates, opt_state = optimizers.update(
      optimizer, grads, opt_state, learned, value=value, value_fn=loss
    )
    return (optax.apply_updates(learned, updates), opt_state, state), None

  # Integers, such as counts, get no step.
  fixed, learned = params, variables.weights(params)
  opt_state = optimizers.init(optimizer, learned)
  carry = learned, opt_state, weighting.init(init_key)
  carry, _ = jax.lax.scan(step, carry, jax.random.split(key, num_steps))
  learned = optimizers.evaluation_params(carry[1], carry[0])
  return variables.combine(learned, fixed)


def _checked(losses: ExampleLosses) -> ExampleLosses:
  """Checks that there is one loss of each example."""

  def checked(params: Params, batch: Batch) -> Array:
    found = losses(params, batch)
    if jnp.shape(found) != (num_examples(batch),):
      raise ValueError(
        f"losses: returned the shape {jnp.shape(found)}, must be "
        f"({num_examples(batch)},), one of each example."
      )
    return found

  return checked


def _normalised(weights: Array) -> Array:
  total = weights.sum()
  return weights / jnp.where(total > 0, total, 1)
