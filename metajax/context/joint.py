"""Predictions of several targets that depend on each other."""

from typing import Any, NamedTuple

from jax.tree_util import Partial
from jax.typing import ArrayLike

from metajax.forward import takes_mask
from metajax.losses import masked_mean, over_examples
from metajax.predictive import check_shapes
from metajax.types import Array, LossFn


class Joint(NamedTuple):
  """A joint distribution of the targets of n inputs, with its marginals.

  ::

    log p(y_1, ..., y_n) = sum_i log p(y_i | y_1, ..., y_{i-1})

  It is a predictive distribution like those of `metajax.predictive`, by its
  marginals. Its marginals have a leading example axis, and `conditional` has
  none. Scores that know nothing of it are made to work by `of_marginals`.

  Attributes:
    marginals: the distribution of each target alone, leaves `[n, ...]`.
    conditional: `(targets [n, d], mask [n] or None) -> [n, d]`, the log
      densities of targets given those before them, in nats. Padding has no
      effect on the others.
  """

  marginals: Any
  conditional: Partial

  @property
  def mean(self) -> Array:
    """The means `[n, d]`."""
    return self.marginals.mean

  @property
  def variance(self) -> Array:
    """The variances `[n, d]` of the marginals."""
    return self.marginals.variance

  def log_prob(self, targets: Array) -> Array:
    """Returns the log density of each target alone, `[n, d]`."""
    return self.marginals.log_prob(targets)

  def cdf(self, targets: Array) -> Array:
    """Returns the cumulative distribution of each target alone, `[n, d]`."""
    return self.marginals.cdf(targets)

  def quantile(self, q: ArrayLike) -> Array:
    """Returns the quantiles `[n, d]` of the marginals."""
    return self.marginals.quantile(q)


def log_density(
  predictions: Any, targets: Array, mask: Array | None = None
) -> Array:
  """Log density of all targets, divided by their number.

  ::

    1/n log p(y_1, ..., y_n)

  For predictions that are independent, this is the mean log-likelihood.

  Args:
    predictions: of n inputs.
    targets: `[n, d]`.
    mask: `[n]`, True for real targets; None: all are real.

  Returns:
    A scalar, in nats for each number of the targets.

  Raises:
    ValueError: for targets of another shape than the predictions.
  """
  check_shapes(predictions, targets)
  if isinstance(predictions, Joint):
    terms = predictions.conditional(targets, mask)
  else:
    terms = predictions.log_prob(targets)
  return masked_mean(terms, mask)


def of_marginals(metric: LossFn) -> LossFn:
  """Returns a score of each target alone, for joint predictions, too.

  Args:
    metric: `(predictions, targets) -> scalar`, of independent predictions. It
      may take `mask`.
  """

  def score(predictions: Any, targets: Any, mask: Array | None = None) -> Array:
    if isinstance(predictions, Joint):
      predictions = predictions.marginals
    return over_examples(metric, predictions, targets, mask)

  return score


def score(
  metric: LossFn, predictions: Any, targets: Any, mask: Array | None
) -> Array:
  """Computes a score as `losses.over_examples` does, for joint ones, too."""
  if isinstance(predictions, Joint) and not takes_mask(metric):
    metric = of_marginals(metric)
  return over_examples(metric, predictions, targets, mask)
