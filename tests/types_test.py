"""Task families as pytrees: what of them is traced, and what is not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from metajax.evaluation import evaluator
from metajax.losses import mean_squared_error
from metajax.replay import EpisodeReplay, episode_replay_trainer
from metajax.training import choose_task_chunk, meta_trainer
from metajax.training.inspection import inspect_step
from metajax.types import Batch, Episode, MetaLearner, as_partial

IMAGES = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
RNG = jax.random.key(0)


def _sample(images, rng, *, n=3, kind="last", scale=None, flag=True):
  """Needs numbers that say shapes, and strings that choose."""
  chosen = images[jax.random.randint(rng, (n,), 0, len(images))]
  inputs = chosen[:, {"first": 0, "last": -1}[kind]]
  inputs = inputs if scale is None or not flag else scale * inputs
  batch = Batch(inputs, inputs[:, :1])
  return Episode(batch, batch)


def _of_another(other, rng, *, n):
  return jax.tree.map(lambda x: jnp.tile(x, (n, 1))[:3], other(rng))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Family:
  """A callable that is a pytree itself."""

  images: np.ndarray
  n: int = dataclasses.field(metadata={"static": True})

  def __call__(self, rng):
    return _sample(self.images, rng, n=self.n)


# Each is the same tasks.
FAMILIES = {
  "numbers and strings": Partial(
    _sample, IMAGES, n=3, kind="last", scale=None, flag=True
  ),
  "number of numpy": Partial(_sample, IMAGES, n=np.int64(3)),
  "of jax": Partial(_sample, jnp.asarray(IMAGES), n=3),
  "partial in Partial": Partial(functools.partial(_sample, n=3), IMAGES),
  "Partial in Partial": Partial(Partial(_sample, IMAGES), n=3),
  "Partial as argument": Partial(
    _of_another, Partial(_sample, IMAGES, n=3), n=1
  ),
  "pytree": _Family(IMAGES, 3),
  "functools": functools.partial(_sample, jnp.asarray(IMAGES), n=3),
  "closure": lambda rng: _sample(jnp.asarray(IMAGES), rng),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_a_pytree_of_its_arrays_and_gives_the_same_tasks(name):
  family = as_partial(as_partial(FAMILIES[name]))
  expected = _sample(jnp.asarray(IMAGES), RNG)
  found = jax.jit(lambda family, key: family(key))(family, RNG)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  leaves = jax.tree.leaves(family)
  assert len(leaves) == (0 if name in ("functools", "closure") else 1)
  for leaf in leaves:
    np.testing.assert_array_equal(leaf, IMAGES)


def _learner():
  def meta_grad(params, episodes, rng):
    del rng
    return jax.value_and_grad(
      lambda p: jnp.mean((episodes.query.inputs @ p) ** 2)
    )(params)[1], {"loss": episodes.query.inputs.mean()}

  return MetaLearner(
    lambda rng, inputs: jnp.ones((inputs.shape[-1], 1)),
    lambda params, support, rng: params,
    lambda params, inputs: inputs @ params,
    meta_grad,
  )


@functools.cache
def _results(name):
  """What everything that takes a family makes of one."""
  learner, optimizer, tasks = _learner(), optax.sgd(0.1), FAMILIES[name]
  assert choose_task_chunk(learner, tasks, 4) == 4
  trainer = meta_trainer(learner, optimizer, tasks, meta_batch=2, rng=RNG)
  state = trainer.init(RNG)
  inspected = inspect_step(learner, tasks, state, meta_batch=2, rng=RNG)
  trained = trainer.compile(state)[0](state, 2)
  replay = EpisodeReplay(new=2, batch=2, capacity=2)
  trainer = episode_replay_trainer(learner, optimizer, tasks, replay, rng=RNG)
  state = trainer.init(RNG)
  replayed = trainer.compile(state)[0](state, 2)
  score = evaluator(
    learner, tasks, {"mse": mean_squared_error}, RNG, num_tasks=4
  )
  return inspected, trained, replayed, score(jnp.ones((2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numbers and strings", "Partial in Partial"])
def test_trainers_and_evaluators_take_what_numpy_holds(name):
  """By the numbers that they give for a closure over an array of jax."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    _results(name),
    _results("closure"),
  )


def test_arrays_of_one_number_are_traced_and_can_be_swept():
  family = as_partial(Partial(_sample, IMAGES, scale=jnp.float32(1)))
  scale, images = sorted(jax.tree.leaves(family), key=np.ndim)

  def inputs(factor):
    scaled = jax.tree.map(lambda x: x * factor if x is scale else x, family)
    return scaled(RNG).query.inputs

  found = jax.vmap(inputs)(jnp.array([1.0, 3.0]))
  np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-6)
  assert images.shape == IMAGES.shape
