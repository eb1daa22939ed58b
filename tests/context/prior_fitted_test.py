"""Bars of prior-fitted networks, whose logits are interpolated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import prior_fitted, quantile_edges
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


def test_a_narrow_normal_is_almost_exact():
  """Its deviation is that of two knots, and more than that of ten bars."""
  edges = np.float64(
    quantile_edges(jax.random.normal(RNG, (100_000,)), num_bars=1000)
  )
  learner = prior_fitted(edges, num_knots=200, **SIZES)
  head = learner.init(RNG, X)["head"]
  assert jax.tree.leaves(head)[-1].shape[-1] == 200
  centres, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
  mean, scale = 0.3, 0.025
  logits = -0.5 * ((centres - mean) / scale) ** 2 + np.log(widths)
  knots = np.linspace(0, 999, 200)
  logits = np.interp(
    np.arange(1000), knots, np.interp(knots, range(1000), logits)
  )
  p = np.exp(logits - logits.max())
  p /= p.sum()
  y = np.random.default_rng(0).normal(mean, scale, 100_000)
  bar = np.searchsorted(edges, y) - 1
  found = np.log(p[bar] / widths[bar]).mean()
  exact = -0.5 * np.log(2 * np.pi * scale**2) - 0.5
  assert exact - 0.02 < found < exact + 0.01


def test_less_than_two_knots_are_refused():
  with pytest.raises(ValueError, match="^num_knots=1: must be 2 or more"):
    prior_fitted(EDGES, num_knots=1)
