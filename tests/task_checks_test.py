"""Task families that draw nothing, or return something else, are told apart."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import evaluate, learners
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.task_checks import check_tasks
from metajax.tasks import few_shot_episodes, sinusoid
from metajax.tasks.class_batches import class_batches
from metajax.training import TrainState, meta_trainer
from metajax.types import Batch, Episode

X = jnp.ones((3, 1))
BATCH = Batch(X, X)
DRAW = np.random.default_rng(0)


def _by_numpy(rng):
  del rng
  x = DRAW.normal(size=(3, 1)).astype(np.float32)
  return Episode(Batch(x, x), Batch(x, x))


@jax.jit
def _by_a_key_of_its_own(rng):
  """The key is an argument of an inner function, which does not use it."""
  del rng
  x = jax.random.normal(jax.random.key(0), (3, 1))
  return Episode(Batch(x, x), Batch(x, x))


def _partly(rng):
  x = jax.random.normal(rng, (3, 1))
  return Episode(BATCH, Batch(X, x))


def _wherever_the_loop_ends(rng):
  count = jax.lax.while_loop(
    lambda c: c[1] > 0.1,
    lambda c: (c[0] + 1, jax.random.uniform(jax.random.fold_in(rng, c[0]))),
    (0, 1.0),
  )[0]
  return Episode(BATCH, Batch(X, X * count))


@pytest.mark.parametrize(
  "tasks", [_by_numpy, lambda rng: Episode(BATCH, BATCH)]
)
def test_tasks_that_are_all_the_same_are_warned_of(tasks):
  with pytest.warns(UserWarning, match="^tasks: all tasks are the same"):
    check_tasks(tasks)


IMAGES = np.zeros((3, 4, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
  "tasks",
  [
    _partly,
    _wherever_the_loop_ends,
    jax.jit(_partly),
    # What is inside of a compiled function is not looked at.
    _by_a_key_of_its_own,
    sinusoid(shots=2),
    few_shot_episodes(IMAGES, 2, 1, 1),
    class_batches(IMAGES, 2),
  ],
)
def test_tasks_that_differ_are_not(tasks):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    check_tasks(tasks)


@pytest.mark.parametrize(
  "found, named",
  [
    ((BATCH, BATCH), r"tuple\(Batch\(array, array, NoneType\), Batch"),
    (((X, X), (X, X)), r"tuple\(tuple\(array, array\), tuple"),
    (BATCH, r"Batch\(array, array, NoneType\), must"),
    ({"support": BATCH}, "dict, must"),
    (Episode((X, X), BATCH), r"Episode\(tuple\(array, array\), Batch"),
    (X, "array, must"),
  ],
)
def test_what_is_no_episode_is_named(found, named):
  def tasks(rng):
    del rng
    return found

  with pytest.raises(ValueError, match=f"^tasks: returned {named}"):
    check_tasks(tasks)


def test_what_is_no_function_is_named():
  with pytest.raises(ValueError, match="^tasks: a tuple given, must be a fun"):
    check_tasks((sinusoid(2),))
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="^learner: a str given, must be a Met"):
    evaluate("maml", None, sinusoid(2), {}, key)
  with pytest.raises(ValueError, match="^metrics: 'mse' is 'mse', must be a f"):
    evaluate("maml", None, sinusoid(2), {"mse": "mse"}, key)


def test_trainer_and_evaluation_check_their_tasks():
  learner = learners.maml(
    MLP(1, (2,)), mean_squared_error, optax.sgd(0.1), num_steps=1
  )

  def train(tasks):
    meta_trainer(
      learner, optax.sgd(0.1), tasks, meta_batch=2, rng=jax.random.key(0)
    )

  def score(tasks):
    params = learner.init(jax.random.key(0), X)
    scores = {"mse": mean_squared_error}
    evaluate(learner, params, tasks, scores, jax.random.key(0), num_tasks=2)

  for use in (train, score):
    with pytest.warns(UserWarning, match="^tasks: all tasks are the same"):
      use(_by_numpy)
    with pytest.raises(ValueError, match="^tasks: returned tuple"):
      use(lambda rng: (BATCH, BATCH))


def test_arguments_in_the_wrong_place_are_named():
  learner = learners.maml(
    MLP(1, (2,)), mean_squared_error, optax.sgd(0.1), num_steps=1
  )
  key, sgd, tasks = jax.random.key(0), optax.sgd(0.1), sinusoid(shots=2)
  with pytest.raises(ValueError, match="^learner: a Gradient.*MetaLearner"):
    meta_trainer(sgd, learner, tasks, meta_batch=2, rng=key)
  with pytest.raises(ValueError, match="^rng=0: must be a key"):
    meta_trainer(learner, sgd, tasks, meta_batch=2, rng=0)
  trainer = meta_trainer(learner, 1e-3, tasks, meta_batch=2, rng=key)
  with pytest.raises(ValueError, match="^optimizer=0.001: must be an optim"):
    trainer.init(key)
  with pytest.raises(ValueError, match="^metrics: a function given, must be a"):
    evaluate(learner, {}, tasks, mean_squared_error, key)
  with pytest.raises(ValueError, match=r"^metrics: 'error' returned .*10, 1"):
    params = learner.init(key, X)
    scores = {"error": lambda predictions, targets: predictions - targets}
    evaluate(learner, params, tasks, scores, key, num_tasks=2)
  with pytest.raises(ValueError, match="^meta_params: a TrainState given"):
    state = TrainState(jnp.int32(0), {}, ())
    evaluate(learner, state, tasks, {}, key, num_tasks=2)


def _with(support, query=BATCH):
  def tasks(rng):
    return Episode(
      support, query._replace(targets=jax.random.normal(rng, X.shape))
    )

  return tasks


@pytest.mark.parametrize(
  "batch, named",
  [
    (
      Batch(X, X[:2]),
      r"inputs of \(3, 1\) and targets of \(2, 1\), must have equal first",
    ),
    (
      Batch({"a": X, "b": X[:1]}, X),
      r"inputs of \{'a': \(3, 1\), 'b': \(1, 1\)\} and targets",
    ),
    (Batch(X, jnp.float32(1)), r"inputs and targets of .*must be \[n, ...\]"),
    (Batch(X, X, jnp.ones((3, 1), bool)), r"a mask of bool \(3, 1\), must be"),
    (Batch(X, X, jnp.ones(2, bool)), r"a mask of bool \(2,\), must be"),
    (Batch(X, X, jnp.ones(3)), r"a mask of float32 \(3,\), must be bool"),
  ],
)
def test_batches_whose_arrays_do_not_belong_together_are_refused(batch, named):
  for tasks, name in (
    (_with(batch), "support"),
    (lambda rng: Episode(_with(BATCH)(rng).query, batch), "query"),
  ):
    with pytest.raises(ValueError, match=f"^tasks: the {name} has {named}"):
      check_tasks(tasks)


def _generator():
  yield Episode(BATCH, BATCH)


@pytest.mark.parametrize(
  "tasks, kind",
  [
    ([Episode(BATCH, BATCH)], "list"),
    (_generator(), "generator"),
    (_generator, "generator"),
  ],
)
def test_tasks_that_are_no_function_of_a_key_are_refused(tasks, kind):
  with pytest.raises(ValueError, match=f"^tasks: a {kind} given, must be a f"):
    check_tasks(tasks)


def _seeded_by_the_key(rng):
  x = np.random.default_rng(int(jax.random.bits(rng))).normal(size=(3, 1))
  return Episode(Batch(x, x), Batch(x, x))


def _sized_by_the_key(rng):
  x = np.asarray(jax.random.normal(rng, (3, 1)))
  return Episode(Batch(x, x), Batch(x, x))


@pytest.mark.parametrize("tasks", [_seeded_by_the_key, _sized_by_the_key])
def test_tasks_that_cannot_be_compiled_are_refused_in_a_line(tasks):
  with pytest.raises(ValueError, match="^tasks: the function cannot be .*host"):
    check_tasks(tasks)
