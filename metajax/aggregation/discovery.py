"""Finds the groups of hidden units of a network by tracing its `apply`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from metajax.aggregation.labels import (
  FIXED,
  Labels,
  Unit,
  fix,
  labels_of,
  unify_all,
  units,
)
from metajax.aggregation.propagation import rule_of
from metajax.aggregation.units import Axis, UnitAxes
from metajax.types import Params

CALLS = frozenset(
  "jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call "
  "custom_vjp_call".split()
)
# The labels that an operation reads, by `id`.
Read = dict[int, Labels]


def unit_axes(
  apply: Callable[[Params, Any], Any], params: Params, inputs: Any
) -> UnitAxes:
  """Finds which axes of a model's arrays count the same hidden units.

  At first, every axis of the parameters is a separate group. Each operation of
  `apply` ties axes that must be permuted alike:

  - An addition (a skip connection) ties the axes of both terms.
  - A matrix product ties the two axes that it sums over.
  - A reshape splits an axis into factors (heads times units of a head, or
    positions times channels).
  - An unknown operation fixes the order of its operands and results.

  The order of the model's inputs and outputs is fixed, too. All groups that are
  not fixed can be permuted without a change of the outputs.

  Layers that `jax.lax.scan` runs with stacked parameters `[layers, ...]` share
  one permutation. The equal parts of a split axis (queries, keys and values, or
  the gates of an LSTM) share one permutation, too.

  Args:
    apply: `(params, inputs) -> predictions`, as in evaluation. It must read all
      arrays of the model, running statistics included.
    params: the parameters of one model, or their shapes.
    inputs: an example of the model's inputs `[n, ...]`, or their shapes.

  Returns:
    The axes of each array by its path. A group is named after the first array
    that has it.

  Raises:
    ValueError: if `apply` does not read an array of `params`.

  References:
    Ainsworth et al., `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_, 2023,
    section 3 and appendix A.
  """
  traced = jax.make_jaxpr(apply)(params, inputs)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  labels: list[Labels] = [
    [[Unit(size)] for size in np.shape(leaf)] for _, leaf in leaves
  ]
  others = [labels_of(v.aval.shape, FIXED) for v in traced.jaxpr.invars]
  read: Read = {}
  outputs = _run(traced, labels + others[len(labels) :], read)
  fix(*outputs)
  names: dict[Unit, str] = {}
  axes: dict[str, tuple[Axis, ...]] = {}
  for (path, _), label in zip(leaves, labels, strict=True):
    name = jax.tree_util.keystr(path)
    if id(label) not in read:
      raise ValueError(
        f"params: apply does not read {name}, so its units are not known; give "
        "the apply of evaluation, or leave the array out."
      )
    axes[name] = tuple(
      _axis(axis, f"{name} {place}", names) for place, axis in enumerate(label)
    )
  return axes


def _run(
  traced: ClosedJaxpr, inputs: Sequence[Labels], read: Read
) -> list[Labels]:
  """Propagates labels through a function and returns those of its results."""
  jaxpr = traced.jaxpr
  known: dict[Any, Labels] = dict(zip(jaxpr.invars, inputs, strict=True))
  for var, value in zip(jaxpr.constvars, traced.consts, strict=True):
    known[var] = labels_of(np.shape(value), FIXED)

  def get(atom: Any) -> Labels:
    if isinstance(atom, Literal):
      return labels_of(np.shape(atom.val), FIXED)
    return known[atom]

  for eqn in jaxpr.eqns:
    operands = [get(atom) for atom in eqn.invars]
    if eqn.primitive.name == "scan":
      results = _scan(eqn, operands, read)
    elif eqn.primitive.name == "cond":
      branches = [_run(b, operands[1:], read) for b in eqn.params["branches"]]
      results = branches[0]
      for branch in branches[1:]:
        unify_all(results, branch)
    elif (inner := _called(eqn)) is not None:
      results = _run(inner, operands, read)
    else:
      read.update((id(label), label) for label in operands)
      results = rule_of(eqn)(eqn, operands)
    known.update(zip(eqn.outvars, results, strict=True))
  return [get(atom) for atom in jaxpr.outvars]


def _called(eqn: Any) -> ClosedJaxpr | None:
  """Returns the function that a jit, a remat or a custom rule calls."""
  if eqn.primitive.name not in CALLS:
    return None
  inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
  return ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner


def _scan(eqn: Any, operands: Sequence[Labels], read: Read) -> list[Labels]:
  """Ties each carry to its next value, and fixes the order of the steps."""
  start = eqn.params["num_consts"]
  end = start + eqn.params["num_carry"]
  inner = [*operands[:end], *(label[1:] for label in operands[end:])]
  results = _run(eqn.params["jaxpr"], inner, read)
  unify_all(operands[start:end], results[: end - start])
  for outside, inside in zip(operands[end:], inner[end:], strict=True):
    fix(outside[:1])
    if id(inside) in read:
      read[id(outside)] = outside
  steps = eqn.params["length"]
  return [
    *results[: end - start],
    *([[Unit(steps, FIXED)], *label] for label in results[end - start :]),
  ]


def _axis(axis: list[Unit], name: str, names: dict[Unit, str]) -> Axis:
  """Describes an axis in the format of `UnitAxes`."""
  factors: list[tuple[str | None, int]] = []
  for unit in units(axis):
    if unit.fixed:
      group = None
    elif unit in names:
      group = names[unit]
    else:
      taken = name in names.values()
      group = names[unit] = f"{name}.{len(factors)}" if taken else name
    if group is None and factors and factors[-1][0] is None:
      factors[-1] = (None, factors[-1][1] * int(unit.size))
    else:
      factors.append((group, int(unit.size)))
  if not factors or all(group is None for group, _ in factors):
    return None
  return factors[0][0] if len(factors) == 1 else tuple(factors)
