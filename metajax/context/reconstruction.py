"""The inner loop of a test-time-training layer: a step for each token."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.types import Array, Params

# (weights, keys [c]) -> predictions [c]
Learner = Callable[[Params, Array], Array]


class Trained(NamedTuple):
  """A model in training, as changes of its initial weights.

  Attributes:
    now: the changes up to the present token.
    anchor: those up to the last token of the minibatch before.
    seen: tokens of the present minibatch.
  """

  now: Params
  anchor: Params
  seen: Array


def learn(
  f: Learner,
  initial: Params,
  state: Trained,
  key: Array,
  value: Array,
  rate: Array,
  minibatch: int | None = None,
) -> Trained:
  """Takes one gradient step on the reconstruction of a token.

  ::

    W_t = W_{t-1} - rate_t grad l_t(W_{t'}),  l_t(W) = |f(W, key_t) - value_t|^2

  t' is the last token of the minibatch before, so that the gradients of a
  minibatch do not depend on each other.

  Args:
    f: the model, `(weights, key [c]) -> [c]`.
    initial: its initial weights, W_0.
    state: how they have changed.
    key: `[c]`.
    value: `[c]`.
    rate: step size.
    minibatch: tokens of a minibatch; None: all gradients are at W_0.

  References:
    Sun et al., `Learning to (Learn at Test Time): RNNs with Expressive Hidden
    States <https://arxiv.org/abs/2407.04620>`_, 2024, sections 2.1 and 2.4.
  """

  def loss(weights: Params, step: Array) -> Array:
    del step
    return jnp.square(f(weights, key) - value).sum()

  start = added(initial, state.anchor)
  end = inner_loop.minimize(loss, start, optax.sgd(rate), 1, memory="plain")
  change = jax.tree.map(jnp.subtract, end.params, start)
  now, seen = added(state.now, change), state.seen + 1
  if minibatch is None:
    return Trained(now, state.anchor, seen)
  full = seen == minibatch
  anchor = jax.tree.map(lambda x, y: jnp.where(full, x, y), now, state.anchor)
  return Trained(now, anchor, jnp.where(full, 0, seen))


def untrained(like: Params) -> Trained:
  """Returns the state before any token, for weights of these shapes."""
  zeros = jax.tree.map(jnp.zeros_like, like)
  return Trained(zeros, zeros, jnp.zeros(()))


def added(one: Params, other: Params) -> Params:
  """Adds two trees of the same shapes."""
  return jax.tree.map(jnp.add, one, other)
