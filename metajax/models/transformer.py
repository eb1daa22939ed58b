"""A causal transformer, small and plain, for deep inner loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax.types import Array


class _Block(nn.Module):
  heads: int

  @nn.compact
  def __call__(self, x: Array, _: None) -> tuple[Array, None]:
    width = x.shape[-1]
    y = nn.LayerNorm()(x)
    q, k, v = jnp.split(nn.Dense(3 * width, use_bias=False)(y), 3, axis=-1)
    q, k, v = (
      z.reshape(*z.shape[:-1], self.heads, width // self.heads)
      for z in (q, k, v)
    )
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + nn.Dense(width, use_bias=False)(y.reshape(x.shape))
    y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
    return x + nn.Dense(width)(y), None


class Transformer(nn.Module):
  """Predicts the next of each token; pre-normalised blocks, learned positions.

  Attributes:
    vocabulary: number of tokens.
    width: of the residual stream.
    blocks: attention and a dense layer of four times the width, each.
    heads: of the attention; must divide the width.
    remat: keep only what passes from block to block for a backward pass, and
      compute a block again when its turn comes. An inner loop's memory grows
      by the block, otherwise by everything in it.
  """

  vocabulary: int
  width: int = 64
  blocks: int = 4
  heads: int = 4
  remat: bool = False

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    """Maps tokens `[n, time]` to logits `[n, time, vocabulary]`."""
    if self.width % self.heads:
      raise ValueError(
        f"heads={self.heads}: must divide the width, {self.width}."
      )
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    positions = nn.initializers.normal(0.02)
    x = x + self.param("positions", positions, (tokens.shape[1], self.width))
    block = nn.remat(_Block, prevent_cse=False) if self.remat else _Block
    # A loop, since of blocks in a row the compiler may compute all again at
    # once, and keep them all; its parameters are `[blocks, ...]`.
    stack = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.blocks,
    )
    x, _ = stack(self.heads, name="blocks")(x, None)
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
