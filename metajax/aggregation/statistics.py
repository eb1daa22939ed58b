"""Running statistics of averaged models."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.forward import forward
from metajax.numerics import check_counts
from metajax.types import Array, Model, Params, PRNGKey, State, as_partial


def refresh_statistics(
  model: Model,
  params: Params,
  draw: Callable[[PRNGKey], Any],
  rng: PRNGKey,
  *,
  num_batches: int = 500,
) -> Params:
  """Computes a model's running statistics anew, for weights that were averaged.

  The activations of an average are not the average of the activations. The
  model is run in training mode on one batch after the other, and its weights
  stay as they are. With running averages of momentum m, a share m^num_batches
  of the old statistics is left: 0.7% by default, for flax's m = 0.99.

  Args:
    model: any model. One without running statistics keeps its parameters.
    params: its parameters, with `State` nodes of any values.
    draw: `(rng) -> inputs`, a batch as in training, augmentations included. It
      is traced. Its data should be arrays of a `jax.tree_util.Partial`.
    rng: a key.
    num_batches: number of batches.

  Returns:
    The parameters with the new `State` nodes.

  Raises:
    ValueError: if `num_batches` is no positive integer.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, 2018, section 3.2.
  """
  check_counts(num_batches=num_batches)
  leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, State))
  if not any(isinstance(leaf, State) for leaf in leaves):
    return params
  train = forward(model).train

  @jax.jit
  def run(draw: Callable[[PRNGKey], Any], params: Params, rng: Array) -> Params:
    def one(params: Params, key: PRNGKey) -> tuple[Params, None]:
      draw_key, train_key = jax.random.split(key)
      return train(params, draw(draw_key), train_key)[1], None

    keys = jax.random.split(rng, num_batches)
    return jax.lax.scan(one, params, keys)[0]

  return run(as_partial(draw), params, rng)
