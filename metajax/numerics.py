"""Numbers that are checked where they are known, and sums that are wide."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def wide(x: ArrayLike) -> jax.Array:
  """Returns `x` in float32 at least: what sums and averages are made in.

  Integers and bools become float32 too. Sums in bfloat16 stand still, and sums
  in float16 overflow at 65504.
  """
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits >= 32:
    return x
  return x.astype(jnp.float32)


def check_number(
  name: str,
  value: ArrayLike,
  *,
  above: float | None = None,
  at_least: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
) -> None:
  """Checks a hyper-parameter's range where its value is known.

  A number that is swept by `jax.vmap` or learned has no value while it is
  traced, and is let pass. Of an array every number is checked.

  Args:
    name: as the caller's argument is called.
    value: a number or an array of numbers.
    above: the value must be greater.
    at_least: the value must be this or more.
    at_most: the value must be this or less.
    below: the value must be less.

  Raises:
    ValueError: for a known value out of the range, or NaN.
  """
  if isinstance(value, jax.core.Tracer):
    return
  known = np.asarray(value)
  inside = known == known  # Not NaN.
  for bound, holds in (
    (above, np.greater),
    (at_least, np.greater_equal),
    (at_most, np.less_equal),
    (below, np.less),
  ):
    if bound is not None:
      inside = inside & holds(known, bound)
  if not np.all(inside):
    allowed = _allowed(above, at_least, at_most, below)
    raise ValueError(f"{name}={value}: must be {allowed}.")


def _allowed(
  above: float | None,
  at_least: float | None,
  at_most: float | None,
  below: float | None,
) -> str:
  """Says the range in words."""
  if above is None and below is None and at_least is not None:
    if at_most is None:
      return f"{at_least} or more"
    return f"{at_least} to {at_most}"
  bounds = (
    ("above", above),
    ("at least", at_least),
    ("at most", at_most),
    ("below", below),
  )
  said = [f"{word} {bound}" for word, bound in bounds if bound is not None]
  return " and ".join(said) or "a number"
