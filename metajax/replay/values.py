"""Targets, priorities and weights of recurrent replay, as pure functions.

References:
  Kapturowski et al., `Recurrent Experience Replay in Distributed Reinforcement
  Learning <https://openreview.net/forum?id=r1lyTjAqYX>`_, 2019. (This is R2D2.
  The "R2-D2" of Bertinetto et al. 2019 is a ridge-regression head.)
  Pohlen et al., `Observe and Look Further <https://arxiv.org/abs/1805.11593>`_,
  2018: the rescaling of values.
"""

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_number, floating, wide
from metajax.types import Array


def signed_hyperbolic(x: Array, eps: float = 1e-3) -> Array:
  """Rescales values: `h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x`."""
  x = floating(x)
  # sqrt(1 + |x|) - 1 in a form without cancellation.
  return x / (jnp.sqrt(jnp.abs(x) + 1) + 1) + eps * x


def signed_parabolic(x: Array, eps: float = 1e-3) -> Array:
  """Computes the inverse y of `signed_hyperbolic`.

  With `z = sqrt(|y| + 1) - 1`, the equation is `|x| = z + eps z (z + 2)`. Its
  positive root z is computed in a form without cancellation.
  """
  x, b = floating(x), 1 + 2 * eps
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

  where Q is the online network and Q' the target network (double Q-learning).
  If fewer than n steps are left in the sequence, n is the number of steps left.

  Args:
    rewards: `[T]`, the reward of the action at t.
    discounts: `[T]`, the discount after the action at t; 0 if the task is over.
    online_q: `[T + 1, actions]`, values of the online network.
    target_q: `[T + 1, actions]`, values of the target network.
    n: number of rewards before the bootstrap, at least 1.
    eps: eps of the rescaling h, see `signed_hyperbolic`. None: no rescaling.

  Returns:
    Targets `[T]`, without a gradient.

  Raises:
    ValueError: if n is not positive, or if the shapes do not fit.
  """
  check_counts(n=n)
  steps, actions = jnp.size(rewards), online_q.shape[-1:]
  for name, x, shape in (
    ("rewards", rewards, (steps,)),
    ("discounts", discounts, (steps,)),
    ("online_q", online_q, (steps + 1, *actions)),
    ("target_q", target_q, (steps + 1, *actions)),
  ):
    if jnp.shape(x) != shape:
      raise ValueError(f"{name} of shape {jnp.shape(x)}: must be {shape}.")
  # Sums in half precision stand still.
  rewards, discounts, target_q = map(wide, (rewards, discounts, target_q))
  best = online_q.argmax(-1)[:, None]
  values = jnp.take_along_axis(target_q, best, axis=-1)[:, 0]
  if eps is not None:
    values = signed_parabolic(values, eps)
  returns = values
  for _ in range(n):
    # The last value is the bootstrap of all steps near the end.
    returns = jnp.append(rewards + discounts * returns[1:], values[-1])
  returns = returns[:-1]
  if eps is not None:
    returns = signed_hyperbolic(returns, eps)
  return jax.lax.stop_gradient(returns)


def sequence_priority(errors: Array, weights: Array, eta: float = 0.9) -> Array:
  """Returns the priorities `[...]` of sequences.

  ::

    p = eta max_t |error_t| + (1 - eta) mean_t |error_t|,   t without burn-in

  Args:
    errors: `[..., T]`, temporal differences.
    weights: `[..., T]`, 1 for steps to learn from, 0 for burn-in.
    eta: weight of the largest error, from 0 to 1.

  Raises:
    ValueError: if eta is out of its range, or if the shapes differ.
  """
  check_number("eta", eta, at_least=0, at_most=1)
  if jnp.shape(errors) != jnp.shape(weights):
    raise ValueError(
      f"weights of shape {jnp.shape(weights)}: must be {jnp.shape(errors)}, as "
      "the errors."
    )
  errors, weights = wide(errors), wide(weights)
  sizes = jnp.where(weights > 0, jnp.abs(errors) * weights, 0.0)
  mean = sizes.sum(-1) / jnp.maximum(weights.sum(-1), 1)
  return eta * sizes.max(-1) + (1 - eta) * mean


def importance_weights(
  probabilities: Array, count: Array, exponent: float
) -> Array:
  """Returns `(count p)^-exponent`, divided by the largest weight of the batch.

  They correct for sampling with probabilities p instead of uniformly from
  `count` sequences (Schaul et al. 2016, section 3.4). A probability of 0, with
  which nothing is drawn, has the weight 0.

  Raises:
    ValueError: for a negative probability or exponent.
  """
  check_number("probabilities", probabilities, at_least=0)
  check_number("exponent", exponent, at_least=0)
  drawn = probabilities > 0
  weights = (count * jnp.where(drawn, probabilities, 1.0)) ** -exponent
  weights = jnp.where(drawn, weights, 0.0)
  return weights / jnp.where(drawn.any(), weights.max(), 1.0)
