"""Rules by which the operations of a traced network tie axes of its arrays.

There is a rule for each operation. It receives an equation and the labels of
its operands (`aggregation.labels`). It ties units that must be permuted alike,
fixes units whose order must not change, and returns the labels of the results.
If all operands are permuted by their labels, the results are permuted by
theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from metajax.aggregation.labels import (
  FIXED,
  Labels,
  Unit,
  fix,
  kept_where,
  labels_of,
  regroup,
  size_of,
  unify,
  unify_all,
)

Rule = Callable[[Any, Sequence[Labels]], list[Labels]]


def rule_of(eqn: Any) -> Rule:
  """Returns the rule of an equation's operation."""
  name = eqn.primitive.name
  if name in ELEMENTWISE:
    return _elementwise
  for prefix in ("reduce_window", "reduce_", "arg", "cum"):
    if name.startswith(prefix):
      return RULES[prefix]
  return RULES.get(name, _unknown)


def _unknown(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  fix(*operands)
  return [labels_of(v.aval.shape, FIXED) for v in eqn.outvars]


def _elementwise(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  (out,) = eqn.outvars
  result = []
  for place, size in enumerate(out.aval.shape):
    # Scalars and axes of size 1 are broadcast, so they tie nothing.
    met = [
      label[place]
      for v, label in zip(eqn.invars, operands, strict=True)
      if len(label) > place and v.aval.shape[place] == size
    ]
    for axis in met[1:]:
      unify(met[0], axis)
    result.append(met[0])
  return [result]


def _broadcast(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  # New axes may be permuted freely, because the values along them are equal.
  result = labels_of(eqn.params["shape"])
  source = eqn.invars[0].aval.shape
  for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
    if source[axis] == eqn.params["shape"][place]:
      result[place] = operands[0][axis]
  return [result]


def _iota(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  result = labels_of(eqn.params["shape"])
  fix([result[eqn.params["dimension"]]])
  return [result]


def _reshape(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  return [regroup(operands[0], eqn.outvars[0].aval.shape)]


def _transpose(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  return [[operands[0][axis] for axis in eqn.params["permutation"]]]


def _reduce(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  gone = eqn.params.get("axes")
  if gone is None or len(eqn.outvars) != 1:
    return _unknown(eqn, operands)
  return [[axis for i, axis in enumerate(operands[0]) if i not in gone]]


def _arg(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  # The result is an index, so the order of the units matters.
  fix([operands[0][axis] for axis in eqn.params["axes"]])
  return _reduce(eqn, operands)


def _cumulative(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  fix([operands[0][eqn.params["axis"]]])
  return [list(operands[0])]


def _reverse(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  fix([operands[0][axis] for axis in eqn.params["dimensions"]])
  return [list(operands[0])]


def _sort(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  for label in operands[1:]:
    unify_all([operands[0]], [label])
  fix([operands[0][eqn.params["dimension"]]])
  return [list(label) for label in operands]


def _stack(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  for label in operands[1:]:
    unify_all([operands[0]], [label])
  result = list(operands[0])
  result.insert(eqn.params["axis"], [Unit(len(operands), FIXED)])
  return [result]


def _unstack(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  place = eqn.params["axis"]
  fix([operands[0][place]])
  rest = [axis for i, axis in enumerate(operands[0]) if i != place]
  return [rest for _ in eqn.outvars]


def _tile(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  times = eqn.params["reps"]
  return [
    [
      [Unit(n, FIXED), *axis]
      for n, axis in zip(times, operands[0], strict=True)
    ]
  ]


def _product(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  summed, batch = eqn.params["dimension_numbers"]
  one, other = operands
  for pairs in (summed, batch):
    for a, b in zip(*pairs, strict=True):
      unify(one[a], other[b])
  free = [
    [axis for i, axis in enumerate(label) if i not in (*s, *b)]
    for label, s, b in zip(operands, summed, batch, strict=True)
  ]
  return [[*(one[i] for i in batch[0]), *free[0], *free[1]]]


def _convolution(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  numbers, groups = (
    eqn.params["dimension_numbers"],
    eqn.params["feature_group_count"],
  )
  image, kernel = operands
  channels, filters = image[numbers.lhs_spec[1]], kernel[numbers.rhs_spec[0]]
  shape = eqn.outvars[0].aval.shape
  if groups == 1:
    unify(channels, kernel[numbers.rhs_spec[1]])
  elif groups == shape[numbers.out_spec[1]] == size_of(channels):
    unify(channels, filters)  # Depthwise: one filter a channel.
  else:
    return _unknown(eqn, operands)
  if eqn.params["batch_group_count"] != 1:
    return _unknown(eqn, operands)
  fix([image[i] for i in numbers.lhs_spec[2:]])
  fix([kernel[i] for i in numbers.rhs_spec[2:]])
  result = labels_of(shape, FIXED)
  result[numbers.out_spec[0]] = image[numbers.lhs_spec[0]]
  result[numbers.out_spec[1]] = filters
  return [result]


def _window(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  p, (out,) = eqn.params, eqn.outvars
  if "window_dimensions" not in p or len(eqn.invars) != 1:
    return _unknown(eqn, operands)
  return [
    kept_where(
      operands[0],
      out.aval.shape,
      [
        (window, *edges) == (1, 0, 0) and old == new
        for window, edges, old, new in zip(
          p["window_dimensions"],
          p["padding"],
          eqn.invars[0].aval.shape,
          out.aval.shape,
          strict=True,
        )
      ],
    )
  ]


def _pad(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  whole = [not any(edges) for edges in eqn.params["padding_config"]]
  return [kept_where(operands[0], eqn.outvars[0].aval.shape, whole)]


def _slice(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  p, shape = eqn.params, eqn.invars[0].aval.shape
  strides = p["strides"] or (1,) * len(shape)
  return [
    [
      _cut(axis, size, end - start if step == 1 and start >= 0 else None, start)
      or [Unit(new, FIXED)]
      for axis, size, start, end, step, new in zip(
        operands[0],
        shape,
        p["start_indices"],
        p["limit_indices"],
        strides,
        eqn.outvars[0].aval.shape,
        strict=True,
      )
    ]
  ]


def _split(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  place, start, results = eqn.params["axis"], 0, []
  size = sum(eqn.params["sizes"])
  for part in eqn.params["sizes"]:
    result = list(operands[0])
    result[place] = _cut(operands[0][place], size, part, start) or [
      Unit(part, FIXED)
    ]
    results.append(result)
    start += part
  return results


def _cut(
  axis: list[Unit], size: int, part: int | None, start: int
) -> list[Unit] | None:
  """Returns the label of a part of an axis.

  If the axis splits into equal parts of this size, the parts share their units.
  If not, the axis is fixed and the result is None.
  """
  if part == size:
    return axis
  if part and part > 1 and size % part == 0 and start % part == 0:
    which, rest = regroup([axis], (size // part, part))
    fix([which])
    return rest
  fix([axis])
  return None


def _concatenate(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  place = eqn.params["dimension"]
  sizes = {v.aval.shape[place] for v in eqn.invars}
  if len(sizes) > 1:
    fix([label[place] for label in operands])
  for label in operands[1:]:
    for i, (a, b) in enumerate(zip(operands[0], label, strict=True)):
      if i != place or len(sizes) == 1:
        unify(a, b)
  result = list(operands[0])
  if len(sizes) == 1:  # Equal parts are stacked and then flattened.
    result[place] = [Unit(len(operands), FIXED), *result[place]]
  else:
    result[place] = [Unit(eqn.outvars[0].aval.shape[place], FIXED)]
  return [result]


def _dynamic_slice(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
  whole = [a == b for a, b in zip(shape, sizes, strict=True)]
  return [kept_where(operands[0], sizes, whole)]


def _dynamic_update_slice(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  array, update = operands[:2]
  shapes = [v.aval.shape for v in eqn.invars[:2]]
  for a, b, size, part in zip(array, update, *shapes, strict=True):
    if size == part:
      unify(a, b)
    else:
      fix([a, b])
  return [list(array)]


def _gather(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  """Looks up rows of a table. Axes that are taken whole keep their labels."""
  numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
  table, index = operands
  if numbers.operand_batching_dims:
    return _unknown(eqn, operands)
  sizes = eqn.params["slice_sizes"]
  kept = [i for i in range(len(shape)) if i not in numbers.collapsed_slice_dims]
  result = labels_of(eqn.outvars[0].aval.shape, FIXED)
  for axis, place in zip(kept, numbers.offset_dims, strict=True):
    if sizes[axis] == shape[axis] and axis not in numbers.start_index_map:
      result[place] = table[axis]
    else:
      fix([table[axis]])
  fix([table[axis] for axis in numbers.collapsed_slice_dims], index[-1:])
  batch = [i for i in range(len(result)) if i not in numbers.offset_dims]
  for label, place in zip(index[:-1], batch, strict=True):
    result[place] = label
  return [result]


def _barrier(eqn: Any, operands: Sequence[Labels]) -> list[Labels]:
  return [list(label) for label in operands]


RULES: dict[str, Rule] = {
  "arg": _arg,
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "conv_general_dilated": _convolution,
  "cum": _cumulative,
  "dot_general": _product,
  "dynamic_slice": _dynamic_slice,
  "dynamic_update_slice": _dynamic_update_slice,
  "expand_dims": _reshape,
  "gather": _gather,
  "iota": _iota,
  "optimization_barrier": _barrier,
  "pad": _pad,
  "reduce_": _reduce,
  "reduce_window": _window,
  "reshape": _reshape,
  "rev": _reverse,
  "slice": _slice,
  "sort": _sort,
  "split": _split,
  "squeeze": _reshape,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
  "unstack": _unstack,
}
ELEMENTWISE = frozenset(
  """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
  convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv
  erfc exp exp2 expm1 floor ge gt integer_pow is_finite le le_to lgamma log
  log1p logistic lt lt_to max min mul ne neg nextafter not or pow
  reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
  shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
  xor""".split()
)
