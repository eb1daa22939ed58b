"""A small, plain causal transformer for deep inner loops."""

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
  """Predicts the token after each token.

  Blocks are pre-normalised. Positions are learned.

  Attributes:
    vocabulary: number of tokens.
    width: width of the residual stream.
    blocks: number of blocks. A block has attention and a hidden dense layer of
      four times the width.
    heads: number of attention heads; must divide the width.
    remat: if True, the backward pass stores only the inputs of the blocks and
      computes the inside of each block again. If False, it stores everything in
      each block.
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
    # A loop over blocks. In an unrolled sequence, the compiler could compute
    # all blocks again at once and keep them all in memory. The parameters of
    # the loop are `[blocks, ...]`.
    stack = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.blocks,
    )
    x, _ = stack(self.heads, name="blocks")(x, None)
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
