"""VariBAD: its bound in numpy, what its losses do not reach, its trainer."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats

from metajax.models.recurrent import recurrent
from metajax.players.recurrent import encode
from metajax.policies import (
  PPO,
  Likelihood,
  VariBAD,
  belief_network,
  beliefs,
  mean_elbo,
  policy_player,
  varibad_trainer,
)
from metajax.policies.belief_learning import place_and_noise
from metajax.policies.elbo import divergences
from metajax.policies.ppo import Rollout, ppo_loss
from metajax.policies.recurrent_policy import hidden_along
from metajax.tasks.gridworld import goal_posterior, gridworld
from metajax.tasks.trials import play, trials_of
from metajax.training import task_mesh
from tests.noise import noise_trials

ACTIONS, FEATURES, LENGTH, LATENT, TRIALS = 3, 2, 5, 2, 3
NETWORK = belief_network(
  recurrent(2 * LATENT, units=6), ACTIONS, latent=LATENT, units=8, scale=0.5
)
BOTH = Likelihood(0.3, 0.7)
NAMES = {"encoder", "decoder", "policy", "seen"}
NOISE = noise_trials(FEATURES, ACTIONS, LENGTH, 0.4)


@pytest.fixture(scope="module")
def drawn():
  """Parameters all of which matter, trials and noise, all float64."""
  shapes = jax.eval_shape(
    NETWORK.recurrent.init, jax.random.key(0), jnp.zeros(FEATURES + ACTIONS + 2)
  )
  draw = np.random.default_rng(0).normal
  params = jax.tree.map(lambda x: draw(0, 0.7, x.shape), shapes)
  params["seen"]["square"] = 0.5 + np.square(params["seen"]["mean"])
  player = policy_player(NETWORK.recurrent, params, ACTIONS)
  keys = jax.random.split(jax.random.key(3), TRIALS)
  played = jax.jit(jax.vmap(lambda key: play(player, NOISE, key).steps))(keys)
  steps = jax.tree.map(
    lambda x: np.float64(x) if x.dtype == np.float32 else np.array(x), played
  )
  assert 0 < steps.ended[:, 1:].mean() < 1
  return params, steps, draw(size=(TRIALS, LENGTH + 1, LATENT))


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


# --- The bound. ---


def _mlp(params, x, hidden=2):
  """Dense layers as they are written down."""
  layers = params["params"]
  for i in range(hidden + 1):
    layer = layers[f"Dense_{i}"]
    x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    x = np.maximum(x, 0) if i < hidden else x
  return x


def _decoded(params, m, step, following):
  """The expected reward and next observation of one action."""
  action = np.eye(ACTIONS)[following.action]
  end = float(following.ended)
  after = np.zeros(FEATURES) if end else following.observation
  x = np.concatenate([step.observation, action, after, [end]])
  part = params["decoder"]["rewards"]
  reward = _mlp(part["m"], m) @ _mlp(part["x"], x)
  part = params["decoder"]["observations"]
  x = np.concatenate([step.observation, action])
  weights = _mlp(part["x"], x).reshape(-1, FEATURES)
  return reward, _mlp(part["m"], m) @ weights


def _one_by_one(params, steps):
  """Means and scales of the beliefs of a trial, a step at a time."""
  state, found = NETWORK.recurrent.start(), []
  read = jax.jit(NETWORK.recurrent.read)
  for t in range(LENGTH + 1):
    step = jax.tree.map(lambda x: x[t], steps)  # noqa: B023
    hidden, state = read(params, state, encode(step, ACTIONS))
    found.append(np.asarray(hidden)[-2 * LATENT :])
  mean, log_scale = np.split(np.stack(found), 2, -1)
  return mean, 0.5 * np.exp(log_scale)


def _divergence(mean, scale, before, wide):
  """By quadrature, a dimension at a time."""
  total = 0.0
  for a, b, c, d in zip(mean, scale, before, wide, strict=True):

    def integrand(x):
      p, q = (
        -0.5 * ((x - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
        for mean, scale in ((a, b), (c, d))  # noqa: B023
      )
      return np.exp(p) * (p - q)

    total += scipy.integrate.quad(
      integrand,
      a - 12 * b,
      a + 12 * b,
      points=[a],
    )[0]
  return total


@pytest.mark.parametrize(
  "likelihood", [Likelihood(0.3), BOTH], ids=["rewards", "both"]
)
def test_bound_equals_a_loop_over_trials_beliefs_and_steps(
  likelihood, drawn, float64
):
  params, steps, noise = drawn
  found, metrics = jax.jit(mean_elbo, static_argnums=(0, 4))(
    NETWORK, params, steps, noise, likelihood
  )
  bounds, errors, divergence = [], [], []
  for i in range(TRIALS):
    trial = jax.tree.map(lambda x: x[i], steps)  # noqa: B023
    mean, scale = _one_by_one(params, trial)
    before, wide = np.zeros(LATENT), np.ones(LATENT)
    for t in range(LENGTH + 1):
      m = mean[t] + scale[t] * noise[i, t]
      fit = 0.0
      for k in range(LENGTH):  # The past and the future of t.
        one, two = (jax.tree.map(lambda x: x[j], trial) for j in (k, k + 1))  # noqa: B023
        reward, seen = _decoded(params, m, one, two)
        errors.append((reward - two.reward) ** 2)
        fit += scipy.stats.norm(reward, likelihood.reward).logpdf(two.reward)
        if likelihood.observation is not None and not two.ended:
          law = scipy.stats.norm(seen, likelihood.observation)
          fit += law.logpdf(two.observation).sum()
      divergence.append(_divergence(mean[t], scale[t], before, wide))
      bounds.append(fit - divergence[-1])
      before, wide = mean[t], scale[t]
  np.testing.assert_allclose(found, np.mean(bounds), rtol=1e-8)
  np.testing.assert_allclose(metrics["elbo"], found, rtol=0)
  np.testing.assert_allclose(metrics["reward_error"], np.mean(errors), 1e-8)
  np.testing.assert_allclose(metrics["kl"], np.mean(divergence), rtol=1e-8)


def test_divergences_are_of_each_belief_from_the_one_before(drawn, float64):
  params, steps, _ = drawn
  posteriors = jax.jit(beliefs, static_argnums=0)(NETWORK, params, steps)
  mean, scale = posteriors.mean, np.exp(posteriors.log_scale)
  before = np.concatenate([np.zeros_like(mean[:, :1]), mean[:, :-1]], 1)
  wide = np.concatenate([np.ones_like(scale[:, :1]), scale[:, :-1]], 1)
  expected = (
    np.log(wide / scale)
    + (scale**2 + (mean - before) ** 2) / (2 * wide**2)
    - 0.5
  )
  np.testing.assert_allclose(
    divergences(posteriors), expected.sum(-1), rtol=1e-10
  )


def test_constant_belief_costs_its_divergence_from_the_prior_once(float64):
  mean, log_scale = jnp.full((1, 4, 1), 2.0), jnp.zeros((1, 4, 1))
  found = divergences(
    NETWORK.posterior(jnp.zeros(6))._replace(mean=mean, log_scale=log_scale)
  )
  np.testing.assert_allclose(found, [[2.0, 0.0, 0.0, 0.0]], atol=1e-12)


# --- What does not depend on what. ---


def test_the_future_does_not_change_a_belief(drawn, float64):
  """The derivative is zero, exactly; that of the past is not."""
  params, steps, _ = drawn
  one = jax.tree.map(lambda x: x[:1], steps)

  def found(reward, observation):
    seen = one._replace(reward=reward, observation=observation)
    return tuple(beliefs(NETWORK, params, seen))

  slopes = jax.jit(jax.jacobian(found, argnums=(0, 1)))(
    one.reward, one.observation
  )
  for of_reward, of_observation in slopes:
    of_reward = np.abs(of_reward[0, :, :, 0]).max(1)  # [belief, step]
    of_observation = np.abs(of_observation[0, :, :, 0]).max((1, 3))
    for t in range(LENGTH + 1):
      np.testing.assert_array_equal(of_reward[t, t + 1 :], 0)
      np.testing.assert_array_equal(of_observation[t, t + 1 :], 0)
      assert np.all(of_observation[t, : t + 1] > 0)
      # The first step has no reward: it is masked.
      assert np.all(of_reward[t, 1 : t + 1] > 0) and of_reward[t, 0] == 0


def test_trial_after_a_trial_changes_nothing_and_begins_anew(drawn, float64):
  """Two trials in one sequence are read as each of them alone."""
  params, steps, _ = drawn
  read = jax.jit(hidden_along, static_argnums=(0, 3))
  alone = read(NETWORK.recurrent, params, steps, ACTIONS)
  other = jax.tree.map(lambda x: x[::-1], steps)
  chained = jax.tree.map(lambda *x: np.concatenate(x, 1), steps, other)
  both = read(NETWORK.recurrent, params, chained, ACTIONS)
  np.testing.assert_array_equal(both[:, : LENGTH + 1], alone)
  np.testing.assert_array_equal(both[:, LENGTH + 1 :], alone[::-1])


def test_start_of_the_next_episode_does_not_change_what_is_decoded(
  drawn, float64
):
  """The observation after an end says nothing of the action before it."""
  params, steps, noise = drawn
  for i in range(TRIALS):
    trial = jax.tree.map(lambda x: x[i], steps)  # noqa: B023

    def found(observation):
      seen = trial._replace(observation=observation)  # noqa: B023
      return NETWORK.rewards(params, noise[i], seen)  # noqa: B023

    slope = jax.jit(jax.jacobian(found))(trial.observation)
    for k in range(LENGTH):
      of_next = np.abs(slope[:, k, k + 1]).max()
      assert (of_next == 0) == trial.ended[k + 1]
      # Nor is it decoded itself.
      np.testing.assert_array_equal(slope[:, k, k + 2 :], 0)
  ends = steps.ended[:, 1:, None]
  moved = steps.observation.copy()
  moved[:, 1:] += ends

  def bound(observation, likelihood):
    # Beliefs and decoder see the same trials; what is predicted has moved.
    seen = steps._replace(observation=observation)
    other = NETWORK._replace(
      recurrent=NETWORK.recurrent._replace(
        read=lambda p, s, x: NETWORK.recurrent.read(p, s, 0 * x)
      ),
      observations=lambda p, m, x: jnp.zeros((len(m), LENGTH, FEATURES)),
      rewards=lambda p, m, x: jnp.zeros((len(m), LENGTH)),
    )
    return mean_elbo(other, params, seen, noise, likelihood)[0]

  assert bound(steps.observation, BOTH) == bound(moved, BOTH)
  assert bound(steps.observation, BOTH) != bound(moved + 1, BOTH)


def test_no_loss_reaches_the_parameters_of_the_other(drawn, float64):
  params, steps, noise = drawn
  draw = np.random.default_rng(1).normal
  shape = TRIALS, LENGTH
  rollout = Rollout(steps, draw(size=shape) - 2, *draw(size=(2, *shape)))

  @jax.jit
  def slopes(params):
    policy = jax.grad(
      lambda p: ppo_loss(NETWORK.recurrent, p, rollout, ACTIONS, PPO())[0]
    )(params)
    belief = jax.grad(lambda p: mean_elbo(NETWORK, p, steps, noise, BOTH)[0])(
      params
    )
    return {"policy": policy, "belief": belief}

  found = slopes(params)
  reached = {"policy": {"policy"}, "belief": {"encoder", "decoder"}}
  for name, grads in found.items():
    assert set(grads) == NAMES
    for part in NAMES:
      largest = [np.abs(g).max() for g in jax.tree.leaves(grads[part])]
      assert (max(largest) > 0) == (part in reached[name]), (name, part)


def test_policy_reads_the_observation_and_the_belief(drawn, float64):
  params, steps, _ = drawn
  hidden = hidden_along(NETWORK.recurrent, params, steps, ACTIONS)
  assert hidden.shape == (TRIALS, LENGTH + 1, FEATURES + 2 * LATENT)
  np.testing.assert_array_equal(hidden[..., :FEATURES], steps.observation)
  logits, value = NETWORK.recurrent.head(params, hidden)
  for i in range(FEATURES + 2 * LATENT):
    moved = hidden.at[..., i].add(1.0)
    other, level = NETWORK.recurrent.head(params, moved)
    assert np.all(np.abs(other - logits).max((1, 2)) > 0), i
    assert np.all(np.abs(level - value).max(1) > 0), i


# --- The trainer. ---

TASKS = trials_of(gridworld(3, 4), 8)
SMALL = belief_network(recurrent(4, units=8), 5, latent=2, units=8)


def _trainer(**options):
  """The policy moves from the second step on; the belief in the first alone."""
  ppo = PPO(actors=8, epochs=2, minibatches=2)
  options = {"updates": 2, "batch": 4, "kept": 3} | options
  return varibad_trainer(
    SMALL,
    TASKS,
    optax.sgd(lambda update: jnp.where(update < 4, 0.0, 0.1)),
    optax.sgd(lambda update: jnp.where(update < 2, 1e-3, 0.0)),
    ppo,
    VariBAD(**options),
    rng=jax.random.key(1),
    mesh=task_mesh(1),
  )


@pytest.fixture(scope="module")
def states():
  """The states after 0, 1, ..., 4 steps, and after 4 steps of one call."""
  trainer = _trainer()
  found = [jax.device_get(trainer.init(jax.random.key(2)))]
  train, _ = trainer.compile(found[0])
  for _ in range(4):
    state, metrics = train(jax.device_put(found[-1]), 1)
    found.append(jax.device_get(state))
  assert set(metrics) == {
    *("loss", "value_error", "entropy", "reward"),
    *("elbo", "reward_error", "kl"),
  }
  return found, jax.device_get(train(jax.device_put(found[0]), 4)[0])


@pytest.mark.slow
def test_steps_of_one_call_are_calls_of_one_in_the_same_bits(states):
  """From states that have been on the host, as those of a checkpoint."""
  chex.assert_trees_all_equal(states[0][-1], states[1])
  assert states[1].step == 4


@pytest.mark.slow
def test_each_optimizer_moves_its_own_parameters_alone(states):
  """Of the decoder, those of observations have no part in this bound."""
  zero, one, two = states[0][:3]
  for old, new, moving in (
    (zero, one, {"encoder", "rewards"}),
    (one, two, {"policy"}),
  ):
    for name in ("encoder", "policy", "rewards", "observations"):
      parts = [
        (s.meta_params | s.meta_params["decoder"])[name] for s in (old, new)
      ]
      same = jax.tree.map(np.array_equal, *parts)
      if name in moving:
        assert not any(jax.tree.leaves(same)), name
      else:
        assert all(jax.tree.leaves(same)), name


@pytest.mark.slow
def test_the_last_trials_of_each_actor_are_kept(states):
  """The trial of step s in place s % kept, whole."""
  rings = [state.opt_state.trials for state in states[0]]
  assert rings[0].reward.shape == (8, 3, TASKS.num_steps + 1)
  for s, (before, after) in enumerate(itertools.pairwise(rings)):
    changed = s % 3
    assert after.first[:, changed, 0].all()
    assert not after.first[:, changed, 1:].any()
    for old, new in zip(before, after, strict=True):
      kept = [i for i in range(3) if i != changed]
      np.testing.assert_array_equal(old[:, kept], new[:, kept])
    assert np.any(before.action[:, changed] != after.action[:, changed])


def test_trials_are_drawn_from_the_filled_places():
  """While there are fewer than may be kept, from those there are."""

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None))
  def draw(key, filled):
    return place_and_noise(key, filled, LENGTH, NETWORK)

  keys = jax.random.split(jax.random.key(0), 600)
  for filled in (1, 3):
    places, noise = draw(keys, jnp.int32(filled))
    counts = np.bincount(places, minlength=filled)
    assert counts.shape == (filled,)
    assert np.abs(counts - 600 / filled).max() < 4 * np.sqrt(600 / filled)
    assert noise.shape == (600, LENGTH + 1, LATENT)
    assert scipy.stats.kstest(np.ravel(noise), "norm").pvalue > 0.01


@pytest.mark.slow
def test_decoder_comes_to_know_which_cells_were_visited():
  """On 3 x 3 cells: all that was seen, and everything of a goal once found."""
  network = belief_network(recurrent(8, units=24), 5, latent=4, units=24)
  trainer = varibad_trainer(
    network,
    TASKS,
    optax.adam(3e-3),
    optax.adam(3e-3),
    PPO(actors=32, epochs=1, minibatches=1, entropy=0.1),
    VariBAD(updates=8, batch=16, kept=20),
    rng=jax.random.key(1),
    mesh=task_mesh(1),
  )
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)
  state, _ = train(state, 300)

  @jax.jit
  def run(keys):
    player = policy_player(network.recurrent, state.meta_params, 5)
    steps = jax.vmap(lambda key: play(player, TASKS, key).steps)(keys)
    posteriors = beliefs(network, state.meta_params, steps)
    rewards = jax.vmap(lambda m, x: network.rewards(state.meta_params, m, x))(
      posteriors.mean, steps
    )
    errors = jnp.square(rewards - steps.reward[:, None, 1:])
    exact = jax.vmap(lambda x: goal_posterior(x, 3))(steps)
    return steps.reward[:, 1:], errors, exact.max((2, 3)) == 1

  rewards, errors, known = run(jax.random.split(jax.random.key(5), 200))
  # From a belief at t, the errors of all rewards.
  assert errors.shape == (200, TASKS.num_steps + 1, TASKS.num_steps)
  assert 0.2 < known.mean() < 0.9 and rewards.var() > 0.1
  assert errors[known].mean() < 0.1 * rewards[known[:, -1]].var()
  # Those of the past, whether the goal is known or not: cells that were seen.
  past = np.tri(TASKS.num_steps + 1, TASKS.num_steps, -1, bool)
  assert errors[:, past].mean() < 0.1 * rewards.var()
  # The future of who does not know the goal cannot be predicted so well.
  assert errors[~known[..., None] & ~past].mean() > 0.1 * rewards.var()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"updates": 0}, "updates=0: must be 1 or more"),
    ({"batch": 0}, "batch=0: must be 1 or more"),
    ({"batch": 3}, "batch=3: must divide actors=8 into so many parts that"),
    ({"batch": 16}, "batch=16: must divide actors=8 into so many parts that"),
    ({"kept": 0}, "kept=0: must be 1 or more"),
    ({"kept": 1.5}, "kept=1.5: must be an integer, 1 or more"),
    ({"likelihood": Likelihood(0.0)}, "reward=0.0: must be above 0"),
    ({"likelihood": Likelihood(1.0, -1.0)}, "observation=-1.0: must be above"),
  ],
)
def test_numbers_that_do_not_fit_are_named(changes, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    _trainer(**changes)


def test_networks_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="^latent=0: must be 1 or more"):
    belief_network(recurrent(4), 3, latent=0)
  network = belief_network(recurrent(4, units=4), 5, latent=3)
  with pytest.raises(ValueError, match="^encoder: .* 6 numbers, .* latent=3;"):
    varibad_trainer(
      network,
      TASKS,
      optax.adam(1e-3),
      optax.adam(1e-3),
      PPO(actors=8, minibatches=2),
      VariBAD(batch=8),
      rng=jax.random.key(0),
    )
