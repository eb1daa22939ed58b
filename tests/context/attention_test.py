"""Attention in blocks of queries: the same numbers, and bounded memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context.attention import KeysValues, attention
from metajax.models import blocks

M, N, HEADS, SIZE = 7, 5, 2, 3  # No number of blocks divides 7 queries.


def _numbers():
  draw = np.random.default_rng(0)
  shapes = (M, HEADS, SIZE), (N, HEADS, SIZE), (N, HEADS, SIZE)
  return [jnp.asarray(draw.normal(size=shape)) for shape in shapes]


MASKS = {
  "none": None,
  "of tokens": np.arange(N) != 1,
  "of one row": (np.arange(N) != 1)[None],
  # The second query attends to no token.
  "of pairs": np.random.default_rng(1).random((M, N)) < 0.6,
}
MASKS["of pairs"][1] = False


def _by_definition(queries, keys, values, mask):
  scores = jnp.einsum("mhc,nhc->mhn", queries, keys) / SIZE**0.5
  seen = jnp.broadcast_to(True if mask is None else mask, (M, N))[:, None]
  weights = jnp.where(seen, jnp.exp(scores), 0)
  total = weights.sum(-1, keepdims=True)
  weights /= jnp.where(total > 0, total, 1)
  return jnp.einsum("mhn,nhc->mhc", weights, values)


def _ours(queries, keys, values, mask):
  return attention(queries, KeysValues(keys, values), mask)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("in_blocks", [False, True])
def test_outputs_and_second_derivatives_are_the_definition(
  mask, in_blocks, monkeypatch
):
  # Two queries a block, with scores of 8 bytes.
  few = 2 * HEADS * N * 8
  monkeypatch.setattr(blocks, "BLOCK_BYTES", few if in_blocks else 2**30)
  with jax.enable_x64(True):
    arrays = _numbers()

    def second(of, *arrays):
      def loss(*arrays):
        return jnp.sin(of(*arrays, MASKS[mask])).sum()

      gradient = jax.grad(loss, argnums=(0, 1, 2))
      return of(*arrays, MASKS[mask]), jax.jvp(gradient, arrays, arrays)

    ours = jax.jit(functools.partial(second, _ours))
    expected = jax.jit(functools.partial(second, _by_definition))
    chex.assert_trees_all_close(ours(*arrays), expected(*arrays), rtol=1e-9)
    loops = str(jax.make_jaxpr(lambda *x: _ours(*x, MASKS[mask]))(*arrays))
    assert ("scan" in loops) == in_blocks


def test_queries_that_a_mesh_holds_apart_attend_where_they_are(monkeypatch):
  monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
  mesh = jax.make_mesh(
    (1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,)
  )
  queries, *memory = _numbers()
  mask = MASKS["of pairs"]
  expected = _ours(queries, *memory, mask)
  with jax.set_mesh(mesh):
    apart = jax.device_put(queries, jax.sharding.PartitionSpec("x"))
    found = jax.jit(_ours)(apart, *memory, mask)
    assert found.sharding.spec[0] == "x"
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_temporaries_grow_with_the_tokens_and_not_with_their_pairs():
  def temporaries(n):
    one = jax.ShapeDtypeStruct((n, 4, 16), jnp.float32)

    def loss(x):
      return attention(x, KeysValues(x, x)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(one).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporaries(1024), temporaries(4096)
  assert many < 4 * 4096**2 * 4 / 10  # A tenth of the scores of all pairs.
  assert many < 5 * few
