"""Trainers on two devices: with tasks all alike they must do what one does.

With as many shards, replay must on any tasks.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent
from metajax.policies import PPO, ppo_trainer
from metajax.replay import (
  EpisodeReplay,
  Objective,
  Replay,
  episode_replay_trainer,
  replay_trainer,
)
from metajax.tasks.bandits import bandits
from metajax.tasks.trials import Trials
from metajax.training import Trainer, checkpoint, task_mesh
from metajax.types import Batch, Episode
from tests.processes import run_python

STEPS = 4
# One task: each action brings the same reward and observation, so that it does
# not matter which trials a device has drawn or what it samples.
SAME = Trials(
  lambda rng: (jnp.float32(0), jnp.ones(1)),
  lambda task, action, rng: (
    task + 1,
    jnp.full(1, task),
    jnp.float32(1),
    jnp.bool_(False),
  ),
  1,
  STEPS,
)


def _trainers(mesh):
  rng = jax.random.key(1)
  one = Batch(jnp.array([[0.5], [1.0]]), jnp.array([[1.0], [-1.0]]))
  return {
    "replay": replay_trainer(
      recurrent(1, units=3, head="dueling"),
      SAME,
      optax.sgd(0.1),
      Objective(1, STEPS, n=2),
      Replay(
        actors=4,
        length=STEPS,
        period=STEPS,
        capacity=8,
        batch=4,
        priority_exponent=0.0,
        importance_exponent=0.0,
      ),
      rng=rng,
      mesh=mesh,
    ),
    "sharded": _sharded(mesh),
    "sharded_episodes": _sharded_episodes(mesh),
    "ppo": ppo_trainer(
      recurrent(1, units=3, head="actor_critic"),
      SAME,
      optax.sgd(0.1),
      PPO(actors=4, epochs=2, minibatches=1),
      rng=rng,
      mesh=mesh,
    ),
    "episodes": episode_replay_trainer(
      maml(MLP(1, (3,)), mean_squared_error, optax.sgd(0.1), 1),
      optax.sgd(0.1),
      lambda rng: Episode(one, one),
      EpisodeReplay(new=2, batch=4, capacity=4),
      rng=rng,
      mesh=mesh,
    ),
  }


def _sharded(mesh):
  """Random tasks and priorities, and losses of unequal numbers of steps."""
  return replay_trainer(
    recurrent(2, units=3, head="dueling"),
    bandits(2, 6),
    optax.sgd(0.1),
    Objective(2, 6, n=2, burn_in=1),
    Replay(actors=8, length=4, period=2, capacity=32, batch=8, shards=4),
    rng=jax.random.key(1),
    mesh=mesh,
  )


def _sharded_episodes(mesh):
  """Tasks that differ, from four buffers."""

  def tasks(rng):
    x, y = jax.random.normal(rng, (2, 4, 1))
    return Episode(Batch(x[:2], y[:2]), Batch(x[2:], y[2:]))

  return episode_replay_trainer(
    maml(MLP(1, (3,)), mean_squared_error, optax.sgd(0.1), 1),
    optax.sgd(0.1),
    tasks,
    EpisodeReplay(new=4, batch=8, capacity=12, shards=4),
    rng=jax.random.key(1),
    mesh=mesh,
  )


class _Compiled(NamedTuple):
  """A trainer and its compiled program."""

  trainer: Trainer
  train: Callable

  def start(self, seed):
    return self.trainer.init(jax.random.key(seed))


def _compiled(devices):
  """`{name: _Compiled}` on as many devices."""

  def compiled(trainer):
    train, _ = trainer.compile(trainer.init(jax.random.key(2)))
    return _Compiled(trainer, train)

  trainers = _trainers(task_mesh(2, jax.devices()[:devices]))
  return {name: compiled(trainer) for name, trainer in trainers.items()}


def _restored(folder, one, two):
  """Four steps, of which either two devices or one take the first two.

  Between them stands a checkpoint. One device takes the rest.
  """
  arrays = {}
  for devices, first in ((1, one), (2, two)):
    state = first.start(2)
    before = jax.device_get(state.meta_params)
    state, _ = first.train(state, 2)
    checkpoints = checkpoint.open_checkpoints(folder / str(devices))
    checkpoint.save(checkpoints, state, {})
    state = checkpoint.restore(checkpoints, one.start(3)).state
    state, _ = one.train(state, 2)
    checkpoints.manager.close()
    moved = jax.tree.map(np.subtract, jax.device_get(state.meta_params), before)
    for i, leaf in enumerate(jax.tree.leaves(moved)):
      arrays[f"{folder.name}/{devices}/{i}"] = leaf
    assert int(state.step) == 4
  return arrays


def _main(path):
  """What the subprocess does, with 2 devices; writes its arrays to a file."""
  arrays = {}
  one, two = _compiled(1), _compiled(2)
  for name in ("sharded", "sharded_episodes"):
    folder = Path(path).parent / f"restored_{name}"
    arrays |= _restored(folder, one[name], two[name])
  for devices, compiled in ((1, one), (2, two)):
    for name, program in compiled.items():
      state = program.start(2)
      before = jax.device_get(state.meta_params)
      state, metrics = program.train(state, 2)
      for leaf in jax.tree.leaves(state.meta_params):
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == devices
        for shard in shards:
          np.testing.assert_array_equal(shard, shards[0])
      moved = jax.tree.map(np.subtract, state.meta_params, before)
      for i, leaf in enumerate(jax.tree.leaves(moved)):
        arrays[f"{name}/{devices}/{i}"] = leaf
      for key, value in metrics.items():
        arrays[f"{name}/{devices}/{key}"] = value
  np.savez(path, **arrays)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
  path = tmp_path_factory.mktemp("devices") / "arrays.npz"
  run_python(__file__, path, devices=2)
  with np.load(path) as found:
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    "replay",
    "sharded",
    "restored_sharded",
    "ppo",
    "episodes",
    "sharded_episodes",
    "restored_sharded_episodes",
  ],
)
def test_two_devices_average_what_one_does(name, arrays):
  """A sum of gradients, or a device's own, would be another step."""
  one = {k: v for k, v in arrays.items() if k.startswith(f"{name}/1/")}
  assert len(one) > 3
  moved = max(np.abs(v).max() for k, v in one.items() if k[-1].isdigit())
  assert moved > 1e-3
  for key, expected in one.items():
    np.testing.assert_allclose(
      arrays[key.replace("/1/", "/2/", 1)], expected, rtol=1e-4, atol=1e-5
    )


if __name__ == "__main__":
  _main(sys.argv[1])
