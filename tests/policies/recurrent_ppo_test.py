"""PPO: its advantages and loss in numpy, its trials as they were played."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metajax.models.recurrent import recurrent
from metajax.players.recurrent import encode, first_params
from metajax.policies import PPO, policy_player, ppo_trainer
from metajax.policies import recurrent_ppo as ppo_module
from metajax.policies.advantages import generalized_advantages
from metajax.policies.recurrent_ppo import (
  Rollout,
  gather,
  policy_and_values,
  ppo_loss,
)
from metajax.policies.value_scale import ValueScale
from metajax.tasks.trials import Trials, first_step, play
from metajax.training import task_mesh
from tests.noise import noise_trials

TASK_KEY, INIT_KEY = jax.random.key(1), jax.random.key(2)
ACTIONS, FEATURES, NUM_STEPS = 3, 2, 6
# As many trials as in a minibatch, so that they share a compiled loss.
TRIALS = 8
NETWORKS = {
  cell: recurrent(ACTIONS, units=6, cell=cell, head="actor_critic")
  for cell in ("gru", "lstm")
}
GRU = NETWORKS["gru"]
NOISE = noise_trials(FEATURES, ACTIONS, NUM_STEPS)


@functools.cache
def _params(cell="gru"):
  """Parameters all of which matter: biases too."""
  like = jax.eval_shape(
    NETWORKS[cell].init, INIT_KEY, jnp.zeros(FEATURES + ACTIONS + 2)
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), like
  )


@functools.cache
def _played(cell="gru"):
  """Trials of the policy `[TRIALS, NUM_STEPS + 1, ...]`, and how they read."""

  @jax.jit
  def run(params, rng):
    network = NETWORKS[cell]
    player = policy_player(network, params, ACTIONS)
    keys = jax.random.split(rng, TRIALS)
    trials = jax.vmap(lambda key: play(player, NOISE, key))(keys)
    policy, values = policy_and_values(network, params, trials.steps, ACTIONS)
    return trials, (jax.nn.log_softmax(policy.logits), values)

  return jax.device_get(run(_params(cell), jax.random.key(3)))


@functools.cache
def _read(cell="gru"):
  """One step: what the network thinks of it, and what it remembers then."""

  @jax.jit
  def read(params, state, step):
    hidden, state = NETWORKS[cell].read(params, state, encode(step, ACTIONS))
    return NETWORKS[cell].head(params, hidden), state

  return read


def _one_by_one(params, steps, cell="gru"):
  """Log-probabilities, values `[trials, T + 1, ...]` and states, in float64."""
  count, length = steps.reward.shape
  state = jax.tree.map(
    lambda x: np.zeros((count, *x.shape), x.dtype), NETWORKS[cell].start()
  )
  policy, values, states = [], [], []
  for t in range(length):
    step = jax.tree.map(lambda x: x[:, t], steps)  # noqa: B023
    states.append(state)
    (logits, value), state = _read(cell)(params, state, step)
    logits = np.float64(logits)
    policy.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    values.append(np.float64(value))
  together = lambda *x: np.stack(x, axis=1)  # noqa: E731
  return together(*policy), together(*values), jax.tree.map(together, *states)


def _chosen(log_policy, steps):
  """Of `[trials, T + 1, actions]` those of the actions taken, one by one."""
  return np.array(
    [
      [log_policy[i, t, a] for t, a in enumerate(actions)]
      for i, actions in enumerate(steps.action[:, 1:])
    ]
  )


def _advantages(rewards, values, discount, gae):
  """Equation 16 of Schulman et al. 2016 as it is written, one trial."""
  count = len(rewards)
  return np.array(
    [
      sum(
        (discount * gae) ** (k - t)
        * (rewards[k] + discount * values[k + 1] - values[k])
        for k in range(t, count)
      )
      for t in range(count)
    ]
  )


# --- Advantages. ---


@functools.cache
def _found_advantages():
  return jax.jit(generalized_advantages)


def _returns(rewards, discount, total=0.0):
  returns = []
  for reward in np.float64(rewards[::-1]):
    total = reward + discount * total
    returns.insert(0, total)
  return np.array(returns)


def _rewards_and_values():
  draw = np.random.default_rng(0).normal
  values = draw(size=NUM_STEPS + 1).astype(np.float32)
  return draw(size=NUM_STEPS).astype(np.float32), values


@pytest.mark.parametrize(
  "discount, gae", [(0.99, 0.3), (0.9, 0.95), (1.0, 0.5), (0.0, 0.7)]
)
def test_advantages_equal_the_sum_that_defines_them(discount, gae):
  rewards, values = _rewards_and_values()
  np.testing.assert_allclose(
    _found_advantages()(rewards, values, discount, gae),
    _advantages(*map(np.float64, (rewards, values)), discount, gae),
    rtol=1e-5,
    atol=1e-6,
  )


def test_advantage_without_lambda_is_the_error_of_one_step():
  rewards, values = _rewards_and_values()
  np.testing.assert_allclose(
    _found_advantages()(rewards, values, 0.9, 0.0),
    rewards + 0.9 * np.float64(values[1:]) - values[:-1],
    rtol=1e-5,
    atol=1e-6,
  )


def test_advantage_with_lambda_of_one_is_the_discounted_return_less_the_value():
  """The values in between cancel; that after the last action counts."""
  rewards, values = _rewards_and_values()
  np.testing.assert_allclose(
    _found_advantages()(rewards, values, 0.9, 1.0),
    _returns(rewards, 0.9, float(values[-1])) - values[:-1],
    rtol=1e-5,
    atol=1e-6,
  )


# --- What the policy thought while it played. ---


@pytest.mark.parametrize("cell", NETWORKS)
def test_trials_are_read_as_they_were_played(cell):
  trials, (found_policy, found_values) = _played(cell)
  log_policy, values, states = _one_by_one(_params(cell), trials.steps, cell)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    trials.memories,
    states,
  )
  np.testing.assert_allclose(
    found_policy, log_policy[:, :-1], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(found_values, values, rtol=1e-4, atol=1e-5)


def test_values_of_a_rollout_are_in_the_unit_of_rewards():
  """The network has an opinion on what comes after the task, but that is 0."""
  ppo = PPO(discount=0.9, gae=0.6, value_gae=0.8)
  scale = ValueScale(np.float32(2.0), np.float32(9.0))
  rollout = jax.device_get(
    jax.jit(
      lambda params: gather(
        GRU, params, scale, NOISE, ppo, TASK_KEY, jnp.arange(TRIALS)
      )
    )(_params())
  )
  _, outputs, _ = _one_by_one(_params(), rollout.steps)
  assert np.all(np.abs(2 + 3 * outputs[:, -1]) > 1e-3)
  values = 2 + 3 * outputs
  values[:, -1] = 0
  rewards = np.float64(rollout.steps.reward[:, 1:])
  for found, gae, base in [
    (rollout.advantages, ppo.gae, 0),
    (rollout.returns, ppo.value_gae, values[:, :-1]),
  ]:
    expected = base + np.array(
      [
        _advantages(r, v, ppo.discount, gae)
        for r, v in zip(rewards, values, strict=True)
      ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_player_draws_from_its_policy_and_the_greedy_one_from_its_peak():
  draws = 3000
  step = first_step(jnp.array([0.5, -1.0]))

  @functools.partial(jax.jit, static_argnums=1)
  def act(memory, greedy):
    player = policy_player(GRU, _params(), ACTIONS, greedy=greedy)
    keys = jax.random.split(jax.random.key(4), draws)
    return jax.vmap(lambda key: player.act(memory, step, key)[0])(keys)

  memory = jnp.linspace(-1, 1, 6)
  (logits, _), _ = _read()(_params(), memory, step)
  expected = np.exp(np.float64(logits))
  expected /= expected.sum()
  # A policy that is neither uniform nor certain.
  assert 0.03 < expected.min() < expected.max() < 0.9
  assert np.ptp(expected) > 0.1
  counts = np.bincount(act(memory, False), minlength=ACTIONS)
  assert scipy.stats.chisquare(counts, draws * expected).pvalue > 0.01
  np.testing.assert_array_equal(act(memory, True), np.argmax(expected))


# --- The loss, in float64. ---

PLAIN = PPO(clip=0.2, entropy=0.0, value=0.0)
FULL = PPO(clip=0.2, entropy=0.3, value=0.7)


def _normalised(advantages):
  return (advantages - np.mean(advantages)) / np.std(advantages)


def _by_hand(params, rollout, ppo):
  """Equation 9 of Schulman et al. 2017, an action at a time."""
  log_policy, values, _ = _one_by_one(params, rollout.steps)
  log_probs = _chosen(log_policy, rollout.steps)
  advantages = _normalised(rollout.advantages)
  policy, error, entropy = [], [], []
  for place in np.ndindex(advantages.shape):
    ratio = np.exp(log_probs[place] - rollout.log_probs[place])
    # Equation 7, in words: what is gained beyond the clip does not count.
    gain = ratio * advantages[place]
    if advantages[place] > 0 and ratio > 1 + ppo.clip:
      gain = (1 + ppo.clip) * advantages[place]
    if advantages[place] < 0 and ratio < 1 - ppo.clip:
      gain = (1 - ppo.clip) * advantages[place]
    policy.append(-gain)
    error.append((values[place] - rollout.returns[place]) ** 2 / 2)
    entropy.append(-np.sum(np.exp(log_policy[place]) * log_policy[place]))
  loss = np.mean(policy) + ppo.value * np.mean(error)
  return loss - ppo.entropy * np.mean(entropy), np.mean(error), np.mean(entropy)


@pytest.fixture(scope="module")
def wide():
  """Parameters and what they played, in float64; advantages are any numbers."""
  params, (trials, _) = _params(), _played()
  with jax.enable_x64(True):
    params, steps = jax.tree.map(
      lambda x: np.float64(x) if x.dtype == np.float32 else x,
      (params, trials.steps),
    )
    log_policy, _, _ = _one_by_one(params, steps)
  draw = np.random.default_rng(1).normal
  advantages = draw(1.0, 2.0, (TRIALS, NUM_STEPS))
  returns = draw(size=(TRIALS, NUM_STEPS))
  log_probs = _chosen(log_policy, steps)
  return params, Rollout(steps, log_probs, advantages, returns)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def _loss():
  """`(params, rollout, ppo) -> ((loss, metrics), gradient)`, compiled once."""
  return jax.jit(
    jax.value_and_grad(
      lambda params, rollout, ppo: ppo_loss(GRU, params, rollout, ACTIONS, ppo),
      has_aux=True,
    )
  )


def _elsewhere(params, scale, seed=2):
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(lambda x: x + scale * draw(size=x.shape), params)


def _assert_slope(grads, loss, params):
  """Compares a gradient with central differences, along random directions."""
  rng = np.random.default_rng(0)
  for _ in range(4):
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    near, far = (
      loss(jax.tree.map(lambda x, d: x + step * d, params, direction))  # noqa: B023
      for step in (-1e-6, 1e-6)
    )
    slope = sum(
      np.vdot(g, d)
      for g, d in zip(
        jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
      )
    )
    np.testing.assert_allclose(slope, (far - near) / 2e-6, rtol=1e-5, atol=1e-7)


def test_loss_of_the_policy_that_played_is_zero_for_advantages_of_mean_zero(
  wide, float64
):
  (loss, _), _ = _loss()(*wide, PLAIN)
  np.testing.assert_allclose(loss, 0, atol=1e-12)
  # Not so elsewhere.
  (loss, _), _ = _loss()(_elsewhere(wide[0], 0.2), wide[1], PLAIN)
  assert abs(loss) > 1e-2


def test_gradient_at_the_policy_that_played_is_the_vanilla_policy_gradient(
  wide, float64
):
  params, rollout = wide
  advantages = _normalised(rollout.advantages)

  def vanilla(params):
    log_policy, _, _ = _one_by_one(params, rollout.steps)
    return -np.mean(advantages * _chosen(log_policy, rollout.steps))

  _, grads = _loss()(params, rollout, PLAIN)
  assert jax.tree.leaves(grads)[0].dtype == np.float64
  _assert_slope(grads, vanilla, params)


@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_loss_and_its_gradient_equal_the_formula_in_numpy(wide, float64, scale):
  old, rollout = wide
  params = _elsewhere(old, scale)
  if scale:
    # All four cases of the clip occur.
    log_policy, _, _ = _one_by_one(params, rollout.steps)
    ratio = np.exp(_chosen(log_policy, rollout.steps) - rollout.log_probs)
    gains = _normalised(rollout.advantages) > 0
    for beyond in (ratio > 1 + FULL.clip, ratio < 1 - FULL.clip):
      assert np.any(beyond & gains)
      assert np.any(beyond & ~gains)
  (loss, metrics), grads = _loss()(params, rollout, FULL)
  expected = _by_hand(params, rollout, FULL)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-7)
  np.testing.assert_allclose(metrics["loss"], expected[0], rtol=1e-7)
  np.testing.assert_allclose(metrics["value_error"], expected[1], rtol=1e-9)
  np.testing.assert_allclose(metrics["entropy"], expected[2], rtol=1e-9)
  _assert_slope(grads, lambda p: _by_hand(p, rollout, FULL)[0], params)


def test_policy_beyond_the_clip_is_pushed_no_further(wide, float64):
  """Where all has been gained the gradient is zero; where lost it is not."""
  params, rollout = wide
  # An old policy that took these actions half, or twice, as often.
  advantages = np.abs(rollout.advantages) + 2
  half = np.arange(TRIALS) % 2 == 0
  advantages = np.where(half[:, None], advantages, -advantages)
  assert np.all((_normalised(advantages) > 0) == half[:, None])
  gained = np.where(half[:, None], np.log(2), -np.log(2))
  for sign, is_zero in ((1, True), (-1, False)):
    moved = rollout._replace(
      log_probs=rollout.log_probs - sign * gained, advantages=advantages
    )
    _, grads = _loss()(params, moved, PLAIN)
    found = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert (found == 0) == is_zero


def test_network_of_zeros_has_the_entropy_of_equal_odds(wide, float64):
  params, rollout = wide
  zeros = jax.tree.map(np.zeros_like, params)
  (_, metrics), _ = _loss()(zeros, rollout, FULL)
  np.testing.assert_allclose(metrics["entropy"], np.log(ACTIONS), rtol=1e-12)
  np.testing.assert_allclose(
    metrics["value_error"], np.mean(rollout.returns**2) / 2, rtol=1e-12
  )


# --- The trainer. ---


def _bandit_reset(rng):
  arm_key, rng = jax.random.split(rng)
  paying = jax.random.randint(arm_key, (), 0, ACTIONS)
  return paying, 0.3 * jax.random.normal(rng, (FEATURES,))


def _bandit_step(paying, action, rng):
  observation = 0.3 * jax.random.normal(rng, (FEATURES,))
  reward = (action == paying).astype(jnp.float32)
  return paying, observation, reward, jnp.array(False)


# One arm always pays, another one in each task; what is seen tells trials
# apart, and nothing else.
BANDIT = Trials(_bandit_reset, _bandit_step, ACTIONS, NUM_STEPS)
TRAINED = PPO(
  actors=16, epochs=2, minibatches=2, discount=0.9, gae=0.6, value_gae=0.8
)
RATE = 0.03


def _trainer(mesh=None, **changes):
  return ppo_trainer(
    GRU,
    BANDIT,
    optax.adam(RATE),
    TRAINED._replace(**changes),
    rng=TASK_KEY,
    mesh=mesh or task_mesh(1),
  )


PARTS = []


@pytest.fixture(scope="module")
def trainer():
  """`(start, train)`; whatever is learned from is appended to PARTS."""

  def spied(network, params, rollout, *rest):
    jax.debug.callback(
      lambda part: PARTS.append(jax.tree.map(np.array, part)),
      rollout,
      ordered=True,
    )
    return ppo_loss(network, params, rollout, *rest)

  built = _trainer()
  start = jax.device_get(built.init(INIT_KEY))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ppo_module, "ppo_loss", spied)
    train, _ = built.compile(start)
  # The state is donated: each test gets its own.
  return start, lambda state, n: train(jax.device_put(state), n)


@pytest.fixture(scope="module")
def first(trainer):
  """The first step: state, metrics and the parts of its rollout, in turn."""
  start, train = trainer
  PARTS.clear()
  state, metrics = jax.device_get(train(start, 1))
  jax.effects_barrier()
  return state, metrics, [*PARTS]


@pytest.mark.slow
def test_every_epoch_learns_once_from_every_trial(first):
  _, _, parts = first
  assert len(parts) == TRAINED.epochs * TRAINED.minibatches
  # The trials are told apart by the first of their observations.
  seen = [[o.tobytes() for o in part.steps.observation[:, 0]] for part in parts]
  epochs = [set(seen[0] + seen[1]), set(seen[2] + seen[3])]
  assert epochs[0] == epochs[1]
  assert len(epochs[0]) == TRAINED.actors
  # Minibatches are drawn anew for each epoch.
  assert seen[:2] != seen[2:]


@pytest.mark.slow
def test_rollout_is_of_the_policy_that_played_and_ends_with_the_task(
  trainer, first
):
  """Before the first step all values are 0; returns get mean 0 and unit 1."""
  start, _ = trainer
  rewards = np.concatenate([part.steps.reward[:, 1:] for part in first[2][:2]])
  every = [_returns(r, TRAINED.discount * TRAINED.value_gae) for r in rewards]
  for part in first[2]:
    log_policy, _, _ = _one_by_one(start.meta_params, part.steps)
    np.testing.assert_allclose(
      part.log_probs, _chosen(log_policy, part.steps), rtol=1e-4, atol=1e-5
    )
    for r, advantages, returns in zip(
      part.steps.reward[:, 1:], part.advantages, part.returns, strict=True
    ):
      np.testing.assert_allclose(
        advantages,
        _returns(r, TRAINED.discount * TRAINED.gae),
        rtol=1e-4,
        atol=1e-5,
      )
      expected = _returns(r, TRAINED.discount * TRAINED.value_gae)
      expected = (expected - np.mean(every)) / np.std(every)
      np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-4)
    # The whole task was played, and once.
    assert part.steps.first.shape == (TRIALS, NUM_STEPS + 1)
    np.testing.assert_array_equal(part.steps.first[:, 0], True)
    np.testing.assert_array_equal(part.steps.first[:, 1:], False)


@pytest.mark.slow
def test_step_is_one_update_for_each_part_in_turn(trainer, first, float64):
  """With gradients of the loss that was compared with numpy above."""
  state, metrics, parts = first
  params, parts = jax.tree.map(
    lambda x: np.float64(x) if x.dtype == np.float32 else x,
    (trainer[0].meta_params, parts),
  )
  mean = square = jax.tree.map(np.zeros_like, params)
  found = {name: [] for name in ("loss", "value_error", "entropy")}
  for count, part in enumerate(parts, 1):
    (_, scores), grads = _loss()(params, part, TRAINED)
    # Adam, as in the paper.
    grads = jax.tree.map(np.asarray, grads)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, square, grads)
    less, lesser = 1 - 0.9**count, 1 - 0.999**count
    params = jax.tree.map(
      lambda p, m, v: p - RATE * m / less / (np.sqrt(v / lesser) + 1e-8),  # noqa: B023
      params,
      mean,
      square,
    )
    for name, values in found.items():
      values.append(scores[name])
  chex.assert_trees_all_close(
    jax.tree.map(np.float64, state.meta_params), params, rtol=1e-4, atol=1e-5
  )
  for name, values in found.items():
    np.testing.assert_allclose(metrics[name], np.mean(values), rtol=1e-4)
  # The reward is the total of a trial; an epoch has them all.
  rewards = np.concatenate([part.steps.reward for part in parts[:2]])
  np.testing.assert_allclose(
    metrics["reward"], rewards.sum(-1).mean(), rtol=1e-5
  )
  assert set(metrics) == {*found, "reward"}


@pytest.mark.slow
def test_step_counts_one_however_many_updates_and_moves_all_parameters(
  trainer, first
):
  start, state = trainer[0], first[0]
  assert (start.step, state.step) == (0, 1)
  for before, after in zip(
    *map(jax.tree.leaves, (start.meta_params, state.meta_params)), strict=True
  ):
    assert np.any(before != after)


@pytest.mark.slow
def test_two_steps_of_one_call_are_two_calls_of_one_in_the_same_bits(
  trainer, first
):
  start, train = trainer
  once, _ = jax.device_get(train(start, 2))
  again, metrics = jax.device_get(train(first[0], 1))
  chex.assert_trees_all_equal(once, again)
  # The same seed: the same step.
  chex.assert_trees_all_equal(jax.device_get(train(start, 1)), first[:2])
  # The second step plays other tasks than the first.
  assert metrics["reward"] != first[1]["reward"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"minibatches": 3}, "actors=16: must be a positive multiple of 3: 1 dev"),
    ({"minibatches": 32}, "actors=16: must be a positive multiple of 32: 1 d"),
    ({"devices": 16}, "actors=16: must be a positive multiple of 32: 16 devi"),
    ({"devices": 3}, "actors=16: must be a positive multiple of 6: 3 devices"),
    ({"actors": 0}, "actors=0: must be a positive multiple of 2: 1 devices"),
    ({"minibatches": 0}, "minibatches=0: must be 1 or more"),
    ({"epochs": 0}, "epochs=0: must be 1 or more"),
    ({"discount": 1.5}, "discount=1.5: must be 0 to 1"),
    ({"gae": -0.1}, "gae=-0.1: must be 0 to 1"),
    ({"value_gae": 1.1}, "value_gae=1.1: must be 0 to 1"),
    ({"clip": -0.2}, "clip=-0.2: must be above 0"),
    ({"entropy": float("nan")}, "entropy=nan: must be 0 or more"),
    ({"value": -1.0}, "value=-1.0: must be 0 or more"),
  ],
)
def test_numbers_that_do_not_fit_are_named(changes, message):
  changes = dict(changes)
  mesh = jax.sharding.AbstractMesh((changes.pop("devices", 1),), ("tasks",))
  with pytest.raises(ValueError, match=f"^{message}"):
    _trainer(mesh=mesh, **changes)


@pytest.mark.parametrize(
  "num_outputs, head, message",
  [
    (2, "actor_critic", "its head gives 2 logits, but there are num_actions=3"),
    (3, "dueling", "its head gives no pair of logits and value"),
  ],
)
def test_head_that_does_not_fit_the_tasks_is_named(num_outputs, head, message):
  """In the trainer, and by a player alone."""
  network = recurrent(num_outputs, units=4, head=head)
  with pytest.raises(ValueError, match=f"^network: {message}"):
    ppo_trainer(network, NOISE, optax.adam(RATE), TRAINED, rng=TASK_KEY)
  params = first_params(network, NOISE, INIT_KEY)
  with pytest.raises(ValueError, match=f"^network: {message}"):
    play(policy_player(network, params, ACTIONS), NOISE, INIT_KEY)


@pytest.mark.slow
def test_player_learns_to_find_the_arm_that_always_pays(trainer):
  """Two by chance, and by whoever remembers nothing.

  Five is the most: the first, second or third arm that is tried pays, each in a
  third of the tasks, and from then on it is pulled.
  """
  start, train = trainer
  state, metrics = train(start, 5)
  assert float(metrics["reward"]) < 2.5
  state, _ = train(jax.device_get(state), 95)
  _, metrics = train(jax.device_get(state), 20)
  # The standard error of 320 trials is 0.05.
  assert 4.7 < float(metrics["reward"]) < 5.2
