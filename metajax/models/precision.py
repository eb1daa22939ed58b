"""Networks that compute in another precision than that of their parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from metajax import variables
from metajax.forward import forward
from metajax.types import Array, Model, Params, PRNGKey


class Network(NamedTuple):
  """A `Model` of three functions."""

  init: Callable[[PRNGKey, Any], Params]
  apply: Callable[..., Any]
  train: Callable[..., tuple[Any, Params]]


def compute_in(model: Model, dtype: DTypeLike) -> Model:
  """Makes a model compute in `dtype`, with parameters and outputs in float32.

  Parameters and state keep the precision that `init` gives them. Gradients and
  optimizers therefore have this precision, too. Weights and inputs are cast to
  `dtype`. Predictions are cast to float32, because losses need its range and
  digits.

  Args:
    model: any model.
    dtype: the dtype of the computation, such as bfloat16. Integers stay
      integers.
  """

  def cast(x: Any) -> Any:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  def widen(x: Any) -> Any:
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.float32) if is_float else x

  inner = forward(model)

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    narrow = variables.map_weights(cast, params)
    outputs = inner.apply(narrow, jax.tree.map(cast, inputs), mask=mask)
    return jax.tree.map(widen, outputs)

  def train(
    params: Params, inputs: Any, rng: PRNGKey, mask: Array | None = None
  ) -> tuple[Any, Params]:
    narrow = variables.map_weights(cast, params)
    outputs, new = inner.train(
      narrow, jax.tree.map(cast, inputs), rng, mask=mask
    )
    new = variables.combine(variables.weights(params), new)
    return jax.tree.map(widen, outputs), new

  return Network(inner.init, apply, train)
