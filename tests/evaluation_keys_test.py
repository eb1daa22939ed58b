"""No task of an evaluation is one of a training, whatever the keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.evaluation import evaluation_keys, evaluator
from metajax.training import meta_trainer
from metajax.training.step import task_keys
from metajax.types import Batch, Episode, MetaLearner

RNG = jax.random.key(3)
STEPS, PLACES, TASKS = 40, 6, 40
each = jax.vmap(jax.random.fold_in, (None, 0))
first = jax.vmap(lambda key: jax.random.split(key)[0])


def _derived(rng):
  """A key, and what users make of it for another purpose."""
  numbers = (0, 1, 2, 2**31 - 1, np.uint32(2**32 - 1))
  folded = [jax.random.fold_in(rng, i) for i in numbers]
  twice = jax.random.fold_in(folded[0], 1)
  return [rng, *folded, *jax.random.split(rng, 4)[3:], twice]


def _of_meta_trainer(rng):
  keys = [task_keys(rng, step, jnp.arange(PLACES)) for step in range(STEPS)]
  return jnp.concatenate(keys)


def _of_episode_replay(rng):
  draw_keys = first(each(rng, jnp.arange(STEPS)))
  return jnp.concatenate([each(key, jnp.arange(PLACES)) for key in draw_keys])


def _of_replay(rng):
  """Of `sequence_trainer` and `ppo_trainer`, and of `play` at once."""
  return jnp.concatenate(
    [first(_of_episode_replay(rng)), first(each(rng, jnp.arange(STEPS)))]
  )


def _numbers(keys):
  return set(map(tuple, np.asarray(jax.random.key_data(keys)).tolist()))


@pytest.mark.slow
@pytest.mark.parametrize(
  "training", [_of_meta_trainer, _of_episode_replay, _of_replay]
)
def test_evaluation_has_no_task_of_a_trainer(training):
  keys = _derived(RNG)
  trained = set().union(*(_numbers(training(key)) for key in keys))
  evaluated = [_numbers(first(evaluation_keys(key, TASKS))) for key in keys]
  assert all(len(found) == TASKS for found in evaluated)
  for one, other in itertools.combinations([trained, *evaluated], 2):
    assert not one & other


def _its_key(rng):
  """A task that says from which key it is."""
  numbers = jax.random.key_data(rng).astype(jnp.uint32)
  # Halves, which float32 holds.
  halves = jnp.stack([numbers >> 16, numbers & 0xFFFF]).astype(jnp.float32)
  batch = Batch(halves.reshape(1, 4), halves.reshape(1, 4))
  return Episode(batch, batch)


def test_tasks_that_are_scored_are_none_that_are_trained_on():
  """With one key for both: by the targets that each of them sees."""
  seen = []

  def meta_grad(params, episodes, rng):
    del rng
    targets = episodes.query.targets
    jax.debug.callback(lambda x: seen.append(np.array(x)), targets)
    return params, {"loss": jnp.float32(0)}

  learner = MetaLearner(
    lambda rng, inputs: jnp.float32(0),
    lambda params, support, rng: params,
    lambda params, inputs: inputs,
    meta_grad,
  )
  trainer = meta_trainer(
    learner, optax.sgd(0.1), _its_key, meta_batch=2, rng=RNG, task_chunk=2
  )
  state = trainer.init(RNG)
  jax.block_until_ready(trainer.compile(state)[0](state, 20))
  jax.effects_barrier()
  scores = evaluator(
    learner,
    _its_key,
    {str(i): lambda _, targets, i=i: targets[0, i] for i in range(4)},
    RNG,
    num_tasks=20,
  )(jnp.float32(0))
  trained = set(map(tuple, np.concatenate(seen).reshape(-1, 4).tolist()))
  scored = set(zip(*(scores[str(i)].tolist() for i in range(4)), strict=True))
  assert len(trained) == 40 and len(scored) == 20
  assert not trained & scored
