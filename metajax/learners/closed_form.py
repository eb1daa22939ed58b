"""Registered learners that adapt in closed form, without an inner loop."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import inner_loop
from metajax.batches import only_array
from metajax.forward import forward
from metajax.learners.embedding import embedding, encoded_loss, fit_head
from metajax.learners.heads import (
  cosine,
  nearest_mean,
  ridge_fit,
  ridge_predict,
)
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.learners.options import Option
from metajax.learners.svm import svm
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)

OF_SVM = (
  Option(
    "svm_cost",
    0.1,
    "Weight of an error beside the norm of the support vector machine.",
    low=1e-6,
    argument="cost",
  ),
)


def prototypical(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation | None = None,
  num_steps: int = 0,
  *,
  num_outputs: int | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds prototypical networks, which classify by the nearest class mean.

  ::

    m_c = mean of f(x) over the support's examples of class c
    logits_c(x) = -|f(x) - m_c|^2

  Args:
    model: the embedding f, pure `init(rng, inputs)` and `apply(params, inputs)
      -> [n, d]`.
    loss_fn: `(predictions, targets) -> scalar`, for the query.
    inner_optimizer: not used, because there is no inner loop.
    num_steps: not used.
    num_outputs: number of classes. If None, it is the number of support
      examples. A class without support examples is never predicted.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss".
    memory: not used.

  Returns:
    A `MetaLearner` for classification.

  Raises:
    ValueError: for a negative number of steps, although none is taken.

  References:
    Snell et al., `Prototypical Networks for Few-shot Learning
    <https://arxiv.org/abs/1703.05175>`_, 2017, equations 1 and 2.
  """
  del inner_optimizer, memory
  _check(num_steps, num_eval_steps)

  return embedding(model, nearest_mean(num_outputs), loss_fn, metrics=metrics)


def ridge_regression(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation | None = None,
  num_steps: int = 0,
  *,
  num_outputs: int | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Builds ridge regression on a learned embedding (R2-D2, Bertinetto et al.).

  ::

    W, b = argmin  |f(X) W + b - Y|^2 + exp(log_strength) |W|^2
    prediction(x) = exp(log_scale) (f(x) W + b)

  The embedding, the strength of the penalty and the scale of the predictions
  are learned together. The scale turns predictions into logits. Both logarithms
  start at 0. (The paper also learns an offset of all logits, which does not
  change a softmax.) Targets can be classes or numbers.

  Args:
    model: the embedding f, pure `init(rng, inputs)` and `apply(params, inputs)
      -> [n, d]`.
    loss_fn: `(predictions, targets) -> scalar`, for the query.
    inner_optimizer: not used, because there is no inner loop.
    num_steps: not used.
    num_outputs: number of classes. If None, it is the number of support
      examples. A class without support examples is never predicted. Not used
      if the targets are numbers.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss".
    memory: not used.

  Returns:
    A `MetaLearner` whose meta-parameters are `{"embedding", "log_strength",
    "log_scale"}`.

  Raises:
    ValueError: for a negative number of steps, although none is taken.

  References:
    Bertinetto et al., `Meta-learning with differentiable closed-form solvers
    <https://arxiv.org/abs/1805.08136>`_, 2019, section 3.2.
  """
  del inner_optimizer, memory
  _check(num_steps, num_eval_steps)

  def fit(meta_params: Params, features: Array, support: Batch) -> Params:
    targets = only_array(support.targets, "targets", "ridge_regression")
    strength = jnp.exp(meta_params["log_strength"])
    return ridge_fit(features, targets, num_outputs, strength, support.mask)

  learned = {"log_strength": 0.0, "log_scale": 0.0}
  return _scaled(model, fit, ridge_predict, learned, loss_fn, metrics)


def support_vector_machine(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation | None = None,
  num_steps: int = 0,
  *,
  cost: float = 0.1,
  num_outputs: int | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """A support vector machine on a learned embedding (MetaOptNet-SVM).

  ::

    W = argmin  |W|^2 / 2 + cost * hinge loss of f(X) W, see `svm.svm`
    logits(x) = exp(log_scale) f(x) W

  The embedding and the scale of the logits, from a logarithm of 0, are learned
  together.

  Args:
    model: the embedding f, pure `init(rng, inputs)` and `apply(params, inputs)
      -> [n, d]`.
    loss_fn: `(predictions, targets) -> scalar`, of the query.
    inner_optimizer: not used: there is no inner loop.
    num_steps: likewise.
    cost: of an error beside the norm, positive.
    num_outputs: number of classes; as many as the support has examples if None.
      A class that the support lacks is predicted of nothing.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss".
    memory: not used.

  Returns:
    A `MetaLearner`, for classification, whose meta-parameters are
    `{"embedding", "log_scale"}`.

  Raises:
    ValueError: if the cost is not positive.

  References:
    Lee et al., `Meta-Learning with Differentiable Convex Optimization
    <https://arxiv.org/abs/1904.03758>`_, 2019, section 3.
  """
  del inner_optimizer, memory
  _check(num_steps, num_eval_steps)
  head = svm(num_outputs, cost)

  def fit(meta_params: Params, features: Array, support: Batch) -> Params:
    del meta_params
    return fit_head(head, features, support)

  learned = {"log_scale": 0.0}
  return _scaled(model, fit, head.predict, learned, loss_fn, metrics)


def cosine_prototypes(
  model: Model,
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation | None = None,
  num_steps: int = 0,
  *,
  num_outputs: int | None = None,
  num_eval_steps: int | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  memory: inner_loop.Memory = "auto",
) -> MetaLearner:
  """Nearest class mean by the cosine, as in the second stage of Meta-Baseline.

  ::

    m_c = mean of f(x) over the support's examples of class c
    logits_c(x) = exp(log_scale) cos(f(x), m_c)

  The embedding and the scale, which is 10 at first, are learned together.

  Args:
    model: the embedding f, pure `init(rng, inputs)` and `apply(params, inputs)
      -> [n, d]`.
    loss_fn: `(predictions, targets) -> scalar`, of the query.
    inner_optimizer: not used: there is no inner loop.
    num_steps: likewise.
    num_outputs: number of classes; as many as the support has examples if None.
      A class that the support lacks is predicted of nothing.
    num_eval_steps: not used.
    metrics: more such functions to be reported by `meta_grad` beside "loss".
    memory: not used.

  Returns:
    A `MetaLearner`, for classification, whose meta-parameters are
    `{"embedding", "log_scale"}`.

  References:
    Chen et al., `Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot
    Learning <https://arxiv.org/abs/2003.04390>`_, 2021, section 3.2.
  """
  del inner_optimizer, memory
  _check(num_steps, num_eval_steps)
  head = cosine(num_outputs)

  def fit(meta_params: Params, features: Array, support: Batch) -> Params:
    del meta_params
    return fit_head(head, features, support)

  learned = {"log_scale": math.log(10.0)}
  return _scaled(model, fit, head.predict, learned, loss_fn, metrics)


def _scaled(
  model: Model,
  fit: Callable[[Params, Array, Batch], Params],
  classify: Callable[[Params, Array], Array],
  learned: Mapping[str, float],
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None,
) -> MetaLearner:
  """Builds a learner of an embedding and a head whose scale is learned.

  Args:
    model: the embedding.
    fit: `(meta_params, features, support) -> head`.
    classify: `(head, features) -> predictions`, times the head's "scale".
    learned: the numbers that are learned, "log_scale" among them.
    loss_fn: of the query.
    metrics: more such functions.
  """
  model = forward(model)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    params = model.init(rng, inputs)
    features = jax.eval_shape(model.apply, params, inputs)
    dtype = only_array(features, "the model's output", "a head").dtype
    numbers = {k: jnp.asarray(v, dtype) for k, v in learned.items()}
    return {"embedding": params, **numbers}

  def scale(meta_params: Params, head: Params, features: Array) -> Array:
    # `ridge_predict` scales, so that an absent class keeps its logit `ABSENT`.
    factor = jnp.exp(meta_params["log_scale"])
    return classify({**head, "scale": factor}, features)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    features = model.apply(
      meta_params["embedding"], support.inputs, mask=support.mask
    )
    return {**meta_params, "head": fit(meta_params, features, support)}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Array:
    features = model.apply(task_params["embedding"], inputs, mask=mask)
    return scale(task_params, task_params["head"], features)

  def solve(
    meta_params: Params, support: Array, query: Array, episode: Episode
  ) -> Array:
    return scale(meta_params, fit(meta_params, support, episode.support), query)

  meta_loss = encoded_loss(model.train, solve, loss_fn, metrics, of="embedding")
  return MetaLearner(init, adapt, predict, gradient_of_mean(meta_loss))


def _check(num_steps: int, num_eval_steps: int | None) -> None:
  """Checks the numbers of steps as the learners with an inner loop do."""
  inner_loop.check_steps(
    num_steps=num_steps,
    num_eval_steps=num_steps if num_eval_steps is None else num_eval_steps,
  )
