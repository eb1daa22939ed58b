"""Targets, priorities and weights of recurrent replay, as pure functions.

References:
  Kapturowski et al., `Recurrent Experience Replay in Distributed Reinforcement
  Learning <https://openreview.net/forum?id=r1lyTjAqYX>`_, 2019. (Not the "R2D2"
  of Bertinetto et al. 2019, which is a ridge-regression head.)
  Pohlen et al., `Observe and Look Further <https://arxiv.org/abs/1805.11593>`_,
  2018: the rescaling of values.
"""

import jax
import jax.numpy as jnp

from metajax.types import Array


def signed_hyperbolic(x: Array, eps: float = 1e-3) -> Array:
  """Makes large values small: `h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x`."""
  # sqrt(1 + |x|) - 1, without the difference of two like numbers.
  return x / (jnp.sqrt(jnp.abs(x) + 1) + 1) + eps * x


def signed_parabolic(x: Array, eps: float = 1e-3) -> Array:
  """The inverse of `signed_hyperbolic`.

  With `z = sqrt(|y| + 1) - 1` of the result y, `|x| = z + eps z (z + 2)`, whose
  positive root is taken in the form that subtracts nothing.
  """
  b = 1 + 2 * eps
  z = 2 * x / (b + jnp.sqrt(b**2 + 4 * eps * jnp.abs(x)))  # With x's sign.
  return z * (jnp.abs(z) + 2)


def n_step_double_q(
  rewards: Array,
  discounts: Array,
  online_q: Array,
  target_q: Array,
  n: int,
  *,
  eps: float | None = 1e-3,
) -> Array:
  """Computes targets for the values of the actions of one sequence.

  ::

    y_t = h( sum_{k<n} D_k r_{t+k} + D_n h^-1(Q'(s_{t+n}, a*)) )
    a* = argmax_a Q(s_{t+n}, a),   D_k = discount_t ... discount_{t+k-1}

  with Q the online and Q' the target network (double Q-learning). Near the end
  of the sequence n is as large as there are steps left.

  Args:
    rewards: `[T]`, what the action at t brought.
    discounts: `[T]`, of what comes after that; 0 where a task is over.
    online_q: `[T + 1, actions]`, of the observations.
    target_q: likewise.
    n: steps, at least 1.
    eps: of the rescaling h of values; None: no rescaling.

  Returns:
    `[T]`, without a gradient.
  """
  best = online_q.argmax(-1)[:, None]
  values = jnp.take_along_axis(target_q, best, axis=-1)[:, 0]
  if eps is not None:
    values = signed_parabolic(values, eps)
  returns = values
  for _ in range(n):
    # What is left of the sequence decides at its end.
    returns = jnp.append(rewards + discounts * returns[1:], values[-1])
  returns = returns[:-1]
  if eps is not None:
    returns = signed_hyperbolic(returns, eps)
  return jax.lax.stop_gradient(returns)


def sequence_priority(errors: Array, weights: Array, eta: float = 0.9) -> Array:
  """`eta max_t |error| + (1 - eta) mean_t |error|`, over steps that count.

  Args:
    errors: `[..., T]`, temporal differences.
    weights: `[..., T]`, 1 for steps that count, 0 for burn-in.
    eta: between the mean (0) and the largest (1).
  """
  sizes = jnp.abs(errors) * weights
  mean = sizes.sum(-1) / jnp.maximum(weights.sum(-1), 1)
  return eta * sizes.max(-1) + (1 - eta) * mean


def importance_weights(
  probabilities: Array, count: Array, exponent: float
) -> Array:
  """`(count p)^-exponent`, divided by the largest of the batch.

  They make up for sampling with probabilities p what uniform sampling of
  `count` sequences would give (Schaul et al. 2016, section 3.4).
  """
  weights = (count * probabilities) ** -exponent
  return weights / weights.max()
