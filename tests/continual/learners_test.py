"""Learners of a stream against plain loops in numpy, on a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metajax.continual import (
  Reservoir,
  elastic_weights,
  meta_experience_replay,
  online,
  replayed,
)
from metajax.continual.learners import Learned
from metajax.types import Batch, State

RNG = jax.random.key(0)
RATE, WITHIN, ACROSS, STRENGTH = 0.1, 0.5, 0.3, 2.0
BATCH, BATCHES = 3, 2


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _loss(params, example):
  """-log N(y | x w, 1) but for a constant; w is in two parts, a tree."""
  x, y = example[:2]
  error = x[:2] @ params["first"] + x[2] * params["last"] - y
  return error**2 / 2


def _count(params, example):
  """A loss by whose gradient parameters count the examples that are seen."""
  return -params @ example.inputs


def _examples(number, seed=0):
  draw = np.random.default_rng(seed).normal
  return Batch(draw(size=(number, 3)), draw(size=number))


def _example(examples, i):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), examples)


def _flat(params):
  return np.append(params["first"], params["last"])


def _tree(theta):
  return {"first": jnp.asarray(theta[:2]), "last": jnp.asarray(theta[2])}


THETA = np.array([0.5, -1.0, 0.25])


def _close(found, expected):
  np.testing.assert_allclose(_flat(found), expected, rtol=1e-9, atol=1e-12)


def _run(learner, examples):
  """Yields what is learned before the first and after each of the examples."""
  learned = learner.init(_tree(THETA), _example(examples, 0))
  yield learned
  observe = jax.jit(learner.observe)
  for i in range(len(examples.targets)):
    rng = jax.random.fold_in(RNG, i)
    learned = observe(learned, _example(examples, i), rng)
    yield learned


# --- The algorithms again, one example at a time, in numpy. ---


def _gradient(theta, x, y):
  return (x @ theta - y) * x


def _sgd_by_hand(theta, x, y):
  return theta - RATE * _gradient(theta, x, y)


def _replay_by_hand(theta, kept, new):
  batch = [kept] * (BATCH - 1) + [new]
  for _ in range(BATCHES):
    grads = [_gradient(theta, *example) for example in batch]
    theta = theta - RATE * np.mean(grads, axis=0)
  return theta


def _mer_by_hand(theta, kept, new):
  """Riemer et al. 2019, algorithm 1, the lines for one new example."""
  batch = [kept] * (BATCH - 1) + [new]
  before_all = theta
  for _ in range(BATCHES):
    before_batch = theta
    for example in batch:
      theta = _sgd_by_hand(theta, *example)
    theta = before_batch + WITHIN * (theta - before_batch)
  return before_all + ACROSS * (theta - before_all)


def _fisher_by_hand(theta, examples):
  total = 0.0
  for example in zip(*examples[:2], strict=True):
    total = total + _gradient(theta, *example) ** 2
  return total / len(examples.targets)


def _replay(capacity, batch=BATCH, batches=BATCHES):
  return replayed(_loss, RATE, capacity=capacity, batch=batch, batches=batches)


def _mer(capacity, batch=BATCH, batches=BATCHES):
  return meta_experience_replay(
    _loss,
    RATE,
    WITHIN,
    ACROSS,
    capacity=capacity,
    batch=batch,
    batches=batches,
  )


REPLAYS = pytest.mark.parametrize(
  "make, by_hand",
  [(_replay, _replay_by_hand), (_mer, _mer_by_hand)],
  ids=["replayed", "meta_experience_replay"],
)


# --- The tests. ---


def test_online_is_sgd():
  examples, theta = _examples(5), THETA
  *_, last = _run(online(_loss, RATE), examples)
  for example in zip(*examples[:2], strict=True):
    theta = _sgd_by_hand(theta, *example)
  _close(last.params, theta)


@REPLAYS
def test_replay_from_a_memory_of_one_equals_a_plain_loop(make, by_hand):
  """All draws are of the one example that was kept before the new one."""
  examples, theta, places = _examples(8), THETA, []
  run = _run(make(capacity=1), examples)
  before = next(run)
  for i, (new, after) in enumerate(
    zip(zip(*examples[:2], strict=True), run, strict=True)
  ):
    # Whichever it was: the reservoir has tests of its own.
    kept = (
      new if i == 0 else [np.asarray(x)[0] for x in before.memory.items[:2]]
    )
    theta = by_hand(theta, kept, new)
    _close(after.params, theta)
    before = after
    found = np.flatnonzero(after.memory.items.targets == examples.targets)
    places.extend(found.tolist())
  # Each time one that was seen is kept: at times the newest, at times not.
  assert len(places) == 8 and places[0] == 0
  assert 1 < len(set(places)) < 8


@REPLAYS
def test_replay_does_not_draw_places_that_are_not_yet_taken(make, by_hand):
  """While there is room, and what is kept is three times the same."""
  examples = jax.tree.map(lambda leaf: leaf[[0, 0, 0, 1]], _examples(2))
  old, _, _, new = zip(*examples[:2], strict=True)
  theta = THETA
  *_, last = _run(make(capacity=6), examples)
  for example in (old, old, old, new):
    theta = by_hand(theta, old, example)
  _close(last.params, theta)


def test_replay_with_nothing_to_replay_is_sgd():
  examples = _examples(1)
  _, last = _run(_replay(capacity=1), examples)
  theta = THETA
  for _ in range(BATCHES):
    theta = _sgd_by_hand(theta, examples.inputs[0], examples.targets[0])
  _close(last.params, theta)


def test_meta_replay_of_whole_steps_and_no_draws_is_online_sgd():
  examples = _examples(6)
  learner = meta_experience_replay(
    _loss, RATE, within=1.0, across=1.0, capacity=2, batch=1, batches=1
  )
  for found, expected in zip(
    _run(learner, examples), _run(online(_loss, RATE), examples), strict=True
  ):
    _close(found.params, _flat(expected.params))


@pytest.mark.slow
@pytest.mark.parametrize(
  "learner",
  [
    # Two times the mean of two: the sum of both.
    replayed(_count, 2.0, capacity=2, batch=2, batches=2),
    meta_experience_replay(_count, 1.0, 1.0, capacity=2, batch=2, batches=2),
  ],
  ids=["replayed", "meta_experience_replay"],
)
def test_draws_and_what_is_kept_do_not_depend_on_each_other(learner):
  """Of a memory of examples 0 and 1 comes one for each of two batches.

  Example 2 comes with each. It is the fourth that is seen: it is then kept at
  place 0 or at place 1 with chance 1/4 each.
  """
  examples = Batch(np.eye(3), np.arange(3))
  earlier = jax.tree.map(lambda leaf: jnp.asarray(leaf[:2]), examples)
  learned = Learned(jnp.zeros(3), Reservoir(earlier, jnp.int32(3)))
  new = _example(examples, 2)
  keys = jax.random.split(RNG, 4000)
  found = jax.jit(
    jax.vmap(lambda rng: learner.observe(learned, new, rng)),
  )(keys)
  counts = np.asarray(found.params)
  np.testing.assert_array_equal(counts[:, 2], 2)
  np.testing.assert_array_equal(counts.sum(1), 4)
  targets = np.asarray(found.memory.items.targets).tolist()
  cells = [
    sum(
      draws == times and kept == memory
      for draws, kept in zip(counts[:, 0], targets, strict=True)
    )
    for times in (0, 1, 2)
    for memory in ([0, 1], [2, 1], [0, 2])
  ]
  chances = np.outer([1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4]).ravel()
  # A p below 1e-3 would be chance once in 1000 keys, and the key is fixed.
  assert stats.chisquare(cells, len(keys) * chances).pvalue > 1e-3


def test_elastic_weights_equal_a_plain_loop_over_three_tasks():
  """With one penalty for each earlier task, which are kept one by one."""
  learner, theta, earlier = elastic_weights(_loss, RATE, STRENGTH), THETA, []
  observe, end_task = jax.jit(learner.observe), jax.jit(learner.end_task)
  learned = learner.init(_tree(THETA), _example(_examples(1), 0))
  for task in range(3):
    examples = _examples(4, seed=task)
    for i, example in enumerate(zip(*examples[:2], strict=True)):
      learned = observe(learned, _example(examples, i), RNG)
      gradient = _gradient(theta, *example)
      for fisher, centre in earlier:
        gradient = gradient + STRENGTH * fisher * (theta - centre)
      theta = theta - RATE * gradient
      _close(learned.params, theta)
    learned = end_task(learned, examples)
    _close(learned.params, theta)
    earlier.append((_fisher_by_hand(theta, examples), theta))


def test_two_penalties_pull_to_the_mean_of_earlier_parameters():
  """Without a loss each step leaves a fixed share of the way.

  The sum of two quadratics has its minimum at the mean of their centres,
  weighted by Fisher information, and the sum of their curvatures.
  """
  learner = elastic_weights(_loss, RATE, STRENGTH)
  nothing = Batch(jnp.zeros(3), jnp.float64(0.0))
  learned = learner.init(_tree(THETA), nothing)
  centres = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.5]])
  fishers, end_task = [], jax.jit(learner.end_task)
  for task, centre in enumerate(centres):
    examples = _examples(5, seed=task)
    learned = end_task(learned._replace(params=_tree(centre)), examples)
    fishers.append(_fisher_by_hand(centre, examples))
  learned = learned._replace(params=_tree(THETA))
  observe = jax.jit(learner.observe)
  mean = np.average(centres, axis=0, weights=fishers)
  for step in range(1, 4):
    learned = observe(learned, nothing, RNG)
    left = (1 - RATE * STRENGTH * np.sum(fishers, axis=0)) ** step
    _close(learned.params, mean + left * (THETA - mean))


def test_elastic_weights_without_strength_are_online_sgd():
  examples = _examples(4)
  learner, theta = elastic_weights(_loss, RATE, 0.0), THETA
  # An earlier task, far away, that would pull.
  learned = learner.init(_tree(THETA + 5), _example(examples, 0))
  learned = jax.jit(learner.end_task)(learned, _examples(4, seed=1))
  assert min(_flat(learned.memory[0])) > 0
  learned = learned._replace(params=_tree(THETA))
  observe = jax.jit(learner.observe)
  for i, example in enumerate(zip(*examples[:2], strict=True)):
    learned = observe(learned, _example(examples, i), RNG)
    theta = _sgd_by_hand(theta, *example)
  _close(learned.params, theta)


@pytest.mark.parametrize(
  "learner",
  [online(_loss, RATE), _replay(capacity=2), _mer(capacity=2)],
  ids=["online", "replayed", "meta_experience_replay"],
)
def test_others_do_nothing_at_the_end_of_a_task(learner):
  examples = _examples(3)
  learned = learner.init(_tree(THETA), _example(examples, 0))
  assert jax.tree.map(
    lambda found, given: found is given,
    learner.end_task(learned, examples),
    learned,
  ) == jax.tree.map(lambda _: True, learned)


@pytest.mark.parametrize(
  ("name", "learner"),
  [
    ("online", online(_loss, RATE)),
    ("replayed", _replay(capacity=2)),
    ("meta_experience_replay", _mer(capacity=2)),
    ("elastic_weights", elastic_weights(_loss, RATE, STRENGTH)),
  ],
)
def test_state_and_masks_are_refused(name, learner):
  """A step of SGD would move running statistics by their gradient."""
  example = _example(_examples(1), 0)
  params = {**_tree(THETA), "norm": State(jnp.ones(3))}
  with pytest.raises(ValueError, match=f"^model: keeps .* which {name} does"):
    learner.init(params, example)
  with pytest.raises(ValueError, match=f"^mask: {name} learns from every"):
    learner.init(_tree(THETA), example._replace(mask=jnp.bool_(True)))


@pytest.mark.parametrize("make", [_replay, _mer])
@pytest.mark.parametrize("name", ["capacity", "batch", "batches"])
def test_numbers_that_are_not_positive_are_refused(make, name):
  for value in (0, -1):
    with pytest.raises(ValueError, match=f"^{name}={value}: must be 1 or more"):
      make(**{"capacity": 2, name: value})


def test_elastic_weights_of_a_narrow_model_keep_its_dtype():
  """The Fisher information is kept, and summed over tasks, in float32."""

  def loss(theta, example):
    return jnp.square(theta * example.inputs - example.targets)

  learner = elastic_weights(loss, 0.1, 1.0)
  theta = jnp.bfloat16(1)
  examples = Batch(jnp.array([1e-3, 1.0], jnp.bfloat16), jnp.zeros(2))
  example = jax.tree.map(lambda x: x[0], examples)
  learned, end_task = learner.init(theta, example), jax.jit(learner.end_task)
  for _ in range(300):
    learned = end_task(learned, examples)
  # The mean of (2 theta x^2)^2 over both examples, 300 times.
  x = np.float64(examples.inputs)
  expected = 300 * np.mean((2 * x**2) ** 2)
  np.testing.assert_allclose(learned.memory[0], expected, rtol=1e-3)
  after = learner.observe(learned, example, jax.random.key(0))
  assert after.params.dtype == jnp.bfloat16


LEARNERS = {
  "online": lambda rate, loss=_loss: online(loss, rate),
  "replayed": lambda rate, loss=_loss: replayed(
    loss, rate, capacity=2, batch=2
  ),
  "mer": lambda rate, loss=_loss: meta_experience_replay(
    loss, rate, WITHIN, capacity=2, batch=2
  ),
  "ewc": lambda rate, loss=_loss: elastic_weights(loss, rate, STRENGTH),
}


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_step_size_that_is_none_is_named(name, rate):
  with pytest.raises(ValueError, match="^step_size=.* must be 0 or more"):
    LEARNERS[name](rate)


@pytest.mark.parametrize("name", LEARNERS)
def test_integers_beside_weights_stay_and_narrow_weights_stay_narrow(name):
  """A count gets no gradient; a wide rate does not widen the weights."""

  def loss(params, example):
    return jnp.square(params["w"] @ example.inputs - example.targets)

  weights = jnp.zeros(3, jnp.float16)
  examples, params = _examples(4), {"w": weights, "count": jnp.int32(7)}
  learner = LEARNERS[name](np.float64(0.01), loss)

  @jax.jit
  def learn(params):
    first = jax.tree.map(lambda x: x[0], examples)
    start = learner.init(params, first)
    keys = jax.random.split(RNG, 4)
    state, _ = jax.lax.scan(
      lambda state, x: (learner.observe(state, *x), None),
      start,
      (examples, keys),
    )
    return learner.observe(learner.end_task(state, examples), first, RNG).params

  found = learn(params)
  assert found["count"] == 7 and found["count"].dtype == jnp.int32
  assert found["w"].dtype == jnp.float16 and np.abs(found["w"]).min() > 0
