"""Sawtooth waves against their series in float64."""

import jax
import numpy as np
import pytest

from metajax.tasks import gaussian_processes, sinusoid
from metajax.tasks.mixture import mixture
from metajax.tasks.sawtooth import sawtooth


def _series(x, frequency, shift, terms):
  k = np.arange(1, terms + 1)
  waves = (-1.0) ** k * np.sin(2 * np.pi * k * frequency * (x + shift)) / k
  return 0.5 - waves.sum(-1, keepdims=True) / np.pi


@pytest.mark.slow
def test_targets_are_the_series():
  tasks = sawtooth(
    50,
    10,
    frequency_range=(4, 4.0001),
    shift_range=(2.3, 2.30001),
    terms=(15, 15),
  )
  for batch in tasks(jax.random.key(0)):
    x = np.asarray(batch.inputs, np.float64)
    known = _series(x, 4.00005, 2.300005, 15)
    # Frequency and shift are known to 5e-5 and 5e-6; slopes are up to 120.
    np.testing.assert_allclose(batch.targets, known, atol=6e-3)
    assert batch.mask is None


def test_ranges_are_those_of_the_paper():
  """A wave of many terms lies in [0, 1] but for the overshoot of 9%."""
  support, query = jax.jit(jax.vmap(sawtooth()))(
    jax.random.split(jax.random.key(1), 500)
  )
  assert support.inputs.shape == query.targets.shape == (500, 100, 1)
  for mask in (support.mask, query.mask):
    assert mask.sum(1).min() == 3
    assert mask.sum(1).max() >= 99
  y = np.asarray(support.targets)[support.mask]
  assert -0.1 < y.min() < 0
  assert 1 < y.max() < 1.1
  # Uniform in [0, 1] in the limit: mean 1/2, variance 1/12.
  assert abs(y.mean() - 0.5) < 0.01
  assert abs(y.var() - 1 / 12) < 0.01


@pytest.mark.slow
def test_a_mixture_draws_all_its_families():
  """Inputs beyond 2 are of sinusoids, values beyond 1.1 of no sawtooth."""
  families = [
    sawtooth((3, 10), 5),
    sinusoid(10, 5, amplitude_range=(0.1, 1.0)),
    gaussian_processes(shots=(3, 10), query_shots=5, scale=3.0),
  ]
  keys = jax.random.split(jax.random.key(2), 60)
  support = jax.jit(jax.vmap(mixture(families)))(keys).support
  waves = (np.abs(support.inputs) > 2).any((1, 2))
  functions = (np.abs(support.targets) > 1.1).any((1, 2))
  assert not (waves & functions).any()
  others = ~waves & ~functions
  for kind in (waves, functions, others):
    assert 8 < kind.sum() < 32


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"input_range": (1, 1)}, r"input_range=\(1, 1\): must be \(low, high\)"),
    ({"shift_range": (0, np.inf)}, r"shift_range=\(0, inf\): must be"),
    ({"frequency_range": (2, 1)}, r"frequency_range=\(2, 1\): must be"),
    ({"terms": (0, 3)}, r"terms=\(0, 3\): must be 1 or more"),
    ({"terms": (1.5, 3)}, r"terms=\(1.5, 3\): must be 1 or more"),
    ({"shots": 200, "max_points": 100}, "max_points=100: must be 203 or more"),
  ],
)
def test_bad_arguments_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    sawtooth(**flags)
