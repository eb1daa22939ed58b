"""Bars of prior-fitted networks, whose logits are interpolated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import prior_fitted
from metajax.types import Batch

RNG = jax.random.key(0)
EDGES = np.arange(10.0)  # 9 bars.
X = jnp.linspace(-1.0, 1.0, 4)[:, None]
SIZES = {"width": 8, "layers": 1, "heads": 1}


def _logits(num_knots, **options):
  learner = prior_fitted(EDGES, num_knots=num_knots, **SIZES, **options)
  targets = jnp.tile(X, (1, options.get("num_outputs", 1)))
  params = learner.init(RNG, X)
  task_params = learner.adapt(params, Batch(X, targets), RNG)
  return learner.predict(task_params, X).logits


def test_logits_are_linear_between_knots():
  """Knots are at the bars 0, 4 and 8."""
  logits = np.float64(_logits(3, num_outputs=2))
  assert logits.shape == (4, 2, 9)
  for a, b in ((0, 4), (4, 8)):
    parts = np.linspace(0, 1, b - a + 1)
    line = logits[..., [a]] * (1 - parts) + logits[..., [b]] * parts
    np.testing.assert_allclose(logits[..., a : b + 1], line, atol=1e-6)
  bends = logits[..., 5] - 2 * logits[..., 4] + logits[..., 3]
  assert np.abs(bends).min() > 1e-6


def test_knots_for_all_bars_are_their_logits():
  """The default of 200 is more than there are bars."""
  np.testing.assert_array_equal(_logits(200), _logits(9))
  bends = np.diff(np.float64(_logits(9)), 2)
  assert np.all(np.abs(bends).max(-1) > 1e-6)


def test_noise_of_the_edges_is_not_in_the_densities():
  """Widths of quantiles of few samples differ by a third, densities do not."""
  draw = np.random.default_rng(0)
  edges = np.sort(draw.uniform(0, 1, 20_001))[::20]
  learner = prior_fitted(edges, num_knots=20, **SIZES)
  params = learner.init(RNG, X)
  bars = learner.predict(learner.adapt(params, Batch(X, X), RNG), X)
  widths = np.diff(edges)
  assert np.abs(np.diff(np.log(widths))).mean() > 0.2
  logs = np.float64(jax.nn.log_softmax(bars.logits)[:, 0]) - np.log(widths)
  assert logs.shape == (4, 1000)
  # Within a knot's reach a line is left; its bends are rounding errors.
  inside = np.abs(np.diff(logs, 2))
  assert np.median(inside) < 1e-4


def test_less_than_two_knots_are_refused():
  with pytest.raises(ValueError, match="^num_knots=1: must be 2 or more"):
    prior_fitted(EDGES, num_knots=1)


@pytest.mark.parametrize("edge", [-np.inf, np.nan])
def test_edges_that_are_not_finite_are_named(edge):
  with pytest.raises(ValueError, match="finite numbers that increase"):
    prior_fitted([edge, 0.0, 1.0, 2.0, 3.0], **SIZES)
