"""Tasks that a Python function makes are those of their keys, however drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import evaluate, learners
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import host_tasks
from metajax.training import meta_trainer
from metajax.training.step import task_keys
from metajax.types import Batch, Episode


def lines(generator):
  """Lines through 0, of numpy in float64."""
  x = generator.uniform(-1, 1, (5, 1))
  y = generator.normal() * x
  return Episode(Batch(x[:2], y[:2]), Batch(x[2:], y[2:]))


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)])
def test_the_task_of_a_key_is_that_of_numpy_with_its_data(key):
  data = np.asarray(jax.random.key_data(key))
  expected = lines(np.random.default_rng(data))
  tasks = host_tasks(lines)
  in_a_program = jax.jit(tasks)(key)
  of_many = jax.tree.map(
    lambda x: x[1], jax.vmap(tasks)(jnp.stack([jax.random.clone(key), key]))
  )
  for found in (tasks(key), in_a_program, of_many):
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)),
      found,
      expected,
    )


def test_a_trainer_sees_the_tasks_of_the_keys_of_its_steps():
  seen = []

  def recorded(generator):
    episode = lines(generator)
    seen.append(episode.support.inputs[0, 0])
    return episode

  learner = learners.maml(
    MLP(1, (2,)), mean_squared_error, optax.sgd(0.1), num_steps=1
  )
  rng = jax.random.key(5)
  trainer = meta_trainer(
    learner, optax.sgd(0.1), host_tasks(recorded), meta_batch=2, rng=rng
  )
  state = trainer.init(jax.random.key(1))
  train, _ = trainer.compile(state)
  del seen[:]
  train(state, 3)
  # Those of step 0 were read before.
  expected = [
    lines(np.random.default_rng(np.asarray(jax.random.key_data(key))))
    for step in (1, 2)
    for key in task_keys(rng, step, jnp.arange(2))
  ]
  assert seen == [episode.support.inputs[0, 0] for episode in expected]


def test_evaluations_with_a_key_see_the_same_tasks():
  tasks = host_tasks(lines)

  class Zero:
    def init(rng, inputs):
      return {}

    def apply(params, inputs):
      return 0 * inputs

  learner = learners.prototypical(Zero, mean_squared_error)._replace(
    adapt=lambda params, support, rng: params, predict=Zero.apply
  )
  scores = [
    evaluate(
      learner,
      {},
      tasks,
      {"mse": mean_squared_error},
      jax.random.key(key),
      num_tasks=8,
    )["mse"].mean
    for key in (0, 0, 1)
  ]
  assert scores[0] == scores[1] != scores[2]


def test_a_python_generator_feeds_tasks():
  episodes = (lines(np.random.default_rng(i)) for i in range(100))
  tasks = host_tasks(lambda _: next(episodes))
  second = tasks(jax.random.key(0))
  np.testing.assert_array_equal(
    second.query.inputs,
    lines(np.random.default_rng(1)).query.inputs.astype(np.float32),
  )


X = np.zeros((3, 1), np.float32)


@pytest.mark.parametrize(
  "draw, named",
  [
    (iter([]), "a list_iterator given, must be a function .* next"),
    (lambda _: (X, X), r"returned a tuple, must be Episode"),
    (lambda _: Episode((X, X), Batch(X, X)), "returned a Episode, must be"),
    (
      lambda _: Episode(Batch(X, X[:2]), Batch(X, X)),
      r"the support has inputs of \(3, 1\) and targets of \(2, 1\), must",
    ),
  ],
)
def test_what_is_no_episode_is_named(draw, named):
  with pytest.raises(ValueError, match=f"^draw: {named}"):
    host_tasks(draw)


def test_a_task_of_other_shapes_is_refused():
  sizes = iter([3, 2])

  def draw(generator):
    del generator
    x = np.zeros((next(sizes), 1))
    return Episode(Batch(x, x), Batch(x, x))

  tasks = host_tasks(draw)
  with pytest.raises(ValueError, match=r"^draw: a task of float32 \(2, 1\)"):
    tasks(jax.random.key(0))
