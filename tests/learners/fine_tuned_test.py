"""Fine-tuning, against the cosine head and gradient steps written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import cosine, embedding, fine_tuned
from metajax.losses import cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode

WAYS, MODEL = 3, MLP(4, (5,))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def episode():
  draw = np.random.default_rng(0)

  def batch(n):
    targets = np.arange(n) % WAYS
    inputs = draw.normal(size=(n, 2)) + 2 * np.eye(WAYS)[targets][:, :2]
    return Batch(jnp.asarray(inputs), jnp.asarray(targets))

  with jax.enable_x64(True):
    yield Episode(batch(6), batch(9))


@pytest.fixture(scope="module")
def params(episode):
  with jax.enable_x64(True):
    params = MODEL.init(KEY, episode.support.inputs)
    return jax.tree.map(lambda x: x.astype(jnp.float64), params)


def _learner(num_steps, **options):
  return fine_tuned(
    MODEL, cross_entropy, optax.sgd(0.3), num_steps, ways=WAYS, **options
  )


def _logits(learner, params, episode):
  adapted = learner.adapt(params, episode.support, KEY)
  return learner.predict(adapted, episode.query.inputs)


@pytest.mark.slow
def test_without_a_step_it_is_the_cosine_head(params, episode):
  with jax.enable_x64(True):
    head = embedding(MODEL, cosine(WAYS), cross_entropy, normalize=True)
    np.testing.assert_allclose(
      _logits(_learner(0, scale=7.0), params, episode),
      7 * _logits(head, params, episode),
      rtol=1e-8,
    )


def _by_hand(params, support, num_steps):
  """The embedding, weights and offset after steps of size 0.3."""

  def unit(x):
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))

  def loss(values):
    embedded, weights, offset = values
    logits = unit(MODEL.apply(embedded, support.inputs)) @ weights + offset
    picked = jax.nn.log_softmax(logits)[jnp.arange(6), support.targets]
    return -picked.mean()

  features = unit(MODEL.apply(params, support.inputs))
  means = jnp.stack(
    [features[support.targets == c].mean(0) for c in range(WAYS)]
  )
  values = params, 10 * unit(means).T, jnp.zeros(WAYS)
  for _ in range(num_steps):
    grads = jax.grad(loss)(values)
    values = jax.tree.map(lambda x, g: x - 0.3 * g, values, grads)
  return values


@pytest.mark.slow
def test_steps_are_those_of_gradient_descent_on_everything(params, episode):
  with jax.enable_x64(True):
    found = _learner(3).adapt(params, episode.support, KEY)
    expected = _by_hand(params, episode.support, 3)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9),
      (found["embedding"], found["weights"], found["offset"]),
      expected,
    )


@pytest.mark.slow
def test_meta_gradient_is_the_derivative_through_the_steps(params, episode):
  with jax.enable_x64(True):
    learner = _learner(2)
    episodes = jax.tree.map(lambda x: x[None], episode)

    @jax.jit
    def loss(params):
      return learner.meta_grad(params, episodes, KEY)[1]["loss"]

    grads, _ = learner.meta_grad(params, episodes, KEY)
    direction = jax.tree.map(jnp.cos, params)

    def moved(step):
      return jax.tree.map(lambda x, d: x + step * d, params, direction)

    slope = (loss(moved(1e-5)) - loss(moved(-1e-5))) / 2e-5
    found = optax.tree.vdot(grads, direction)
    np.testing.assert_allclose(found, slope, rtol=1e-6)


@pytest.mark.slow
def test_a_class_without_examples_is_never_predicted(params, episode):
  with jax.enable_x64(True):
    support = jax.tree.map(
      lambda x: x[episode.support.targets != 1], episode.support
    )
    logits = _logits(_learner(2), params, episode._replace(support=support))
    assert not np.any(logits.argmax(-1) == 1)
    assert np.isfinite(logits).all()


@pytest.mark.slow
def test_padding_changes_nothing(params, episode):
  with jax.enable_x64(True):
    support = episode.support
    padded = Batch(
      jnp.concatenate([support.inputs, 9 + support.inputs]),
      jnp.concatenate([support.targets, support.targets]),
      jnp.arange(12) < 6,
    )
    np.testing.assert_allclose(
      _logits(_learner(2), params, episode._replace(support=padded)),
      _logits(_learner(2), params, episode),
      rtol=1e-8,
    )


def test_bad_numbers_are_named():
  with pytest.raises(ValueError, match="num_steps=-1: must be 0 or more"):
    _learner(-1)
  with pytest.raises(ValueError, match="ways=0"):
    fine_tuned(MODEL, cross_entropy, optax.sgd(0.1), 1, ways=0)
