"""The training step against Python loops, over chunks, devices and memory."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.evaluation import evaluator
from metajax.learners import maml
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.tasks.few_shot import few_shot_episodes
from metajax.training import TrainState, meta_trainer, task_mesh
from metajax.types import Batch, Episode, MetaLearner
from tests.processes import run_python
from tests.slow import slow_but

TASK_KEY, INIT_KEY = jax.random.key(1), jax.random.key(2)
META_BATCH, INNER_RATE = 6, 0.3
OPTIMIZER = optax.adam(0.05)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


class TanhNet:
  """A hidden layer whose parameters are as wide as JAX's default floats."""

  def init(self, rng, inputs):
    key_w, key_v = jax.random.split(rng)
    return {
      "w": jax.random.normal(key_w, (inputs.shape[-1], 3)),
      "v": jax.random.normal(key_v, (3, 1)),
    }

  def apply(self, params, inputs):
    return jnp.tanh(inputs @ params["w"]) @ params["v"]


def _learner():
  return maml(
    TanhNet(),
    mean_squared_error,
    optax.sgd(INNER_RATE),
    1,
    metrics={"bias": lambda p, t: jnp.mean(p - t)},
  )


def _trainer(learner=None, optimizer=None, tasks=None, **arguments):
  arguments = {
    "meta_batch": META_BATCH,
    "task_chunk": 2,
    "rng": TASK_KEY,
    **arguments,
  }
  return meta_trainer(
    learner or _learner(),
    optimizer or OPTIMIZER,
    tasks or sinusoid(4, 3),
    mesh=arguments.pop("mesh", None) or task_mesh(1),
    **arguments,
  )


@functools.cache
def _python_run(num_steps):
  """MAML written out: a task, an inner step and a gradient at a time."""
  optimizer = OPTIMIZER
  model, tasks = TanhNet(), sinusoid(4, 3)

  def predict(params, episode):
    def support_loss(p):
      errors = model.apply(p, episode.support.inputs) - episode.support.targets
      return jnp.sum(errors**2) / errors.size

    inner = jax.grad(support_loss)(params)
    phi = {k: params[k] - INNER_RATE * inner[k] for k in params}
    return model.apply(phi, episode.query.inputs)

  def query_loss(params, episode):
    errors = predict(params, episode) - episode.query.targets
    return jnp.sum(errors**2) / errors.size, jnp.sum(errors) / errors.size

  one_task = jax.jit(jax.value_and_grad(query_loss, has_aux=True))
  draw = jax.jit(tasks)
  params = model.init(INIT_KEY, jnp.zeros((4, 1)))
  state, history = optimizer.init(params), []
  for s in range(num_steps):
    results = []
    for i in range(META_BATCH):
      key = jax.random.fold_in(jax.random.fold_in(TASK_KEY, s), i)
      results.append(one_task(params, draw(key)))
    (losses, biases), grads = jax.tree.map(lambda *x: np.array(x), *results)
    mean_grads = jax.tree.map(lambda g: jnp.asarray(g.mean(axis=0)), grads)
    updates, state = optimizer.update(mean_grads, state, params)
    params = {k: params[k] + updates[k] for k in params}
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in mean_grads.values()))
    history.append(
      {"loss": losses.mean(), "bias": biases.mean(), "gradient_norm": norm}
    )
  means = {k: np.mean([m[k] for m in history]) for k in history[0]}
  return TrainState(num_steps, params, state), means


@pytest.mark.parametrize("task_chunk", slow_but([1, 4, 5], [1, 2, 4, 5, 6]))
def test_training_equals_a_python_loop_for_every_chunk(task_chunk, float64):
  trainer = _trainer(task_chunk=task_chunk)
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  found, metrics = train(state, 4)
  assert found.meta_params["w"].dtype == jnp.float64
  expected, expected_metrics = _python_run(4)
  chex.assert_trees_all_close(found, expected, rtol=1e-10)
  chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-10)


def test_calls_of_any_lengths_end_in_the_same_bits():
  trainer = _trainer()
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  whole, whole_metrics = train(state, 5)
  state, first = train(trainer.init(INIT_KEY), 2)
  in_parts, second = train(state, 3)
  assert int(whole.step) == 5
  chex.assert_trees_all_equal(in_parts, whole)
  for name, mean in whole_metrics.items():
    np.testing.assert_allclose(
      (2 * first[name] + 3 * second[name]) / 5, mean, rtol=1e-5
    )


def test_every_task_and_every_chunk_sees_a_key_of_its_own():
  task_keys, chunk_keys = [], []

  def tasks(rng):
    jax.debug.callback(
      lambda k: task_keys.append(tuple(k.tolist())), jax.random.key_data(rng)
    )
    batch = Batch(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    return Episode(batch, batch)

  def meta_grad(meta_params, episodes, rng):
    jax.debug.callback(
      lambda k: chunk_keys.append(tuple(k.tolist())), jax.random.key_data(rng)
    )
    return meta_params, {"loss": 0.0 * episodes.query.inputs.sum()}

  learner = MetaLearner(
    lambda rng, inputs: jnp.ones(()),
    lambda params, support, rng: params,
    lambda params, inputs: inputs,
    meta_grad,
  )
  trainer = _trainer(learner, tasks=tasks, task_chunk=2)
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  jax.effects_barrier()
  task_keys.clear()  # The task that init looks at.
  jax.block_until_ready(train(state, 3))
  jax.effects_barrier()
  assert len(task_keys) == 3 * META_BATCH
  assert len(chunk_keys) == 3 * META_BATCH // 2
  assert len({*task_keys, *chunk_keys}) == len(task_keys) + len(chunk_keys)


def test_learner_that_changes_is_told_the_step():
  """Each step's displacement is what the schedule says, in one program."""

  def at(step):
    def meta_grad(meta_params, episodes, rng):
      return jnp.float32(10.0) ** step, {"step": step.astype(jnp.float32)}

    return learner._replace(meta_grad=meta_grad)

  learner = MetaLearner(
    lambda rng, inputs: jnp.zeros(()), None, None, _learner().meta_grad, at
  )
  trainer = _trainer(learner, optax.sgd(1.0), task_chunk=3)
  train, _ = trainer.compile(trainer.init(INIT_KEY))
  state, first = train(trainer.init(INIT_KEY), 1)
  state, later = train(state, 3)
  assert state.meta_params == -1111
  assert (first["step"], later["step"]) == (0, 2)


def test_meta_gradient_is_traced_once_for_the_whole_run():
  traces = []
  learner = _learner()

  def meta_grad(*arguments):
    traces.append(arguments)
    return learner.meta_grad(*arguments)

  trainer = _trainer(learner._replace(meta_grad=meta_grad))
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  at_compile_time = len(traces)
  assert at_compile_time > 0
  for num_steps in (1, 3, 1, 7):
    state, _ = train(state, num_steps)
  train(trainer.init(jax.random.key(9)), 2)
  assert int(state.step) == 12
  assert len(traces) == at_compile_time  # Trap 13.


def _program(meta_batch, task_chunk):
  learner = maml(MLP(1, (32,)), mean_squared_error, optax.sgd(0.1), 3)
  trainer = _trainer(
    learner,
    optax.sgd(0.1),
    sinusoid(128, 128),
    meta_batch=meta_batch,
    task_chunk=task_chunk,
  )
  return trainer.compile(jax.eval_shape(trainer.init, INIT_KEY))[1]


@pytest.mark.slow
def test_memory_in_use_is_that_of_one_chunk():
  few, many, at_once = (
    _program(*sizes).memory_analysis().temp_size_in_bytes
    for sizes in ((8, 1), (32, 1), (32, 32))
  )
  # 31 tasks more at once keep at least 3 inner steps' hidden layers.
  assert at_once > many + 31 * 3 * (128 * 32 * 4)
  assert many < at_once / 8
  # 24 tasks more are 24 keys and indices more, not one layer more.
  assert many - few < 128 * 32 * 4


@pytest.mark.slow
def test_images_enter_the_program_as_an_argument():
  """As a constant, a data set would be copied into every program."""
  images = jnp.zeros((40, 4, 16, 16, 1), jnp.uint8)
  learner = maml(MLP(2, (4,)), cross_entropy, optax.sgd(0.1), 1)
  trainer = _trainer(
    learner, tasks=few_shot_episodes(images, 2, 1, 1), task_chunk=1
  )
  state = trainer.init(INIT_KEY)
  memory = trainer.compile(state)[1].memory_analysis()
  assert memory.argument_size_in_bytes >= images.nbytes
  assert memory.generated_code_size_in_bytes < images.nbytes


def test_bfloat16_gradients_of_many_chunks_are_added_in_float32():
  """In bfloat16, 1 + 1/256 + 1/256 + ... would stay 1."""

  def meta_grad(meta_params, episodes, rng):
    grads = jnp.where(episodes.query.inputs[0, 0, 0] == 0, 1.0, 1 / 256)
    return grads.astype(jnp.bfloat16), {"loss": grads}

  def tasks(rng):
    # Which of the tasks it is, found by its key.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(TASK_KEY, 0), jnp.arange(META_BATCH)
    )
    same = jax.random.key_data(keys) == jax.random.key_data(rng)
    batch = Batch(*[jnp.argmax(same.all(1)) * jnp.ones((1, 1))] * 2)
    return Episode(batch, batch)

  learner = MetaLearner(
    lambda rng, inputs: jnp.zeros((), jnp.bfloat16), None, None, meta_grad
  )
  trainer = _trainer(
    learner, optax.sgd(float(META_BATCH)), tasks, rng=TASK_KEY, task_chunk=1
  )
  train, _ = trainer.compile(trainer.init(INIT_KEY))
  state, _ = train(trainer.init(INIT_KEY), 1)
  expected = jnp.bfloat16(-(1 + (META_BATCH - 1) / 256))
  assert state.meta_params == expected
  assert expected != -1


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16])
def test_metrics_of_chunks_and_steps_are_averaged_in_float32(dtype):
  """Integers are not rounded; 0, 256, ... 1280 are exact in all dtypes."""

  def meta_grad(params, episodes, rng):
    step = params.astype(jnp.int32)
    metrics = {"x": (256 * (step + 1)).astype(dtype)}
    return jnp.float32(-1.0), metrics

  learner = MetaLearner(
    lambda rng, inputs: jnp.float32(0.0), None, None, meta_grad
  )
  trainer = _trainer(learner, optax.sgd(1.0), task_chunk=4)
  train, _ = trainer.compile(trainer.init(INIT_KEY))
  _, metrics = train(trainer.init(INIT_KEY), 250)
  assert metrics["x"].dtype == jnp.float32
  steps = np.asarray(256 * np.arange(1, 251)).astype(dtype).astype(np.float64)
  np.testing.assert_allclose(metrics["x"], steps.mean(), rtol=1e-6)


def test_state_is_donated():
  trainer = _trainer()
  state = trainer.init(INIT_KEY)
  train, _ = trainer.compile(state)
  new, _ = train(state, 1)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
  with pytest.raises(ValueError, match="^state: `train` was given it before"):
    train(state, 1)


def test_initial_state_depends_on_its_key_alone():
  first = _trainer().init(INIT_KEY)
  second = _trainer(
    meta_batch=4, task_chunk=4, rng=jax.random.key(99), tasks=sinusoid(4, 1)
  ).init(INIT_KEY)
  chex.assert_trees_all_equal(first, second)
  by_hand = jax.jit(TanhNet().init)(INIT_KEY, jnp.zeros((4, 1)))
  chex.assert_trees_all_equal(first.meta_params, by_hand)
  chex.assert_trees_all_equal(first.opt_state, OPTIMIZER.init(by_hand))
  assert int(first.step) == 0
  other = _trainer().init(jax.random.key(99))
  assert np.all(first.meta_params["w"] != other.meta_params["w"])


@pytest.mark.parametrize(
  "devices, meta_batch, task_chunk, message",
  [
    (8, 12, 1, "meta_batch=12: must be a multiple of 8"),
    (8, 4, 1, "meta_batch=4: must be a multiple of 8"),
    (8, 32, 8, "task_chunk=8: must be 1 to 4"),
    (1, 6, 7, "task_chunk=7: must be 1 to 6"),
    (1, 6, 0, "task_chunk=0: must be 1 to"),
    (1, 6, -2, "task_chunk=-2: must be 1 to"),
  ],
)
def test_chunks_and_devices_that_do_not_fit_are_named(
  devices, meta_batch, task_chunk, message
):
  mesh = jax.sharding.AbstractMesh((devices,), ("tasks",))
  with pytest.raises(ValueError, match=f"^{message}"):
    _trainer(meta_batch=meta_batch, task_chunk=task_chunk, mesh=mesh)


# Ways to spread 16 tasks: how many devices, how many tasks at once on each.
SPREADS = {
  "8 devices": (8, 1),
  "2 devices": (2, 3),
  "1 device": (1, 16),
  "default": (None, None),
}


def _spread_main(path):
  """What the subprocess does, with 8 devices; writes its arrays to a file."""
  assert jax.device_count() == 8
  arrays = {}
  for name, (devices, task_chunk) in SPREADS.items():
    mesh = task_mesh(16, jax.devices()[:devices]) if devices else None
    trainer = meta_trainer(
      _learner(),
      # The displacement is the sum of the meta-gradients.
      optax.sgd(1.0),
      sinusoid(4, 3),
      meta_batch=16,
      task_chunk=task_chunk,
      mesh=mesh,
      rng=TASK_KEY,
    )
    state = trainer.init(INIT_KEY)
    train, _ = trainer.compile(state)
    initial = jax.device_get(state.meta_params)
    # The second and third step start from what the first one found.
    for steps in (1, 3):
      state, metrics = train(trainer.init(INIT_KEY), steps)
      for leaf in jax.tree.leaves(state):
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == (devices or 8)
        for shard in shards:
          np.testing.assert_array_equal(shard, shards[0])
      for k, value in state.meta_params.items():
        arrays[f"{name}/{steps}/{k}"] = initial[k] - np.asarray(value)
      for k, value in metrics.items():
        arrays[f"{name}/{steps}/{k}"] = value
    score = evaluator(
      _learner(),
      sinusoid(4, 3),
      {"score": mean_squared_error},
      TASK_KEY,
      num_tasks=21,
      task_chunk=2,
      mesh=mesh,
    )
    # By default one device evaluates what all devices trained.
    meta_params = trainer.init(INIT_KEY).meta_params
    arrays[f"{name}/score"] = score(meta_params)["score"]
  np.savez(path, **arrays)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
  path = tmp_path_factory.mktemp("spread") / "arrays.npz"
  run_python(__file__, path, devices=8, x64=True)
  with np.load(path) as arrays:
    return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SPREADS if n != "1 device"])
def test_meta_gradient_metrics_and_scores_are_those_of_one_device(name, spread):
  one = "1 device/"
  keys = [k.removeprefix(one) for k in spread if k.startswith(one)]
  assert len(keys) == 2 * (2 + 3) + 1  # Arrays and metrics, and a score.
  for key in keys:
    expected = spread[one + key]
    scale = np.max(np.abs(expected))
    assert scale > 1e-2
    assert expected.dtype == np.float64
    np.testing.assert_allclose(
      spread[f"{name}/{key}"], expected, rtol=0, atol=1e-9 * scale
    )


@pytest.mark.slow
def test_8_devices_take_the_mean_over_single_tasks(spread, float64):
  """pmean, neither psum nor a mean of gradients summed twice."""
  # By hand, on this process's one device, task by task.
  params = _trainer().init(INIT_KEY).meta_params
  one_task = jax.jit(
    lambda key: _learner().meta_grad(
      params, jax.tree.map(lambda x: x[None], sinusoid(4, 3)(key)), key
    )[0]
  )
  step_key = jax.random.fold_in(TASK_KEY, 0)
  grads = [one_task(jax.random.fold_in(step_key, i)) for i in range(16)]
  for k in params:
    mean = np.mean([np.asarray(g[k]) for g in grads], axis=0)
    np.testing.assert_allclose(
      spread[f"8 devices/1/{k}"], mean, rtol=0, atol=1e-9 * np.max(np.abs(mean))
    )


if __name__ == "__main__":
  _spread_main(sys.argv[1])
