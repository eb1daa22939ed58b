"""Gittins indices: published ones, optimal stopping, their order, errors."""

import functools

import numpy as np
import pytest

from metajax.players import gittins_indices

# Gittins (1989), by discount and (successes + 1, failures + 1).
PUBLISHED = {
  0.9: {
    (1, 1): 0.7029,
    (2, 1): 0.8001,
    (3, 1): 0.8452,
    (4, 1): 0.8723,
    (1, 2): 0.5001,
    (2, 2): 0.6346,
    (3, 2): 0.7072,
    (1, 3): 0.3796,
  },
  0.99: {(1, 1): 0.8699, (2, 1): 0.9102, (1, 2): 0.7005, (2, 2): 0.7844},
}


@functools.cache
def _indices(num_pulls, discount, num_rates=1001):
  return gittins_indices(num_pulls, discount, num_rates=num_rates)


# The second takes longer, and is close enough with fewer rates.
@pytest.mark.parametrize("arguments", [(12, 0.9), (3, 0.99, 301)])
def test_indices_are_the_published_ones(arguments):
  table, discount = _indices(*arguments), arguments[1]
  for (a, b), published in PUBLISHED[discount].items():
    assert abs(table[a - 1, b - 1] - published) < 1e-4, (a, b)


def _by_stopping(successes, failures, discount):
  """The best ratio of discounted reward to discounted time, in float64.

  It is the rate that, charged for every pull, leaves nothing to be gained:
  max over stopping times of E sum discount^t (reward - rate) is 0 there.
  """
  last = successes + failures + int(np.log(1e-9) / np.log(discount))

  def gain(rate):
    @functools.cache
    def pull(s, f):
      """What is gained by pulling at least once."""
      p = (s + 1) / (s + f + 2)
      if s + f >= last:
        return p - rate
      on, off = max(0, pull(s + 1, f)), max(0, pull(s, f + 1))
      return p - rate + discount * (p * on + (1 - p) * off)

    return pull(successes, failures)

  low, high = 0.0, 1.0
  while high - low > 1e-7:
    middle = (low + high) / 2
    low, high = (middle, high) if gain(middle) > 0 else (low, middle)
  return (low + high) / 2


@pytest.mark.parametrize(
  "successes, failures", [(0, 0), (3, 0), (0, 3), (2, 1), (5, 4)]
)
def test_indices_are_those_of_optimal_stopping(successes, failures):
  found = _indices(12, 0.7)[successes, failures]
  assert abs(found - _by_stopping(successes, failures, 0.7)) < 1e-4


def test_impatience_leaves_the_mean():
  """With hardly a future an arm is worth its next pull."""
  table = _indices(6, 0.001)
  s, f = np.nonzero(np.isfinite(table))
  # What more there is to gain is below discount / (1 - discount).
  gain = table[s, f] - (s + 1) / (s + f + 2)
  assert np.all((gain > -1e-6) & (gain < 1.1e-3))


@pytest.mark.parametrize("discount", [0.7, 0.9])
def test_successes_raise_an_index_and_failures_lower_it(discount):
  table = _indices(12, discount)
  for change in (np.diff(table, axis=0), -np.diff(table, axis=1)):
    assert np.all(change[np.isfinite(change)] > 0)
  s, f = np.nonzero(np.isfinite(table))
  # Worth more than the mean, for what may be learned, and at most 1.
  assert np.all(table[s, f] > (s + 1) / (s + f + 2))
  assert np.all(table[s, f] < 1)


def test_patience_raises_every_index():
  patient, impatient = _indices(12, 0.9), _indices(12, 0.7)
  known = np.isfinite(patient)
  assert np.all(patient[known] > impatient[known])


def test_there_are_indices_of_fewer_pulls_than_asked_for_and_no_more():
  table = _indices(12, 0.7)
  assert table.shape == (12, 12)
  assert table.dtype == np.float64
  pulls = np.add.outer(np.arange(12), np.arange(12))
  np.testing.assert_array_equal(np.isnan(table), pulls >= 12)


def test_a_longer_table_begins_with_the_shorter():
  short, long = _indices(6, 0.7), _indices(12, 0.7)[:6, :6]
  known = np.isfinite(short)
  np.testing.assert_allclose(short[known], long[known], atol=1e-5)


@pytest.mark.parametrize("discount", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_discount_is_named(discount):
  with pytest.raises(ValueError, match=f"^discount={discount}: must be"):
    gittins_indices(3, discount)
  with pytest.raises(ValueError, match="^num_pulls=0: must be 1 or more"):
    gittins_indices(0, 0.9)
  with pytest.raises(ValueError, match="^num_rates=1: must be 2 or more"):
    gittins_indices(3, 0.9, num_rates=1)
