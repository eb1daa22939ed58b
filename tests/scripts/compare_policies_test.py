"""The comparison with brax's PPO: of the same environments and networks."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.policies.recurrent_policy import policy_and_values
from metajax.tasks.brax_tasks import brax_environment
from metajax.tasks.playable import Continuous
from metajax.tasks.trials import Player, play
from scripts.benchmarks import brax_ppo

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/compare_policies.py"
TINY = ["--actors=4", "--horizon=3", "--epochs=1", "--minibatches=2"]
KEY = jax.random.key(0)


def _run(*command):
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


class State(NamedTuple):
  """What brax's state has."""

  obs: jax.Array
  reward: jax.Array
  done: jax.Array


class Walk:
  """Moves by its action; is paid its place; ends a way from its start."""

  action_size = 1

  def reset(self, rng):
    x = jax.random.uniform(rng)
    return State(jnp.stack([x, x]), jnp.float32(0), jnp.float32(0))

  def step(self, state, action):
    start, x = state.obs[0], state.obs[1] + action[0]
    done = (x - start > 1.1).astype(jnp.float32)
    return State(jnp.stack([start, x]), x, done)


def _always(action):
  return Player(lambda: (), lambda memory, step, rng: (action, memory))


def test_an_episode_that_ends_begins_again_where_it_began():
  played = play(_always(jnp.full(1, 0.4)), brax_ppo.trials(Walk(), 7), KEY)
  steps = played.steps
  start = float(steps.observation[0, 0])
  # It walks 0.4, 0.8 and 1.2, which is far enough, and begins again.
  walked = np.array([0.4, 0.8, 1.2, 0.4, 0.8, 1.2, 0.4])
  np.testing.assert_allclose(played.rewards, start + walked, rtol=1e-5)
  places = np.array([0.0, 0.4, 0.8, 0.0, 0.4, 0.8, 0.0, 0.4])
  np.testing.assert_allclose(
    steps.observation[:, 1], start + places, rtol=1e-5, atol=1e-6
  )
  assert np.flatnonzero(steps.ended).tolist() == [3, 6]


def test_networks_without_memory_read_each_observation_alone():
  def linear(outputs):
    return SimpleNamespace(
      init=lambda rng: jax.random.normal(rng, (2, outputs)),
      apply=lambda _, params, x: x @ params,
    )

  value = linear(1)
  value.apply = lambda _, params, x: (x @ params)[..., 0]
  network = brax_ppo.without_memory(linear(2), value, 2)
  params = network.init(KEY, jnp.zeros(5))
  tasks = brax_ppo.trials(Walk(), 7)
  keys = jax.random.split(KEY, 3)
  player = _always(jnp.full(1, 0.4))
  steps = jax.vmap(lambda key: play(player, tasks, key).steps)(keys)
  policy, values = policy_and_values(network, params, steps, Continuous(1))
  seen = np.float64(steps.observation)
  numbers = seen @ np.float64(params["policy"])
  np.testing.assert_allclose(policy.mean[..., 0], numbers[:, :-1, 0], rtol=1e-5)
  values_seen = (seen @ np.float64(params["value"]))[:, :-1, 0]
  np.testing.assert_allclose(values[:, :-1], values_seen, rtol=1e-5)


def test_copies_for_devices_have_a_new_first_axis():
  copies = brax_ppo.replicated({"a": jnp.arange(3.0)}, jax.devices()[:1])
  np.testing.assert_array_equal(copies["a"], [[0.0, 1.0, 2.0]])


@pytest.mark.slow
def test_what_cannot_be_compared_is_named():
  done = _run(SCRIPT, "--actors=6")
  assert done.returncode == 1
  assert done.stderr == (
    "error: --actors=6: must be a multiple of --minibatches=4.\n"
  )
  script = f"""
import runpy, sys
sys.modules["brax"] = None
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""
  done = _run("-c", script)
  assert done.returncode == 1
  assert done.stderr.startswith("error: brax: not installed, and it has the")
  assert done.stderr.endswith("Run pip install 'metajax[brax]'.\n")


# brax itself uses what MuJoCo has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_trials_are_the_episodes_of_brax():
  """Step by step, and with the same start after a pole that falls."""
  pytest.importorskip("brax")
  environment, action = brax_environment("inverted_pendulum"), jnp.ones(1)
  from brax.envs import training

  steps = play(_always(action), brax_ppo.trials(environment, 20), KEY).steps
  task_key, _ = jax.random.split(KEY)
  _, begin_key = jax.random.split(task_key)
  wrapped = training.wrap(environment, episode_length=20)

  def one(state, _):
    state = wrapped.step(state, action[None])
    return state, (state.obs[0], state.reward[0], state.done[0] > 0)

  @jax.jit
  def episodes(key):
    start = wrapped.reset(jax.random.key_data(key)[None])
    return start.obs[0], jax.lax.scan(one, start, length=20)[1]

  start, (seen, rewards, ended) = episodes(begin_key)
  assert 1 < ended.sum() < 20
  np.testing.assert_allclose(steps.observation[0], start, atol=1e-6)
  np.testing.assert_allclose(steps.observation[1:], seen, atol=1e-4)
  np.testing.assert_allclose(steps.reward[1:], rewards)
  np.testing.assert_array_equal(steps.ended[1:], ended)


@pytest.mark.slow
def test_programs_take_turns():
  pytest.importorskip("brax")
  done = _run(
    SCRIPT, *TINY, "--units=4", "--repeats=2", "--seconds=0", "--json"
  )
  assert done.returncode == 0, done.stderr
  line = json.loads(done.stdout.splitlines()[-1])
  assert line["training_steps_in_a_call"] == 1
  programs = line["programs"]
  assert set(programs) == {"brax", "metajax, no memory", "metajax, GRU"}
  for program in programs.values():
    ratios = np.divide(programs["brax"]["seconds"], program["seconds"])
    np.testing.assert_allclose(program["ratios"], ratios)
    assert len(ratios) == 2
    rate = 4 * 3 / np.median(program["seconds"])
    assert program["environment_steps_per_second"] == pytest.approx(rate)
