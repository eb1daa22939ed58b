"""Neural processes against numpy, and the bounds of the latent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.context import (
  attentive_neural_process,
  conditional_neural_process,
)
from metajax.context.paths import paths
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
SUPPORT, QUERY, WIDTH = 4, 3, 8


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def episode():
  draw = np.random.default_rng(0)

  def batch(n):
    return Batch(draw.normal(size=(n, 2)), draw.normal(size=(n, 1)))

  return Episode(batch(SUPPORT), batch(QUERY))


def _mlp(layers, x):
  for layer in layers[:-1]:
    x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
  return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def _solver(learner):
  """Compiles `(params, support, inputs) -> (task_params, predictions)`."""

  @jax.jit
  def solve(params, support, inputs):
    task_params = learner.adapt(params, support, RNG)
    return task_params, learner.predict(task_params, inputs)

  return solve


@pytest.mark.slow
def test_cnp_equals_numpy(episode):
  """And its loss is over the support and the query."""
  learner = conditional_neural_process(width=WIDTH)
  support, query = episode
  both = jax.tree.map(lambda *x: np.concatenate(x), support, query)
  params = jax.jit(learner.init)(RNG, support.inputs)
  _, found = _solver(learner)(params, support, both.inputs)
  points = np.concatenate([support.inputs, support.targets], axis=1)
  summaries = [
    _mlp(params[name]["whole"], _mlp(params[name]["each"], points).mean(0))
    for name in ("near", "whole")
  ]
  inputs = [np.concatenate([*summaries, x]) for x in both.inputs]
  outputs = _mlp(params["decoder"], np.stack(inputs))
  mean, scale = outputs[:, :1], 0.1 + 0.9 * np.log1p(np.exp(outputs[:, 1:]))
  np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
  np.testing.assert_allclose(found.scale, scale, rtol=1e-9)
  tasks = jax.tree.map(lambda x: x[None], episode)
  _, metrics = jax.jit(learner.meta_grad)(params, tasks, RNG)
  expected = scipy.stats.norm.logpdf(both.targets, mean, scale).mean()
  np.testing.assert_allclose(metrics["loss"], -expected, rtol=1e-9)


def _bounds(params, episode, count, **options):
  """The bounds that `count` keys give, of all targets together."""
  learner = attentive_neural_process(width=WIDTH, num_latent=1, **options)

  def one(key):
    tasks = jax.tree.map(lambda x: jnp.asarray(x)[None], episode)
    return -learner.meta_grad(params, tasks, key)[1]["loss"]

  keys = jax.random.split(jax.random.key(1), count)
  return (SUPPORT + QUERY) * np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.slow
def test_bounds_are_below_the_exact_evidence_and_grow(episode):
  """With one latent number the evidence is an integral over a line."""
  networks = paths(1, WIDTH, 0.1, attends=True, num_latent=1)
  support, query = episode
  draw = np.random.default_rng(1)
  # Moved, so that the latent variable matters.
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.4, x.shape),
    jax.jit(networks.init)(RNG, support.inputs),
  )
  mean, scale = jax.jit(networks.whole)(params, support)
  prior = scipy.stats.norm(mean, 0.1 + 0.9 / (1 + np.exp(-scale)))
  everything = jax.tree.map(lambda *x: np.concatenate(x), support, query)
  memory = jax.jit(networks.local)(params, support)
  local = jax.jit(networks.at)(params, memory, everything.inputs)
  line = np.linspace(prior.ppf(1e-9), prior.ppf(1 - 1e-9), 2001)

  @jax.jit
  @jax.vmap
  def on_line(z):
    return networks.decode(params, everything.inputs, local, z[None])

  means, scales = on_line(line)
  terms = scipy.stats.norm.logpdf(everything.targets, means, scales)
  likelihood = np.exp(terms.sum((1, 2)))
  evidence = np.log(np.trapezoid(likelihood * prior.pdf(line), line))
  assert np.ptp(np.log(likelihood)) > 1  # It does matter.
  count = 400
  values = [
    _bounds(params, episode, count, objective="elbo", num_samples=1),
    _bounds(params, episode, count, num_samples=1),
    _bounds(params, episode, count, num_samples=4),
    _bounds(params, episode, count, num_samples=64),
  ]
  means = [v.mean() for v in values]
  errors = [v.std() / np.sqrt(count) for v in values]
  # One sample: the two bounds have the same mean.
  assert abs(means[0] - means[1]) < 4 * np.hypot(*errors[:2])
  assert (
    means[1] + 4 * errors[1] < means[2] < means[3] < evidence + 4 * errors[3]
  )
  # The mean of the weights is the evidence itself.
  weights = np.exp(values[3] - evidence)
  assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(count)


@pytest.mark.slow
def test_prediction_is_the_mixture_over_samples_of_the_prior(episode):
  learner = attentive_neural_process(
    width=WIDTH, num_latent=2, num_eval_samples=3
  )
  support, query = episode
  params = jax.jit(learner.init)(RNG, support.inputs)
  task, found = _solver(learner)(params, support, query.inputs)
  networks = paths(1, WIDTH, 0.1, attends=True, num_latent=2)
  local = jax.jit(networks.at)(params, task["local"], query.inputs)
  decode = jax.jit(networks.decode)
  parts = [decode(params, query.inputs, local, z) for z in task["z"]]
  density = np.mean(
    [scipy.stats.norm.pdf(query.targets, *part) for part in parts], axis=0
  )
  np.testing.assert_allclose(
    np.exp(found.log_prob(query.targets)), density, rtol=1e-9
  )
