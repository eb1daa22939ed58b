"""Measures how time and memory of a meta-step grow with each of its sizes."""

import math
from collections.abc import Iterator

import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from metajax.training import task_mesh
from metajax.training.chunking import trace_one_task
from scripts.benchmarks import maml, own_flags
from scripts.benchmarks.measuring import machine, seconds_per_step
from scripts.benchmarks.own_flags import FLAGS

SIZES = ("ways", "shots", "query_shots", "image_size", "inner_steps", "filters")
FACTORS = (1, 2, 4)

own_flags.DEFINE_list(
  "grow",
  [],
  "Of the suite growth: the sizes that grow, one by one, of "
  f"{', '.join(SIZES)} (the last of conv4 alone). Empty: all.",
)


def measure() -> Iterator[dict]:
  """Measures the meta-step of the flags with each size times 1, 2 and 4.

  Yields, for each size, seconds, temporaries and operations of products at all
  values, and the exponent e of each: y = c x^e, by least squares of the
  logarithms.
  """
  known = SIZES if FLAGS.model == "conv4" else SIZES[:-1]
  if unknown := set(FLAGS.grow) - set(known):
    raise ValueError(
      f"--grow={','.join(sorted(unknown))}: must be among {','.join(known)} "
      f"with --model={FLAGS.model}."
    )
  if not FLAGS.inner_steps:
    raise ValueError("--inner_steps=0: nothing grows from it; give 1 or more.")
  measured: dict[tuple[int, ...], dict[str, float]] = {}
  for size in FLAGS.grow or known:
    usual = FLAGS[size].value
    values = [factor * usual for factor in FACTORS]
    rows = []
    for value in values:
      FLAGS[size].value = value
      setting = tuple(FLAGS[name].value for name in SIZES)
      if setting not in measured:
        measured[setting] = _one()
      rows.append(measured[setting])
    FLAGS[size].value = usual
    columns = {k: [row[k] for row in rows] for k in rows[0]}
    yield {
      **maml.setting(),
      "grows": size,
      "values": values,
      **columns,
      **{f"exponent_of_{k}": exponent(values, y) for k, y in columns.items()},
      **machine(task_mesh(FLAGS.tasks).size),
    }


def _one() -> dict[str, float]:
  built = maml.build()
  memory = built.executable.memory_analysis()
  # "patches" computes convolutions as products, with the same number of
  # operations as the direct convolution.
  learner = built.learner_of(FLAGS.inner_steps, "patches")
  traced = trace_one_task(learner, built.tasks)
  return {
    "seconds": float(np.median(seconds_per_step(built.take))),
    "temp_bytes": memory.temp_size_in_bytes,
    "gflops": FLAGS.tasks * operations_of_products(traced.jaxpr.jaxpr) / 1e9,
    "compile_seconds": built.compile_seconds,
  }


def operations_of_products(
  jaxpr: Jaxpr, *, iterations: int | None = None
) -> int:
  """Counts the operations of products of arrays.

  A product of `[m, k]` and `[k, n]` has 2 m k n operations. The body of a loop
  counts as often as it runs.

  Args:
    jaxpr: the program.
    iterations: of each while loop; None: they are unknown.

  Raises:
    ValueError: if a loop with a product has an unknown number of iterations.
  """
  total = 0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      (contracting, _), _ = params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracting)
      total += 2 * depth * eqn.outvars[0].aval.size
    if name == "custom_linear_solve":  # Of its programs only one runs.
      params = {"solve": params["jaxprs"].solve}
    inner = sum(
      operations_of_products(part, iterations=iterations)
      for part in jaxprs_in_params(params)
    )
    times = params.get("length", 1)
    if inner and name == "while":
      if iterations is None:
        raise ValueError("a while loop has products; their number is unknown.")
      times = iterations
    total += inner * times
  return total


def exponent(x: list[int], y: list[float]) -> float:
  """Returns e of `y = c x^e`, by least squares of the logarithms."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])
