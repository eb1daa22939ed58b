"""MAML++ against MAML, against its authors' schedule, and step by step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml, maml_plus_plus
from metajax.learners.maml_plus_plus import importance
from metajax.learners.partition import normalization
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid

MODEL = MLP(1, (6,), "batch")
STEPS, RATE = 3, 0.05
RNG = jax.random.key(0)
EPISODES = jax.vmap(sinusoid(4, 5))(jax.random.split(RNG, 2))
OFF = {"learned_rates": False, "step_normalization": False}


@functools.cache
def _params():
  return MODEL.init(jax.random.key(1), EPISODES.support.inputs[0])


def _plus_plus(**options):
  return maml_plus_plus(
    MODEL, mean_squared_error, optax.sgd(RATE), STEPS, **options
  )


def _maml(steps=STEPS, **options):
  return maml(MODEL, mean_squared_error, optax.sgd(RATE), steps, **options)


def _grad(learner, params, step=None):
  if step is None:
    return jax.jit(learner.meta_grad)(params, EPISODES, RNG)

  @jax.jit
  def at(step):
    return learner.schedule(step).meta_grad(params, EPISODES, RNG)

  return at(jnp.int32(step))


def _close(found, expected):
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_with_all_switches_off_it_is_maml():
  params, learner = {"params": _params()}, _plus_plus(**OFF)
  grads, scores = _grad(learner, params)
  _close((grads["params"], scores), _grad(_maml(), _params()))
  _close(_grad(learner, params, step=0), (grads, scores))
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  _close(
    jax.jit(learner.adapt)(params, support, RNG),
    jax.jit(_maml().adapt)(_params(), support, RNG),
  )


@pytest.mark.slow
def test_equal_steps_are_maml_in_which_normalisations_do_not_adapt():
  learner = _plus_plus()
  meta_params = learner.init(jax.random.key(1), EPISODES.support.inputs[0])
  norms = normalization(_params())
  assert sum(jax.tree.leaves(norms)) == 2  # scale and bias
  chex.assert_trees_all_equal(
    jax.tree.map(lambda p, n: p[0] if n else p, meta_params["params"], norms),
    _params(),
  )
  assert {r.shape for r in jax.tree.leaves(meta_params["rates"])} == {(STEPS,)}
  grads, scores = _grad(learner, meta_params)
  fixed = _maml(mask=jax.tree.map(lambda n: not n, norms))
  expected, expected_scores = _grad(fixed, _params())
  # All steps' normalisations are copies of one: their gradients add up to its.
  together = jax.tree.map(
    lambda g, n: g.sum(0) if n else g, grads["params"], norms
  )
  _close((together, scores), (expected, expected_scores))
  # The last step's has a part of the query's, too; no step is left out.
  for g, n in zip(*map(jax.tree.leaves, (grads["params"], norms)), strict=True):
    assert not n or np.all(np.abs(np.asarray(g)).max(axis=1) > 0)


@pytest.mark.slow
def test_each_step_has_its_own_rates_and_normalisation():
  """By hand, with numbers of which no two are the same."""
  learner = _plus_plus()
  start = learner.init(jax.random.key(1), EPISODES.support.inputs[0])
  draw = np.random.default_rng(0).uniform
  meta_params = jax.tree.map(
    lambda p: p * draw(0.5, 1.5, p.shape).astype(p.dtype), start
  )
  norms = normalization(_params())
  support = jax.tree.map(lambda x: x[0], EPISODES.support)

  def of_step(params, k):
    own = meta_params["params"]
    return jax.tree.map(lambda p, o, n: o[k] if n else p, params, own, norms)

  def loss(params):
    predictions = MODEL.apply(params, support.inputs)
    return mean_squared_error(predictions, support.targets)

  slope = jax.jit(jax.grad(loss))
  by_hand = of_step(meta_params["params"], 0)
  rates = jax.tree.leaves(meta_params["rates"])
  for k in range(STEPS):
    by_hand = of_step(by_hand, k)
    grads, own = slope(by_hand), iter(rates)
    by_hand = jax.tree.map(
      lambda p, g, n, own=own, k=k: p if n else p - RATE * next(own)[k] * g,
      by_hand,
      grads,
      norms,
    )
  _close(jax.jit(learner.adapt)(meta_params, support, RNG), by_hand)


@functools.cache
def _stages(several, first):
  """Compiled: the meta-gradient at a step, and in the end."""
  learner = _plus_plus(multi_step_loss=several, first_order_until=first, **OFF)
  params = {"params": _params()}

  @jax.jit
  def at(step):
    return learner.schedule(step).meta_grad(params, EPISODES, RNG)

  return at


@functools.cache
def _shorter_loops():
  """What MAML does of 1 to all of the steps."""
  return [_grad(_maml(k + 1), _params()) for k in range(STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 7, 19])
def test_multi_step_loss_is_the_weighted_sum_of_shorter_loops(step):
  grads, scores = _stages(20, 0)(step)
  each = _shorter_loops()
  weights = importance(STEPS, step / 20)
  expected = jax.tree.map(
    lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)),
    *[g for g, _ in each],
  )
  _close(grads["params"], expected)
  _close(scores, each[-1][1])


@pytest.mark.slow
def test_first_order_stage_is_fomaml_and_still_learns_the_rates():
  learner = _plus_plus(step_normalization=False, first_order_until=10)
  meta_params = learner.init(jax.random.key(1), EPISODES.support.inputs[0])
  found = _grad(learner, meta_params, step=9)
  expected = _grad(_maml(first_order=True), _params())
  _close((found[0]["params"], found[1]), expected)
  for rates in jax.tree.leaves(found[0]["rates"]):
    assert np.all(rates != 0)
  _close(_grad(learner, meta_params, step=10), _grad(learner, meta_params))


@pytest.mark.slow
@pytest.mark.parametrize("several, first", [(4, 8), (4, 4)])
def test_stages_follow_each_other_and_end_in_the_learner(several, first):
  for step in (0, 3, 4, 7, 8, 100):
    # The learner that has no other stage than this step's.
    only = _stages(several if step < several else 0, 9 if step < first else 0)
    _close(_stages(several, first)(step), only(step))
  _close(
    _stages(several, first)(100),
    _grad(_plus_plus(**OFF), {"params": _params()}),
  )


@pytest.mark.parametrize("num_steps", [1, 5])
def test_importance_is_that_of_the_authors(num_steps):
  """Per epoch, of 10, as their loop has it, in numpy."""
  for epoch in range(11):
    weights = np.ones(num_steps) / num_steps
    decay = 1.0 / num_steps / 10
    least = 0.03 / num_steps
    for i in range(num_steps - 1):
      weights[i] = np.maximum(weights[i] - epoch * decay, least)
    weights[-1] = np.minimum(
      weights[-1] + epoch * (num_steps - 1) * decay,
      1.0 - (num_steps - 1) * least,
    )
    np.testing.assert_allclose(
      importance(num_steps, epoch / 10), weights, rtol=1e-5
    )


@pytest.mark.parametrize(
  "options, message",
  [
    ({"num_eval_steps": 4}, "num_eval_steps=4: must be at most num_steps=3"),
    (
      {"num_eval_steps": 4, "step_normalization": False},
      "num_eval_steps=4: must be at most",
    ),
    (
      {"num_eval_steps": 4, "learned_rates": False},
      "num_eval_steps=4: must be at most",
    ),
    ({"multi_step_loss": -1}, "multi_step_loss=-1: must be 0 or more"),
    ({"first_order_until": -1}, "first_order_until=-1: must be 0 or more"),
  ],
)
def test_values_that_cannot_be_are_named(options, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    _plus_plus(**options)
  with pytest.raises(ValueError, match="^num_steps=0: must be 1 or more"):
    maml_plus_plus(MODEL, mean_squared_error, optax.sgd(RATE), 0)


def test_more_steps_than_trained_are_taken_where_steps_are_alike():
  learner = _plus_plus(num_eval_steps=5, **OFF)
  support = jax.tree.map(lambda x: x[0], EPISODES.support)
  _close(
    jax.jit(learner.adapt)({"params": _params()}, support, RNG),
    jax.jit(_maml(5).adapt)(_params(), support, RNG),
  )
