"""A loss that is learned: a small network of predictions and targets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from metajax.models.mlp import MLP
from metajax.numerics import check_counts
from metajax.types import Array, Model, Params, PRNGKey


class LearnedLoss(NamedTuple):
  """An inner loss with learned parameters phi.

  Attributes:
    init: `(rng) -> phi`.
    loss: `(phi, predictions [n, outputs], targets [n, outputs]) -> scalar`, a
      mean over examples. Targets of classes are one-hot.
  """

  init: Callable[[PRNGKey], Params]
  loss: Callable[[Params, Array, Array], Array]


def learned_loss(
  num_outputs: int, hidden: Sequence[int] = (40, 40)
) -> LearnedLoss:
  """Builds a learned loss, as in ML3.

  ::

    M(phi) = mean over examples of  MLP([predictions, targets]; phi)
    theta'(phi) = inner steps on  M(phi)
    phi <- phi - step size  d/dphi  exact loss(theta'(phi))

  Only its gradients matter, so it need not be positive. Train phi by
  `hypergradient`, with phi as the outer parameters of the inner loss. At test
  time the inner loop takes steps on the learned loss alone.

  Args:
    num_outputs: numbers of a prediction, and of a target.
    hidden: widths of the hidden layers; two of 40 in the paper.

  Raises:
    ValueError: if a number is not positive. `loss` raises it for predictions
      and targets of other shapes.

  References:
    Bechtle et al., `Meta Learning via Learned Loss
    <https://arxiv.org/abs/1906.05374>`_, 2021, algorithm 1.
  """
  check_counts(num_outputs=num_outputs)
  for units in hidden:
    check_counts(hidden=units)
  net: Model = MLP(1, tuple(hidden))

  def init(rng: PRNGKey) -> Params:
    return net.init(rng, jnp.zeros((1, 2 * num_outputs)))

  def loss(phi: Params, predictions: Array, targets: Array) -> Array:
    shapes = jnp.shape(predictions), jnp.shape(targets)
    if shapes[0] != shapes[1] or shapes[0][1:] != (num_outputs,):
      raise ValueError(
        f"predictions {shapes[0]}, targets {shapes[1]}: both must be [n, "
        f"{num_outputs}]; make classes one-hot."
      )
    inputs = jnp.concatenate([predictions, targets], 1)
    return net.apply(phi, inputs).mean()

  return LearnedLoss(init, loss)
