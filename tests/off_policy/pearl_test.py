"""PEARL: trials, its trainer, and that it learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.models.mlp import MLP
from metajax.off_policy import (
  PEARL,
  pearl_agent,
  pearl_trainer,
  play_trial,
  played_trials,
)
from metajax.policies import played_tasks
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import Continuous, playable
from metajax.tasks.trials import trials_of
from metajax.training import task_mesh
from tests.processes import run_python

HORIZON, LATENT = 5, 2


def _line(after=0.0):
  """A walk on a line, with an end beyond 0.5 and `after` added from there on.

  The task is a number that is added to the rewards.
  """

  def step(task, state, action, rng):
    del rng
    place, over = state
    place = place + 0.4 * jnp.abs(action[0]) + jnp.where(over, after, 0.0)
    ended = place > 0.5
    return (place, over | ended), place[None], task + place, ended

  return playable(
    lambda rng: jax.random.normal(rng),
    lambda task, rng: ((jnp.float32(0), jnp.bool_(False)), jnp.zeros(1)),
    step,
    actions=Continuous(1),
    horizon=HORIZON,
  )


def _agent(tasks, units=6):
  sizes = 2 * LATENT, 2 * tasks.actions.size, 1
  models = [MLP(n, (units,)) for n in sizes]
  return pearl_agent(*models, tasks.actions, latent=LATENT)


LINE = _line()
AGENT = _agent(LINE)
NUMBERS = PEARL(
  num_tasks=4,
  capacity=20,
  collected=2,
  updates=3,
  meta_batch=2,
  batch=8,
  context=4,
  target_rate=0.25,
)


def _trainer(optimizer, tasks=LINE, **changes):
  return pearl_trainer(
    AGENT,
    tasks,
    optimizer,
    NUMBERS._replace(**changes),
    rng=jax.random.key(1),
  )


# --- Trials. ---


@pytest.fixture(scope="module")
def params():
  return AGENT.init(jax.random.key(3), jnp.zeros(1))


@pytest.mark.parametrize("deterministic", [False, True])
def test_trial_is_played_as_its_definition_says(params, deterministic):
  """Step by step: z of an episode is a sample of what came before it."""
  key, task = jax.random.key(7), jnp.float32(0.3)
  trial = play_trial(
    AGENT, params, LINE, task, key, 3, deterministic=deterministic
  )
  assert 0 < trial.mask.mean() < 1
  before = None
  for k in range(3):
    z_key, play_key = jax.random.split(jax.random.fold_in(key, k))
    noise = jax.random.normal(z_key, (LATENT,))
    if before is None:
      z = noise
    else:
      belief = AGENT.posterior(params, before, None)
      z = belief.mean + jnp.exp(belief.log_scale) * noise
    length = int(trial.mask[k].sum())
    real = jax.tree.map(lambda x: x[k, :length], trial.steps)  # noqa: B023
    law = AGENT.policy(params, real.observation, z)
    if deterministic:
      np.testing.assert_allclose(law.mode, real.action, atol=1e-5)
    else:
      _, rng = jax.random.split(play_key)
      keys = jax.random.split(rng, HORIZON)[:length]
      for t, step_key in enumerate(keys):
        act_key, _ = jax.random.split(step_key)
        one = jax.tree.map(lambda x: x[t : t + 1], law)  # noqa: B023
        np.testing.assert_allclose(
          one.sample(act_key)[0], real.action[t], atol=1e-5
        )
    walked = np.cumsum(0.4 * np.abs(real.action[:, 0]))
    np.testing.assert_allclose(real.next_observation[:, 0], walked, rtol=1e-5)
    np.testing.assert_allclose(real.reward, 0.3 + walked, rtol=1e-5)
    np.testing.assert_array_equal(real.ended, walked > 0.5)
    np.testing.assert_allclose(trial.returns[k], real.reward.sum(), rtol=1e-5)
    # It goes on to its end or to the horizon.
    assert real.ended[-1] or length == HORIZON
    before = (
      real
      if before is None
      else jax.tree.map(lambda *x: jnp.concatenate(x), before, real)
    )


def test_new_tasks_are_those_of_other_policy_learners(params):
  tasks = navigation(HORIZON)
  agent = _agent(tasks)
  key = jax.random.key(5)
  play = played_trials(agent, tasks, num_episodes=2, tasks_at_once=3)
  of_pearl, trials = play(agent.init(key, jnp.zeros(2)), key, 5)
  assert trials.returns.shape == (5, 2)

  class Still:  # A learner that needs no parameters.
    adapt = staticmethod(lambda params, rollouts, k: params)
    play = staticmethod(lambda params, task, rng, n: jnp.zeros(1))

  others, _ = played_tasks(
    Still, tasks, num_steps=0, num_episodes=1, tasks_at_once=5
  )(params, key, 5)
  np.testing.assert_array_equal(of_pearl, others)


# --- The trainer. ---


@pytest.fixture(scope="module")
def states():
  """The states after 0, 1, 2, 3 steps, after 3 of one call, and metrics."""
  trainer = _trainer(optax.adam(1e-2))
  found = [jax.device_get(trainer.init(jax.random.key(2)))]
  train, _ = trainer.compile(found[0])
  for _ in range(3):
    state, metrics = train(jax.device_put(found[-1]), 1)
    found.append(jax.device_get(state))
  return found, jax.device_get(train(jax.device_put(found[0]), 3)[0]), metrics


def test_resumed_training_is_an_unbroken_one_in_the_same_bits(states):
  """From states that have been on the host, as those of a checkpoint."""
  chex.assert_trees_all_equal(states[0][-1], states[1])
  assert states[1].step == 3
  assert set(states[2]) == {
    *("loss", "critic_loss", "actor_loss", "kl", "q", "entropy"),
    *("return_1", "return_2"),
  }


def test_step_plays_some_tasks_and_moves_all_networks(states):
  before, after = states[0][:2]
  written = after.opt_state.rings.written - before.opt_state.rings.written
  assert (written > 0).sum() == NUMBERS.collected
  assert (before.opt_state.rings.written > 0).all()
  for name in ("encoder", "actor", "critics"):
    moved = jax.tree.map(
      lambda x, y: np.any(x != y),
      before.meta_params[name],
      after.meta_params[name],
    )
    assert all(jax.tree.leaves(moved)), name


def test_targets_move_by_tau():
  """Towards critics that stand still: by 1 - (1 - tau)^updates in a step."""
  trainer = _trainer(optax.set_to_zero())
  state = trainer.init(jax.random.key(2))
  chex.assert_trees_all_equal(
    state.meta_params["critics"], state.opt_state.targets
  )
  apart = jax.tree.map(lambda x: x + 1.0, state.opt_state.targets)
  state = state._replace(opt_state=state.opt_state._replace(targets=apart))
  train, _ = trainer.compile(state)
  state, _ = train(state, 2)
  for critic, target in zip(
    jax.tree.leaves(state.meta_params["critics"]),
    jax.tree.leaves(state.opt_state.targets),
    strict=True,
  ):
    np.testing.assert_allclose(target, critic + 0.75**6, rtol=1e-5)


def test_what_comes_after_an_end_does_not_matter(states):
  """Even if it overflows."""
  trainer = _trainer(optax.adam(1e-2), _line(after=np.inf))
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)
  found, _ = train(state, 1)
  known = states[0][1]
  rings = known.opt_state.rings
  assert not rings.newest.mask.all()  # Some have ended.
  chex.assert_trees_all_close(found.meta_params, known.meta_params, rtol=1e-6)
  chex.assert_trees_all_close(
    found.opt_state.rings.steps, rings.steps, rtol=1e-6
  )


def test_step_that_is_not_finite_changes_nothing():
  def rate(updates):
    return jnp.where(updates == 4, jnp.nan, 0.01)

  trainer = _trainer(optax.sgd(rate))
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)
  one = jax.device_get(train(jax.tree.map(jnp.copy, state), 1)[0])
  stuck = jax.device_get(train(state, 5)[0])  # The second update of step 1.
  assert one.step == stuck.step == 1
  chex.assert_trees_all_equal(one, stuck)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"num_tasks": 1.5}, "num_tasks=1.5: must be an integer"),
    ({"updates": 0}, "updates=0: must be 1 or more"),
    ({"context": 0}, "context=0: must be 1 or more"),
    ({"collected": 5}, "collected=5: must be at most num_tasks=4"),
    ({"meta_batch": 9}, "meta_batch=9: must be at most num_tasks=4"),
    ({"capacity": 9}, "capacity=9: must be 10 or more, the steps of a trial"),
    ({"discount": 1.0}, "discount=1.0: must be at least 0 and below 1"),
    ({"temperature": -0.1}, "temperature=-0.1: must be 0 or more"),
    ({"kl_weight": float("nan")}, "kl_weight=nan: must be 0 or more"),
    ({"target_rate": 0.0}, "target_rate=0.0: must be above 0 and at most 1"),
  ],
)
def test_bad_number_is_named(changes, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    _trainer(optax.sgd(0.1), **changes)


def test_trials_in_place_of_tasks_are_refused():
  with pytest.raises(ValueError, match="^tasks: Trials given, must be Play"):
    _trainer(optax.sgd(0.1), trials_of(LINE, 10))


def test_networks_in_place_of_an_agent_are_refused():
  with pytest.raises(
    ValueError, match="^agent: MLP given, must be pearl_agent"
  ):
    pearl_trainer(MLP(1), LINE, optax.sgd(0.1), NUMBERS, rng=jax.random.key(1))


def test_agent_of_other_actions_is_refused():
  with pytest.raises(ValueError, match="^agent: its actions are .*size=1.*"):
    _trainer(optax.sgd(0.1), navigation(HORIZON))


def refuse_two_devices():
  """Runs in a process of its own, which has two devices."""
  with pytest.raises(ValueError, match="^mesh: has 2 devices, but PEARL"):
    pearl_trainer(
      AGENT,
      LINE,
      optax.sgd(0.1),
      NUMBERS,
      rng=jax.random.key(1),
      mesh=task_mesh(2),
    )
  state = _trainer(optax.sgd(0.1)).init(jax.random.key(2))
  assert len(state.step.sharding.device_set) == 1


@pytest.mark.slow
def test_mesh_of_two_devices_is_refused():
  run_python(
    "-c",
    "from tests.off_policy import pearl_test as t; t.refuse_two_devices()",
    devices=2,
  )


@pytest.mark.slow
def test_second_episode_knows_the_task_that_the_first_has_shown():
  """One action, whose reward is minus its distance to -0.6 or 0.6.

  Without knowledge the best return is -0.6, with it 0.
  """

  def step(goal, state, action, rng):
    del rng
    return state, jnp.zeros(1), -jnp.abs(action[0] - goal), jnp.bool_(True)

  tasks = playable(
    lambda rng: jnp.where(jax.random.bernoulli(rng), 0.6, -0.6),
    lambda goal, rng: (jnp.zeros(()), jnp.zeros(1)),
    step,
    actions=Continuous(1),
    horizon=1,
  )
  agent = _agent(tasks, units=24)
  trainer = pearl_trainer(
    agent,
    tasks,
    optax.adam(3e-3),
    PEARL(
      num_tasks=16,
      capacity=100,
      collected=8,
      updates=20,
      meta_batch=8,
      batch=16,
      temperature=0.02,
      kl_weight=1e-3,
    ),
    rng=jax.random.key(1),
  )
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)
  state, _ = train(state, 200)
  play = played_trials(agent, tasks, num_episodes=2, deterministic=True)
  _, trials = play(state.meta_params, jax.random.key(9), 200)
  first, second = trials.returns.mean(0)
  assert first < -0.4
  assert second > -0.15
