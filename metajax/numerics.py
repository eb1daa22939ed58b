"""Checks of numbers, shapes and logits; the precision of sums and roots."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def wide(x: ArrayLike) -> jax.Array:
  """Converts `x` to float32, unless its dtype is as wide or wider.

  Use it before sums and averages. A sum in bfloat16 stops growing when its
  terms are small beside it, and a sum in float16 overflows at 65504. Integers
  and bools become float32 too.
  """
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits >= 32:
    return x
  return x.astype(jnp.float32)


def floating(x: ArrayLike) -> jax.Array:
  """Converts integers and bools to float32, and no other dtype.

  Use it before squares and products. Those of integers wrap around: those of
  uint8, the dtype of images, at 256.
  """
  x = jnp.asarray(x)
  return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns the matrix product `x @ y`, in float32 on GPUs, too.

  Some GPUs round the factors of float32 products to 10 bits, unless asked not
  to.
  """
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def root(x: jax.Array) -> jax.Array:
  """Returns the square root, whose derivative at 0 is 0 and not infinite."""
  is_zero = x == 0
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, x)))


def largest_logits(logits: ArrayLike) -> jax.Array:
  """Returns the maxima over the last axis, of classes, of known logits.

  A logit of -inf masks a class. A maximum is finite if and only if the logits
  of the example are valid: it is NaN or +inf if one of them is, and -inf if all
  classes are masked.
  """
  # Evaluates constants of a traced function, too.
  with jax.ensure_compile_time_eval():
    return jnp.max(jnp.asarray(logits), axis=-1)


def check_number(
  name: str,
  value: ArrayLike,
  *,
  above: float | None = None,
  at_least: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
) -> None:
  """Checks the range of a hyper-parameter, if its value is known.

  A traced number (swept by `jax.vmap`, or learned) has no known value and is
  not checked. All numbers of an array are checked.

  Args:
    name: the name of the caller's argument.
    value: a number or an array of numbers.
    above: the value must be greater than this.
    at_least: the value must be this or more.
    at_most: the value must be this or less.
    below: the value must be less than this.

  Raises:
    ValueError: for a value out of range, NaN, or no real number.
  """
  if isinstance(value, jax.core.Tracer):
    return
  known = np.asarray(value)
  # None, texts, dates and complex numbers have no order.
  real = known.dtype.kind not in "OSUMmc"
  inside = known == known  # Not NaN.
  for bound, holds in (
    (above, np.greater),
    (at_least, np.greater_equal),
    (at_most, np.less_equal),
    (below, np.less),
  ):
    if real and bound is not None:
      inside = inside & holds(known, bound)
  if not real or not np.all(inside):
    allowed = _allowed(above, at_least, at_most, below)
    raise ValueError(f"{name}={value}: must be {allowed}.")


def check_range(name: str, bounds: tuple[float, float]) -> None:
  """Raises a `ValueError` unless two finite numbers are (low, high)."""
  try:
    low, high = bounds
    good = -np.inf < low < high < np.inf
  except (TypeError, ValueError):  # Not two, or not numbers.
    good = False
  if not good:
    raise ValueError(
      f"{name}={bounds}: must be (low, high), low < high, both finite."
    )


def check_scalar(name: str, value: Any) -> None:
  """Raises a `ValueError` if what a function returned is not one number."""
  if not jax.tree_util.all_leaves([value]) or jnp.shape(value) != ():
    shapes = jax.tree.map(jnp.shape, value)
    raise ValueError(f"{name}: returned the shape {shapes}; must be a scalar.")


def first_mismatch(found: Any, wanted: Any) -> tuple[str, Any, Any] | None:
  """Returns the first path at which two trees differ in shape.

  Args:
    found: a tree of arrays, or of their shapes.
    wanted: another one.

  Returns:
    The path, "" at the root, and the shapes of both trees there, or "missing";
    None if the trees have the same paths and shapes.
  """
  given, needed = (
    {
      jax.tree_util.keystr(path): getattr(leaf, "shape", ())
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (found, wanted)
  )
  for path in [*needed, *given]:
    a, b = (x.get(path, "missing") for x in (given, needed))
    if a != b:
      return path, a, b
  return None


def check_key(rng: Any) -> None:
  """Raises a `ValueError` if `rng` is no key, or keys, but a seed for example.

  Keys are typed, or raw: uint32 with a last axis.
  """
  dtype = getattr(rng, "dtype", None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not typed and (dtype != jnp.uint32 or not jnp.ndim(rng)):
    raise ValueError(f"rng={rng!r}: must be a key, such as jax.random.key(0).")


def check_kind(name: str, value: Any, kind: type) -> None:
  """Raises a `ValueError` unless an argument is of its kind.

  Args:
    name: the name of the caller's argument.
    value: the argument.
    kind: a NamedTuple of options, say.
  """
  if not isinstance(value, kind):
    raise ValueError(
      f"{name}: {type(value).__name__} given, must be {kind.__name__}(...)."
    )


def check_counts(*, at_least: int = 1, **counts: ArrayLike) -> None:
  """Checks numbers of things: they are integers, and not too small.

  A loop of 1.5 steps would take two, and a schedule would end after one and a
  half. Traced numbers are not checked.

  Args:
    at_least: every count must be this or more.
    **counts: the counts, by the names of the caller's arguments.

  Raises:
    ValueError: for a number that is no integer, or is too small.
  """
  for name, value in counts.items():
    if isinstance(value, jax.core.Tracer):
      continue
    try:
      whole = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
      whole = None
    if whole is None:
      raise ValueError(
        f"{name}={value!r}: must be an integer, {at_least} or more."
      )
    if whole < at_least:
      raise ValueError(f"{name}={value}: must be {at_least} or more.")


def _allowed(
  above: float | None,
  at_least: float | None,
  at_most: float | None,
  below: float | None,
) -> str:
  """Describes the range in words."""
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
