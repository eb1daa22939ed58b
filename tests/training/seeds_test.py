"""Seeds trained in one program are what each is alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import REGISTRY
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import meta_trainer
from metajax.training.loop import Schedule, fit
from metajax.types import Batch, Episode, MetaLearner

SEEDS = (3, 11)
INIT_KEYS = jnp.stack([jax.random.key(seed) for seed in SEEDS])
TASK_KEYS = jnp.stack([jax.random.key(100 + seed) for seed in SEEDS])


def _trainer(rng, name="maml", **options):
  choices = {"maml_plus_plus": {"step_normalization": False}}
  learner = REGISTRY[name](
    MLP(1, (8,)),
    mean_squared_error,
    optax.sgd(0.01),
    2,
    num_eval_steps=2,
    **choices.get(name, {}),
  )
  tasks = sinusoid(3, 4)
  return meta_trainer(
    learner, optax.adam(0.01), tasks, meta_batch=4, rng=rng, **options
  )


def _train(trainer, key, num_steps):
  state = trainer.init(key)
  return trainer.compile(state)[0](state, num_steps)


# MAML++ is another learner at each step.
@pytest.mark.parametrize(
  "name, task_chunk",
  [("maml", 1), pytest.param("maml_plus_plus", 2, marks=pytest.mark.slow)],
)
def test_each_seed_is_the_run_that_it_is_alone(name, task_chunk):
  together, metrics = _train(
    _trainer(TASK_KEYS, name, task_chunk=task_chunk), INIT_KEYS, 5
  )
  assert together.step == 5
  losses = []
  for i in range(len(SEEDS)):
    state, alone = _train(
      _trainer(TASK_KEYS[i], name, task_chunk=task_chunk), INIT_KEYS[i], 5
    )
    found = jax.tree.map(lambda x, i=i: x[i], together[1:])
    chex.assert_trees_all_close(found, state[1:], rtol=1e-4, atol=1e-6)
    losses.append(alone["loss"])
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
  params = jax.tree.leaves(together.meta_params)
  assert any(not np.allclose(x[0], x[1]) for x in params)


def _goes_wrong(skip):
  """One of three seeds has a gradient that is not finite in its third step."""

  def tasks(rng):
    x = jax.random.normal(rng, (1, 1))
    return Episode(Batch(x, x), Batch(x, x))

  def at_step(step):
    def meta_grad(params, episodes, rng):
      bad = (step == 2) & (params["seed"] == 1)
      grad = episodes.query.inputs.mean() + jnp.where(bad, jnp.nan, 0.0)
      return {"w": grad, "seed": jnp.float32(0.0)}, {"loss": params["w"]}

    return MetaLearner(init, lambda params, *_: params, None, meta_grad)

  def init(rng, inputs):
    seed = jax.random.key_data(rng)[-1].astype(jnp.float32)
    return {"w": jnp.float32(0.0), "seed": seed}

  learner = at_step(0)._replace(schedule=at_step)
  rng = jnp.stack([jax.random.key(10 + i) for i in range(3)])
  return meta_trainer(
    learner,
    optax.sgd(0.1),
    tasks,
    meta_batch=2,
    rng=rng,
    skip_non_finite=skip,
  )


@pytest.mark.slow
def test_all_seeds_stop_where_one_is_not_finite():
  keys = jnp.stack([jax.random.key(i) for i in range(3)])
  stopped, _ = _train(_goes_wrong(False), keys, 6)
  before, _ = _train(_goes_wrong(False), keys, 2)
  assert stopped.step == 2
  chex.assert_trees_all_equal(stopped, before)


@pytest.mark.slow
def test_a_seed_skips_a_step_that_the_others_take():
  keys = jnp.stack([jax.random.key(i) for i in range(3)])
  before, _ = _train(_goes_wrong(True), keys, 2)
  after, metrics = _train(_goes_wrong(True), keys, 3)
  moved = np.asarray(after.meta_params["w"] != before.meta_params["w"])
  np.testing.assert_array_equal(moved, [True, False, True])
  np.testing.assert_allclose(metrics["skipped"], 1 / 9, rtol=1e-6)


def test_skipped_steps_of_single_seeds_are_counted(tmp_path):
  keys = jnp.stack([jax.random.key(i) for i in range(3)])
  schedule = Schedule(4, 1, 100, 100)
  trained = fit(_goes_wrong(True), keys, schedule, tmp_path, tasks_per_step=2)
  assert trained.skipped_steps == 1
