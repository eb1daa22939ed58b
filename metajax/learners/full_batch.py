"""The inner loop of gradient-based learners: full-batch optimizer steps."""

from collections.abc import Callable

import jax
import optax

from metajax import inner_loop, variables
from metajax.forward import forward
from metajax.learners.partition import Mask, merge, split
from metajax.losses import over_examples
from metajax.types import Array, Batch, LossFn, Model, Params, PRNGKey


def full_batch(
  model: Model,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  mask: Mask | None = None,
  first_order: bool = False,
  memory: inner_loop.Memory = "auto",
) -> Callable[[Params, Batch, int, PRNGKey], Params]:
  """Builds the inner loop `(params, batch, num_steps, rng) -> adapted params`.

  ::

    num_steps of optimizer on  L(params; batch), the whole batch in every step

  The model runs in training mode. Step k uses the key `fold_in(rng, k)`. Every
  step updates the `State` nodes of the parameters.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`.
    optimizer: any optax optimizer. Every call starts with a new state of it.
    mask: which parameters adapt, see `partition.split`. The others are
      constant.
    first_order: see `inner_loop.minimize`.
    memory: see `inner_loop.minimize`.
  """
  model = forward(model)

  def fit(params: Params, batch: Batch, num_steps: int, rng: PRNGKey) -> Params:
    fast, slow = split(variables.weights(params), mask)

    def loss(fast: Params, step: Array, state: tuple) -> tuple[Array, tuple]:
      predictions, new = model.train(
        variables.combine(merge(fast, slow), *state, params),
        batch.inputs,
        jax.random.fold_in(rng, step),
        mask=batch.mask,
      )
      value = over_examples(loss_fn, predictions, batch.targets, batch.mask)
      return value, (variables.states(new),)

    adapted = inner_loop.minimize(
      loss,
      fast,
      optimizer,
      num_steps,
      state=(variables.states(params),),
      first_order=first_order,
      memory=memory,
    )
    return variables.combine(
      merge(adapted.params, slow), *adapted.state, params
    )

  return fit
