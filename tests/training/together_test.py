"""Runs trained in one program are what each is alone, in its own folder."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import recipes
from metajax.learners import ENCODED, OPTIONS, REGISTRY
from metajax.learners.options import Setting, values
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import checkpoint, meta_trainer
from metajax.training.loop import NonFinite, Schedule, fit
from metajax.training.seeds import Points
from metajax.training.together import Member, fit_together
from tests.slow import slow_but

# Of inner and outer step sizes; the third diverges.
RATES = [(0.01, 0.01), (0.1, 0.002), (1e18, 0.01)]
KEYS = [jax.random.key(seed) for seed in (3, 11, 5)]
TASK_KEYS = [jax.random.key(100 + seed) for seed in (3, 11, 5)]
SCHEDULE = Schedule(num_steps=6, log_every=3, eval_every=6, checkpoint_every=2)
TASKS = sinusoid(3, 4)


def _make(point):
  inner, outer = point
  rate = optax.cosine_decay_schedule(outer, SCHEDULE.num_steps)
  learner = REGISTRY["maml"](
    MLP(1, (8,)), mean_squared_error, optax.sgd(inner), 2, num_eval_steps=2
  )
  return learner, optax.adam(rate)


def _trainer(rng, point, **options):
  return meta_trainer(
    *_make(point), TASKS, meta_batch=4, rng=rng, task_chunk=2, **options
  )


def _trainer_of(left):
  numbers = tuple(jnp.array([RATES[i] for i in left]).T)
  return _trainer(
    jnp.stack([TASK_KEYS[i] for i in left]),
    RATES[left[0]],
    skip_non_finite=True,
    points=Points(numbers, _make),
  )


def _score(state):
  return {"size": float(optax.tree.norm(state.meta_params))}


def _members(folder, chosen):
  members = []
  for i in chosen:
    (folder / f"{i}").mkdir(parents=True, exist_ok=True)
    members.append(Member(KEYS[i], folder / f"{i}", _score))
  return members


def _fit(folder, chosen, schedule=SCHEDULE):
  return fit_together(
    lambda left: _trainer_of([chosen[i] for i in left]),
    _members(folder, chosen),
    schedule,
    tasks_per_step=4,
  )


def _alone(folder, i):
  trainer = _trainer(TASK_KEYS[i], RATES[i])
  (member,) = _members(folder, [i])
  return fit(
    trainer,
    KEYS[i],
    SCHEDULE,
    member.workdir,
    tasks_per_step=4,
    validate=_score,
  ).state


def _records(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _stored(folder, like):
  opened = checkpoint.open_checkpoints(folder / "checkpoints")
  found = checkpoint.restore(opened, like)
  opened.manager.close()
  return found


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
  """The first two runs, one after the other: their folders and states."""
  folder = tmp_path_factory.mktemp("apart")
  return folder, [_alone(folder, i) for i in (0, 1)]


@pytest.mark.slow
def test_each_run_is_what_it_is_alone(apart, tmp_path):
  folder, states = apart
  assert _fit(tmp_path, [0, 1]) == []
  for i, state in enumerate(states):
    found = _stored(tmp_path / f"{i}", state)
    chex.assert_trees_all_close(found.state, state, rtol=1e-4, atol=1e-6)
    assert found.notes["skipped_steps"] == 0
    assert 0 < found.notes["compile_seconds"] < found.notes["wall_seconds"]
    records = zip(
      _records(tmp_path / f"{i}"), _records(folder / f"{i}"), strict=True
    )
    for together, alone in records:
      assert together.keys() == alone.keys()
      for name in {*alone} - {"wall_seconds", "tasks_per_second"}:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4)
  weights = jax.tree.leaves([state.meta_params for state in states])
  assert not np.allclose(weights[0], weights[len(weights) // 2])


@pytest.mark.slow
def test_interrupted_runs_go_on_together_and_alone(apart, tmp_path):
  """As they would have been, whatever was before."""
  _, states = apart
  _fit(tmp_path, [0, 1], SCHEDULE._replace(num_steps=4))
  ended = _alone(tmp_path, 1)  # From the step 4.
  chex.assert_trees_all_close(ended, states[1], rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match=r"checkpoints of steps \[4, 6\]"):
    _fit(tmp_path, [0, 1])
  assert _fit(tmp_path, [0]) == []
  found = _stored(tmp_path / "0", states[0]).state
  chex.assert_trees_all_close(found, states[0], rtol=1e-4, atol=1e-6)
  assert [line["step"] for line in _records(tmp_path / "0")] == [3, 4, 6]


@pytest.mark.slow
def test_a_run_that_diverges_is_left_behind(apart, tmp_path):
  _, states = apart
  assert _fit(tmp_path, [0, 2]) == [1]
  found = _stored(tmp_path / "0", states[0]).state
  chex.assert_trees_all_close(found, states[0], rtol=1e-4, atol=1e-6)
  # Alone it says so, from its last checkpoint on.
  with pytest.raises(NonFinite):
    _alone(tmp_path, 2)


@pytest.mark.parametrize(
  "name", slow_but(["imaml"], sorted({*REGISTRY} - ENCODED))
)
def test_every_learner_is_built_of_numbers_that_are_traced(name):
  options = {
    option.argument or option.name: jnp.float32(option.default)
    for option in OPTIONS[name]
    if isinstance(option.default, float) and not option.name.endswith("_part")
  }
  others = values(OPTIONS[name], {}, Setting(10, False, 0.1, "sgd"))
  episodes = jax.eval_shape(jax.vmap(TASKS), jax.random.split(KEYS[0], 2))

  def grads(rate, options):
    recipe = recipes.Recipe(
      name,
      {"name": "mlp", "hidden": [4]},
      1,
      "mean_squared_error",
      {"name": "sgd", "learning_rate": rate},
      2,
      2,
      options=others | options,
    )
    learner = recipes.build(recipe)
    params = learner.init(KEYS[0], jnp.zeros((3, 1)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), episodes)
    return learner.meta_grad(params, zeros, KEYS[0])[1]["loss"]

  rates = jnp.array([0.01, 0.1, 0.2])
  stacked = {k: jnp.stack([v] * 3) for k, v in options.items()}
  assert jax.eval_shape(jax.vmap(grads), rates, stacked).shape == (3,)
