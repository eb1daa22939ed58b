"""Networks that compute in another precision than their parameters have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from metajax.types import Array, Model, Params, PRNGKey


class Network(NamedTuple):
  """A `Model` of two functions."""

  init: Callable[[PRNGKey, Array], Params]
  apply: Callable[[Params, Array], Array]


def compute_in(model: Model, dtype: DTypeLike) -> Model:
  """Lets a model compute in `dtype`, with float32 at both ends.

  Parameters stay as `init` makes them, so gradients and optimizers are of their
  precision; they and the inputs are cast on the way in, and the predictions to
  float32 on the way out, where losses need its range and digits.

  Args:
    model: any model.
    dtype: of what it computes, bfloat16, say. Integers stay integers.
  """

  def cast(x: Any) -> Any:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  def apply(params: Params, inputs: Array) -> Array:
    outputs = model.apply(jax.tree.map(cast, params), cast(inputs))
    return outputs.astype(jnp.float32)

  return Network(model.init, apply)
