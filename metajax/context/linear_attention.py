"""Linear attention, whose layers can be steps of gradient descent."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.batches import real
from metajax.context.objectives import numbers, vectors
from metajax.learners.meta_gradients import gradient_of_mean, query_loss
from metajax.numerics import check_counts
from metajax.types import Array, Batch, LossFn, MetaLearner, Params, PRNGKey


def linear_attention(
  loss_fn: LossFn,
  *,
  num_layers: int = 1,
  looped: bool = True,
  num_labels: int = 1,
  init_scale: float = 0.01,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Builds layers of attention without softmax, over tokens of x and y.

  The tokens are `e_i = (x_i, y_i)` for the n support examples and `(x, 0)` for
  a query. Each layer changes all of them::

    e_j = e_j + A (1/n sum_i e_i e_i^T) B e_j,   i over the support

  The prediction is minus the y of the query's token after the last layer. Of
  the usual four matrices, A is the product of the projection and the values,
  and B that of the keys and the queries.

  What a layer reads of the support is one matrix. `adapt` computes that of each
  layer, so that a query costs the same for any support.

  Args:
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    num_layers: the layers that a token passes.
    looped: whether they are one layer, again and again. If False, each has an A
      and a B of its own.
    num_labels: numbers of a label.
    init_scale: the standard deviation of the first entries of A and B. A token
      after L layers is a polynomial of degree 3^L in those before, so that
      large entries overflow.
    metrics: more such functions of the query, reported by `meta_grad`.

  Returns:
    A `MetaLearner` that predicts `[n, num_labels]`. Its meta-parameters are
    `{"out": A, "among": B}`, each `[layers, width, width]`, with one layer if
    `looped`. The width is that of a token.

  Raises:
    ValueError: for less than one layer.

  References:
    von Oswald et al., `Transformers Learn In-Context by Gradient Descent
    <https://arxiv.org/abs/2212.07677>`_, 2023, sections 2 and 3.
  """
  check_counts(num_layers=num_layers, num_labels=num_labels)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    width = vectors(inputs).shape[1] + num_labels
    shape = (2, 1 if looped else num_layers, width, width)
    out, among = init_scale * jax.random.normal(rng, shape)
    return {"out": out, "among": among}

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Array:
    del rng
    mask = real(support)[:, None]
    count = jnp.maximum(mask.sum(), 1)

    def layer(tokens: Array, weights: Params) -> tuple[Array, Array]:
      moments = tokens.T @ tokens / count
      change = weights["out"] @ moments @ weights["among"]
      return tokens + tokens @ change.T, change

    x, y = vectors(support.inputs), numbers(support, num_labels)
    tokens = jnp.where(mask, jnp.concatenate([x, y], axis=1), 0)
    tokens = tokens.astype(jnp.result_type(tokens, *meta_params.values()))
    each = jax.tree.map(
      lambda w: jnp.broadcast_to(w, (num_layers, *w.shape[1:])), meta_params
    )
    return jax.lax.scan(layer, tokens, each)[1]

  def predict(changes: Array, inputs: Any, mask: Array | None = None) -> Array:
    del mask
    x = vectors(inputs)
    tokens = jnp.pad(x, ((0, 0), (0, num_labels)))
    for change in changes:
      tokens = tokens + tokens @ change.T
    return -tokens[:, x.shape[1] :]

  meta_loss = query_loss(adapt, predict, loss_fn, metrics)
  return MetaLearner(init, adapt, predict, gradient_of_mean(meta_loss))


def gradient_step(
  num_inputs: int,
  rate: ArrayLike,
  contraction: ArrayLike = 0.0,
  *,
  num_labels: int = 1,
) -> Params:
  """Returns a layer of linear attention that is a step of gradient descent.

  K such layers predict `W x` for the W after K steps from zero::

    W = W - rate dL/dW,   L = 1/(2n) sum_i |W x_i - y_i|^2

  The tokens then hold what is left to explain, `y_i - W x_i`. With a
  contraction each layer transforms the inputs, too, which improves the
  condition of the problem (the paper's GD++)::

    x_j = x_j - contraction (1/n sum_i x_i x_i^T) x_j

  Args:
    num_inputs: numbers of an input.
    rate: the step size of L. (That of a mean squared error over d labels is
      d/2 times this.)
    contraction: see above; 0: plain gradient descent.
    num_labels: numbers of a label.

  Returns:
    Meta-parameters of a looped `linear_attention`.

  References:
    von Oswald et al. 2023, proposition 1 and appendix A.10 (GD++).
  """
  width = num_inputs + num_labels
  is_input = jnp.arange(width) < num_inputs
  return {
    "out": -jnp.diag(jnp.where(is_input, contraction, rate))[None],
    "among": jnp.diag(is_input.astype(float))[None],
  }


def attention_descent(
  loss_fn: LossFn,
  *,
  num_steps: int = 1,
  num_labels: int = 1,
  plus_plus: bool = False,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Builds linear attention that is gradient descent with learned step sizes.

  It is `linear_attention` with the weights of `gradient_step`. Its only
  meta-parameters are "rate" and, with `plus_plus`, "contraction", both zero at
  first.

  Args:
    loss_fn: see `linear_attention`.
    num_steps: gradient steps on a task, all of one rate.
    num_labels: numbers of a label.
    plus_plus: whether the inputs are contracted, see `gradient_step`.
    metrics: see `linear_attention`.

  Raises:
    ValueError: for less than one step.
  """
  check_counts(num_steps=num_steps, num_labels=num_labels)
  names = ("rate", "contraction")[: 1 + plus_plus]
  attend = linear_attention(
    loss_fn, num_layers=num_steps, num_labels=num_labels
  )

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del rng
    dtype = vectors(inputs).dtype
    return {name: jnp.zeros((), dtype) for name in names}

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Array:
    num_inputs = vectors(support.inputs).shape[1]
    layer = gradient_step(num_inputs, **meta_params, num_labels=num_labels)
    return attend.adapt(layer, support, rng)

  meta_loss = query_loss(adapt, attend.predict, loss_fn, metrics)
  return MetaLearner(init, adapt, attend.predict, gradient_of_mean(meta_loss))
