"""Builds synthetic training sets, and trains networks on them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metajax import inner_loop
from metajax.numerics import check_counts, check_number, floating
from metajax.types import Array, Batch, Model, Params, PRNGKey


class SyntheticSet(NamedTuple):
  """A small training set, and the step size to train on it.

  Attributes:
    inputs: `[n, ...]`, where n is a multiple of the number of classes. Example
      i starts as an example of class `i % classes`.
    targets: `[n, classes]`, one-hot at the start.
    log_step_size: scalar, the logarithm of the step size of SGD.
  """

  inputs: Array
  targets: Array
  log_step_size: Array


Objective = Callable[[SyntheticSet, Batch, PRNGKey], Array]


def synthetic_set(
  inputs: Array, num_classes: int, step_size: ArrayLike = 0.1
) -> SyntheticSet:
  """Builds the initial synthetic set from real examples, or from noise.

  Args:
    inputs: `[n, ...]`. The class of example i must be `i % num_classes`.
    num_classes: number of classes.
    step_size: initial step size for training on the set, positive.

  Raises:
    ValueError: if n is no multiple of `num_classes`, or the step size is not
      positive.
  """
  check_counts(num_classes=num_classes)
  if not len(inputs) or len(inputs) % num_classes:
    raise ValueError(
      f"inputs: {len(inputs)} examples, must be a multiple of {num_classes} "
      "classes."
    )
  check_number("step_size", step_size, above=0)
  labels = jnp.arange(len(inputs)) % num_classes
  return SyntheticSet(
    floating(inputs),
    jax.nn.one_hot(labels, num_classes),
    jnp.log(jnp.float32(step_size)),
  )


def fit_synthetic(
  model: Model,
  params: Params,
  synthetic: SyntheticSet,
  num_steps: int,
  *,
  memory: inner_loop.Memory = "auto",
) -> Params:
  """Trains a network on the whole synthetic set in every step.

  ::

    num_steps of SGD(exp(log_step_size)) on
      mean over examples of  -sum_c targets_c log softmax(model(inputs))_c
  """

  def loss(params: Params, step: Array) -> Array:
    del step
    logits = model.apply(params, synthetic.inputs)
    return optax.softmax_cross_entropy(logits, synthetic.targets).mean()

  optimizer = optax.sgd(jnp.exp(synthetic.log_step_size))
  return inner_loop.minimize(
    loss, params, optimizer, num_steps, memory=memory
  ).params
