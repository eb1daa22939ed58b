"""The causal transformer of examples and labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import sequence_transformer, transformer_learner
from metajax.losses import mean_squared_error
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
SIZES = {"width": 8, "hidden": 12, "layers": 2, "heads": 2}
N, INPUTS, LABELS = 4, 3, 2


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", params=[None, 6], ids=["free", "placed"])
def case(request):
  """`(network, params, batch)`."""
  network = sequence_transformer(
    num_labels=LABELS, positions=request.param, **SIZES
  )
  draw = np.random.default_rng(0)
  batch = Batch(draw.normal(size=(N, INPUTS)), draw.normal(size=(N, LABELS)))
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.3, x.shape), network.init(RNG, batch.inputs)
  )
  network = network._replace(
    read=jax.jit(network.read), predict=jax.jit(network.predict)
  )
  return network, params, batch


def _part(batch, n):
  return jax.tree.map(lambda x: x[:n], batch)


@pytest.mark.slow
def test_outputs_are_those_of_every_prefix_alone(case):
  network, params, batch = case
  outputs, _ = network.read(params, batch)
  for i in range(N):
    _, cache = network.read(params, _part(batch, i))
    alone = network.predict(params, cache, batch.inputs[i : i + 1])
    np.testing.assert_allclose(outputs[i], alone[0], rtol=1e-9)
    # Other queries have no effect.
    others = network.predict(params, cache, batch.inputs[i:])
    np.testing.assert_allclose(others[0], alone[0], rtol=1e-9)


@pytest.mark.slow
def test_outputs_know_nothing_of_their_label_and_later_examples(case):
  network, params, batch = case

  def outputs(inputs, targets):
    return network.read(params, Batch(inputs, targets))[0]

  of_inputs, of_labels = (
    np.abs(j).sum((1, 3))
    for j in jax.jacobian(outputs, (0, 1))(*map(jnp.asarray, batch[:2]))
  )
  np.testing.assert_array_equal(np.triu(of_inputs, 1), 0)
  np.testing.assert_array_equal(np.triu(of_labels), 0)
  assert of_inputs[np.tril_indices(N)].min() > 1e-6
  assert of_labels[np.tril_indices(N, -1)].min() > 1e-6


def test_order_matters(case):
  network, params, batch = case
  turned = jax.tree.map(lambda x: x[::-1], batch)
  one, other = (
    network.predict(params, network.read(params, b)[1], batch.inputs)
    for b in (batch, turned)
  )
  assert np.abs(one - other).max() > 1e-4


def test_padding_is_skipped(case):
  network, params, batch = case
  place = np.array([0, 2, 3, 5])
  padded = Batch(np.ones((6, INPUTS)), np.ones((6, LABELS)), np.zeros(6, bool))
  padded.inputs[place], padded.targets[place] = batch.inputs, batch.targets
  padded.mask[place] = True
  expected, short = network.read(params, batch)
  found, long = network.read(params, padded)
  np.testing.assert_allclose(found[place], expected, rtol=1e-9)
  if "positions" not in params:
    both = (network.predict(params, c, batch.inputs) for c in (long, short))
    np.testing.assert_allclose(*both, rtol=1e-9)


def test_too_many_examples_are_named(case):
  network, params, batch = case
  if "positions" not in params:
    pytest.skip("any length")
  double = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
  with pytest.raises(ValueError, match="8 examples: more than positions=6"):
    network.read(params, double)


@pytest.mark.slow
def test_loss_is_over_prefixes_and_query(case):
  network, params, batch = case
  learner = transformer_learner(network, mean_squared_error)
  episode = Episode(_part(batch, 3), jax.tree.map(lambda x: x[3:], batch))
  grads, metrics = jax.jit(learner.meta_grad)(
    params, jax.tree.map(lambda x: jnp.asarray(x)[None], episode), RNG
  )
  # The one query comes next, so that all is one sequence.
  outputs, _ = network.read(params, batch)
  expected = np.mean(np.square(outputs - batch.targets))
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-9)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
