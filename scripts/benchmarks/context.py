"""Measures how a transformer in context grows with the length of its context.

Attention is measured alone, too: that of metajax, and JAX's own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.context import tnp_d
from metajax.context.attention import KeysValues, attention
from metajax.types import Batch, Episode
from scripts.benchmarks import own_flags
from scripts.benchmarks.growth import exponent, operations_of_products
from scripts.benchmarks.measuring import machine, seconds_per_step

own_flags.DEFINE_multi_integer(
  "lengths",
  [2**i for i in range(5, 13)],
  "Of the suite context: lengths of the context; repeat for several.",
  1,
)
own_flags.DEFINE_integer("queries", 64, "Of a task (suite context).", 1)
own_flags.DEFINE_bool(
  "counts_only",
  False,
  "Of the suite context: compile the programs and count, without running them.",
)
HEADS, WIDTH = 4, 64  # Those of tnp_d.


def measure() -> Iterator[dict]:
  """Measures gradients at each length of --lengths, one task at a time.

  Yields, for the meta-gradient of `tnp_d` and for the gradient of attention
  among the context alone, in float32 and float64: seconds and temporaries at
  all lengths, and their exponents as in the suite growth. Attention is that of
  metajax and `jax.nn.dot_product_attention`; for these it yields the largest
  error of the outputs, relative to the largest output in float64. The
  operations are those of products.
  """
  lengths = own_flags.FLAGS.lengths
  if len({*lengths}) < 2:
    raise ValueError(f"--lengths={lengths[0]}: give two lengths or more.")
  yield _grown("tnp_d", lengths, lambda n: _measured(*_step(n)))
  for dtype in (jnp.float32, jnp.float64):
    for name, attend in (("metajax", attention), ("jax.nn", _of_jax)):

      def one(n: int, attend: Any = attend, dtype: Any = dtype) -> dict:
        with jax.enable_x64(True):
          vectors = _vectors(n)
          exact = np.asarray(attention(vectors[0], KeysValues(*vectors[1:])))
          given = tuple(x.astype(dtype) for x in vectors)
          found = attend(given[0], KeysValues(*given[1:]))
          error = np.abs(np.asarray(found) - exact).max() / np.abs(exact).max()
          return {**_measured(_gradient(attend), given), "error": error}

      yield _grown(f"attention {name} {dtype.__name__}", lengths, one)


def _grown(
  name: str, lengths: list[int], one: Callable[[int], dict[str, float]]
) -> dict:
  rows = [one(n) for n in lengths]
  columns = {k: [float(row[k]) for row in rows] for k in rows[0]}
  grown = {
    f"exponent_of_{k}": exponent(lengths, columns[k])
    for k in ("seconds", "temp_bytes", "gflops")
    if k in columns
  }
  return {
    "measured": name,
    "lengths": lengths,
    "queries": own_flags.FLAGS.queries,
    **columns,
    **grown,
    **machine(1),
  }


def _measured(fn: Callable, arguments: tuple) -> dict[str, float]:
  """Returns the operations, the temporaries and the seconds of a call."""
  traced = jax.jit(fn).trace(*arguments)
  compiled = traced.lower().compile()
  counted = {
    "gflops": operations_of_products(traced.jaxpr.jaxpr) / 1e9,
    "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
  }
  if own_flags.FLAGS.counts_only:
    return counted

  def call(steps: int) -> Any:
    for _ in range(steps):
      out = compiled(*arguments)
    return out

  return {**counted, "seconds": np.median(seconds_per_step(call))}


def _step(n: int) -> tuple[Callable, tuple]:
  """Returns the meta-gradient of one task with n support points."""
  learner = tnp_d(width=WIDTH, heads=HEADS)
  keys = jax.random.split(jax.random.key(n), 3)

  def batch(key: jax.Array, count: int) -> Batch:
    x, y = jax.random.normal(key, (2, 1, count, 1))
    return Batch(x, y)

  episodes = Episode(batch(keys[0], n), batch(keys[1], own_flags.FLAGS.queries))
  params = learner.init(keys[2], episodes.support.inputs[0])
  return learner.meta_grad, (params, episodes, keys[2])


def _vectors(n: int) -> tuple[jax.Array, ...]:
  """Returns queries, keys and values `[n, heads, c]` in float64."""
  shape = (3, n, HEADS, WIDTH // HEADS)
  return tuple(jnp.asarray(np.random.default_rng(n).normal(size=shape)))


def _of_jax(queries: jax.Array, memory: KeysValues) -> jax.Array:
  """Computes attention by JAX's own function."""
  return jax.nn.dot_product_attention(queries, *memory)


def _gradient(attend: Callable) -> Callable:
  def loss(*vectors: jax.Array) -> jax.Array:
    return jnp.square(attend(vectors[0], KeysValues(*vectors[1:]))).sum()

  return jax.grad(loss, argnums=(0, 1, 2))
