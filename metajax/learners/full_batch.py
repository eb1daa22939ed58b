"""The inner loop that gradient-based learners share: steps on one batch."""

from collections.abc import Callable

import optax

from metajax import inner_loop
from metajax.learners.partition import Mask, merge, split
from metajax.types import Array, Batch, LossFn, Model, Params


def full_batch(
  model: Model,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  mask: Mask | None = None,
  first_order: bool = False,
  memory: inner_loop.Memory = "auto",
) -> Callable[[Params, Batch, int], Params]:
  """Returns `(params, batch, num_steps) -> adapted params`.

  ::

    num_steps of optimizer on  L(params; batch), the whole batch in every step

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`.
    optimizer: any optax optimizer; its state starts anew with every call.
    mask: which parameters adapt, see `partition.split`; the others stay.
    first_order: see `inner_loop.minimize`.
    memory: see `inner_loop.minimize`.
  """

  def fit(params: Params, batch: Batch, num_steps: int) -> Params:
    fast, slow = split(params, mask)

    def loss(fast: Params, step: Array) -> Array:
      del step  # The same examples in every step.
      predictions = model.apply(merge(fast, slow), batch.inputs)
      return loss_fn(predictions, batch.targets)

    adapted = inner_loop.minimize(
      loss,
      fast,
      optimizer,
      num_steps,
      first_order=first_order,
      memory=memory,
    ).params
    return merge(adapted, slow)

  return fit
