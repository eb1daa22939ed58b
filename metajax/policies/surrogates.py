"""Surrogates: losses whose derivatives estimate those of the expected return.

All have the same arguments, are minimised, and are minus a mean over the steps
of the mask:

- `log_probs`: `[E, T]`, log pi(a_t | s_t) of the policy that is differentiated.
- `old_log_probs`: `[E, T]`, those of the policy that acted. With
  `jax.lax.stop_gradient(log_probs)` the surrogate is on policy.
- `advantages`: `[E, T]`, constants.
- `mask`: `[E, T]` bool, False after an episode's end.

H is the Hessian of the expected return J. By the product rule it is a sum of
three terms (Rothfuss et al. 2019), where Q_t is the return from t
on::

  H = H_1 + H_2 + H_12 + H_12'
  H_1  = E sum_t  (grad log pi_t) (grad log pi_t)' Q_t
  H_2  = E sum_t  (grad^2 log pi_t) Q_t
  H_12 = E sum_t  (grad log pi_t) (grad E[Q_t | s_t, a_t])'

On policy, all surrogates have the gradient of J. Their Hessians differ: that of
`dice` is H, that of `low_variance_curvature` is H_1 + H_2, and that of
`score_function` is H_2 alone.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from metajax.numerics import check_number
from metajax.policies.advantages import masked_mean
from metajax.types import Array

Surrogate = Callable[[Array, Array, Array, Array], Array]


def score_function(
  log_probs: Array, old_log_probs: Array, advantages: Array, mask: Array
) -> Array:
  """Computes `-mean log pi_t A_t` (Williams 1992).

  It does not read `old_log_probs`. The published code of MAML uses it as the
  inner loss.
  """
  chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
  return -masked_mean(jnp.where(mask, log_probs, 0.0) * advantages, mask)


def low_variance_curvature(
  log_probs: Array, old_log_probs: Array, advantages: Array, mask: Array
) -> Array:
  """Computes `-mean (pi_t / old pi_t) A_t`, the ratio of each step alone.

  On policy it is LVC (Rothfuss et al. 2019). Off policy it is the objective of
  TRPO (Schulman et al. 2015).

  References:
    Rothfuss et al., `ProMP: Proximal Meta-Policy Search
    <https://arxiv.org/abs/1810.06784>`_, 2019.
    Schulman et al., `Trust Region Policy Optimization
    <https://arxiv.org/abs/1502.05477>`_, 2015.
  """
  chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
  ratio = jnp.exp(jnp.where(mask, log_probs - old_log_probs, 0.0))
  return -masked_mean(ratio * advantages, mask)


def dice(
  log_probs: Array, old_log_probs: Array, advantages: Array, mask: Array
) -> Array:
  """Computes `-mean (w_t - w_{t-1}) A_t`, with the ratios of all steps so far.

  ::

    w_t = prod_{k <= t} pi_k / old pi_k,    w_{-1} = 1

  On policy, derivatives of any order are unbiased, with or without a baseline
  that depends on the state. The variance grows with the horizon.

  References:
    Foerster et al., `DiCE: The Infinitely Differentiable Monte Carlo Estimator
    <https://arxiv.org/abs/1802.05098>`_, 2018.
    Farquhar et al., `Loaded DiCE <https://arxiv.org/abs/1909.10549>`_, 2019
    (this form).
  """
  chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
  difference = jnp.where(mask, log_probs - old_log_probs, 0.0)
  whole = jnp.cumsum(difference, axis=-1)
  before = whole - difference
  weight = jnp.exp(whole) - jnp.exp(before)
  # The sum over steps would spread NaN of padding to all gradients.
  advantages = jnp.where(mask, advantages, 0.0)
  return -masked_mean(weight * advantages, mask)


def clipped(clip: float = 0.2) -> Surrogate:
  """Returns the clipped surrogate of PPO and ProMP's outer step.

  ::

    -mean min(rho A, clip(rho, 1 - c, 1 + c) A),    rho = pi_t / old pi_t

  Args:
    clip: c, above 0.

  Raises:
    ValueError: if `clip` is not above 0.

  References:
    Schulman et al., `Proximal Policy Optimization Algorithms
    <https://arxiv.org/abs/1707.06347>`_, 2017, equation 7.
    Rothfuss et al., `ProMP: Proximal Meta-Policy Search
    <https://arxiv.org/abs/1810.06784>`_, 2019.
  """
  check_number("clip", clip, above=0)
  return functools.partial(_clipped, clip)


def _clipped(
  clip: float,
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  mask: Array,
) -> Array:
  chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
  ratio = jnp.exp(jnp.where(mask, log_probs - old_log_probs, 0.0))
  inside = jnp.clip(ratio, 1 - clip, 1 + clip)
  least = jnp.minimum(ratio * advantages, inside * advantages)
  return -masked_mean(least, mask)


def exploration(log_probs: Array, mask: Array, outcome: Array) -> Array:
  """Computes E-MAML's term, which rewards the episodes before adaptation.

  ::

    -outcome  (1 / E) sum_{e, t} log pi_t

  Its gradient is the part of the meta-gradient that goes through the
  distribution of the episodes before adaptation, if `outcome` is the return
  after adaptation that these episodes led to.

  Args:
    log_probs: `[E, T]`, of the policy before adaptation.
    mask: `[E, T]` bool, False after an episode's end.
    outcome: a scalar constant, less a baseline to reduce the variance.

  References:
    Stadie et al., `Some Considerations on Learning to Explore via
    Meta-Reinforcement Learning <https://arxiv.org/abs/1803.01118>`_, 2018.
  """
  total = jnp.where(mask, log_probs, 0.0).sum(-1).mean()
  return -jax.lax.stop_gradient(outcome) * total


SURROGATES: dict[str, Surrogate] = {
  "score": score_function,
  "lvc": low_variance_curvature,
  "dice": dice,
}
