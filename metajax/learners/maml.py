"""Model-agnostic meta-learning: learns an initialisation for gradient steps."""

from collections.abc import Mapping

import optax

from metajax import inner_loop
from metajax.forward import forward
from metajax.learners.full_batch import full_batch
from metajax.learners.meta_gradients import gradient_of_mean, training_loss
from metajax.learners.partition import Mask
from metajax.types import (
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)


def maml(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  num_steps: int,
  first_order: bool = False,
  *,
  mask: Mask | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds model-agnostic meta-learning: MAML, first-order MAML, ANIL or BOIL.

  The meta-parameters theta are an initialisation. The meta-gradient is the
  gradient of the query loss after the inner loop. It is differentiated through
  the inner loop::

    phi(theta) = num_steps of inner_optimizer on  L(theta; support)
    g = d/dtheta  mean over tasks of  L(phi(theta); query)

  With `first_order`, inner gradients are constants. If the optimizer reads only
  gradients, d phi / d theta is then the identity, and g is the query gradient
  at the adapted parameters.

  With a `mask`, only the parameters in the mask adapt; g is the gradient of all
  of theta. `last_layer` gives ANIL (almost no inner loop), and
  `all_but_last_layer` gives BOIL (body only in the inner loop).

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples. (The
      original code sums the mean over shots over the N classes, so its loss is
      N times this one. Its step size 0.4 in 5-way is 2.0 here.)
    inner_optimizer: any optax optimizer; adam needs `eps_root > 0`.
    num_steps: inner steps in training.
    first_order: FOMAML instead of MAML.
    mask: which parameters adapt, a tree of booleans like the parameters or a
      function `(params) -> tree`. If None, all adapt.
    num_eval_steps: inner steps of `adapt`; as in training if None.
    metrics: more `(predictions, targets) -> scalar` functions to be reported
      by `meta_grad`, on the query after adaptation, beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner`, whose task parameters are a tree like its meta-parameters.

  Raises:
    ValueError: for a negative number of steps; when the learner is used, if the
      mask is False everywhere.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, algorithm 2 and
    section 5.2.
    Raghu et al., `Rapid Learning or Feature Reuse?
    <https://arxiv.org/abs/1909.09157>`_, 2020, section 4.1: ANIL.
    Oh et al., `BOIL: Towards Representation Change for Few-shot Learning
    <https://arxiv.org/abs/2008.08882>`_, 2021, section 3.
  """
  num_eval_steps = num_steps if num_eval_steps is None else num_eval_steps
  inner_loop.check_steps(num_steps=num_steps, num_eval_steps=num_eval_steps)
  model = forward(model)
  fit = full_batch(
    model,
    loss_fn,
    inner_optimizer,
    mask=mask,
    first_order=first_order,
    memory=memory,
  )

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_eval_steps, rng)

  def train(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return fit(meta_params, support, num_steps, rng)

  meta_loss = training_loss(train, model.train, loss_fn, metrics)
  return MetaLearner(
    model.init, adapt, model.apply, gradient_of_mean(meta_loss)
  )
