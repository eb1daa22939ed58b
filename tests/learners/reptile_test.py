"""Reptile: its steps by hand, and the averages of models that it shares."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from metajax.aggregation import stack_models, weighted_average
from metajax.learners import reptile
from metajax.learners.reptile import minibatches
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.training import Clients, federated_trainer, meta_trainer
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
TASKS, SUPPORT, QUERY, FEATURES = 4, 3, 5, 2


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


LINEAR = SimpleNamespace(
  init=lambda rng, inputs: jax.random.normal(rng, (inputs.shape[1], 1)),
  apply=lambda weights, inputs: inputs @ weights,
)


def _episodes(seed=0):
  """Tasks [TASKS, n, ...] of noise: nothing about them is special."""
  draw = np.random.default_rng(seed).normal

  def batch(n):
    x, y = draw(size=(TASKS, n, FEATURES)), draw(size=(TASKS, n, 1))
    return Batch(jnp.asarray(x), jnp.asarray(y))

  return Episode(batch(SUPPORT), batch(QUERY))


def _whole(episodes):
  """Support and query of each task as one batch, by numpy."""
  return Batch(
    *(
      np.concatenate(x, 1) for x in zip(*(b[:2] for b in episodes), strict=True)
    )
  )


# --- Optimizers and linear regression again, in numpy. ---


def _sgd(rate):
  return lambda gradient: -rate * gradient


def _momentum(rate, decay):
  velocity = 0.0

  def step(gradient):
    nonlocal velocity
    velocity = gradient + decay * velocity
    return -rate * velocity

  return step


def _adam_without_momentum(rate):
  """The paper's: b1 = 0."""
  v = t = 0

  def step(gradient):
    nonlocal v, t
    t, v = t + 1, 0.999 * v + 0.001 * gradient**2
    return -rate * gradient / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

  return step


OPTIMIZERS = {
  "sgd": (lambda: _sgd(0.1), optax.sgd(0.1)),
  "momentum": (lambda: _momentum(0.1, 0.9), optax.sgd(0.1, momentum=0.9)),
  "adam": (lambda: _adam_without_momentum(0.1), optax.adam(0.1, b1=0.0)),
}


def _fit_by_hand(theta, x, y, step, num_steps):
  phi = theta
  for _ in range(num_steps):
    phi = phi + step(2 / len(y) * x.T @ (x @ phi - y))
  return phi


def _adapted_by_hand(theta, episodes, name, num_steps):
  """Returns phi of each task, whose optimizers start anew."""
  x, y, _ = _whole(episodes)
  return np.stack(
    [
      _fit_by_hand(theta, *task, OPTIMIZERS[name][0](), num_steps)
      for task in zip(x, y, strict=True)
    ]
  )


def _linear(name="sgd", num_steps=3, **arguments):
  learner = reptile(
    LINEAR, mean_squared_error, OPTIMIZERS[name][1], num_steps, **arguments
  )
  episodes = _episodes()
  theta = learner.init(RNG, episodes.support.inputs[0])
  return learner, theta, episodes


# --- The tests. ---


def test_one_step_is_the_step_size_times_the_gradient_of_the_joint_loss():
  model, rate, episodes = MLP(1, (6,)), 0.3, _episodes()
  learner = reptile(model, mean_squared_error, optax.sgd(rate), 1)
  theta = jax.jit(learner.init)(RNG, episodes.support.inputs[0])
  # The model's own initialisation is in float32.
  theta = jax.tree.map(lambda p: p.astype(np.float64), theta)
  # Tasks are equally large: their joint loss is that of all their examples.
  x, y = (a.reshape(-1, a.shape[-1]) for a in _whole(episodes)[:2])

  @jax.jit
  @jax.grad
  def joint(params):
    return jnp.mean((model.apply(params, x) - y) ** 2)

  grads, _ = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  expected = jax.tree.map(lambda g: rate * g, joint(theta))
  chex.assert_trees_all_close(grads, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
  "name, num_steps",
  [("sgd", 0), ("sgd", 1), ("sgd", 5), ("momentum", 5), ("adam", 5)],
)
def test_meta_gradient_is_the_way_back_from_the_mean_of_loops_in_numpy(
  name, num_steps
):
  learner, theta, episodes = _linear(name, num_steps)
  theta = np.asarray(theta)
  adapted = _adapted_by_hand(theta, episodes, name, num_steps)
  grads, _ = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  np.testing.assert_allclose(
    grads, theta - adapted.mean(axis=0), rtol=1e-9, atol=1e-14
  )


def test_outer_step_of_sgd_moves_by_epsilon_to_the_average_of_models():
  learner, theta, episodes = _linear()
  phi = jnp.asarray(_adapted_by_hand(np.asarray(theta), episodes, "sgd", 3))
  grads, _ = jax.jit(learner.meta_grad)(theta, episodes, RNG)

  def outer_step(epsilon):
    outer = optax.sgd(epsilon)
    updates, _ = outer.update(grads, outer.init(theta))
    return optax.apply_updates(theta, updates)

  expected = theta + 0.25 * (phi - theta).mean(axis=0)
  np.testing.assert_allclose(outer_step(0.25), expected, rtol=1e-9)
  average = weighted_average(stack_models(list(phi)))
  np.testing.assert_allclose(outer_step(1.0), average, rtol=1e-9)


@pytest.mark.slow
def test_federated_averaging_with_tasks_as_clients_is_reptile():
  """Full batch: an epoch is an inner step, a round an outer step."""
  num_steps, rounds = 3, 4
  learner, theta, episodes = _linear("momentum", num_steps)
  x, y = map(jnp.asarray, _whole(episodes)[:2])
  trainer = federated_trainer(
    LINEAR,
    mean_squared_error,
    Clients(Batch(x, y), jnp.full(TASKS, SUPPORT + QUERY, jnp.int32)),
    OPTIMIZERS["momentum"][1],
    optax.sgd(1.0),
    clients_per_round=TASKS,
    rng=RNG,
    local_epochs=num_steps,
  )
  start = trainer.init(RNG)
  np.testing.assert_allclose(start.meta_params, theta)
  state, _ = trainer.compile(start)[0](start, rounds)
  meta_grad = jax.jit(learner.meta_grad)
  for _ in range(rounds):
    theta = theta - meta_grad(theta, episodes, RNG)[0]
  np.testing.assert_allclose(state.meta_params, theta, rtol=1e-9)


def test_adapt_sees_the_support_and_takes_the_steps_of_evaluation():
  for arguments, steps in (({}, 2), ({"num_eval_steps": 6}, 6)):
    learner, theta, episodes = _linear("adam", 2, **arguments)
    support = jax.tree.map(lambda leaf: leaf[1], episodes.support)
    expected = _fit_by_hand(
      np.asarray(theta),
      *map(np.asarray, support[:2]),
      OPTIMIZERS["adam"][0](),
      steps,
    )
    phi = jax.jit(learner.adapt)(theta, support, RNG)
    np.testing.assert_allclose(phi, expected, rtol=1e-9)
    np.testing.assert_allclose(
      learner.predict(phi, support.inputs), support.inputs @ expected
    )


def test_reported_metrics_are_those_of_the_query_after_the_support_alone():
  errors = {"absolute": lambda p, t: jnp.mean(jnp.abs(p - t))}
  learner, theta, episodes = _linear(
    metrics=errors, num_eval_steps=1, held_out_report=True
  )
  residuals = []
  (xs, ys, _), (xs_query, ys_query, _) = jax.tree.map(np.asarray, episodes)
  for x, y, x_query, y_query in zip(xs, ys, xs_query, ys_query, strict=True):
    phi = _fit_by_hand(np.asarray(theta), x, y, OPTIMIZERS["sgd"][0](), 3)
    residuals.append(x_query @ phi - y_query)
  _, metrics = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  assert set(metrics) == {"loss", "absolute"}
  np.testing.assert_allclose(metrics["absolute"], np.mean(np.abs(residuals)))


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"num_steps": -1}, "num_steps=-1: must be 0 or more"),
    ({"num_eval_steps": -2}, "num_eval_steps=-2: must be 0 or more"),
  ],
)
def test_negative_steps_are_refused(arguments, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    _linear(**arguments)


# --- In minibatches. ---


@pytest.mark.parametrize(
  "count, size, num_steps", [(8, 3, 5), (8, 8, 2), (5, 1, 12), (6, 4, 0)]
)
def test_minibatches_take_all_examples_before_one_comes_again(
  count, size, num_steps
):
  order = minibatches(RNG, count, size, num_steps)
  assert order.shape == (num_steps, size)
  sequence = np.asarray(order).reshape(-1)
  for start in range(0, len(sequence), count):
    turn = sequence[start : start + count]
    assert len(set(turn)) == len(turn)
    assert set(turn) <= set(range(count))
  other = minibatches(jax.random.key(1), count, size, num_steps)
  assert num_steps == 0 or not np.array_equal(order, other)


def test_inner_steps_see_their_minibatches_in_turn():
  size, steps, rate = 2, 5, 0.1
  learner = reptile(
    LINEAR, mean_squared_error, optax.sgd(rate), steps, inner_batch=size
  )
  support = jax.tree.map(lambda x: x[0], _episodes().support)
  start = LINEAR.init(RNG, support.inputs)
  weights = np.asarray(start)
  for rows in np.asarray(minibatches(RNG, SUPPORT, size, steps)):
    x, y = (np.asarray(a)[rows] for a in support[:2])
    weights = weights - rate * 2 * x.T @ (x @ weights - y) / size
  found = jax.jit(learner.adapt)(start, support, RNG)
  np.testing.assert_allclose(found, weights, rtol=1e-10)


def test_tasks_are_shuffled_apart_and_large_batches_are_the_whole():
  episodes, start = _episodes(), jnp.ones((FEATURES, 1))
  # The same task twice: only its batches differ.
  episodes = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), episodes)

  def grads(episodes, inner_batch):
    learner = reptile(
      LINEAR, mean_squared_error, optax.sgd(0.1), 1, inner_batch=inner_batch
    )
    return jax.jit(learner.meta_grad)(start, episodes, RNG)[0]

  whole = grads(episodes, None)
  np.testing.assert_array_equal(grads(episodes, SUPPORT + QUERY), whole)
  np.testing.assert_array_equal(grads(episodes, 100), whole)
  # One step on one example: a mean of two different examples' steps.
  singles = [
    2 * 0.1 * x[:, None] * (x @ start - y)
    for x, y in zip(
      *jax.tree.map(lambda x: x[0], _whole(episodes)[:2]), strict=True
    )
  ]
  pairs = [(a + b) / 2 for a in singles for b in singles if a is not b]
  found = grads(episodes, 1)
  assert any(np.allclose(found, pair, rtol=1e-9) for pair in pairs)


def test_minibatches_may_be_of_arrays_that_numpy_holds():
  learner = reptile(
    LINEAR, mean_squared_error, optax.sgd(0.1), 2, inner_batch=2
  )
  support = jax.tree.map(lambda x: np.asarray(x[0]), _episodes().support)
  start = LINEAR.init(RNG, support.inputs)
  found = learner.adapt(start, support, RNG)
  expected = learner.adapt(start, jax.tree.map(jnp.asarray, support), RNG)
  np.testing.assert_array_equal(found, expected)


def test_empty_minibatch_is_refused():
  with pytest.raises(ValueError, match="^inner_batch=0: must be 1 or more"):
    reptile(LINEAR, mean_squared_error, optax.sgd(0.1), 1, inner_batch=0)


# --- What is reported, and what goes on from task to task. ---


def test_reports_cost_one_pass_and_not_another_training():
  """Counted in the compiled program: operations, not seconds."""
  episodes, start = _episodes(), jnp.ones((FEATURES, 1))

  def flops(**options):
    learner = reptile(LINEAR, mean_squared_error, optax.sgd(0.1), 8, **options)
    compiled = jax.jit(learner.meta_grad).lower(start, episodes, RNG).compile()
    return compiled.cost_analysis()["flops"]

  metrics = {"error": mean_squared_error}
  nothing = flops()
  assert flops(metrics=metrics) < 1.2 * nothing
  assert flops(metrics=metrics, held_out_report=True) > 1.2 * nothing


def test_the_loss_is_the_mean_of_the_inner_steps():
  learner, theta, episodes = _linear()
  losses = []
  for x, y in zip(*_whole(episodes)[:2], strict=True):
    phi = np.asarray(theta)
    for _ in range(3):
      losses.append(np.mean((x @ phi - y) ** 2))
      phi = phi - 0.1 * 2 / len(y) * x.T @ (x @ phi - y)
  _, metrics = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-9)


def test_a_report_that_is_not_finite_stops_no_training():
  """Only the loss that the update is made of counts."""
  learner = reptile(
    LINEAR,
    mean_squared_error,
    optax.sgd(0.1),
    2,
    metrics={"nan": lambda p, t: jnp.nan * p.mean()},
  )
  tasks = Partial(lambda e, rng: jax.tree.map(lambda x: x[0], e), _episodes())
  trainer = meta_trainer(learner, optax.sgd(1.0), tasks, meta_batch=2, rng=RNG)
  state, _ = trainer.compile(trainer.init(RNG))[0](trainer.init(RNG), 3)
  assert int(state.step) == 3
  assert np.isfinite(state.meta_params).all()


def test_moments_go_on_from_task_to_task_where_they_are_to():
  """As in the authors' code: Adam by hand, of one task a step."""
  rate, steps = 0.05, 3
  learner = reptile(
    LINEAR,
    mean_squared_error,
    optax.adam(rate, b1=0.0),
    steps,
    carry_optimizer=True,
  )
  episodes = jax.tree.map(lambda x: x[:1], _episodes())
  x, y = (a[0] for a in _whole(episodes)[:2])
  params = learner.init(RNG, jnp.asarray(x))
  theta = np.asarray(params["params"])
  by_hand = _adam_without_momentum(rate)  # Keeps its moments.
  meta_grad = jax.jit(learner.meta_grad)
  for _ in range(2):
    phi = _fit_by_hand(theta, x, y, by_hand, steps)
    grads, _ = meta_grad(params, episodes, RNG)
    np.testing.assert_allclose(
      grads["params"], theta - phi, rtol=1e-7, atol=1e-12
    )
    theta = theta - 0.5 * (theta - phi)
    # The outer optimizer's step, and the new state.
    params = {"params": jnp.asarray(theta), "optimizer": grads["optimizer"]}
  moments = params["optimizer"].value[0]
  assert int(moments.count) == 2 * steps


def test_masked_minibatches_hold_real_examples_in_turn():
  mask = jnp.array([True, False, True, True, False, True, False])
  order = np.asarray(minibatches(RNG, 7, 2, 6, mask)).reshape(-1)
  real = np.flatnonzero(mask)
  for start in range(0, len(order), len(real)):
    turn = order[start : start + len(real)]
    assert sorted(turn) == sorted(real)
