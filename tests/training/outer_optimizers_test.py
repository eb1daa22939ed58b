"""Every optimizer of optax as the outer one, against plain loops with optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from metajax.optimizers import last_step_size
from metajax.training import (
  Clients,
  evaluation_params,
  federated_trainer,
  meta_trainer,
  supervised_trainer,
)
from metajax.training.loop import Schedule, fit
from metajax.training.state import first_state, next_state
from metajax.types import Batch, Episode, MetaLearner
from tests.optimizers import (
  INPUTS,
  NO_OPTIMIZERS,
  OPTIMIZERS,
  PARAMS,
  TARGETS,
  exported,
  plain_loop,
  tanh_loss,
)

KEY, RNG = jax.random.key(2), jax.random.key(1)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def test_table_has_every_optimizer_that_optax_exports():
  assert exported() <= {*OPTIMIZERS, *NO_OPTIMIZERS}


# Each of its kind; all others are slow only.
FEW = (
  "adam",
  "flatten",
  "lookahead",
  "noisy_sgd",
  "partition",
  "polyak_sgd",
  "reduce_on_plateau",
  "sam in a chain",
  "sam opaque",
  "scale_by_backtracking_linesearch",
  "schedule_free_sgd",
  "sophia",
)


@pytest.mark.parametrize(
  "name",
  [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in OPTIMIZERS
  ],
)
@pytest.mark.filterwarnings("ignore:Specifying a key")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_updates_are_those_of_a_plain_loop(name):
  optimizer = OPTIMIZERS[name]()
  state = first_state(optimizer, jax.tree.map(jnp.asarray, PARAMS))

  @jax.jit
  def step(state, shift):
    def at(params):
      value, grads = jax.value_and_grad(tanh_loss)(params, shift)
      return grads, {"loss": value}

    grads, metrics = at(state.meta_params)
    return next_state(optimizer, state, grads, metrics["loss"], at=at)

  shifts = [0.0, 0.1, -0.2, 0.0]
  for shift in shifts:
    state = step(state, shift)
  assert state.step == len(shifts)  # None was taken for not finite.
  expected, _ = plain_loop(name, shifts)
  if name == "lookahead":
    chex.assert_trees_all_close(
      evaluation_params(state), expected.slow, rtol=1e-9
    )
    expected = expected.fast
  chex.assert_trees_all_close(state.meta_params, expected, rtol=1e-9)
  if name not in ("set_to_zero", "sam"):
    assert not np.allclose(
      state.meta_params["w"], PARAMS["w"], rtol=0, atol=1e-9
    )


def _tasks(rng):
  """A task is a shift of the targets, by its key."""
  shift = jax.random.normal(rng, (1, 1))
  batch = Batch(shift, shift)
  return Episode(batch, batch)


def _learner():
  def mean_loss(params, episodes):
    shifts = episodes.query.inputs.reshape(-1)
    return jax.vmap(tanh_loss, (None, 0))(params, shifts).mean()

  def meta_grad(params, episodes, rng):
    loss, grads = jax.value_and_grad(mean_loss)(params, episodes)
    return grads, {"loss": loss}

  def init(rng, inputs):
    return jax.tree.map(jnp.asarray, PARAMS)

  return MetaLearner(init, lambda params, *_: params, None, meta_grad)


def _shifts(step, num_tasks=3, rng=RNG):
  step_key = jax.random.fold_in(rng, step)
  keys = [jax.random.fold_in(step_key, i) for i in range(num_tasks)]
  return np.array([_tasks(key).query.inputs.item() for key in keys])


def _meta_trainer(name, **options):
  options = {"rng": RNG, "meta_batch": 3, "task_chunk": 2, **options}
  return meta_trainer(_learner(), OPTIMIZERS[name](), _tasks, **options)


def _train(trainer, num_steps, key=KEY):
  state = trainer.init(key)
  return trainer.compile(state)[0](state, num_steps)[0]


def _by_hand(name, num_steps):
  """The same with optax alone, the loss being that of the step's tasks."""
  optimizer = OPTIMIZERS[name]()
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, shifts):
    def loss(params):
      return sum(tanh_loss(params, shift) for shift in shifts) / len(shifts)

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  for k in range(num_steps):
    params, state = step(params, state, jnp.asarray(_shifts(k)))
  return params, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale_by_zoom_linesearch", "polyak_sgd"])
def test_meta_trainer_searches_over_the_tasks_of_the_step(name):
  state = _train(_meta_trainer(name), 4)
  params, _ = _by_hand(name, 4)
  assert state.step == 4
  chex.assert_trees_all_close(state.meta_params, params, rtol=1e-8)


@pytest.mark.slow
def test_each_seed_searches_as_it_would_alone():
  name = "scale_by_backtracking_linesearch"
  keys = jnp.stack([jax.random.key(i) for i in range(2)])
  together = _train(_meta_trainer(name, rng=keys), 3, keys)
  for i in range(2):
    alone = _train(_meta_trainer(name, rng=keys[i]), 3)
    found = jax.tree.map(lambda x, i=i: x[i], together.meta_params)
    chex.assert_trees_all_close(found, alone.meta_params, rtol=1e-9)


@pytest.mark.slow
def test_supervised_training_searches_over_the_batch_of_the_step():
  """A batch of equal examples, so that the loop by hand knows it."""
  data = jnp.zeros((4,))
  name = "scale_by_zoom_linesearch"
  trainer = supervised_trainer(
    lambda rng: jax.tree.map(jnp.asarray, PARAMS),
    lambda params, shifts, rng: (tanh_loss(params, shifts.mean()), {}),
    OPTIMIZERS[name](),
    data,
    batch_size=2,
    rng=RNG,
  )
  expected, _ = plain_loop(name, [0.0, 0.0, 0.0])
  found = _train(trainer, 3).meta_params
  chex.assert_trees_all_close(found, expected, rtol=1e-8)


class _Slopes:
  """Predictions without a bias."""

  def init(self, rng, inputs):
    return jnp.zeros(inputs.shape[-1])

  def apply(self, params, inputs):
    return inputs @ params


@pytest.mark.slow
def test_a_federated_server_searches_over_the_clients_of_the_round():
  """After one step of rate 1 each, what they return is a gradient."""
  inputs = jnp.asarray(np.stack([INPUTS, -2 * INPUTS[::-1]]))
  targets = jnp.asarray(np.stack([TARGETS[:, 0], TARGETS[:, 1]]))
  sizes = jnp.array([3, 2])
  make = OPTIMIZERS["scale_by_backtracking_linesearch"]
  trainer = federated_trainer(
    _Slopes(),
    lambda p, t: jnp.mean((p - t) ** 2),
    Clients(Batch(inputs, targets), sizes),
    optax.sgd(1.0),
    make(),
    clients_per_round=2,
    rng=RNG,
  )
  found = _train(trainer, 3)

  def loss(params):
    errors = jnp.concatenate([inputs[0], inputs[1, :2]]) @ params
    errors -= jnp.concatenate([targets[0], targets[1, :2]])
    return jnp.mean(errors**2)

  optimizer, params = make(), jnp.zeros(2)
  state = optimizer.init(params)
  for _ in range(3):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    params += updates
  assert found.step == 3
  np.testing.assert_allclose(found.meta_params, params, rtol=1e-8)


def _schedule_free_average(num_steps):
  """Defazio et al. 2024, equations 1 to 3, in numpy; b1 = 0.9."""

  def mean_loss(y, shifts):
    return sum(tanh_loss(y, s) for s in shifts) / len(shifts)

  grad = jax.jit(jax.grad(mean_loss))
  y = z = x = PARAMS
  for k in range(num_steps):
    found = jax.device_get(grad(y, jnp.asarray(_shifts(k))))
    z = {n: z[n] - 0.05 * found[n] for n in z}
    x = {n: x[n] + (z[n] - x[n]) / (k + 1) for n in x}
    y = {n: 0.1 * z[n] + 0.9 * x[n] for n in x}
  return y, x


@pytest.mark.slow
def test_schedule_free_is_validated_where_its_average_is(tmp_path):
  name, validated = "schedule_free_sgd", []

  def validate(state):
    validated.append(jax.device_get(evaluation_params(state)))
    return {"loss": 0.0}

  schedule = Schedule(4, 4, 2, 4)
  trainer = _meta_trainer(name)
  end = fit(
    trainer, KEY, schedule, tmp_path, tasks_per_step=3, validate=validate
  )
  y, x = _schedule_free_average(4)
  chex.assert_trees_all_close(end.state.meta_params, y, rtol=1e-8)
  chex.assert_trees_all_close(evaluation_params(end.state), x, rtol=1e-8)
  chex.assert_trees_all_close(validated[1], x, rtol=1e-8)
  chex.assert_trees_all_close(validated[0], _schedule_free_average(2)[1])
  assert not np.allclose(x["w"], y["w"], rtol=1e-3)


def test_last_step_size_is_that_of_the_last_update():
  """By plain numbers: lines of slope -0.01 from 0.5 on."""
  rate = optax.linear_schedule(0.5, 0.0, 50)
  optimizer = optax.chain(optax.clip(1.0), optax.adam(rate))
  state = optimizer.init(PARAMS)
  assert last_step_size(rate, state) == pytest.approx(0.5)
  for step in range(4):
    _, state = optimizer.update(PARAMS, state, PARAMS)
    expected = 0.5 - 0.01 * step
    assert last_step_size(rate, state) == pytest.approx(expected)
  # Seeds of which one has skipped a step.
  two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  behind = jax.tree.map(
    lambda x: x - jnp.array([0, 1]) if x.dtype == jnp.int32 else x, two
  )
  assert last_step_size(rate, behind) == pytest.approx(0.475)
  assert last_step_size(0.25, optax.sgd(0.25).init(PARAMS)) == 0.25


def test_evaluation_params_of_seeds_and_of_parts():
  params = jax.tree.map(jnp.asarray, PARAMS)
  # In a partition, "w" is schedule-free and "b" is not.
  state = first_state(OPTIMIZERS["partition"](), params)
  state = state._replace(meta_params=jax.tree.map(lambda x: x + 1.0, params))
  found = evaluation_params(state)
  np.testing.assert_allclose(found["b"], PARAMS["b"] + 1.0)
  np.testing.assert_allclose(found["w"], PARAMS["w"] + 1.0 / 0.9)
  # Two seeds.
  stack = jax.vmap(lambda x: first_state(contrib.schedule_free_sgd(0.1), x))(
    jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
  )
  moved = jax.tree.map(lambda x: x + 1.0, stack.meta_params)
  found = evaluation_params(stack._replace(meta_params=moved))
  np.testing.assert_allclose(found["w"][1], 2 * PARAMS["w"] + 1.0 / 0.9)


@pytest.mark.slow
def test_sam_is_evaluated_where_it_started_its_ascent():
  state = _train(_meta_trainer("sam"), 1)
  assert not np.allclose(state.meta_params["w"], PARAMS["w"])
  chex.assert_trees_all_close(evaluation_params(state), PARAMS)
  state = _train(_meta_trainer("sam"), 2)
  chex.assert_trees_all_equal(evaluation_params(state), state.meta_params)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_noisy_sgd_goes_on_from_a_checkpoint_with_its_key(tmp_path):
  trainer = _meta_trainer("noisy_sgd")
  for num_steps in (2, 5):
    end = fit(
      trainer, KEY, Schedule(num_steps, 9, 9, 9), tmp_path, tasks_per_step=3
    )
  whole = _train(trainer, 5)
  chex.assert_trees_all_close(end.state.meta_params, whole.meta_params)
  noisy = optax.tree.get(whole.opt_state, "rng_key")
  assert jax.dtypes.issubdtype(noisy.dtype, jax.dtypes.prng_key)


def test_optimizer_whose_state_changes_its_structure_is_named():
  optimizer = optax.chain(
    optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1)
  )
  trainer = meta_trainer(
    _learner(), optimizer, _tasks, rng=RNG, meta_batch=3, task_chunk=3
  )
  with pytest.raises(ValueError, match="^optimizer: .* structure"):
    trainer.compile(trainer.init(KEY))


def test_value_without_a_loss_is_an_error():
  """An optimizer would descend nothing by a loss of zero."""
  learner = _learner()

  def meta_grad(*arguments):
    return learner.meta_grad(*arguments)[0], {}

  trainer = meta_trainer(
    learner._replace(meta_grad=meta_grad),
    optax.polyak_sgd(0.1),
    _tasks,
    rng=RNG,
    meta_batch=3,
    task_chunk=3,
  )
  with pytest.raises(TypeError, match="'value'"):
    trainer.compile(trainer.init(KEY))
