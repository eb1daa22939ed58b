"""Ties, and draws of Gamma variables against scipy's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.players.choices import best, gamma

DRAWS = 4000


def _best(scores, tolerance=0.0):
  """How often each is chosen."""
  keys = jax.random.split(jax.random.key(0), DRAWS)
  choose = jax.vmap(lambda key: best(scores, key, tolerance=tolerance))
  return np.bincount(jax.jit(choose)(keys), minlength=4)


def test_equals_are_chosen_equally_often():
  found = _best(jnp.array([2.0, 1.0, 2.0, 2.0]))
  assert found[1] == 0
  assert scipy.stats.chisquare(found[[0, 2, 3]]).pvalue > 1e-3


@pytest.mark.parametrize(
  "scores", [[100, 99.5, 98.5, 0], [-99.5, -99, -100, -101.5]]
)
def test_tolerance_is_a_part_of_the_largest_magnitude(scores):
  """It is 0.01, of about 100: what is lower by less ties."""
  found = _best(jnp.array(scores), 0.01)
  ties = np.max(scores) - np.array(scores) <= 0.01 * np.abs(scores).max()
  assert ties.sum() in (2, 3)
  assert np.all(found[~ties] == 0)
  assert scipy.stats.chisquare(found[ties]).pvalue > 1e-3


def test_first_of_equals():
  scores = jnp.array([1.0, 3.0, 3.0])
  for seed in range(5):
    assert best(scores, jax.random.key(seed), ties="first") == 1


def test_unknown_ties_are_named():
  with pytest.raises(ValueError, match="^ties='last': must be"):
    best(jnp.ones(2), jax.random.key(0), ties="last")


SHAPES = (1.0, 1.5, 2.0, 7.0, 300.0)


@pytest.fixture(scope="module")
def drawn():
  shapes = jnp.tile(jnp.array(SHAPES)[:, None], (1, DRAWS))
  return np.asarray(jax.jit(gamma)(jax.random.key(1), shapes), np.float64)


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_gamma_draws_are_of_their_distribution(drawn, place):
  law = scipy.stats.gamma(SHAPES[place])
  assert scipy.stats.kstest(drawn[place], law.cdf).pvalue > 1e-3


def test_gamma_draws_are_independent(drawn):
  between = np.corrcoef(drawn)[np.triu_indices(len(SHAPES), 1)]
  within = [np.corrcoef(x[1:], x[:-1])[0, 1] for x in drawn]
  assert np.all(np.abs([*between, *within]) < 4.5 / np.sqrt(DRAWS))


@pytest.mark.slow
def test_each_task_draws_its_own_when_mapped():
  keys = jax.random.split(jax.random.key(2), 3)
  shapes = jnp.full((3, 50), 2.0)
  mapped = jax.vmap(gamma)(keys, shapes)
  alone = jnp.stack([gamma(*one) for one in zip(keys, shapes, strict=True)])
  np.testing.assert_allclose(mapped, alone, rtol=1e-6)


@pytest.mark.parametrize("shape", [0.5, 0.0, -3.0, float("nan")])
def test_a_shape_below_one_is_nan_and_does_not_hang(shape):
  found = gamma(jax.random.key(0), jnp.array([shape, 1.0, 2.5]))
  assert np.isnan(found[0]) and np.all(found[1:] > 0)
