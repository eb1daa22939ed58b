"""RL^2 and VariBAD where actions are vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metajax.models.recurrent import recurrent
from metajax.players.bandits import random_player
from metajax.players.recurrent import encode
from metajax.policies import (
  PPO,
  VariBAD,
  belief_network,
  policy_player,
  ppo_trainer,
  varibad_trainer,
)
from metajax.policies.ppo import ppo_loss
from metajax.policies.recurrent_policy import num_outputs
from metajax.policies.recurrent_ppo import gather
from metajax.policies.value_scale import first_scale
from metajax.replay import Objective, Replay, replay_trainer
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import Continuous
from metajax.tasks.trials import Player, Trials, first_step, play, trials_of
from metajax.training import task_mesh

KEY = jax.random.key(0)
SIZE, FEATURES, NUM_STEPS, TRIALS = 2, 3, 5, 8
ACTIONS = Continuous(SIZE)
NETWORK = recurrent(num_outputs(ACTIONS), units=6, head="actor_critic")
CONFIGURED = PPO(actors=TRIALS, discount=0.9, gae=0.8, entropy=0.3, value=0.7)


def _reset(rng):
  return jnp.float32(0), jax.random.normal(rng, (FEATURES,))


def _step(task, action, rng):
  keys = jax.random.split(rng)
  reward = action.sum() + jax.random.normal(keys[0])
  observation = jax.random.normal(keys[1], (FEATURES,))
  return task, observation, reward, jnp.array(False)


NOISE = Trials(_reset, _step, ACTIONS, NUM_STEPS)


@functools.cache
def _params(seed=0):
  like = jax.eval_shape(NETWORK.init, KEY, jnp.zeros(FEATURES + SIZE + 2))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), like
  )


@functools.cache
def _rollout():
  """What the policy played, and what it remembers of it."""
  return jax.device_get(
    jax.jit(
      lambda params: gather(
        NETWORK,
        params,
        first_scale(),
        NOISE,
        CONFIGURED,
        KEY,
        jnp.arange(TRIALS),
      )
    )(_params())
  )


@jax.jit
def _read(params, state, step):
  hidden, state = NETWORK.read(params, state, encode(step, ACTIONS))
  return NETWORK.head(params, hidden), state


def _one_by_one(params, steps):
  """Means, logarithms of scales and values, each `[trials, T, ...]`."""
  state = np.zeros((TRIALS, *NETWORK.start().shape), np.float32)
  found = []
  for t in range(NUM_STEPS):
    step = jax.tree.map(lambda x: x[:, t], steps)  # noqa: B023
    (numbers, value), state = _read(params, state, step)
    found.append(np.float64(np.concatenate([numbers, value[:, None]], -1)))
  numbers = np.stack(found, 1)
  return numbers[..., :SIZE], numbers[..., SIZE:-1], numbers[..., -1]


def _log_density(params, steps):
  mean, log_scale, _ = _one_by_one(params, steps)
  actions = np.float64(steps.action[:, 1:])
  return scipy.stats.norm.logpdf(actions, mean, np.exp(log_scale)).sum(-1)


def test_actions_have_the_densities_of_the_policy_that_played_them():
  rollout = _rollout()
  assert rollout.steps.action.shape == (TRIALS, NUM_STEPS + 1, SIZE)
  assert rollout.steps.action.dtype == np.float32
  np.testing.assert_array_equal(rollout.steps.action[:, 0], 0)
  expected = _log_density(_params(), rollout.steps)
  assert np.ptp(expected) > 1
  np.testing.assert_allclose(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)


def test_network_reads_the_last_action_as_it_is():
  steps = _rollout().steps
  inputs = np.asarray(encode(steps, ACTIONS))
  np.testing.assert_array_equal(
    inputs[:, 1:, FEATURES : FEATURES + SIZE], steps.action[:, 1:]
  )
  assert not inputs[:, 0, FEATURES:].any()


def test_greedy_player_takes_the_mean_and_the_other_one_samples_about_it():
  step = first_step(jnp.array([0.5, -1.0, 2.0]), ACTIONS)
  memory = jnp.linspace(-1, 1, 6)
  (numbers, _), _ = _read(_params(), memory, step)
  mean, scale = np.asarray(numbers[:SIZE]), np.exp(numbers[SIZE:])

  @functools.partial(jax.jit, static_argnums=0)
  def act(greedy):
    player = policy_player(NETWORK, _params(), ACTIONS, greedy=greedy)
    keys = jax.random.split(KEY, 2000)
    return jax.vmap(lambda key: player.act(memory, step, key)[0])(keys)

  np.testing.assert_allclose(act(True), np.tile(mean, (2000, 1)), rtol=1e-5)
  for samples, m, s in zip(np.asarray(act(False)).T, mean, scale, strict=True):
    assert scipy.stats.kstest(samples, "norm", (m, s)).pvalue > 0.01


def test_loss_is_the_published_one_with_densities():
  """Schulman et al. 2017, equation 9, and the entropy of a Gaussian."""
  rollout, params, ppo = _rollout(), _params(1), CONFIGURED
  _, log_scale, values = _one_by_one(params, rollout.steps)
  ratio = np.exp(
    _log_density(params, rollout.steps) - np.float64(rollout.log_probs)
  )
  gain = np.float64(rollout.advantages)
  gain = (gain - gain.mean()) / gain.std()
  clipped = np.clip(ratio, 1 - ppo.clip, 1 + ppo.clip)
  assert np.any(ratio > 1 + ppo.clip) and np.any(ratio < 1 - ppo.clip)
  surrogate = -np.minimum(ratio * gain, clipped * gain).mean()
  error = 0.5 * np.square(values - rollout.returns).mean()
  entropy = scipy.stats.norm.entropy(0, np.exp(log_scale)).sum(-1).mean()
  expected = surrogate + ppo.value * error - ppo.entropy * entropy
  found, metrics = ppo_loss(NETWORK, params, rollout, ACTIONS, ppo)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)


def _target_reset(rng):
  return jax.random.uniform(rng, (1,), minval=-1.0), jnp.zeros(1)


def _target_step(target, action, rng):
  del rng
  error = jnp.abs(action - target).sum()
  return target, target - action, -error, jnp.array(False)


TARGETS = Trials(_target_reset, _target_step, Continuous(1), 4)
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
SHORT = PPO(actors=64, discount=0.0, gae=0.0, entropy=0.0)


def _by_ppo():
  network = recurrent(2, units=16, head="actor_critic")
  trainer = ppo_trainer(
    network, TARGETS, ADAM, SHORT, rng=KEY, mesh=task_mesh(1)
  )
  return network, trainer


def _by_varibad():
  made = belief_network(
    recurrent(4, units=16), TARGETS.actions, latent=2, units=16
  )
  trainer = varibad_trainer(
    made,
    TARGETS,
    ADAM,
    ADAM,
    SHORT,
    VariBAD(kept=4),
    rng=KEY,
    mesh=task_mesh(1),
  )
  return made.recurrent, trainer


@pytest.mark.parametrize(
  ("build", "num_steps"),
  [(_by_ppo, 80), pytest.param(_by_varibad, 320, marks=pytest.mark.slow)],
)
def test_player_learns_to_find_a_number_within_a_trial(build, num_steps):
  """The first observation tells nothing. The second one tells the error."""
  tasks, (network, trainer) = TARGETS, build()
  state = trainer.init(KEY)
  train, _ = trainer.compile(state)
  state, _ = train(state, num_steps)

  @jax.jit
  def played(params):
    player = policy_player(network, params, tasks.actions, greedy=True)
    keys = jax.random.split(jax.random.key(1), 200)
    return jax.vmap(lambda key: play(player, tasks, key).rewards)(keys)

  rewards = np.asarray(played(state.meta_params)).mean(0)
  # The best first guess is 0, half a unit from the target on average.
  assert abs(rewards[0] + 0.5) < 0.1
  assert rewards[-1] > -0.2


def _replayed():
  network = recurrent(4, units=4, head="dueling")
  objective = Objective(4, NUM_STEPS)
  replay = Replay(actors=2, length=5, period=5, capacity=8, batch=2)
  return replay_trainer(
    network, NOISE, optax.sgd(0.1), objective, replay, rng=KEY
  )


def test_decoder_reads_actions_as_they_are():
  """`f(m) . g(s, a, s', end)` in numpy, for each of three tasks."""
  network = belief_network(recurrent(4, units=4), ACTIONS, latent=2, units=5)
  like = jax.eval_shape(
    network.recurrent.init, KEY, jnp.zeros(FEATURES + SIZE + 2)
  )
  draw = np.random.default_rng(0).normal
  params = jax.tree.map(lambda x: np.float32(draw(0, 0.7, x.shape)), like)
  steps = jax.tree.map(lambda x: x[0], _rollout().steps)
  m = np.float32(draw(size=(3, 2)))
  part = params["decoder"]["rewards"]
  x = np.concatenate(
    [
      steps.observation[:-1],
      steps.action[1:],
      steps.observation[1:],
      np.zeros((NUM_STEPS, 1)),  # No episode ends.
    ],
    -1,
  )
  np.testing.assert_allclose(
    network.rewards(params, m, steps),
    _mlp(part["m"], m) @ _mlp(part["x"], x).T,
    rtol=1e-4,
    atol=1e-5,
  )


def _mlp(params, x):
  layers = [params["params"][f"Dense_{i}"] for i in range(3)]
  for i, layer in enumerate(layers):
    x = x @ np.float64(layer["kernel"]) + layer["bias"]
    x = np.maximum(x, 0) if i < 2 else x
  return x


def _believed():
  """A network of as many outputs, for other actions."""
  encoder = recurrent(4, units=4)
  network = belief_network(encoder, 4, latent=2, units=4)
  ppo = PPO(actors=4, minibatches=1)
  sgd = optax.sgd(0.1)
  return varibad_trainer(
    network, NOISE, sgd, sgd, ppo, VariBAD(batch=4), rng=KEY
  )


def test_what_does_not_fit_is_one_line():
  wide = recurrent(3, units=4, head="actor_critic")
  narrow = Player(lambda: (), lambda memory, step, rng: (jnp.zeros(3), memory))
  discrete = "tasks: their actions are Continuous(size=2), but this player"
  for build, message in {
    lambda: ppo_trainer(wide, NOISE, optax.sgd(0.1), CONFIGURED, rng=KEY): (
      "network: its head gives 3 outputs, but Continuous(size=2) needs 4; "
      "build it with so many outputs."
    ),
    lambda: play(narrow, NOISE, KEY): (
      "player: its action is float32 (3,), must be real numbers (2,)."
    ),
    lambda: play(random_player(2), trials_of(navigation(), 3), KEY): (
      "player: its action is int32 (), must be real numbers (2,)."
    ),
    _replayed: discrete,
    _believed: (
      "network: built for the actions Discrete(number=4), but those of the "
      "tasks are Continuous(size=2); build it by belief_network(encoder, "
      "tasks.actions)."
    ),
  }.items():
    with pytest.raises(ValueError) as error:
      build()
    assert str(error.value).startswith(message)
