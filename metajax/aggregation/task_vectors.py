"""Task vectors: differences by fine-tuning, added and merged."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from metajax import variables
from metajax.aggregation.stacks import (
  check_alike,
  check_stack,
  normalized_weights,
  one_of,
  weighted_mean,
  weighted_sum,
)
from metajax.numerics import check_number, wide
from metajax.types import Array, Params


def task_vectors(stack: Params, base: Params) -> Params:
  """Returns `tau_m = theta_m - theta_0`, a tree of `[models, ...]`.

  They are in float32 at least. Differences of narrower numbers are exact or
  nearly exact in float32. `State` nodes hold the models' state, not a
  difference.

  Args:
    stack: fine-tuned models, a tree of arrays `[models, ...]`.
    base: theta_0, the model before fine-tuning.

  Raises:
    ValueError: see `check_stack`; if `base` has other shapes than a model of
      the stack.

  References:
    Ilharco et al., `Editing Models with Task Arithmetic
    <https://arxiv.org/abs/2212.04089>`_, 2023, section 2.
  """
  check_stack(stack)
  check_alike("base", base, one_of(stack))
  differences = jax.tree.map(
    lambda x, start: wide(x) - wide(start),
    *map(variables.weights, (stack, base)),
  )
  return variables.combine(differences, stack)


def task_arithmetic(base: Params, vectors: Params, scales: ArrayLike) -> Params:
  """Adds scaled task vectors to a model.

  ::

    theta = theta_0 + sum_m lambda_m tau_m

  State S is averaged, because a sum could make a running variance negative::

    S = (1 - sum_m p_m) S_0 + sum_m p_m S_m
    p_m = max(lambda_m, 0) / max(1, sum_k max(lambda_k, 0))

  With scales that are not negative and sum to at most 1, it is the same
  equation as that of the weights. With other scales, compute running statistics
  anew.

  Args:
    base: theta_0.
    vectors: the tau_m, a tree of arrays `[models, ...]`. Its `State` nodes hold
      the S_m, as in the result of `task_vectors`.
    scales: `[models]` or one number for all. A negative scale makes the model
      forget a task.

  Returns:
    One model, in the dtypes of `base`. Sums are in float32 at least.

  Raises:
    ValueError: see `check_stack`; if `scales` has another shape or is not a
      number; if `base` has other shapes than a model of `vectors`.

  References:
    Ilharco et al., `Editing Models with Task Arithmetic
    <https://arxiv.org/abs/2212.04089>`_, 2023, section 2.
  """
  size = check_stack(vectors)
  scales = jnp.asarray(scales)
  if scales.shape not in ((), (size,)):
    raise ValueError(
      f"scales of shape {scales.shape}: must be one number or ({size},)."
    )
  check_number("scales", scales)
  check_alike("base", base, one_of(vectors))
  scales = jnp.broadcast_to(scales, (size,))
  moved = jax.tree.map(
    lambda start, leaf: (wide(start) + weighted_sum(scales, leaf)).astype(
      start.dtype
    ),
    *map(variables.weights, (base, vectors)),
  )
  shares = jnp.maximum(wide(scales), 0)
  shares = shares / jnp.maximum(shares.sum(), 1)
  # The base is one more model of the average.
  shares = jnp.append(jnp.maximum(1 - shares.sum(), 0), shares)
  states = jax.tree.map(
    lambda start, leaf: jnp.concatenate([jnp.asarray(start)[None], leaf]),
    *map(variables.states, (base, vectors)),
  )
  return variables.combine(moved, weighted_mean(shares, states), base)


def ties_vector(
  vectors: Params,
  weights: ArrayLike | None = None,
  *,
  density: ArrayLike = 0.2,
) -> Params:
  """Merges task vectors: trims, elects signs, averages values of that sign.

  ::

    tau'_m  = tau_m where |tau_m| is among its largest `density`, else 0
    gamma_j = sign(sum_m w_m tau'_mj)
    tau_j   = mean_m over {m: sign(tau'_mj) = gamma_j}, weighted, of tau'_mj

  Trimming ranks all parameters of a model together. All values that are equal
  to the smallest kept magnitude are kept. `State` nodes are not ranked. They
  become the weighted average of the models' state.

  Args:
    vectors: a tree of arrays `[models, ...]`.
    weights: `[models]`, not negative; equal if None.
    density: the fraction of a task vector to keep, in (0, 1].

  Returns:
    One task vector, to be scaled and added to the base model. With a leading
    model axis (`x[None]`), `task_arithmetic` does so.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`; if `density` is out
      of range.

  References:
    Yadav et al., `TIES-Merging: Resolving Interference When Merging Models
    <https://arxiv.org/abs/2306.01708>`_, 2023, algorithm 1.
  """
  check_number("density", density, above=0, at_most=1)
  size = check_stack(vectors)
  normal = normalized_weights(weights, size)
  magnitudes = jnp.concatenate(
    [
      jnp.abs(wide(v)).reshape(size, -1)
      for v in jax.tree.leaves(variables.weights(vectors))
    ],
    axis=1,
  )
  count = magnitudes.shape[1]
  numpy = jnp if isinstance(density, jax.core.Tracer) else np
  kept = numpy.clip(numpy.round(density * count), 1, count).astype(int)
  threshold = jnp.sort(magnitudes, axis=1)[:, count - kept]

  def merge(leaf: Array) -> Array:
    as_column = (-1, *[1] * (leaf.ndim - 1))
    vector = wide(leaf)
    trimmed = jnp.where(
      jnp.abs(vector) >= threshold.reshape(as_column), vector, 0.0
    )
    column = normal.reshape(as_column)
    elected = jnp.sign((column * trimmed).sum(0))
    mass = column * ((jnp.sign(trimmed) == elected) & (trimmed != 0))
    total = mass.sum(0)
    mean = (mass * trimmed).sum(0) / jnp.where(total > 0, total, 1.0)
    return mean.astype(leaf.dtype)

  merged = jax.tree.map(merge, variables.weights(vectors))
  states = weighted_mean(normal, variables.states(vectors))
  return variables.combine(merged, states)
