"""Learners in context by name, for `--learner` of experiments.

They are not in `metajax.learners.REGISTRY`. Its learners predict arrays that
any loss of the caller scores, and are built of the caller's model. These
predict distributions, bring their networks, and are trained by the likelihood.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax.typing import ArrayLike

from metajax.context.alpaca import alpaca
from metajax.context.attentive import attentive_neural_process
from metajax.context.autoregressive import tnp_a
from metajax.context.convolutional import convolutional_process
from metajax.context.correlated import tnp_nd
from metajax.context.neural_process import (
  conditional_attentive_process,
  conditional_neural_process,
)
from metajax.context.prior_fitted import prior_fitted
from metajax.context.transformer_process import tnp_d
from metajax.types import LossFn, MetaLearner

# Constructors by name, all with `num_outputs`, `width` and `metrics`.
LEARNERS: dict[str, Callable[..., MetaLearner]] = {
  "cnp": conditional_neural_process,
  "canp": conditional_attentive_process,
  "anp": attentive_neural_process,
  "convcnp": convolutional_process,
  "tnp_d": tnp_d,
  "tnp_a": tnp_a,
  "tnp_nd": tnp_nd,
  "prior_fitted": prior_fitted,
  "alpaca": alpaca,
}
# Those whose networks have a number of layers.
LAYERED = ("convcnp", "tnp_d", "tnp_a", "tnp_nd", "prior_fitted")
# Learners whose predictions have a joint density, and depend on the order.
JOINT = ("tnp_a", "tnp_nd")


def build(
  name: str,
  *,
  num_outputs: int = 1,
  edges: ArrayLike | None = None,
  metrics: Mapping[str, LossFn] | None = None,
  **options: Any,
) -> MetaLearner:
  """Builds a learner by name.

  Args:
    name: a name of `LEARNERS`.
    num_outputs: numbers of a target.
    edges: edges of the bars of "prior_fitted"; the others have none.
    metrics: functions of the query to be reported by `meta_grad`.
    **options: other arguments of the learner.

  Raises:
    ValueError: for an unknown name, or edges that are missing.
  """
  if name not in LEARNERS:
    raise ValueError(f"learner {name!r}: must be one of {sorted(LEARNERS)}.")
  if name == "prior_fitted":
    if edges is None:
      raise ValueError(
        "edges: prior_fitted needs them; quantile_edges makes them."
      )
    options["edges"] = edges
  return LEARNERS[name](num_outputs=num_outputs, metrics=metrics, **options)
