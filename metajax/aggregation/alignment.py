"""Permutes the hidden units of models so that they can be averaged."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.aggregation.stacks import check_alike, check_stack
from metajax.aggregation.units import (
  Factors,
  UnitAxes,
  described,
  group_sizes,
  permute_units,
  split,
)
from metajax.numerics import check_counts
from metajax.types import Params

Permutations = dict[str, np.ndarray]  # group -> index of the i-th unit
Arrays = dict[str, np.ndarray]  # path -> array


def match_units(
  reference: Params,
  model: Params,
  axes: UnitAxes,
  *,
  max_sweeps: int = 100,
  seed: int = 0,
) -> Permutations:
  """Matches the hidden units of two models (weight matching).

  Maximises the inner product of the parameters over permutations P::

    sum over arrays of  <A, P B>

  by coordinate ascent over the groups of units. If all other groups are fixed,
  the best order of one group is the solution of a linear assignment problem,
  which is solved exactly. The result is a local optimum. Narrow networks have
  several, so another seed may find a better one.

  A group can be on several axes of one array, as in the recurrent kernel of a
  network. All these axes are permuted, so the problem is not linear. The
  assignment problem is then solved for each axis with the current order on the
  others, and the best permutations found are returned. The sum is therefore
  never below its value without a permutation.

  Args:
    reference: A.
    model: B, a tree like A.
    axes: see `chain_axes` and `unit_axes`.
    max_sweeps: largest number of passes over all groups of units.
    seed: seed of the order in which the groups are visited.

  Returns:
    Permutations for `permute_units(model, ..., axes)`.

  Raises:
    ValueError: if the models differ in a shape; if `axes` does not describe an
      array, or if the sizes of the groups do not fit its axes.

  References:
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    algorithm 1.
  """
  # scipy.optimize takes as long to import as JAX, so it is imported here.
  from scipy.optimize import linear_sum_assignment

  check_alike("model", model, reference)
  rng = np.random.default_rng(seed)
  factors = _factors(reference, axes)
  target, source = (_factored(p, factors) for p in (reference, model))
  places: dict[str, list[tuple[str, int]]] = {}
  for path, found in factors.items():
    for place, (group, _) in enumerate(found):
      if group is not None:
        places.setdefault(group, []).append((path, place))
  order = {
    group: np.arange(target[where[0][0]].shape[where[0][1]])
    for group, where in sorted(places.items())
  }

  def permuted(path: str, but: int | None = None) -> np.ndarray:
    array = source[path]
    for place, (group, _) in enumerate(factors[path]):
      if group is not None and place != but:
        array = array.take(order[group], place)
    return array

  def likeness() -> float:
    return sum(np.vdot(target[path], permuted(path)) for path in factors)

  best, highest = dict(order), likeness()
  for _ in range(max_sweeps):
    improved = False
    for group in rng.permutation(sorted(order)):
      similarity = np.zeros((len(order[group]),) * 2)
      for path, place in places[group]:
        one = _units_first(target[path], place)
        two = _units_first(permuted(path, but=place), place)
        similarity += one @ two.T
      _, found = linear_sum_assignment(similarity, maximize=True)
      rows = np.arange(len(found))
      gain = similarity[rows, found] - similarity[rows, order[group]]
      if gain.sum() > 1e-9 * np.abs(similarity).max():
        order[group], improved = found, True
    if not improved:
      break
    if (value := likeness()) > highest:
      best, highest = dict(order), value
  return best


def align_stack(
  stack: Params,
  axes: UnitAxes,
  *,
  rounds: int = 1,
  apply: Callable[[Params, Any], Any] | None = None,
  inputs: Any = None,
) -> Params:
  """Permutes the hidden units of the models in a stack so that they match.

  Do this before averaging models that were trained from different
  initialisations. The first round aligns the other models to model 0. Each
  later round aligns every model, model 0 too, to the mean of all the others. It
  stops if nothing changes.

  Args:
    stack: a tree of arrays `[models, ...]`.
    axes: see `chain_axes` and `unit_axes`.
    rounds: largest number of rounds, at least 1.
    apply: `(params, inputs) -> predictions`. If given, the outputs of every
      model before and after the alignment are compared. They differ if `axes`
      is wrong.
    inputs: inputs for this comparison; a few examples are enough.

  Returns:
    A stack of aligned models. If `axes` is right, each computes the same
    function as before.

  Raises:
    ValueError: see `check_stack`; if `rounds` is less than 1; if the outputs of
      a model change.

  References:
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    algorithms 1 and 3.
  """
  check_counts(rounds=rounds)
  size = check_stack(stack)
  models = [
    jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m]), stack)
    for m in range(size)
  ]

  def align(m: int, reference: Params, seed: int) -> bool:
    order = match_units(reference, models[m], axes, seed=seed)
    models[m] = permute_units(models[m], order, axes)
    return any(np.any(p != np.arange(len(p))) for p in order.values())

  for m in range(1, size):
    align(m, models[0], seed=0)
  for seed in range(1, rounds if size > 1 else 1):
    changed = False
    for m in range(size):
      # The sum instead of the mean: the matching does not depend on the scale.
      others = jax.tree.map(_sum, *models[:m], *models[m + 1 :])
      changed |= align(m, others, seed)
    if not changed:
      break
  aligned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
  if apply is not None:
    _check_outputs(jax.jit(apply), stack, aligned, size, inputs)
  return aligned


def _check_outputs(
  apply: Callable[[Params, Any], Any],
  stack: Params,
  aligned: Params,
  size: int,
  inputs: Any,
) -> None:
  for m in range(size):
    before, after = (
      jax.tree.leaves(apply(jax.tree.map(lambda x, m=m: x[m], tree), inputs))
      for tree in (stack, aligned)
    )
    for one, two in zip(before, after, strict=True):
      rounding = float(jnp.finfo(one.dtype).eps) ** 0.5
      one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
      scale, change = np.abs(one).max(), np.abs(two - one).max()
      if not change <= rounding * scale:
        raise ValueError(
          f"axes: after the alignment the outputs of model {m} differ by up to "
          f"{change:.2g} from what they were, up to {scale:.2g}; these groups "
          "are not the network's (unit_axes finds them)."
        )


def _sum(*arrays: np.ndarray) -> np.ndarray:
  return np.sum([np.asarray(x, np.float64) for x in arrays], axis=0)


def _factors(params: Params, axes: UnitAxes) -> Mapping[str, Factors]:
  """Returns the factors of each array's axes, all axes in one tuple."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  found = {
    jax.tree_util.keystr(path): (leaf.shape, described(path, leaf, axes))
    for path, leaf in leaves
  }
  shapes = {path: shape for path, (shape, _) in found.items()}
  sizes = group_sizes(shapes, {p: a for p, (_, a) in found.items()})
  return {
    path: tuple(
      factor
      for axis, n in zip(described_axes, shape, strict=True)
      for factor in split(axis, n, sizes)
    )
    for path, (shape, described_axes) in found.items()
  }


def _factored(params: Params, factors: Mapping[str, Factors]) -> Arrays:
  """Returns the arrays in float64, reshaped to one axis a factor."""
  arrays = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    shape = [n for _, n in factors[name]]
    arrays[name] = np.asarray(leaf, np.float64).reshape(shape)
  return arrays


def _units_first(array: np.ndarray, place: int) -> np.ndarray:
  """Returns the array as a matrix `[units, all other axes]`."""
  return np.moveaxis(array, place, 0).reshape(array.shape[place], -1)
