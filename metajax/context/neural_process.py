"""Conditional neural processes, with and without attention."""

from collections.abc import Mapping
from typing import Any

from metajax.context.objectives import maximum_likelihood
from metajax.context.paths import LEAST_SCALE, paths
from metajax.predictive import Normal
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)


def conditional_neural_process(
  *,
  num_outputs: int = 1,
  width: int = 128,
  least_scale: float = LEAST_SCALE,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Predicts from an average of the encoded support (CNP).

  ::

    r = 1/n sum_i h(x_i, y_i),    y ~ N(m(x, r), s(x, r)^2)
    g = d/dtheta  mean over tasks of  -log-likelihood of support and query

  There are two such averages, as in the code of Nguyen and Grover (2022), so
  that the network is as wide as the attentive ones.

  Args:
    num_outputs: d, numbers of a target.
    width: width of all layers.
    least_scale: the least standard deviation, in units of the targets. The
      published 0.1 bounds the log-likelihood from above by 1.38 nats.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      by `meta_grad` beside "loss".

  Returns:
    A `MetaLearner` that predicts a `Normal` of `[n, d]`. Inputs are flattened
    to vectors. It works for any number of support examples, none included.

  References:
    Garnelo et al., `Conditional Neural Processes
    <https://arxiv.org/abs/1807.01613>`_, 2018, section 2.
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, for sizes.
  """
  return _deterministic(num_outputs, width, least_scale, metrics, False)


def conditional_attentive_process(
  *,
  num_outputs: int = 1,
  width: int = 128,
  least_scale: float = LEAST_SCALE,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Predicts from the support points that a query attends to (CANP).

  ::

    r(x) = attention of x to (x_i, values of (x_i, y_i))
    y ~ N(m(x, r(x), r), s(x, r(x), r)^2)

  It is the attentive neural process with an average in the place of the latent
  variable.

  Args:
    num_outputs: d, numbers of a target.
    width: width of all layers, a multiple of 8, the number of heads.
    least_scale: see `conditional_neural_process`.
    metrics: see `conditional_neural_process`.

  Returns:
    A `MetaLearner` that predicts a `Normal` of `[n, d]`.

  References:
    Kim et al., `Attentive Neural Processes
    <https://arxiv.org/abs/1901.05761>`_, 2019, section 3.
  """
  return _deterministic(num_outputs, width, least_scale, metrics, True)


def _deterministic(
  num_outputs: int,
  width: int,
  least_scale: float,
  metrics: Mapping[str, LossFn] | None,
  attends: bool,
) -> MetaLearner:
  networks = paths(num_outputs, width, least_scale, attends=attends)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return {
      "params": meta_params,
      "local": networks.local(meta_params, support),
      "whole": networks.whole(meta_params, support),
    }

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Normal:
    del mask
    params = task_params["params"]
    local = networks.at(params, task_params["local"], inputs)
    return Normal(*networks.decode(params, inputs, local, task_params["whole"]))

  return maximum_likelihood(
    networks.init,
    adapt,
    predict,
    metrics,
    num_outputs=num_outputs,
    of_support=True,
  )
