"""The inner loop that gradient-based learners share: steps on one batch."""

from collections.abc import Callable

import optax

from metajax import inner_loop
from metajax.types import Array, Batch, LossFn, Model, Params


def full_batch(
  model: Model,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  first_order: bool = False,
  memory: inner_loop.Memory = "default",
) -> Callable[[Params, Batch, int], Params]:
  """Returns `(params, batch, num_steps) -> adapted params`.

  ::

    num_steps of optimizer on  L(params; batch), the whole batch in every step

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`.
    optimizer: any optax optimizer; its state starts anew with every call.
    first_order: see `inner_loop.minimize`.
    memory: see `inner_loop.minimize`.
  """

  def fit(params: Params, batch: Batch, num_steps: int) -> Params:
    def loss(params: Params, step: Array) -> Array:
      del step  # The same examples in every step.
      return loss_fn(model.apply(params, batch.inputs), batch.targets)

    return inner_loop.minimize(
      loss,
      params,
      optimizer,
      num_steps,
      first_order=first_order,
      memory=memory,
    ).params

  return fit
