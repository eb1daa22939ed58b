"""PEARL's belief: a product of Gaussian factors, one for each transition."""

import jax
import jax.numpy as jnp

from metajax.numerics import wide
from metajax.off_policy.transitions import Transition
from metajax.policies.distributions import DiagonalGaussian
from metajax.types import Array

SMALLEST_VARIANCE = 1e-7  # Of a factor, as in the authors' code.


def product_of_gaussians(
  factors: DiagonalGaussian, mask: Array | None = None
) -> DiagonalGaussian:
  """Multiplies Gaussian factors with one another and with the prior N(0, I).

  ::

    q(z | c) ~ N(z; 0, I) prod_n N(z; m_n, s_n^2)
    1 / s^2 = 1 + sum_n 1 / s_n^2,     m = s^2 sum_n m_n / s_n^2

  The order of the factors has no effect. Without a factor, the product is the
  prior.

  The paper's product has no prior (section 4.1). The authors' code multiplies
  the factors alone if there are any, and takes N(0, I) if there are none. Here
  the prior is one more factor. So the first transition narrows a belief rather
  than replacing it, no context is no special case, and a masked factor has the
  limit of a wide one. With a hundred factors the difference is small.

  Args:
    factors: `[N, latent]`.
    mask: `[N]` bool, which factors are real. None: all are.

  Returns:
    The product, `[latent]`.

  References:
    Rakelly et al., `Efficient Off-Policy Meta-Reinforcement Learning via
    Probabilistic Context Variables <https://arxiv.org/abs/1903.08254>`_, 2019.
  """
  mean, log_scale = map(wide, factors)
  if mask is not None:
    # First of all: what is masked may be infinite, and so may its derivatives.
    mean, log_scale = (
      jnp.where(mask[:, None], x, masked)
      for x, masked in ((mean, 0.0), (log_scale, jnp.inf))
    )
  precision = jnp.exp(-2 * log_scale)
  total = 1.0 + precision.sum(0)
  weighted = precision * mean
  return DiagonalGaussian(weighted.sum(0) / total, -0.5 * jnp.log(total))


def factors_of(outputs: Array) -> DiagonalGaussian:
  """Makes factors of an encoder's outputs `[..., 2 latent]`.

  The first half are means. The softplus of the second are variances.
  """
  mean, raw = jnp.split(wide(outputs), 2, -1)
  variance = jnp.maximum(jax.nn.softplus(raw), SMALLEST_VARIANCE)
  return DiagonalGaussian(mean, 0.5 * jnp.log(variance))


def encoder_inputs(steps: Transition) -> Array:
  """Returns (s, a, r, s') of transitions `[...]`, `[..., 2 n + d + 1]`."""
  return jnp.concatenate(
    [
      steps.observation,
      steps.action,
      steps.reward[..., None],
      steps.next_observation,
    ],
    -1,
  )
