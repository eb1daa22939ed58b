"""Replay of tasks: which are learned from, when they go, how a run resumes."""

import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metajax.learners import maml, reptile
from metajax.losses import mean_squared_error
from metajax.replay import EpisodeReplay, episode_replay_trainer
from metajax.training import checkpoint, task_mesh
from metajax.types import Batch, Episode, MetaLearner, State

TASK_KEY, INIT_KEY = jax.random.key(1), jax.random.key(2)
# Buffers are full after 4 steps, and steps wrap around their end.
REPLAY = EpisodeReplay(new=2, batch=5, capacity=7)
STEPS = 400


def _numbered(rng):
  """Tasks that are told apart by a number, never 0, which float32 can hold."""
  number = jax.random.randint(rng, (1,), 1, 2**23).astype(jnp.float32)
  batch = Batch(number, -number)
  return Episode(batch, batch)


def _recorder(batch):
  """A learner that learns nothing: its parameters become what it has seen.

  These are the numbers of the tasks, and of the keys that it is given.
  """

  def init(rng, inputs):
    del rng
    assert inputs.shape == (1,)
    return {"tasks": jnp.zeros(batch), "key": jnp.float32(0)}

  def meta_grad(params, episodes, rng):
    (numbers, targets, _), query = episodes
    # Whole episodes are kept: their parts stay together.
    is_whole = (
      (numbers == -targets) & (numbers == query.inputs) & (targets == query[1])
    )
    seen = {"tasks": numbers[:, 0], "key": _numbered(rng).support.inputs[0]}
    # Differences of such numbers are exact.
    grads = jax.tree.map(jnp.subtract, params, seen)
    return grads, {"sum": numbers.sum() / 2**20, "whole": is_whole.mean()}

  return MetaLearner(init, lambda *_: None, lambda *_: None, meta_grad)


def _trainer(learner=None, tasks=_numbered, mesh=None, **changes):
  replay = REPLAY._replace(**changes)
  return episode_replay_trainer(
    learner or _recorder(replay.batch),
    optax.sgd(1.0),
    tasks,
    replay,
    rng=TASK_KEY,
    mesh=mesh or task_mesh(1),
  )


def _run(trainer, steps):
  """`(states, metrics)` after 0, 1, ... steps, taken one by one."""
  init, train = trainer
  states, metrics = [jax.device_get(init(INIT_KEY))], []
  for _ in range(steps):
    state, scores = jax.device_get(train(jax.device_put(states[-1]), 1))
    states.append(state)
    metrics.append(scores)
  return states, metrics


def _kept(state):
  """The numbers in the buffer `[capacity]`."""
  return state.opt_state[1].experience.support.inputs[0, 0, :, 0]


def _new(states, replay):
  """The numbers drawn in each step `[steps, new]`: where it has written."""
  return np.array(
    [
      [
        _kept(state)[(step * replay.new + i) % replay.capacity]
        for i in range(replay.new)
      ]
      for step, state in enumerate(states[1:])
    ]
  )


def _seen(states):
  """The numbers learned from in each step `[steps, batch]`."""
  return np.array([state.meta_params["tasks"] for state in states[1:]])


@pytest.fixture(scope="module")
def trainer():
  """`(init, train)`, compiled once for all of these tests."""
  built = _trainer()
  train, _ = built.compile(jax.eval_shape(built.init, INIT_KEY))
  return built.init, train


@pytest.fixture(scope="module")
def history(trainer):
  return _run(trainer, STEPS)


def test_every_step_draws_new_tasks_and_keeps_them(history):
  states, _ = history
  assert not np.any(_kept(states[0]))
  assert [int(state.step) for state in states[:4]] == [0, 1, 2, 3]
  for before, after in zip(states, states[1:], strict=False):
    assert np.sum(_kept(before) != _kept(after)) == REPLAY.new
  new = _new(states, REPLAY)
  assert len(np.unique(new)) == new.size


def test_newest_tasks_are_kept_and_the_oldest_go_first(history):
  states, _ = history
  drawn = _new(states, REPLAY).ravel()
  for step in range(1, 30):
    newest = drawn[: step * REPLAY.new][-REPLAY.capacity :]
    kept = _kept(states[step])
    np.testing.assert_array_equal(np.sort(kept[kept > 0]), np.sort(newest))


def test_only_tasks_that_are_kept_are_learned_from(history):
  """Before the buffer is full there are empty places, of number 0."""
  states, metrics = history
  drawn, seen = _new(states, REPLAY).ravel(), _seen(states)
  for step in range(1, STEPS + 1):
    newest = drawn[: step * REPLAY.new][-REPLAY.capacity :]
    assert np.all(np.isin(seen[step - 1], newest))
  assert all(scores["whole"] == 1 for scores in metrics)


def test_tasks_of_all_ages_are_learned_from_equally_often(history):
  """From those just drawn to the oldest that is kept, with replacement."""
  states, _ = history
  drawn, seen = _new(states, REPLAY).ravel(), _seen(states)
  ages, repeats = [], 0
  for step in range(4, STEPS + 1):
    newest = list(drawn[: step * REPLAY.new][-REPLAY.capacity :])
    ages += [newest.index(number) for number in seen[step - 1]]
    repeats += len(set(seen[step - 1])) < REPLAY.batch
  counts = np.bincount(ages, minlength=REPLAY.capacity)
  assert counts.shape == (REPLAY.capacity,)
  assert scipy.stats.chisquare(counts).pvalue > 0.01
  # All of a batch are different in 7 6 5 4 3 / 7^5 = 15 of 100.
  expected = 1 - 7 * 6 * 5 * 4 * 3 / 7**5
  trials = STEPS - 3
  assert scipy.stats.binomtest(repeats, trials, expected).pvalue > 0.01


def test_learner_is_given_another_key_in_every_step(history):
  keys = [float(state.meta_params["key"]) for state in history[0][1:]]
  assert len(set(keys)) == STEPS


def test_calls_of_any_lengths_end_in_the_same_bits(trainer, history):
  """The buffer and all else; metrics are means over the steps of a call."""
  init, train = trainer
  states, one_by_one = history
  for lengths in ((9,), (4, 5)):
    state = init(INIT_KEY)
    for length in lengths:
      state, metrics = train(state, length)
    chex.assert_trees_all_equal(jax.device_get(state), states[9])
    for name, value in metrics.items():
      expected = np.mean([m[name] for m in one_by_one[9 - lengths[-1] : 9]])
      np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_resumed_run_ends_in_the_same_bits(trainer, history, tmp_path):
  init, train = trainer
  states, _ = history
  checkpoints = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  checkpoint.save(checkpoints, train(init(INIT_KEY), 5)[0], {})
  checkpoints.manager.close()
  again = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  restored = checkpoint.restore(again, init(jax.random.key(9))).state
  again.manager.close()
  chex.assert_trees_all_equal(jax.device_get(restored), states[5])
  resumed, _ = train(restored, 4)
  chex.assert_trees_all_equal(jax.device_get(resumed), states[9])


def test_buffer_of_one_step_holds_what_was_drawn_and_nothing_else():
  """The tasks are data of the program, as those of Omniglot are."""
  replay = EpisodeReplay(new=2, batch=2, capacity=2)
  base = jnp.float32(2**22)

  def shifted(base, rng):
    return jax.tree.map(lambda x: x + jnp.sign(x) * base, _numbered(rng))

  tasks = jax.tree_util.Partial(shifted, base)
  init, compile = _trainer(tasks=tasks, **replay._asdict())
  states, _ = _run((init, compile(jax.eval_shape(init, INIT_KEY))[0]), 30)
  new, seen = _new(states, replay), _seen(states)
  assert new.min() > base
  samples = set()
  for drawn, learned in zip(new, seen, strict=True):
    assert set(learned) <= set(drawn)
    samples.add(tuple(np.isin(drawn, learned)))
  # Both of them, the first twice and the second twice.
  assert len(samples) == 3


def test_step_is_that_of_the_learner_on_what_was_sampled():
  """A buffer of one task: the steps of Reptile on it, in numpy."""
  rate, points = 0.1, 3
  linear = SimpleNamespace(
    init=lambda rng, inputs: jax.random.normal(rng, (inputs.shape[1], 1)),
    apply=lambda weights, inputs: inputs @ weights,
  )

  def lines(rng):
    x, noise = jax.random.normal(rng, (2, 2 * points, 1))
    halves = jnp.stack([x, x + noise]).reshape(2, 2, points, 1)
    (support, query), (labels, answers) = halves
    return Episode(Batch(support, labels), Batch(query, answers))

  learner = reptile(linear, mean_squared_error, optax.sgd(rate), 1)
  init, compile = _trainer(learner, lines, new=1, batch=1, capacity=1)
  states, _ = _run((init, compile(jax.eval_shape(init, INIT_KEY))[0]), 3)
  for before, after in zip(states, states[1:], strict=False):
    support, query = after.opt_state[1].experience
    x, y = (
      np.float64(np.concatenate([a, b], axis=-2)[0, 0, 0])
      for a, b in zip(support[:2], query[:2], strict=True)
    )
    theta = np.float64(before.meta_params)
    expected = theta - rate * 2 / len(y) * x.T @ (x @ theta - y)
    np.testing.assert_allclose(after.meta_params, expected, rtol=1e-5)
    assert np.all(np.abs(after.meta_params - before.meta_params) > 1e-3)


def _affine(rng, count, size):
  """A task of `count` real examples in arrays of `size`, the rest padding."""
  x = jax.random.normal(rng, (2, count, 1))
  batches = [
    Batch(
      jnp.pad(part, ((0, size - count), (0, 0)), constant_values=9.0),
      jnp.pad(2 * part + 1, ((0, size - count), (0, 0)), constant_values=-9.0),
      jnp.arange(size) < count if size > count else None,
    )
    for part in x
  ]
  return Episode(*batches)


def _counting_model():
  """A line, with a count and a mean of what it has seen beside it."""

  def init(rng, inputs):
    del inputs
    seen = State({"passes": jnp.int32(0), "mean": jnp.float32(0)})
    return {"line": jax.random.normal(rng, (2,)), "seen": seen}

  def apply(params, inputs):
    return params["line"][0] * inputs + params["line"][1]

  def train(params, inputs, rng, mask=None):
    del rng
    old = params["seen"].value
    mean = jnp.mean(inputs, where=None if mask is None else mask[:, None])
    seen = State({"passes": old["passes"] + 1, "mean": mean})
    return apply(params, inputs), params | {"seen": seen}

  return SimpleNamespace(init=init, apply=apply, train=train)


@pytest.mark.slow
def test_masked_tasks_and_state_are_kept_and_learned_from():
  """Padding counts nowhere, and the state is no weight."""
  learner = maml(_counting_model(), mean_squared_error, optax.sgd(0.1), 2)
  ends = []
  for size in (3, 5):
    init, compile = _trainer(
      learner,
      lambda rng, size=size: _affine(rng, 3, size),
      new=2,
      batch=4,
      capacity=4,
    )
    before = init(INIT_KEY)
    state, _ = compile(before)[0](init(INIT_KEY), 3)
    ends.append(jax.device_get((state.meta_params, state.opt_state[1])))
    # What is no weight stays as it is: a count is a count.
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), before.meta_params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), ends[-1][0])
  (plain, _), (masked, kept) = ends
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), plain, masked
  )
  assert kept.experience.support.mask[0, 0].sum() == 4 * 3
  assert plain["seen"].value["passes"] >= 3
  assert plain["seen"].value["mean"] != 0


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"devices": 4}, "new=2: must be a positive multiple of 4 devices."),
    ({"devices": 2}, "batch=5: must be a positive multiple of 2 devices."),
    (
      {"devices": 2, "batch": 4},
      "capacity=7: must be a positive multiple of 2 devices.",
    ),
    (
      {"devices": 2, "shards": 3},
      "shards=3: must be a positive multiple of 2 devices.",
    ),
    ({"shards": 0}, "shards=0: must be 1 or more."),
    ({"shards": 2}, "batch=5: must be a positive multiple of 2 shards."),
    ({"new": 0}, "new=0: must be a positive multiple of 1 devices."),
    ({"batch": -1}, "batch=-1: must be a positive multiple of 1 devices."),
    ({"capacity": 0}, "capacity=0: must be a positive multiple of 1 devices."),
    (
      {"new": 8},
      "capacity=7: must hold the 8 new tasks of a step, and the 5 that it "
      "learns from.",
    ),
    (
      {"batch": 8},
      "capacity=7: must hold the 2 new tasks of a step, and the 8 that it "
      "learns from.",
    ),
  ],
)
def test_numbers_that_do_not_fit_are_named(changes, message):
  changes = dict(changes)
  mesh = jax.sharding.AbstractMesh((changes.pop("devices", 1),), ("tasks",))
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    _trainer(_recorder(1), mesh=mesh, **changes)
