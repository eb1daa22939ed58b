"""Mixes several task families."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Batch, Episode, PRNGKey, TaskFamily, as_partial


def mixture(
  families: Sequence[TaskFamily], weights: Sequence[float] | None = None
) -> TaskFamily:
  """Builds a family whose tasks come from several families.

  Each task first draws its family. Family i has probability
  `weights[i] / sum(weights)`. Under `jax.vmap`, every family draws each task,
  and one of these tasks is used. The cost is then the sum over all families.

  Args:
    families: families whose episodes have equal shapes and dtypes. If some
      families have masks, the others get a mask of ones.
    weights: positive numbers; None: all families are equally likely.

  Returns:
    A task family that carries the arrays of all families.

  Raises:
    ValueError: if episodes differ in their shapes or dtypes, if a weight is not
      positive, or if a family is no function.
  """
  alone = callable(families)
  if alone or not all(map(callable, families)):
    kinds = [type(x).__name__ for x in ([families] if alone else families)]
    given = ", ".join(kinds) + " alone" * alone
    raise ValueError(
      f"families: {given} given, must be a list of functions, such as "
      "[sinusoid(5, 5)]."
    )
  weights = [1.0] * len(families) if weights is None else list(weights)
  if (
    not families
    or len(weights) != len(families)
    or not all(np.isfinite(x) and x > 0 for x in weights)
  ):
    raise ValueError(
      f"weights={weights}: must be a positive number for each of the "
      f"{len(families)} families, which must be one or more."
    )
  partials = [as_partial(family) for family in families]
  shapes = [jax.eval_shape(x, jax.random.key(0)) for x in partials]
  masked = any(batch.mask is not None for shape in shapes for batch in shape)
  if masked:
    partials = [jax.tree_util.Partial(_masked, x) for x in partials]
    shapes = [jax.eval_shape(x, jax.random.key(0)) for x in partials]
  first = shapes[0]
  for number, shape in enumerate(shapes):
    if _described(shape) != _described(first):
      raise ValueError(
        f"families: the first draws {_described(first)}, number {number} (from "
        f"0) draws {_described(shape)}; all must be equal: give them the same "
        "ways and shots, and images of one size and depth."
      )
  chances = np.asarray(weights, np.float32) / np.sum(weights, dtype=np.float32)
  return jax.tree_util.Partial(_sample, jnp.log(chances), partials)


def _sample(logits: jax.Array, families: list, rng: PRNGKey) -> Episode:
  family_key, task_key = jax.random.split(rng)
  chosen = jax.random.categorical(family_key, logits)
  # As arguments of the branches, the arrays do not become constants.
  branches = [
    lambda all_of, key, i=i: all_of[i](key) for i in range(len(families))
  ]
  return jax.lax.switch(chosen, branches, families, task_key)


def _masked(family: TaskFamily, rng: PRNGKey) -> Episode:
  def with_mask(batch: Batch) -> Batch:
    if batch.mask is not None:
      return batch
    count = len(jax.tree.leaves(batch.targets)[0])
    return batch._replace(mask=jnp.ones(count, bool))

  return Episode(*map(with_mask, family(rng)))


def _described(episode: Any) -> str:
  """Describes the tree, shapes and dtypes of an episode."""
  return ", ".join(
    f"{jax.tree_util.keystr(path, simple=True)} {x.dtype} {x.shape}"
    for path, x in jax.tree_util.tree_flatten_with_path(episode)[0]
  )
