"""Measures seconds, and the peak rates of a machine."""

import time

import jax
import numpy as np

from metajax.results import environment
from scripts.benchmarks import own_flags
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_integer("repeats", 7, "Timed calls.", lower_bound=1)
own_flags.DEFINE_float(
  "seconds", 2.0, "About how long a timed call lasts.", lower_bound=0.0
)


# Suites in which a timed call is one call, so that --seconds changes nothing.
UNTIMED = ("aggregation", "bilevel", "inner_loop")


def timed(fn) -> float:
  """Returns the seconds of a call, until its result is ready."""
  start = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - start


def _least_seconds(fn) -> float:
  """Returns the seconds of the fastest call, after one to warm up."""
  timed(fn)
  return min(timed(fn) for _ in range(FLAGS.repeats))


def matmul_peak() -> float:
  """Returns the best measured rate of a float32 matrix product, in FLOP/s.

  The product has JAX's default precision. On GPUs and TPUs it is lower than
  that of float32.
  """
  size = 2048 if jax.default_backend() == "cpu" else 8192
  a, b = jax.random.normal(jax.random.key(0), (2, size, size))
  product = jax.jit(lambda a, b: a @ b)
  return 2 * size**3 / _least_seconds(lambda: product(a, b))


def copy_rate() -> float:
  """Returns the best measured rate of a copy, read and written bytes/s.

  The copy writes into memory that exists already. Getting new pages from the
  operating system takes five times as long as writing them.
  """
  size = 2**26 if jax.default_backend() == "cpu" else 2**29
  copy = jax.jit(lambda x, _: x + 1, donate_argnums=1, keep_unused=True)
  x, target = jax.numpy.ones((2, size))

  def copied():
    nonlocal target
    target = copy(x, target)
    return target

  return 2 * x.nbytes / _least_seconds(copied)


def peak_bytes() -> int | None:
  """Returns the most memory that was in use, or None if it is not known."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")


def seconds_per_step(call) -> np.ndarray:
  """Returns seconds per step of `call(steps)`, `[repeats]`, after a warm-up."""
  call(1)
  steps = max(1, round(FLAGS.seconds / timed(lambda: call(1))))
  return np.array(
    [timed(lambda: call(steps)) / steps for _ in range(FLAGS.repeats)]
  )


def machine(devices: int) -> dict:
  """Describes the measured machine, for the JSON line."""
  return {
    "device": f"{jax.devices()[0].device_kind} x{devices}",
    "host": environment()["host"],
    "jax": jax.__version__,
  }
