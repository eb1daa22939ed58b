"""Algorithms of evosax as outer optimizers, on quadratics."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import bilevel

evosax = pytest.importorskip("evosax.algorithms")

GOAL = {"a": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.3)}
START = jax.tree.map(np.zeros_like, GOAL)


def _loss(outer, rng):
  """A quadratic with a condition of 10, and noise that candidates share."""
  return _exact(outer, rng) + jax.random.normal(rng)


def _exact(outer, rng):
  del rng
  error = jax.tree.map(lambda x, y: jnp.square(x - y).sum(), outer, GOAL)
  return 10 * error["a"] + error["b"]


ALGORITHMS = {
  "CMA_ES": evosax.CMA_ES,
  "Open_ES": functools.partial(
    evosax.Open_ES,
    optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 300)),
    std_schedule=optax.constant_schedule(0.05),
  ),
  # It compares losses of different steps, so they have no noise.
  "DifferentialEvolution": evosax.DifferentialEvolution,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_search_ends_at_the_minimum_and_goes_on_where_it_was(name):
  noisy = name != "DifferentialEvolution"
  loss = _loss if noisy else _exact
  descender = bilevel.search(ALGORITHMS[name], loss, 16, spread=0.5)
  start_key, rng = jax.random.split(jax.random.key(0))
  start = descender.init(START, start_key)
  run = jax.jit(descender.run, static_argnums=2)
  now, losses = run(start, rng, 150)
  again, later = run(now, rng, 150)
  assert int(again.step) == 300
  # Antithetic candidates of Open_ES keep their distance.
  spread = 31 * 0.05**2 if name == "Open_ES" else 0
  noise = noisy * np.array([_noise(rng, k) for k in (0, 299)])
  assert losses[0] - noise[0] > 5
  np.testing.assert_allclose(later[-1] - noise[1], spread, atol=0.05)
  for leaf in GOAL:
    np.testing.assert_allclose(again.outer[leaf], GOAL[leaf], atol=0.02)


def _noise(rng, step):
  key = jax.random.split(jax.random.fold_in(rng, step), 3)[1]
  return jax.random.normal(key)


@pytest.mark.slow
def test_settings_arrive_and_losses_that_are_not_finite_are_the_worst():
  descender = bilevel.search(
    evosax.SNES,
    lambda outer, rng: jnp.where(outer < 0, jnp.nan, jnp.square(outer - 1)),
    32,
    settings={"std_init": 0.1},
  )
  now = descender.init(jnp.float32(0.05), jax.random.key(0))
  np.testing.assert_allclose(now.opt_state.std, 0.1)
  now, losses = jax.jit(descender.run, static_argnums=2)(
    now, jax.random.key(1), 100
  )
  assert np.isnan(losses[0])  # They are seen.
  np.testing.assert_allclose(now.outer, 1, atol=1e-3)
  assert losses[-1] < 1e-5
  # Where no loss is finite, nothing is learned.
  lost = now._replace(
    outer=now.outer, opt_state=now.opt_state.replace(mean=jnp.full(1, -100.0))
  )
  after, losses = jax.jit(descender.run, static_argnums=2)(
    lost, jax.random.key(1), 100
  )
  assert np.isnan(losses).all()
  np.testing.assert_array_equal(after.opt_state.mean, [-100.0])


def test_bad_arguments_are_named():
  for name in ("population", "spread"):
    numbers = {"population": 4, "spread": 1.0} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0: must be"):
      bilevel.search(evosax.SNES, _loss, **numbers)
  for algorithm, population, settings, message in (
    (evosax.Open_ES, 3, None, "Population size must be even"),
    (evosax.SNES, 4, {"sigma": 1.0}, "settings={'sigma': 1.0}: .*sigma"),
    (lambda *_: SimpleNamespace(), 4, None, r"install 'metajax\[evolution\]'"),
  ):
    wrong = bilevel.search(algorithm, _loss, population, settings=settings)
    with pytest.raises(ValueError, match=message):
      wrong.init(START, jax.random.key(0))
