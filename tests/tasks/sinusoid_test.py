"""Sinusoids: the curve, the distribution of curves and points, the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks import sinusoid

NUM_TASKS = 4000


def _curves(family, num_tasks, seed=0):
  """Returns episodes in float64, [num_tasks, points] per leaf."""
  keys = jax.random.split(jax.random.key(seed), num_tasks)
  episodes = jax.jit(jax.vmap(family))(keys)
  return jax.tree.map(lambda x: np.asarray(x, np.float64)[..., 0], episodes)


def _fit(x, y):
  """Solves y = a sin x + b cos x by least squares, task by task.

  A sin(x - phase) = A cos(phase) sin(x) - A sin(phase) cos(x), so
  A = hypot(a, b) and phase = atan2(-b, a).
  """
  design = np.stack([np.sin(x), np.cos(x)], axis=-1)
  a, b = (np.linalg.pinv(design) @ y[..., None])[..., 0].T
  return np.hypot(a, b), np.arctan2(-b, a)


def _distance_to_uniform(samples, low, high):
  """The Kolmogorov-Smirnov distance between samples and U[low, high]."""
  uniform = (np.sort(samples) - low) / (high - low)
  n = len(samples)
  above = np.arange(1, n + 1) / n - uniform
  below = uniform - np.arange(n) / n
  return max(above.max(), below.max())


@pytest.fixture(scope="module")
def curves():
  return _curves(sinusoid(10, 10), NUM_TASKS)


def test_support_and_query_are_points_of_one_curve(curves):
  """y = A sin(x - phase): the support's fit predicts the query (trap 8)."""
  amplitude, phase = _fit(*curves.support[:2])
  for x, y, _ in curves:
    fitted = amplitude[:, None] * np.sin(x - phase[:, None])
    # Float32: x - phase is off by 8 * 6e-8, and A by up to 5 times that; the
    # fit amplifies it where the support's points lie close to each other.
    assert np.abs(fitted - y).max() < 1e-3
    assert np.median(np.abs(fitted - y)) < 1e-6


def test_amplitude_and_phase_are_uniform_and_independent(curves):
  x, y = (np.concatenate([b[i] for b in curves], axis=1) for i in range(2))
  amplitude, phase = _fit(x, y)
  # P(sqrt(n) D > 2) = 2 exp(-8) = 7e-4 for n uniform samples.
  bound = 2 / np.sqrt(NUM_TASKS)
  assert _distance_to_uniform(amplitude, 0.1, 5.0) < bound
  assert _distance_to_uniform(phase, 0.0, np.pi) < bound
  # The correlation of independent samples has standard deviation 1/sqrt(n).
  correlation = np.corrcoef([amplitude, phase, x[:, 0]])
  off_diagonal = correlation[np.triu_indices(3, 1)]
  assert np.abs(off_diagonal).max() < 4 / np.sqrt(NUM_TASKS)


def test_inputs_are_uniform_and_support_and_query_independent(curves):
  bound = 2 / np.sqrt(NUM_TASKS)
  for inputs in (curves.support.inputs, curves.query.inputs):
    assert _distance_to_uniform(inputs[:, 0], -5.0, 5.0) < bound
    assert _distance_to_uniform(inputs[:, -1], -5.0, 5.0) < bound
    # Over all points of all tasks, with n ten times as large.
    assert _distance_to_uniform(inputs.ravel(), -5.0, 5.0) < bound / np.sqrt(10)
  inputs = np.concatenate([curves.support.inputs, curves.query.inputs], axis=1)
  correlation = np.corrcoef(inputs.T)[np.triu_indices(20, 1)]
  # 190 correlations; P(any beyond 4.5 sigma) = 190 * 7e-6 = 1e-3.
  assert np.abs(correlation).max() < 4.5 / np.sqrt(NUM_TASKS)


def test_ranges_are_those_asked_for():
  family = sinusoid(
    8,
    3,
    amplitude_range=(2.0, 2.5),
    phase_range=(-1.0, -0.5),
    input_range=(3.0, 7.0),
  )
  curves = _curves(family, 500)
  assert curves.support.inputs.shape == (500, 8)
  assert curves.query.inputs.shape == (500, 3)
  x, y = (np.concatenate([b[i] for b in curves], axis=1) for i in range(2))
  amplitude, phase = _fit(x, y)
  for samples, low, high in (
    (amplitude, 2.0, 2.5),
    (phase, -1.0, -0.5),
    (x.ravel(), 3.0, 7.0),
  ):
    assert low - 1e-4 < samples.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < samples.max() < high + 1e-4


def test_one_task_is_a_function_of_its_key():
  family = sinusoid(2, 3)
  first, again = family(jax.random.key(1)), family(jax.random.key(1))
  other = family(jax.random.key(2))
  for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_array_equal(a, b)
    assert not np.any(a == c)


@pytest.mark.parametrize(
  "arguments, name",
  [
    ({"shots": 0}, "shots=0"),
    ({"shots": -1}, "shots=-1"),
    ({"query_shots": 0}, "query_shots=0"),
    ({"amplitude_range": (1.0, 1.0)}, "amplitude_range"),
    ({"phase_range": (1.0, 0.0)}, "phase_range"),
    ({"input_range": (float("nan"), 0.0)}, "input_range"),
    ({"input_range": (0.0, float("inf"))}, "input_range.*both finite"),
    ({"input_range": 5.0}, "input_range=5.0: must be .low, high"),
    ({"input_range": ("0", "1")}, "input_range=.*: must be .low, high"),
    ({"input_range": (0.0, 1.0, 2.0)}, "input_range=.*: must be .low, high"),
  ],
)
def test_impossible_arguments_are_named(arguments, name):
  with pytest.raises(ValueError, match=f"^{name}"):
    sinusoid(**arguments)
