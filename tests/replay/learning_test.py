"""Unrolling stored sequences, and the loss against numpy and differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metajax.models.recurrent import recurrent, unroll
from metajax.players.recurrent import encode
from metajax.replay import (
  Objective,
  Sequence,
  cut,
  epsilon_ladder,
  q_player,
  replay_loss,
)
from metajax.replay.learning import acting_priorities, q_values
from metajax.tasks.trials import play
from tests.noise import noise_trials

# Sequences start at 0, 3, 6 and 7.
ACTIONS, FEATURES, NUM_STEPS, LENGTH, PERIOD = 3, 2, 12, 5, 3
STARTS = np.array([0, 3, 6, 7])
REWARD = FEATURES + ACTIONS  # Where it is in what a player reads.
BURN_IN, N, DISCOUNT, EPS = 2, 3, 0.9, 1e-2
OBJECTIVE = Objective(
  ACTIONS, NUM_STEPS, burn_in=BURN_IN, n=N, discount=DISCOUNT, eps=EPS
)

NETWORKS = {
  cell: recurrent(ACTIONS, units=8, cell=cell, head="dueling")
  for cell in ("gru", "lstm")
}
GRU = NETWORKS["gru"]
NOISE = noise_trials(FEATURES, ACTIONS, NUM_STEPS)


@functools.cache
def _params(cell="gru", seed=0):
  inputs = jnp.zeros(FEATURES + ACTIONS + 2)
  return jax.jit(NETWORKS[cell].init)(jax.random.key(seed), inputs)


@functools.cache
def _played(epsilon=0.5):
  """Trials `[40, NUM_STEPS + 1, ...]`, and their sequences `[40, 4, ...]`."""
  # Numpy's parts need no compiling.
  return jax.device_get(_play()(_params(), epsilon))


@functools.cache
def _play():
  @jax.jit
  def run(params, epsilon):
    player = q_player(GRU, params, ACTIONS, epsilon)
    keys = jax.random.split(jax.random.key(3), 40)
    trials = jax.vmap(lambda key: play(player, NOISE, key))(keys)
    return trials, jax.vmap(lambda t: cut(t, LENGTH, PERIOD))(trials)

  return run


@functools.cache
def _read(cell):
  @jax.jit
  def read(params, state, step):
    hidden, state = NETWORKS[cell].read(params, state, encode(step, ACTIONS))
    return NETWORKS[cell].head(params, hidden), state

  return read


def _one_by_one(trials, cell="gru"):
  """Values and states before `[trials, NUM_STEPS + 1, ...]`, step by step."""
  state = jax.tree.map(lambda x: np.zeros((40, *x.shape)), GRU.start())
  state = jax.tree.map(np.float32, (state, state) if cell == "lstm" else state)
  values, states = [], []
  for t in range(NUM_STEPS + 1):
    step = jax.tree.map(lambda x: x[:, t], trials.steps)  # noqa: B023
    states.append(state)
    q, state = _read(cell)(_params(cell), state, step)
    values.append(q)
  together = lambda *x: np.stack(x, axis=1)  # noqa: E731
  return together(*values), jax.tree.map(together, *states)


def _batch():
  """All sequences of three trials, `[12, ...]`."""
  _, sequences = _played()
  return jax.tree.map(lambda x: x[:3].reshape(-1, *x.shape[2:]), sequences)


@functools.cache
def _values(objective=OBJECTIVE, cell="gru"):
  return jax.jit(
    lambda params, s: q_values(NETWORKS[cell], params, s, objective)
  )


WEIGHTS = np.linspace(0.2, 1, 12, dtype=np.float32)


@functools.cache
def _loss(objective=OBJECTIVE):
  """`(params, target_params, sequences) -> (loss, (priorities, metrics))`."""
  return jax.jit(
    lambda params, target_params, s: replay_loss(
      GRU, params, target_params, s, WEIGHTS[: s.start.shape[0]], objective
    )
  )


def _with(sequences, **fields):
  """Sequences with other fields of their steps."""
  return sequences._replace(steps=sequences.steps._replace(**fields))


@pytest.mark.slow
def test_player_stores_the_state_before_each_step():
  trials, _ = _played()
  _, states = _one_by_one(trials)
  np.testing.assert_array_equal(trials.memories[:, 0], 0)
  np.testing.assert_allclose(trials.memories, states, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", NETWORKS)
def test_later_sequences_go_on_as_if_all_had_been_read(cell):
  trials, sequences = _played()
  values, states = _one_by_one(trials, cell)
  for i, start in enumerate(STARTS):
    part = jax.tree.map(lambda x: x[:, i], sequences)  # noqa: B023
    if cell != "gru":  # Not the one who played.
      state = jax.tree.map(lambda x: x[:, start], states)  # noqa: B023
      part = part._replace(state=state)
    np.testing.assert_allclose(
      _values(cell=cell)(_params(cell), part),
      values[:, start : start + LENGTH + 1],
      rtol=1e-4,
      atol=1e-5,
    )


@pytest.mark.slow
def test_zero_state_begins_anew_whatever_was_stored():
  params, sequences = _params(), _batch()
  zero_state = _values(OBJECTIVE._replace(zero_state=True))
  found = zero_state(params, sequences)
  nothing = sequences._replace(state=0 * sequences.state)
  np.testing.assert_array_equal(found, _values()(params, nothing))
  other = sequences._replace(state=sequences.state + 1)
  np.testing.assert_array_equal(found, zero_state(params, other))
  # What was stored would have made a difference, but for first sequences.
  differences = np.abs(found - _values()(params, sequences)).max((1, 2))
  np.testing.assert_array_equal(differences > 1e-3, sequences.start > 0)


def test_burn_in_gives_no_gradient():
  params, target_params, sequences = _params(), _params(seed=1), _batch()

  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(state, observation):
    changed = _with(sequences, observation=observation)._replace(state=state)
    return _loss()(params, target_params, changed)[0]

  state, observation = map(
    np.asarray,
    jax.jit(gradients)(sequences.state, sequences.steps.observation),
  )
  # The first sequences begin at their flag, not at a state.
  np.testing.assert_array_equal(state, 0)
  later = sequences.start > 0
  np.testing.assert_array_equal(observation[later, :BURN_IN], 0)
  assert np.all(np.abs(observation[later, BURN_IN:LENGTH]).max(-1) > 0)
  # At the beginning of a trial there is nothing to warm up.
  assert np.all(np.abs(observation[~later, :LENGTH]).max(-1) > 0)
  # What the last action led to is only part of constant targets.
  np.testing.assert_array_equal(observation[:, LENGTH], 0)


def test_rewards_in_burn_in_give_no_loss():
  """They are seen, so this network is made to look away from them."""
  blind = jax.tree.map(lambda x: x, _params())
  encoder = blind["params"]["encoder"]
  encoder["kernel"] = encoder["kernel"].at[REWARD].set(0)
  starts = _batch().start
  for is_later in (True, False):
    some = np.flatnonzero((starts > 0) == is_later)[:3]
    sequences = jax.tree.map(lambda x: x[some], _batch())  # noqa: B023
    loss, (priorities, _) = _loss()(blind, blind, sequences)
    for place in range(LENGTH):
      reward = sequences.steps.reward + 10 * (
        np.arange(LENGTH + 1) == 1 + place
      ).astype(np.float32)
      changed, (others, _) = _loss()(
        blind, blind, _with(sequences, reward=reward)
      )
      is_burn_in = is_later and place < BURN_IN
      assert (changed == loss) == is_burn_in
      np.testing.assert_array_equal(others == priorities, is_burn_in)


def test_unroll_forgets_what_came_before_a_first_step():
  rng = np.random.default_rng(0)
  time, batch, reset = 7, 2, 4
  inputs = rng.normal(size=(time, batch, FEATURES + ACTIONS + 2))
  inputs = inputs.astype(np.float32)
  first = np.zeros((time, batch), bool)
  first[reset, 1] = True
  state = rng.normal(size=(batch, 8)).astype(np.float32)
  reached = np.arange(time)[:, None, None] >= reset
  run = jax.jit(functools.partial(unroll, GRU, _params()))
  hidden, last = run(state, inputs, first)
  assert hidden.shape == (time, batch, 8)
  np.testing.assert_array_equal(hidden[-1], last)
  changed, _ = run(state + 1, inputs + ~reached, first)
  differences = np.abs(changed - hidden).max(-1)
  # Only the second of the batch begins a task, with the step of the flag.
  np.testing.assert_array_equal(differences[reset:, 1], 0)
  assert np.all(differences[reset:, 0] > 1e-4)
  assert np.all(differences[:reset] > 1e-4)
  # As from the state of one who has read nothing.
  read = jax.jit(functools.partial(GRU.read, _params()))
  fresh = GRU.start()
  for t in range(reset, time):
    expected, fresh = read(fresh, inputs[t, 1])
    np.testing.assert_allclose(hidden[t, 1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cell", NETWORKS)
def test_unroll_resets_all_parts_of_a_state(cell):
  network = NETWORKS[cell]
  state = jax.tree.map(lambda x: jnp.full((1, *x.shape), 5.0), network.start())
  inputs = jnp.ones((1, 1, FEATURES + ACTIONS + 2))
  run = jax.jit(functools.partial(unroll, network, _params(cell)))
  fresh = jax.tree.map(jnp.zeros_like, state)
  nothing, _ = run(fresh, inputs, jnp.zeros((1, 1), bool))
  reset, _ = run(state, inputs, jnp.ones((1, 1), bool))
  kept, _ = run(state, inputs, jnp.zeros((1, 1), bool))
  np.testing.assert_array_equal(reset, nothing)
  assert np.all(kept != nothing)


def _h(x):
  return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + EPS * x


def _h_inverse(x):
  root = np.sqrt(1 + 4 * EPS * (np.abs(x) + 1 + EPS))
  return np.sign(x) * (((root - 1) / (2 * EPS)) ** 2 - 1)


def test_last_action_of_a_trial_is_worth_its_reward():
  """Sequences of one action: the priority is its error."""
  objective = OBJECTIVE._replace(burn_in=0, eta=1.0)
  trials, _ = _played()
  last, before = (
    Sequence(
      jax.tree.map(lambda x: x[:3, t : t + 2], trials.steps),  # noqa: B023
      trials.memories[:3, t],
      np.full(3, t),
    )
    for t in (NUM_STEPS - 1, NUM_STEPS - 2)
  )
  params, target_params = _params(), _params(seed=1)
  for part, discount in ((last, 0.0), (before, DISCOUNT)):
    _, (priorities, _) = _loss(objective)(params, target_params, part)
    online, target = (
      np.float64(_values(objective)(p, part)) for p in (params, target_params)
    )
    rows = np.arange(3)
    chosen = online[rows, 0, part.steps.action[:, 1]]
    value = _h_inverse(target[rows, 1, online[:, 1].argmax(-1)])
    reward = np.float64(part.steps.reward[:, 1])
    expected = np.abs(_h(reward + discount * value) - chosen)
    np.testing.assert_allclose(priorities, expected, rtol=1e-4, atol=1e-5)


def test_what_the_last_action_led_to_matters_only_inside_a_trial():
  sequences = _batch()
  changed = sequences.steps.observation.copy()
  changed[:, LENGTH] += 2
  before, after = (
    np.asarray(_loss()(_params(), _params(seed=1), s)[1][0])
    for s in (sequences, _with(sequences, observation=changed))
  )
  at_the_end = sequences.start + LENGTH == NUM_STEPS
  assert 0 < at_the_end.sum() < at_the_end.size
  np.testing.assert_array_equal(before == after, at_the_end)


def _by_hand(online, target, sequences, weights, objective, given=None):
  """Loss, priorities and the mean value, an action at a time, in float64.

  The values of the actions taken may be given; targets are of the others.
  """
  given = online if given is None else given
  steps, _, starts = sequences
  h, inverse = (_h, _h_inverse) if objective.eps else (lambda x: x,) * 2
  total, count, values, priorities = 0.0, 0, 0.0, []
  for i, start in enumerate(starts):
    errors = []
    for t in range(LENGTH):
      if start > 0 and t < objective.burn_in:
        continue
      target_value, factor, place = 0.0, 1.0, t
      while place < min(t + objective.n, LENGTH):
        target_value += factor * float(steps.reward[i, place + 1])
        place += 1
        factor *= objective.discount * (start + place < NUM_STEPS)
      best = np.argmax(online[i, place])
      target_value += factor * inverse(target[i, place, best])
      chosen = given[i, t, steps.action[i, t + 1]]
      errors.append(abs(h(target_value) - chosen))
      total += weights[i] * errors[-1] ** 2 / 2
      values += chosen
      count += 1
    priorities.append(
      objective.eta * max(errors) + (1 - objective.eta) * np.mean(errors)
    )
  return total / count, priorities, values / count


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"burn_in": 0, "n": 1, "eta": 0.3},
    {"eps": None, "n": 7, "discount": 1.0},
    {"zero_state": True},
  ],
)
def test_loss_equals_a_plain_loop(changes):
  objective = OBJECTIVE._replace(**changes)
  params, target_params, sequences = _params(), _params(seed=1), _batch()
  loss, (priorities, metrics) = _loss(objective)(
    params, target_params, sequences
  )
  online, target = (
    np.float64(_values(objective)(p, sequences))
    for p in (params, target_params)
  )
  expected = _by_hand(online, target, sequences, np.float64(WEIGHTS), objective)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-4)
  np.testing.assert_allclose(priorities, expected[1], rtol=1e-4)
  np.testing.assert_allclose(metrics["q"], expected[2], rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(metrics["loss"], loss)


@pytest.mark.parametrize("changes", [{}, {"zero_state": True, "n": 7}])
def test_acting_priorities_are_of_the_values_that_the_actor_had(changes):
  """Read one by one, with themselves as targets, from no zero states."""
  objective = OBJECTIVE._replace(**changes)
  trials, _ = _played()
  found = jax.jit(
    jax.vmap(
      lambda trial: acting_priorities(
        GRU, _params(), trial, cut(trial, LENGTH, PERIOD), objective
      )
    )
  )(jax.tree.map(lambda x: x[:3], trials))
  values, _ = _one_by_one(trials)
  values = np.float64(values[:3, STARTS[:, None] + np.arange(LENGTH + 1)])
  values = values.reshape(12, LENGTH + 1, ACTIONS)
  _, expected, _ = _by_hand(values, values, _batch(), np.ones(12), objective)
  np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4)


@pytest.mark.slow
def test_numbers_of_an_objective_may_be_swept_and_learned():
  """Traced, they are no truth; a vmap over them is a loop."""
  params, target_params, sequences = _params(), _params(seed=1), _batch()

  def loss(numbers):
    discount, eta, eps = numbers
    objective = OBJECTIVE._replace(discount=discount, eta=eta, eps=eps)
    value, (priorities, _) = replay_loss(
      GRU, params, target_params, sequences, jnp.asarray(WEIGHTS), objective
    )
    return value, priorities

  numbers = jnp.array([[0.9, 0.5, 1e-2], [0.8, 0.9, 1e-3]])
  together = jax.jit(jax.vmap(loss))(numbers)
  for i, row in enumerate(numbers.tolist()):
    for x, y in zip(jax.jit(loss)(tuple(row)), together, strict=True):
      np.testing.assert_allclose(x, y[i], rtol=1e-5)
  assert together[0][0] != together[0][1]


def test_errors_of_a_narrow_network_are_wide():
  """In bfloat16 a mean of many is short of digits, in float16 a sum is inf."""
  sequences = _batch()
  sequences = sequences._replace(
    steps=sequences.steps._replace(reward=100 * sequences.steps.reward)
  )
  narrow = GRU._replace(
    head=lambda params, hidden: GRU.head(params, hidden).astype(jnp.float16)
  )
  objective = OBJECTIVE._replace(eps=None)
  losses = [
    jax.jit(
      lambda s, network=network: replay_loss(
        network, _params(), _params(seed=1), s, jnp.ones(12), objective
      )
    )(sequences)
    for network in (GRU, narrow)
  ]
  assert losses[0][0] * 50 > np.finfo(np.float16).max
  for x, y in zip(*map(jax.tree.leaves, losses), strict=True):
    assert x.dtype == y.dtype == jnp.float32
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-2)


@pytest.mark.slow
def test_gradient_is_that_of_finite_differences_at_constant_targets():
  """Targets are constants, and so are states behind burn-in."""
  narrow = jax.device_get((_params(), _params(seed=1), _batch()))
  with jax.enable_x64(True):
    params, target_params, sequences = jax.tree.map(
      lambda x: jnp.float64(x) if x.dtype == np.float32 else jnp.asarray(x),
      narrow,
    )
    weights = jnp.asarray(WEIGHTS)
    inputs = encode(sequences.steps, ACTIONS).swapaxes(0, 1)
    first = sequences.steps.first.swapaxes(0, 1)

    is_warm = np.arange(LENGTH + 1)[:, None] < BURN_IN * (narrow[2].start > 0)

    @jax.jit
    def values(params, given):
      """Burn-in with given parameters, but where it is none."""

      def one(state, step):
        inputs, first, is_warm = step
        state = jnp.where(first[:, None], 0, state)
        hidden, state = jax.tree.map(
          functools.partial(jnp.where, is_warm[:, None]),
          *(GRU.read(p, state, inputs) for p in (given, params)),
        )
        return state, hidden

      _, hidden = jax.lax.scan(one, sequences.state, (inputs, first, is_warm))
      return GRU.head(params, hidden).swapaxes(0, 1)

    online, target = (np.asarray(values(p, p)) for p in (params, target_params))
    flat, unflatten = ravel_pytree(params)

    def loss(flat):
      given = np.asarray(values(unflatten(flat), params))
      return _by_hand(online, target, sequences, weights, OBJECTIVE, given)[0]

    grads, (_, metrics) = jax.jit(
      lambda p: jax.grad(replay_loss, argnums=1, has_aux=True)(
        GRU, p, target_params, sequences, weights, OBJECTIVE
      )
    )(params)
    np.testing.assert_allclose(metrics["loss"], loss(flat), rtol=1e-9)
    slope = np.asarray(ravel_pytree(grads)[0])
    assert slope.dtype == np.float64
    rng = np.random.default_rng(0)
    for _ in range(6):
      direction = rng.normal(size=flat.size)
      near, far = (loss(flat + step * direction) for step in (-1e-6, 1e-6))
      np.testing.assert_allclose(
        slope @ direction, (far - near) / 2e-6, rtol=1e-5, atol=1e-7
      )


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_player_takes_the_best_action_unless_it_explores(epsilon):
  trials, _ = _played(epsilon=epsilon)
  actions = trials.steps.action[:, 1:]
  best = _one_by_one(trials)[0][:, :-1].argmax(-1)
  # Any action is the best one in a third of the cases.
  expected = 1 - epsilon * (1 - 1 / ACTIONS)
  tolerance = 0.08 if epsilon else 0  # Of 480 actions: 3.5 sigma.
  assert np.mean(actions == best) == pytest.approx(expected, abs=tolerance)
  if epsilon:
    assert set(np.unique(actions)) == set(range(ACTIONS))


def test_ladder_falls_from_the_boldest_actor_to_the_least():
  np.testing.assert_allclose(
    epsilon_ladder(4, 0.4, 6.0), 0.4 ** np.array([1, 3, 5, 7]), rtol=1e-5
  )
  np.testing.assert_allclose(epsilon_ladder(1, 0.4), [0.4], rtol=1e-6)
