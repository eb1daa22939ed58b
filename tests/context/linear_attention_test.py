"""Linear attention is gradient descent with the paper's weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.context import (
  attention_descent,
  gradient_step,
  linear_attention,
)
from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
N, INPUTS, LABELS, RATE, CONTRACTION = 6, 4, 2, 0.3, 0.1


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def batch():
  draw = np.random.default_rng(0)
  x, y = draw.normal(size=(N, INPUTS)), draw.normal(size=(N, LABELS))
  return Batch(jnp.asarray(x), jnp.asarray(y))


@pytest.fixture(scope="module")
def inputs():
  return jnp.asarray(np.random.default_rng(1).normal(size=(3, INPUTS)))


def _attention(**options):
  return linear_attention(
    mean_squared_error, num_labels=LABELS, init_scale=0.3, **options
  )


def _descent(batch, inputs, steps, contraction=0.0):
  """Gradient steps on W, beside contractions of all inputs, in a slow way."""
  x, y, new = map(np.asarray, (batch.inputs, batch.targets, inputs))
  left, predictions = y, np.zeros((len(new), LABELS))
  for _ in range(steps):
    step = RATE * left.T @ x / N  # -dL/dW at W = 0, for what is left of y.
    left, predictions = left - x @ step.T, predictions + new @ step.T
    second = x.T @ x / N
    x, new = x - contraction * x @ second, new - contraction * new @ second
  return predictions


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("contraction", [0.0, CONTRACTION])
def test_constructed_weights_are_gradient_descent(
  steps, contraction, batch, inputs
):
  learner = _attention(num_layers=steps)
  weights = gradient_step(INPUTS, RATE, contraction, num_labels=LABELS)
  found = learner.predict(learner.adapt(weights, batch, RNG), inputs)
  expected = _descent(batch, inputs, steps, contraction)
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_constructed_weights_are_the_inner_loop_of_maml(batch, inputs):
  """With the step size of the mean over labels, d/2 times that of the sum."""
  steps = 3
  model = types.SimpleNamespace(
    init=lambda rng, inputs: jnp.zeros((INPUTS, LABELS)),
    apply=lambda params, inputs: inputs @ params,
  )
  sgd = optax.sgd(RATE * LABELS / 2)
  learner = maml(model, mean_squared_error, sgd, steps)
  zero = model.init(RNG, inputs)
  expected = learner.predict(learner.adapt(zero, batch, RNG), inputs)
  attention = _attention(num_layers=steps)
  weights = gradient_step(INPUTS, RATE, num_labels=LABELS)
  found = attention.predict(attention.adapt(weights, batch, RNG), inputs)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def _slow(params, batch, inputs, layers, looped):
  """Attention by sums over pairs of tokens."""
  rows = np.concatenate([batch.inputs, batch.targets], axis=1)
  asked = np.pad(inputs, ((0, 0), (0, LABELS)))
  for k in range(layers):
    out, among = (
      np.asarray(params[name][0 if looped else k]) for name in params
    )
    old = rows
    rows = np.stack(
      [e + sum(out @ s * (s @ among @ e) for s in old) / N for e in old]
    )
    asked = np.stack(
      [e + sum(out @ s * (s @ among @ e) for s in old) / N for e in asked]
    )
  return -asked[:, INPUTS:]


@pytest.mark.parametrize("looped", [True, False])
def test_layers_are_sums_over_pairs(looped, batch, inputs):
  learner = _attention(num_layers=2, looped=looped)
  params = learner.init(RNG, inputs)
  assert params["out"].shape[0] == 2 - looped
  params = {name: params[name] for name in ("out", "among")}
  found = learner.predict(learner.adapt(params, batch, RNG), inputs)
  expected = _slow(params, batch, inputs, 2, looped)
  np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_padding_changes_nothing_and_no_example_predicts_zero(batch, inputs):
  learner = _attention(num_layers=2)
  params = learner.init(RNG, inputs)
  padded = jax.tree.map(
    lambda x: jnp.pad(x, ((0, 2), (0, 0)), constant_values=9.0), batch
  )
  found, expected, none = (
    learner.predict(learner.adapt(params, b, RNG), inputs)
    for b in (
      padded._replace(mask=jnp.arange(N + 2) < N),
      batch,
      batch._replace(mask=jnp.zeros(N, bool)),
    )
  )
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  np.testing.assert_array_equal(none, 0)


@pytest.mark.slow
@pytest.mark.parametrize("plus_plus", [False, True])
def test_learned_step_sizes_have_the_gradient_of_finite_differences(
  plus_plus, batch, inputs
):
  learner = attention_descent(
    mean_squared_error, num_steps=2, num_labels=LABELS, plus_plus=plus_plus
  )
  rates = learner.init(RNG, inputs)
  assert set(rates) == {"rate", "contraction"} if plus_plus else {"rate"}
  values = {"rate": RATE, "contraction": CONTRACTION}
  rates = {name: jnp.asarray(values[name]) for name in rates}
  query = Batch(inputs, jnp.ones((3, LABELS)))
  grads, metrics = learner.meta_grad(
    rates, jax.tree.map(lambda x: x[None], Episode(batch, query)), RNG
  )

  def loss(rate, contraction=0.0):
    weights = gradient_step(INPUTS, rate, contraction, num_labels=LABELS)
    two = _attention(num_layers=2)
    return np.mean(
      (two.predict(two.adapt(weights, batch, RNG), inputs) - 1) ** 2
    )

  given = tuple(values[name] for name in ("rate", "contraction")[: len(rates)])
  np.testing.assert_allclose(metrics["loss"], loss(*given), rtol=1e-12)
  for i, name in enumerate(("rate", "contraction")[: len(rates)]):
    one, other = (
      loss(*(v + sign * 1e-5 * (j == i) for j, v in enumerate(given)))
      for sign in (1, -1)
    )
    np.testing.assert_allclose(grads[name], (one - other) / 2e-5, rtol=1e-6)


def test_numbers_of_layers_that_cannot_be_are_named():
  with pytest.raises(ValueError, match="num_layers=0: must be 1 or more"):
    _attention(num_layers=0)
  with pytest.raises(ValueError, match="num_steps=0: must be 1 or more"):
    attention_descent(mean_squared_error, num_steps=0)
