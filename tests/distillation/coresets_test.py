"""Herding against the greedy search written out in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.distillation import herding

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(12, 2, 3)) + DRAW.normal(size=(2, 3))


def _greedy(features, num_chosen):
  """Tries every example that is left, anew each time."""
  features = features.reshape(len(features), -1)
  goal, chosen = features.mean(0), []
  for _ in range(num_chosen):
    left = [i for i in range(len(features)) if i not in chosen]
    errors = [
      np.linalg.norm(goal - features[[*chosen, i]].mean(0)) for i in left
    ]
    chosen.append(left[int(np.argmin(errors))])
  return chosen


@pytest.mark.parametrize("num_chosen", [1, 5, 12])
def test_choice_is_that_of_the_greedy_search(num_chosen):
  found = herding(jnp.asarray(FEATURES, jnp.float32), num_chosen)
  np.testing.assert_array_equal(found, _greedy(FEATURES, num_chosen))


def test_sums_of_half_precision_features_do_not_stand_still():
  """They pass 256, from where bfloat16 counts in twos."""
  features = jnp.asarray(3 + DRAW.normal(size=(120, 3)), jnp.bfloat16)
  found = herding(features, 120)
  expected = _greedy(np.float64(features), 120)
  assert np.mean(found == np.array(expected)) > 0.9


def test_choice_of_fewer_is_the_start_of_the_choice_of_more():
  features = jnp.asarray(FEATURES, jnp.float32)
  np.testing.assert_array_equal(herding(features, 12)[:4], herding(features, 4))


def test_first_is_the_nearest_to_the_mean():
  # The means are 3, 2.6 and 2.
  values = jnp.array([[9.0], [0.0], [2.6], [1.0], [2.4]])
  assert herding(values, 1)[0] == 2
  assert herding(values.at[0].set(7.0), 1)[0] == 2
  assert herding(values.at[0].set(4.0), 1)[0] == 4


def test_worked_example_on_a_line():
  """Of mean 3.2: 3, then (3 + 4) / 2 = 3.5, then (3 + 4 + 1) / 3 = 2.67."""
  values = jnp.array([[8.0], [1.0], [3.0], [0.0], [4.0]])
  np.testing.assert_array_equal(herding(values, 3), [2, 4, 1])


def test_each_is_chosen_once_even_if_all_are_equal():
  for features in (jnp.ones((6, 2)), jnp.asarray(FEATURES[:6], jnp.float32)):
    np.testing.assert_array_equal(np.sort(herding(features, 6)), np.arange(6))


def test_chosen_mean_is_nearer_than_that_of_random_choices():
  features = DRAW.normal(size=(100, 4))
  goal = features.mean(0)

  def error(chosen):
    return np.linalg.norm(features[chosen].mean(0) - goal)

  choose = jax.jit(herding, static_argnums=1)
  found = error(np.asarray(choose(jnp.asarray(features, jnp.float32), 10)))
  random = [error(DRAW.permutation(100)[:10]) for _ in range(200)]
  assert found < min(random)


@pytest.mark.parametrize("num_chosen", [-1, 0, 13])
def test_impossible_number_is_named(num_chosen):
  with pytest.raises(ValueError, match=f"^num_chosen={num_chosen}: .* 1 to 12"):
    herding(jnp.asarray(FEATURES), num_chosen)


def test_features_that_are_not_finite_are_named():
  with pytest.raises(ValueError, match="^features: not finite"):
    herding(jnp.array([[1.0], [jnp.nan], [2.0]]), 2)
