"""MAML++: improvements of MAML's training, each with its own switch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metajax import inner_loop, variables
from metajax.forward import forward
from metajax.learners.meta_gradients import MetaGrad, gradient_of_mean
from metajax.learners.options import Option
from metajax.learners.partition import Mask, merge, normalization, split
from metajax.losses import over_examples
from metajax.numerics import check_counts
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Model,
  Params,
  PRNGKey,
)

# The least weight of a step before the last, in units of 1 / num_steps.
LEAST_IMPORTANCE = 0.03


OPTIONS = (
  Option(
    "learned_rates",
    True,
    "Learn a step size for each parameter array and inner step.",
  ),
  Option(
    "step_normalization",
    True,
    "Learn the scale and bias of normalisations for each inner step. By "
    "default, only if the network has normalisations.",
    # If the user asks for it without normalisations, the learner raises.
    of=lambda value, setting: (
      value and (setting.normalizes or "step_normalization" in setting.said)
    ),
  ),
  Option(
    "multi_step_part",
    1 / 15,
    "Fraction of training, from its start, in which the loss after every inner "
    "step counts.",
    low=0.0,
    high=1.0,
    argument="multi_step_loss",
    of=lambda part, setting: round(part * setting.steps),
  ),
  Option(
    "first_order_part",
    1 / 3,
    "Fraction of training, from its start, in which meta-gradients are first "
    "order.",
    low=0.0,
    high=1.0,
    argument="first_order_until",
    of=lambda part, setting: round(part * setting.steps),
  ),
)


def maml_plus_plus(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  learned_rates: bool = True,
  step_normalization: bool | Mask = True,
  multi_step_loss: int = 0,
  first_order_until: int = 0,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds MAML++ (Antoniou et al. 2019), or MAML with all switches off.

  ::

    phi_{k+1} = phi_k + r_k * u(grad L(phi_k, n_k; support)),  phi_0 = theta
    g = d/d(theta, r, n)  mean over tasks of  sum_k w_k L(phi_k, n_{k-1}; query)

  where u is the inner optimizer and k runs to K = num_steps. The switches are:

  - `learned_rates` (LSLR): r_k has one number for each array of parameters and
    each step. It starts at 1. The paper's step size is r times that of u.
  - `step_normalization` (BNWB): n_k are the scales and biases of normalisation
    layers. They are learned for each inner step, but do not adapt to a task.
    Statistics are those of the batch, as in the authors' code.
  - `multi_step_loss` (MSL): during this number of meta-steps, the weights w go
    linearly from equal to almost the last step alone (see `importance`). After
    that, only the last step counts.
  - `first_order_until` (DA): during this number of meta-steps, grad L is
    treated as a constant.

  The paper's cosine schedule belongs to the outer optimizer. The layers of
  `models.normalization` are the paper's contextual batch normalisation.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    inner_optimizer: any optax optimizer; the paper's is SGD.
    num_steps: K, inner steps in training, at least 1; the paper takes 5.
    learned_rates: see above.
    step_normalization: see above. True selects the parameters by
      `partition.normalization`. A mask, as `partition.split` takes it, selects
      others.
    multi_step_loss: a number of meta-steps, see above. 0 switches it off. The
      authors' code takes 1/15 of the training.
    first_order_until: a number of meta-steps, see above. 0 switches it off. The
      paper takes 1/3 of the training.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner` with a schedule. Its meta-parameters are `{"params": theta,
    "rates": r}`, or `{"params": theta}` without `learned_rates`. theta includes
    n; n and r have a leading axis of size K. The task parameters are the
    parameters of the model.

  Raises:
    ValueError: for less than one step in training, or a negative number. Also
      if `num_eval_steps` exceeds `num_steps` although steps have their own
      rates or normalisations.

  References:
    Antoniou et al., `How to train your MAML
    <https://arxiv.org/abs/1810.09502>`_, 2019, section 4.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(
    num_eval_steps=num_eval_steps,
    multi_step_loss=multi_step_loss,
    first_order_until=first_order_until,
  )
  model = forward(model)
  check_counts(num_steps=num_steps)
  own_normalization = step_normalization is not False
  own_steps = learned_rates or own_normalization
  traced = isinstance(num_eval_steps, jax.core.Tracer)
  if own_steps and not traced and num_eval_steps > num_steps:
    raise ValueError(
      f"num_eval_steps={num_eval_steps}: must be at most num_steps={num_steps},"
      " since each step has parameters of its own."
    )
  report = {"loss": loss_fn, **(metrics or {})}

  of_steps = normalization if step_normalization is True else step_normalization

  def parts(params: Params) -> tuple[Params, Params]:
    """Splits weights into those that adapt and those learned for each step."""
    weights = variables.weights(params)
    if not own_normalization:
      return split(weights, None)
    slow, fast = split(weights, of_steps)
    return fast, slow

  def init(rng: PRNGKey, inputs: Array) -> Params:
    params = model.init(rng, inputs)
    fast, slow = parts(params)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * num_steps), slow)
    params = variables.combine(merge(fast, stacked), params)
    if not learned_rates:
      return {"params": params}
    rates = jax.tree.map(
      lambda x: jnp.ones(num_steps, jnp.result_type(x)), fast
    )
    return {"params": params, "rates": rates}

  def run(
    meta_params: Params,
    support: Batch,
    steps: int,
    rng: PRNGKey,
    *,
    first_order: bool = False,
    observe: Callable[[Params], Any] | None = None,
  ) -> tuple[inner_loop.InnerLoop, Params]:
    """Returns the inner loop's result and the adapted model parameters."""
    params = meta_params["params"]
    fast, slow = parts(params)

    def whole(fast: Params, step: Array | int, state: tuple) -> Params:
      at = jax.tree.map(lambda x: x[step], slow)
      return variables.combine(merge(fast, at), *state, params)

    def loss(fast: Params, step: Array, state: tuple) -> tuple[Array, tuple]:
      predictions, new = model.train(
        whole(fast, step, state),
        support.inputs,
        jax.random.fold_in(rng, step),
        mask=support.mask,
      )
      value = over_examples(loss_fn, predictions, support.targets, support.mask)
      return value, (variables.states(new),)

    optimizer = inner_optimizer
    if learned_rates:
      optimizer = optax.chain(optimizer, _scale_by(meta_params["rates"]))
    loop = inner_loop.minimize(
      loss,
      fast,
      optimizer,
      steps,
      state=(variables.states(params),),
      first_order=first_order,
      memory=memory,
      observe=observe and (lambda *seen: observe(whole(*seen))),
    )
    last = steps - (steps > 0)
    return loop, whole(loop.params, last, loop.state)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return run(meta_params, support, num_eval_steps, rng)[1]

  def meta_grad_at(
    step: ArrayLike, several: bool, first_order: bool
  ) -> MetaGrad:
    def meta_loss(
      meta_params: Params, episode: Episode, rng: PRNGKey
    ) -> tuple[Array, Metrics, Params]:
      adapt_key, query_key = jax.random.split(rng)
      inputs, targets, mask = episode.query

      def scores(params: Params) -> tuple[Metrics, Params]:
        predictions, new = model.train(params, inputs, query_key, mask=mask)
        found = {
          name: over_examples(f, predictions, targets, mask)
          for name, f in report.items()
        }
        return found, variables.states(new)

      loop, adapted = run(
        meta_params,
        episode.support,
        num_steps,
        adapt_key,
        first_order=first_order,
        observe=scores if several else None,
      )
      if several:
        found, state = jax.tree.map(lambda x: x[-1], loop.observed)
        losses = loop.observed[0]["loss"]
        weights = importance(num_steps, step / multi_step_loss)
        loss = weights.astype(losses.dtype) @ losses
      else:
        found, state = scores(adapted)
        loss = found["loss"]
      params = variables.combine(state, meta_params["params"])
      return loss, found, {**meta_params, "params": params}

    return gradient_of_mean(meta_loss)

  def schedule(step: Array) -> MetaLearner:
    starts = sorted({0, multi_step_loss, first_order_until})
    stages = [
      meta_grad_at(step, s < multi_step_loss, s < first_order_until)
      for s in starts
    ]
    stage = jnp.sum(step >= jnp.array(starts)) - 1

    def meta_grad(*arguments):
      return jax.lax.switch(stage, stages, *arguments)

    return MetaLearner(init, adapt, model.apply, meta_grad)

  # A number of numpy, so that building a learner uses no device.
  in_the_end = meta_grad_at(np.int32(0), False, False)
  return MetaLearner(init, adapt, model.apply, in_the_end, schedule)


def importance(num_steps: int, done: ArrayLike) -> Array:
  """Returns the weights of the query losses after each inner step in training.

  ::

    w_k = max((1 - done) / K, 0.03 / K)  for k < K,    w_K = 1 - the others

  Args:
    num_steps: K.
    done: the finished fraction of the annealing, from 0 (equal weights) to 1.

  Returns:
    w, `[num_steps]`, which sums to 1.

  References:
    Antoniou et al. 2019, section 4. The numbers are from the authors' code.
  """
  least = LEAST_IMPORTANCE / num_steps
  other = jnp.maximum((1 - done) / num_steps, least)
  weights = jnp.full(num_steps, other)
  return weights.at[-1].set(1 - (num_steps - 1) * other)


def _scale_by(rates: Params) -> optax.GradientTransformation:
  """Multiplies the update of each array by its rate of the step, `rates[k]`."""

  def update(updates, step, params=None):
    del params
    scaled = jax.tree.map(lambda r, u: r[step] * u, rates, updates)
    return scaled, step + 1

  return optax.GradientTransformation(lambda _: jnp.int32(0), update)
