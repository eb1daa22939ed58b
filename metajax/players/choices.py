"""What players share: the best of equals, and fast draws of posteriors."""

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
  """Returns the place of the highest score, int32.

  Args:
    scores: `[n]`.
    rng: chooses among equals.
    ties: "random": any of the best; "first": the first of them.
    tolerance: scores within this part of the largest magnitude are equal, for
      those that rounding tells apart.

  Raises:
    ValueError: if `ties` is neither.
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

  or, where the shape is 1, as minus the logarithm of a uniform one. All are
  drawn again until all are accepted, which on a CPU takes a tenth of the time
  of `jax.random.gamma`.

  Args:
    rng: a key.
    shapes: `[...]`, each at least 1.

  Returns:
    `[...]`, of scale 1.
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
  start = rng, shapes == 1, jax.random.exponential(key, d.shape)
  return jax.lax.while_loop(lambda carry: ~carry[1].all(), draw, start)[2]
