"""Compares the average of many models with a plain copy of the same array."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from metajax.aggregation import weighted_average
from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import machine, timed
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_integer(
  "members", 64, "Models to average (suite aggregation).", lower_bound=1
)
own_flags.DEFINE_integer(
  "parameters",
  10_000_000,
  "Parameters of a model (suite aggregation).",
  lower_bound=1,
)


def measure() -> Iterator[dict]:
  """Times the average of a stack of models against a copy of the stack."""
  shape = FLAGS.members, FLAGS.parameters
  stack = jnp.ones(shape)
  weights = jnp.arange(1.0, FLAGS.members + 1)
  average = jax.jit(weighted_average)
  # The copy writes into memory that exists already. The average needs almost no
  # new memory, because its result is small.
  copy = jax.jit(lambda x, _: x + 1, donate_argnums=1, keep_unused=True)
  target = jnp.zeros(shape)

  def copied():
    nonlocal target
    target = copy(stack, target)
    return target

  calls = {"average": lambda: average(stack, weights), "copy": copied}
  for call in calls.values():
    timed(call)
  # The two take turns, so that both see the same state of the machine.
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(FLAGS.repeats):
    for name, call in calls.items():
      seconds[name].append(timed(call))
  medians = {name: float(np.median(values)) for name, values in seconds.items()}
  rates = {
    "average": (stack.nbytes + stack[0].nbytes) / medians["average"],
    "copy": 2 * stack.nbytes / medians["copy"],
  }
  yield {
    "members": FLAGS.members,
    "parameters": FLAGS.parameters,
    "seconds_average": medians["average"],
    "seconds_average_min": min(seconds["average"]),
    "seconds_average_max": max(seconds["average"]),
    "seconds_copy": medians["copy"],
    "gigabytes_per_second_average": rates["average"] / 1e9,
    "gigabytes_per_second_copy": rates["copy"] / 1e9,
    "fraction_of_copy": rates["average"] / rates["copy"],
    **machine(1),
  }
