"""Acting and learning in one loop: resuming, the buffer, the target network."""

import chex
import flashbax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metajax.models.recurrent import recurrent
from metajax.players.recurrent import first_params
from metajax.replay import (
  Objective,
  Replay,
  q_player,
  replay_loss,
  replay_trainer,
  updates_per_step,
)
from metajax.replay.buffers import add, make_buffer, without_empty
from metajax.tasks.bandits import bandits
from metajax.tasks.trials import play
from metajax.training import checkpoint, task_mesh

TASK_KEY, INIT_KEY = jax.random.key(1), jax.random.key(2)
ARMS, PULLS = 2, 6
NETWORK = recurrent(ARMS, units=8, head="dueling")
OBJECTIVE = Objective(ARMS, PULLS, burn_in=1, n=2)
# 8 sequences a step, from 0 and 2 on; none is learned from in the first step,
# then there are 2 updates a step.
REPLAY = Replay(
  actors=4,
  length=4,
  period=2,
  capacity=20,
  batch=16,
  ratio=4.0,
  target_period=4,
)


def _trainer(network=NETWORK, objective=OBJECTIVE, mesh=None, **changes):
  return replay_trainer(
    network,
    bandits(ARMS, PULLS),
    # The rate is part of the state.
    optax.inject_hyperparams(optax.adam)(learning_rate=0.03),
    objective,
    REPLAY._replace(**changes),
    rng=TASK_KEY,
    mesh=mesh or task_mesh(1),
  )


TRACES = []


def _traced_read(*arguments):
  TRACES.append(arguments)
  return NETWORK.read(*arguments)


@pytest.fixture(scope="module")
def trainer():
  """`(init, train)`, traced and compiled once for all of these tests."""
  built = _trainer(network=NETWORK._replace(read=_traced_read))
  train, _ = built.compile(jax.eval_shape(built.init, INIT_KEY))
  return built.init, train


@pytest.fixture(scope="module")
def history(trainer):
  """The states after 0, 1, ..., 7 steps, on the host, taken one by one."""
  init, train = trainer
  states = [jax.device_get(init(INIT_KEY))]
  for _ in range(7):
    states.append(jax.device_get(train(jax.device_put(states[-1]), 1)[0]))
  return states


def _experience(state):
  """What is in the buffer, `[sequences, ...]`."""
  return jax.tree.map(lambda x: x[0, 0], state.opt_state.buffer.experience)


@pytest.mark.slow
def test_calls_of_any_lengths_end_in_the_same_bits(trainer, history):
  """The buffer, its priorities and all else."""
  init, train = trainer
  for lengths in ((4,), (3, 1)):
    state = init(INIT_KEY)
    for length in lengths:
      state, _ = train(state, length)
    chex.assert_trees_all_equal(jax.device_get(state), history[4])


@pytest.mark.slow
def test_resumed_run_ends_in_the_same_bits(trainer, history, tmp_path):
  init, train = trainer
  checkpoints = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  checkpoint.save(checkpoints, train(init(INIT_KEY), 2)[0], {})
  checkpoints.manager.close()
  again = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  restored = checkpoint.restore(again, init(jax.random.key(9))).state
  again.manager.close()
  chex.assert_trees_all_equal(jax.device_get(restored), history[2])
  resumed, _ = train(restored, 2)
  chex.assert_trees_all_equal(jax.device_get(resumed), history[4])


@pytest.mark.slow
def test_trainer_starts_with_an_empty_buffer_and_equal_networks(history):
  start, buffer = history[0], history[0].opt_state.buffer
  assert buffer.current_index[0] == 0
  assert not buffer.is_full[0]
  chex.assert_trees_all_equal(start.meta_params, start.opt_state.target_params)
  for leaf in jax.tree.leaves(_experience(start)):
    np.testing.assert_array_equal(leaf, 0)


def test_nothing_is_learned_before_there_is_a_batch(history):
  updates = [int(state.opt_state.updates) for state in history]
  assert updates_per_step(REPLAY, PULLS) == 2
  assert updates == [0, 0, 2, 4, 6, 8, 10, 12]
  assert [int(state.step) for state in history] == [*range(8)]
  chex.assert_trees_all_equal(history[1].meta_params, history[0].meta_params)
  for before, after in zip(history[1:], history[2:], strict=False):
    for a, b in zip(
      *map(jax.tree.leaves, (before.meta_params, after.meta_params)),
      strict=True,
    ):
      assert np.any(a != b)


def test_target_network_is_copied_after_its_period_of_updates(history):
  """Four updates, which end with steps 3, 5 and 7."""
  for step, copied in enumerate([0, 0, 0, 3, 3, 5, 5, 7]):
    chex.assert_trees_all_equal(
      history[step].opt_state.target_params, history[copied].meta_params
    )
  kernels = [s.meta_params["params"]["encoder"]["kernel"] for s in history]
  assert np.any(kernels[2] != kernels[0])
  assert np.any(kernels[4] != kernels[3])


def test_full_buffer_never_holds_a_sequence_of_two_tasks(history):
  """The capacity is 2.5 steps, so that steps wrap around its end."""
  for steps in range(1, 8):
    filled = min(8 * steps, REPLAY.capacity)
    buffer = history[steps].opt_state.buffer
    assert buffer.current_index[0] == 8 * steps % REPLAY.capacity
    assert buffer.is_full[0] == (8 * steps >= REPLAY.capacity)
    stored = jax.tree.map(lambda x: x[:filled], _experience(history[steps]))  # noqa: B023
    np.testing.assert_array_equal(stored.steps.first[:, 1:], False)
    np.testing.assert_array_equal(stored.steps.first[:, 0], stored.start == 0)
    # Two of a trial, side by side, agree in what they share.
    np.testing.assert_array_equal(stored.start, [0, 2] * (filled // 2))
    for leaf in stored.steps:
      np.testing.assert_array_equal(leaf[::2, 2:], leaf[1::2, :-2])


def test_every_step_and_every_actor_plays_a_task_of_its_own(history):
  """Also where the parameters are the same, as in the first two steps."""
  reward = _experience(history[2]).steps.reward[:16]
  first, second = reward[:8], reward[8:]
  assert np.any(first != second)
  for trials in (first[::2], second[::2]):
    assert len({trial.tobytes() for trial in trials}) > 1


def test_newest_sequences_take_the_place_of_the_oldest(history):
  """Step 4 writes 24 to 31, places 4 to 11 of 20."""
  before, after = (_experience(history[step]) for step in (3, 4))
  places = np.arange(REPLAY.capacity)
  is_new = (places >= 4) & (places < 12)
  changed = np.any(before.state != after.state, axis=-1) & (after.start > 0)
  np.testing.assert_array_equal(changed, is_new & (after.start > 0))


@pytest.mark.slow
def test_priorities_in_the_buffer_are_those_of_the_errors(trainer):
  """Whether a sequence was drawn or not: without learning they are the same.

  New ones have what their actor has set, those drawn what the loss has.
  """
  init, train = trainer
  state = init(INIT_KEY)
  state.opt_state.optimizer.hyperparams["learning_rate"] *= 0
  params = jax.device_get(state.meta_params)
  errors = jax.jit(
    lambda s: replay_loss(
      NETWORK, params, params, s, jnp.ones(REPLAY.capacity), OBJECTIVE
    )[1][0]
  )
  # Nothing is drawn in the first step, and the third wraps around the end.
  for steps, updates in ((1, 0), (2, 4)):
    state, _ = train(state, steps)
    chex.assert_trees_all_equal(jax.device_get(state.meta_params), params)
    assert state.opt_state.updates == updates
    host = jax.device_get(state)
    filled = min(8 * int(host.step), REPLAY.capacity)
    expected = np.float64(errors(_experience(host))) + 1e-6
    expected = expected[:filled] ** REPLAY.priority_exponent
    assert np.ptp(expected) > 0.05
    nodes = host.opt_state.buffer.sum_tree_state.nodes[0]
    found = nodes[len(nodes) // 2 :]
    np.testing.assert_allclose(found[:filled], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[filled:], 0)
    np.testing.assert_allclose(nodes[0], expected.sum(), rtol=1e-4)


def test_sequences_are_drawn_as_often_as_their_priorities_say():
  """The buffer as the trainer makes it, one draw at a time."""
  places, draws = 12, 20_000
  buffer = flashbax.make_prioritised_item_buffer(
    max_length=places,
    min_length=1,
    sample_batch_size=1,
    add_batches=True,
    priority_exponent=REPLAY.priority_exponent,
    device=jax.default_backend(),
  )
  priorities = np.random.default_rng(0).uniform(0.1, 2, places)
  powers = priorities**REPLAY.priority_exponent

  @jax.jit
  def draw(rng):
    state = buffer.init(jnp.int32(0))
    state = buffer.add(state, jnp.arange(places))
    state = buffer.set_priorities(
      state, jnp.arange(places), jnp.asarray(priorities, jnp.float32)
    )
    return jax.vmap(lambda key: buffer.sample(state, key))(
      jax.random.split(rng, draws)
    )

  sample = draw(jax.random.key(0))
  drawn = np.asarray(sample.experience)[:, 0]
  np.testing.assert_array_equal(drawn, sample.indices[:, 0])
  expected = powers / powers.sum()
  np.testing.assert_allclose(
    sample.probabilities[:, 0], expected[drawn], rtol=1e-5
  )
  counts = np.bincount(drawn, minlength=places)
  assert scipy.stats.chisquare(counts, draws * expected).pvalue > 0.01
  # So many draws tell these frequencies from those of an exponent of 1.
  linear = priorities / priorities.sum()
  assert scipy.stats.chisquare(counts, draws * linear).pvalue < 0.001


@pytest.mark.slow
def test_new_sequences_have_their_own_priorities_on_a_ring():
  """Larger and smaller than 1, and not the integer that flashbax makes."""
  buffer = make_buffer(Replay(capacity=5, batch=2, priority_exponent=1.0))
  state = buffer.init({"x": jnp.float32(0)})
  first, second = jnp.array([0.3, 7.5, 0.9]), jnp.array([0.2, jnp.nan, 2.5])
  for priorities in (first, second):
    state = add(buffer, state, {"x": 10 * priorities}, priorities)
  nodes = state.sum_tree_state.nodes
  # The second three are in the places 3, 4 and 0; what is no number counts 0.
  np.testing.assert_allclose(
    nodes[len(nodes) // 2 :][:5], [2.5, 7.5, 0.9, 0.2, 1e-6], rtol=1e-5
  )
  np.testing.assert_allclose(state.experience["x"][0, :4], [25, 75, 9, 2])


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"burn_in": 4}, "burn_in=4: must be from 0 to 3"),
    ({"burn_in": -1}, "burn_in=-1: must be from 0 to 3"),
    ({"capacity": 7, "batch": 4}, "capacity=7: must hold the 8 sequences"),
    ({"capacity": 15}, "capacity=15: must hold .* a batch"),
    ({"length": 7}, "length=7: must be from 1 to 6"),
    ({"length": 0}, "length=0: must be from 1 to 6"),
    ({"period": 5}, "period=5: must be from 1 to 4"),
    ({"period": 0}, "period=0: must be from 1 to 4"),
    ({"devices": 8}, "actors=4: must be a positive multiple of 8 devices"),
    (
      {"devices": 4, "batch": 6},
      "batch=6: must be a positive multiple of 4 devices",
    ),
    (
      {"devices": 4, "capacity": 22},
      "capacity=22: must be a positive multiple of 4",
    ),
    (
      {"devices": 4, "shards": 2},
      "shards=2: must be a positive multiple of 4 devices",
    ),
    ({"shards": 8}, "actors=4: must be a positive multiple of 8 shards"),
    ({"num_steps": 5}, "num_steps=5 of the objective: must be 6, as that"),
    ({"num_actions": 3}, "num_actions=3 of the objective: must be 2, as that"),
    ({"n": 0}, "n=0: must be 1 or more"),
    ({"discount": 1.1}, "discount=1.1: must be 0 to 1"),
    ({"eta": -0.1}, "eta=-0.1: must be 0 to 1"),
    ({"eps": -1e-3}, "eps=-0.001: must be 0 or more"),
    ({"ratio": 0.0}, "ratio=0.0: must be above 0"),
    ({"ratio": np.nan}, "ratio=nan: must be above 0"),
    ({"epsilon": 1.5}, "epsilon=1.5: must be 0 to 1"),
    ({"alpha": -1.0}, "alpha=-1.0: must be 0 or more"),
    ({"priority_exponent": -0.5}, "priority_exponent=-0.5: must be 0 to 1"),
    ({"importance_exponent": -1.0}, "importance_exponent=-1.0: must be 0 or"),
    ({"target_period": 0}, "target_period=0: must be 1 or more"),
  ],
)
def test_numbers_that_do_not_fit_are_named(changes, message):
  changes = dict(changes)
  of_objective = [name for name in changes if name in Objective._fields]
  objective = OBJECTIVE._replace(**{n: changes.pop(n) for n in of_objective})
  mesh = jax.sharding.AbstractMesh((changes.pop("devices", 1),), ("tasks",))
  with pytest.raises(ValueError, match=f"^{message}"):
    _trainer(objective=objective, mesh=mesh, **changes)


@pytest.mark.parametrize(
  "num_outputs, head, message",
  [
    (3, "dueling", "its head gives 3 outputs, but there are num_actions=2"),
    (1, "linear", "its head gives 1 outputs, but there are num_actions=2"),
    (2, "actor_critic", "its head gives no single array, but there are num_"),
  ],
)
def test_head_that_does_not_fit_the_tasks_is_named(num_outputs, head, message):
  """In the trainer, and by a player alone."""
  network = recurrent(num_outputs, units=4, head=head)
  with pytest.raises(ValueError, match=f"^network: {message}"):
    _trainer(network=network)
  tasks = bandits(ARMS, PULLS)
  params = first_params(network, tasks, INIT_KEY)
  with pytest.raises(ValueError, match=f"^network: {message}"):
    play(q_player(network, params, ARMS, 0.1), tasks, INIT_KEY)


@pytest.mark.parametrize(
  "changes, updates",
  [
    ({}, 2),
    ({"ratio": 1.0}, 1),  # Rounded up from a half to one.
    ({"ratio": 0.01}, 1),
    ({"ratio": 5.2}, 3),
    ({"batch": 8}, 4),
    ({"length": 6, "period": 6, "batch": 4}, 4),
  ],
)
def test_updates_after_a_trial_are_by_the_ratio(changes, updates):
  assert updates_per_step(REPLAY._replace(**changes), PULLS) == updates


@pytest.mark.slow
def test_metrics_are_of_rewards_that_bandits_pay(trainer):
  init, train = trainer
  _, metrics = train(init(INIT_KEY), 1)
  assert set(metrics) == {"loss", "q", "reward", "greedy_reward"}
  # Four trials in one step, and the last one is the least curious.
  assert float(metrics["reward"]) * 4 == round(float(metrics["reward"]) * 4)
  assert metrics["loss"] == metrics["q"] == 0


@pytest.mark.slow
def test_loop_is_traced_once_for_the_whole_run(trainer):
  init, train = trainer
  state = init(INIT_KEY)
  before = len(TRACES)
  assert before > 0
  for num_steps in (1, 3, 1):
    state, _ = train(state, num_steps)
  assert len(TRACES) == before


@pytest.mark.slow
def test_recurrent_player_learns_to_learn_a_bandit():
  """Ten pulls of two arms: 5 at random, 6.1 by the best player there is."""
  tasks = bandits(2, 10)
  network = recurrent(2, units=16, head="dueling")
  built = replay_trainer(
    network,
    tasks,
    optax.adam(optax.cosine_decay_schedule(5e-3, 600)),
    Objective(2, 10, n=5, discount=1.0),
    Replay(
      actors=32,
      length=10,
      period=10,
      capacity=4096,
      batch=64,
      ratio=4.0,
      target_period=20,
    ),
    rng=TASK_KEY,
    mesh=task_mesh(1),
  )

  @jax.jit
  def score(params):
    player = q_player(network, params, 2, 0.0)
    keys = jax.random.split(jax.random.key(11), 1000)
    rewards = jax.vmap(lambda key: play(player, tasks, key).rewards.sum())(keys)
    return rewards.mean()

  state = built.init(INIT_KEY)
  train, _ = built.compile(state)
  assert score(state.meta_params) < 5.3
  state, metrics = train(state, 300)
  assert int(state.opt_state.updates) == 2 * (300 - 1)
  # The standard error is 0.07.
  assert score(state.meta_params) > 5.8
  # On average, explorers and early players among them, it is less.
  assert 5.2 < float(metrics["reward"]) < 5.9


@pytest.mark.slow
def test_draws_of_nothing_are_replaced_by_a_sequence():
  """flashbax draws an empty place now and then, when its sums have drifted."""
  buffer = flashbax.make_prioritised_item_buffer(
    max_length=4, min_length=1, sample_batch_size=3, add_batches=True
  )
  state = buffer.init({"x": jnp.float32(0)})
  state = buffer.add(state, {"x": jnp.array([5.0, 6.0])})
  sample = buffer.sample(state, jax.random.key(0))
  drifted = sample.replace(
    experience={"x": jnp.array([0.0, 6.0, 5.0])},
    indices=jnp.array([3, 1, 0]),
    probabilities=jnp.array([0.0, 0.5, 0.5]),
  )
  mended = without_empty(drifted)
  np.testing.assert_array_equal(mended.experience["x"], [6, 6, 5])
  np.testing.assert_array_equal(mended.indices, [1, 1, 0])
  np.testing.assert_array_equal(mended.probabilities, 0.5)
  chex.assert_trees_all_equal(without_empty(sample), sample)
