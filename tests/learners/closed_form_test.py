"""Learners in closed form against numpy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Ridge

from metajax.learners import prototypical, ridge_regression
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.types import Batch

WAYS, FEATURES = 3, 8
MODEL = MLP(FEATURES, (16,))
RNG = jax.random.key(0)
DRAW = np.random.default_rng(0)
SUPPORT = Batch(
  jnp.asarray(DRAW.normal(size=(6, 4)), jnp.float32),
  jnp.array([2, 0, 1, 0, 2, 1]),
)
OTHERS = jnp.asarray(DRAW.normal(size=(5, 4)), jnp.float32)


def _predictions(learner, meta_params, support=SUPPORT):
  @jax.jit
  def solve(meta_params):
    return learner.predict(learner.adapt(meta_params, support, RNG), OTHERS)

  return solve(meta_params)


def test_prototypes_are_the_means_of_embedded_examples():
  learner = prototypical(MODEL, cross_entropy, num_outputs=WAYS)
  params = learner.init(RNG, SUPPORT.inputs)
  features, others = (
    np.asarray(MODEL.apply(params, x)) for x in (SUPPORT.inputs, OTHERS)
  )
  means = np.stack(
    [features[SUPPORT.targets == c].mean(0) for c in range(WAYS)]
  )
  expected = -np.square(others[:, None] - means).sum(-1)
  np.testing.assert_allclose(
    _predictions(learner, params), expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("numbers", [False, True])
def test_ridge_is_scikit_learns_of_the_learned_strength_and_scale(numbers):
  learner = ridge_regression(
    MODEL,
    mean_squared_error if numbers else cross_entropy,
    num_outputs=WAYS,
  )
  meta_params = learner.init(RNG, SUPPORT.inputs)
  meta_params |= {"log_strength": jnp.log(0.3), "log_scale": jnp.log(7.0)}
  targets = np.eye(WAYS)[SUPPORT.targets]
  support = SUPPORT
  if numbers:
    targets = np.asarray(DRAW.normal(size=(6, WAYS)), np.float32)
    support = SUPPORT._replace(targets=jnp.asarray(targets))
  features, others = (
    np.asarray(MODEL.apply(meta_params["embedding"], x), np.float64)
    for x in (SUPPORT.inputs, OTHERS)
  )
  expected = 7 * Ridge(alpha=0.3).fit(features, targets).predict(others)
  np.testing.assert_allclose(
    _predictions(learner, meta_params, support), expected, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("build", [prototypical, ridge_regression])
def test_there_are_as_many_outputs_as_examples_unless_told(build):
  for outputs in (None, WAYS):
    learner = build(MODEL, cross_entropy, num_outputs=outputs)
    params = learner.init(RNG, SUPPORT.inputs)
    predictions = _predictions(learner, params)
    assert predictions.shape == (len(OTHERS), outputs or len(SUPPORT.targets))
    assert np.all(np.isfinite(predictions))
    # Classes that the support lacks are predicted of nothing.
    assert predictions.argmax(-1).max() < WAYS


@pytest.mark.parametrize("build", [prototypical, ridge_regression])
def test_what_the_other_learners_refuse_is_refused(build):
  with pytest.raises(ValueError, match="num_steps=-1: must be 0 or more"):
    build(MODEL, cross_entropy, optax.sgd(0.1), -1)
  with pytest.raises(ValueError, match="num_eval_steps=-1: must be 0 or more"):
    build(MODEL, cross_entropy, num_eval_steps=-1)
