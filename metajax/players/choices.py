"""Shared functions of players: choices with ties, and Gamma samples."""

from typing import Literal

import jax
import jax.numpy as jnp

from metajax.types import Array, PRNGKey

Ties = Literal["random", "first"]


def best(
  scores: Array,
  rng: PRNGKey,
  *,
  ties: Ties = "random",
  tolerance: float = 0.0,
) -> Array:
  """Returns the index of the highest score, int32.

  Args:
    scores: `[n]`.
    rng: the key of the choice among equal scores.
    ties: "random" takes a random one of the best scores, and "first" the first.
    tolerance: scores are equal to the highest if they differ from it by at most
      `tolerance` times the largest magnitude. Use it for scores that differ by
      rounding only.

  Raises:
    ValueError: for another value of `ties`.
  """
  if ties not in ("random", "first"):
    raise ValueError(f"ties={ties!r}: must be 'random' or 'first'.")
  margin = tolerance * jnp.abs(scores).max()
  equal = scores >= scores.max() - margin
  if ties == "first":
    return equal.argmax()
  return jnp.where(equal, jax.random.uniform(rng, scores.shape), -1.0).argmax()


def gamma(rng: PRNGKey, shapes: Array) -> Array:
  """Draws Gamma variables by rejection (Marsaglia and Tsang 2000).

  ::

    d = shape - 1/3,  v = (1 + x / sqrt(9 d))^3,  x normal, u uniform
    d v  if  log u < x^2 / 2 + d (1 - v + log v)

  If the shape is 1, the variable is exponential and is drawn directly. The loop
  draws all variables again until each has been accepted once. On a CPU, this
  takes a tenth of the time of `jax.random.gamma`.

  Args:
    rng: a key.
    shapes: `[...]`, each at least 1.

  Returns:
    Samples `[...]` with scale 1; NaN for a shape below 1.
  """
  d = shapes - 1 / 3
  slope = 1 / jnp.sqrt(9 * d)

  def draw(carry: tuple) -> tuple:
    rng, accepted, values = carry
    rng, normal_key, uniform_key = jax.random.split(rng, 3)
    x = jax.random.normal(normal_key, d.shape)
    v = (1 + slope * x) ** 3
    log_v = jnp.log(jnp.where(v > 0, v, 1.0))
    log_u = jnp.log(jax.random.uniform(uniform_key, d.shape))
    accept = (v > 0) & (log_u < x**2 / 2 + d * (1 - v + log_v))
    return rng, accepted | accept, jnp.where(accepted, values, d * v)

  rng, key = jax.random.split(rng)
  values = jax.random.exponential(key, d.shape)
  # No sample of a smaller shape would be accepted, and the loop not end.
  start = rng, ~(shapes > 1), jnp.where(shapes >= 1, values, jnp.nan)
  return jax.lax.while_loop(lambda carry: ~carry[1].all(), draw, start)[2]
