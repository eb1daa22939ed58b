"""Fine-tuning of a whole network on the support of each task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.forward import Forward, forward
from metajax.learners.embedding import fit_head
from metajax.learners.full_batch import full_batch
from metajax.learners.heads import nearest_mean, unit_length, without_absent
from metajax.learners.meta_gradients import gradient_of_mean, query_loss
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)


def fine_tuned(
  model: Model,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  num_steps: int,
  *,
  ways: int,
  scale: float = 10.0,
  prepare: Callable[[PRNGKey, Batch], Batch] | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Fine-tunes an embedding and a linear head on the support of each task.

  ::

    logits(x) = W f(x) / |f(x)| + b
    W_c = scale m_c / |m_c|,  b = 0,  m_c = mean of f(x) / |f(x)| over class c
    num_steps of optimizer on  L(f, W, b; support)

  Before the first step it is the nearest mean by the cosine. The embedding is
  usually one that was trained to classify other classes. It stays in evaluation
  mode, so its running statistics do not change. `meta_grad` differentiates
  through the steps.

  Args:
    model: f, pure `init(rng, inputs)` and `apply(params, inputs) -> [n, d]`.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    optimizer: any optax optimizer. The paper's is Adam with a step size of
      5e-5, for 25 steps.
    num_steps: its steps on the whole support.
    ways: number of classes. A class without support examples is never
      predicted.
    scale: the scale of the first logits.
    prepare: see `embedding`.
    metrics: more such functions as `loss_fn`, to be reported by `meta_grad`
      beside "loss".
    memory: see `inner_loop.minimize`.

  Returns:
    A `MetaLearner` whose meta-parameters are the embedding's.

  Raises:
    ValueError: for a negative number of steps, or less than one class.

  References:
    Dhillon et al., `A Baseline for Few-Shot Image Classification
    <https://arxiv.org/abs/1909.02729>`_, 2020, section 3.
  """
  inner_loop.check_steps(num_steps=num_steps)
  model, head = forward(model), nearest_mean(ways)

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Array:
    features = model.apply(params["embedding"], inputs, mask=mask)
    products = jnp.matmul(unit_length(features), params["weights"])
    return without_absent(products + params["offset"], params["present"])

  def frozen(
    params: Params, inputs: Any, rng: PRNGKey, mask: Array | None = None
  ) -> tuple[Array, Params]:
    del rng
    return apply(params, inputs, mask), params

  network = Forward(model.init, frozen, apply)
  fit = full_batch(network, loss_fn, optimizer, memory=memory)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    prepare_key, fit_key = jax.random.split(rng)
    if prepare is not None:
      support = prepare(prepare_key, support)
    features = model.apply(meta_params, support.inputs, mask=support.mask)
    fitted = fit_head(head, unit_length(features), support)
    weights = scale * unit_length(fitted["means"]).T
    start = {
      "embedding": meta_params,
      "weights": weights,
      "offset": jnp.zeros(ways, weights.dtype),
      "present": fitted["present"],
    }
    return fit(start, support, num_steps, fit_key)

  meta_loss = query_loss(adapt, apply, loss_fn, metrics)
  return MetaLearner(model.init, adapt, apply, gradient_of_mean(meta_loss))
