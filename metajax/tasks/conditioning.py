"""The normal distribution of a function given noisy values of it."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from metajax.batches import real
from metajax.numerics import dot
from metajax.tasks.covariances import Covariance, Hyper
from metajax.types import Array, Batch

# The least variance of the noise, as a fraction of the function's variance.
# Single precision needs it for the Cholesky factor.
JITTER = 1e-5


def noise_variance(hyper: Hyper) -> Array:
  """Returns `max(noise^2, 1e-5 scale^2)`."""
  floor = JITTER * jnp.square(hyper.scale)
  return jnp.maximum(jnp.square(hyper.noise), floor)


def condition(
  covariance: Covariance, hyper: Hyper, support: Batch, inputs: Array
) -> tuple[Array, Array, Array]:
  """Predicts noisy targets by a Gaussian process of mean zero.

  ::

    K = k(X, X) + noise^2 I,  mean(x) = k(x, X) K^-1 y,
    scale(x)^2 = k(x, x) - k(x, X) K^-1 k(X, x) + noise^2,
    log p(y | X) = -1/2 y' K^-1 y - 1/2 log det K - n/2 log(2 pi)

  Args:
    covariance: k.
    hyper: its hyper-parameters, and the noise.
    support: inputs `[n, c]` and targets `[n, 1]`.
    inputs: `[m, c]`.

  Returns:
    The means `[m]` and standard deviations `[m]` of the targets at the inputs,
    and the log evidence of the support, a scalar.

  References:
    Rasmussen and Williams, `Gaussian Processes for Machine Learning
    <https://gaussianprocess.org/gpml/>`_, 2006, algorithm 2.1.
  """
  x, mask = support.inputs, real(support)
  noise = noise_variance(hyper)
  both = mask[:, None] & mask[None, :]
  # Padding is independent of everything, of variance 1 and value 0.
  known = jnp.where(both, covariance(x, x, hyper), 0)
  known += jnp.diag(jnp.where(mask, noise, 1))
  cross = jnp.where(mask[:, None], covariance(x, inputs, hyper), 0)
  y = jnp.where(mask, support.targets[:, 0], 0)
  root = jnp.linalg.cholesky(known)
  columns = jnp.concatenate([cross, y[:, None]], axis=1)
  solved = solve_triangular(root, columns, lower=True)
  a, b = solved[:, :-1], solved[:, -1]
  alone = jax.vmap(lambda x: covariance(x[None], x[None], hyper)[0, 0])(inputs)
  # Rounding must not make it negative.
  variance = jnp.maximum(alone - jnp.square(a).sum(0), 0) + noise
  evidence = (
    -jnp.square(b).sum() / 2
    - jnp.log(jnp.diag(root)).sum()
    - mask.sum() * jnp.log(2 * jnp.pi) / 2
  )
  return dot(a.T, b), jnp.sqrt(variance), evidence
