"""The choice of a chunk: the largest divisor whose temporaries fit, or near."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax import recipes
from metajax.learners import maml
from metajax.learners.partition import last_layer
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import choose_task_chunk, chunking
from metajax.types import Batch, Episode

TASKS = sinusoid(16, 16)
LEARNER = maml(MLP(1, (8,)), mean_squared_error, optax.sgd(0.1), 2)


def _bytes_of_one_task():
  """Temporaries of the compiled meta-gradient of an episode with one task."""
  key = jax.random.key(3)
  episode = TASKS(key)
  params = LEARNER.init(key, episode.support.inputs)
  episodes = jax.tree.map(lambda x: x[None], episode)
  compiled = jax.jit(LEARNER.meta_grad).lower(params, episodes, key).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def per_task():
  return _bytes_of_one_task()


@pytest.fixture
def compiled_once(monkeypatch, per_task):
  """Every call asks the same program, so it is compiled for the first only."""
  analysis = types.SimpleNamespace(temp_size_in_bytes=per_task)
  compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)
  lowered = types.SimpleNamespace(compile=lambda: compiled)
  traced = types.SimpleNamespace(
    jaxpr=jax.make_jaxpr(lambda: None)(), lower=lambda: lowered
  )
  monkeypatch.setattr(chunking, "trace_one_task", lambda *_: traced)


@pytest.mark.slow
def test_budget_is_counted_in_the_program_of_one_task(per_task):
  # A hidden layer of the support and one of the query, at the least.
  assert per_task > 2 * 16 * 8 * 4
  for budget, expected in ((4 * per_task, 4), (4 * per_task - 1, 3)):
    found = choose_task_chunk(LEARNER, TASKS, 12, budget_bytes=budget)
    assert found == expected


def test_a_task_with_a_result_beyond_the_budget_is_not_compiled(monkeypatch):
  """Of 16 examples and 8 units are 512 bytes of a hidden layer."""
  traced = chunking.trace_one_task(LEARNER, TASKS)
  assert chunking._largest_result(traced.jaxpr.jaxpr) >= 512

  def no_lower():
    raise AssertionError("compiled")

  told = types.SimpleNamespace(jaxpr=traced.jaxpr, lower=no_lower)
  monkeypatch.setattr(chunking, "trace_one_task", lambda *_: told)
  assert choose_task_chunk(LEARNER, TASKS, 12, budget_bytes=511) == 1
  assert (
    choose_task_chunk(LEARNER, TASKS, 12, at_once=3, budget_bytes=1535) == 1
  )
  with pytest.raises(AssertionError, match="compiled"):
    choose_task_chunk(LEARNER, TASKS, 12, budget_bytes=2**20)


@pytest.mark.slow
@pytest.mark.parametrize("tasks_per_device", [1, 7, 12, 32, 97])
def test_chunk_fits_and_leaves_less_than_half_of_the_room(
  tasks_per_device, per_task, compiled_once
):
  for room in range(tasks_per_device + 2):
    for spare in (0, per_task - 1):
      chunk = choose_task_chunk(
        LEARNER,
        TASKS,
        tasks_per_device,
        budget_bytes=room * per_task + spare,
      )
      most = max(min(room, tasks_per_device), 1)
      assert most / 2 < chunk <= most
      # The largest divisor, downwards from what the budget holds, if that will
      # do; otherwise no chunk more than the budget needs.
      divisor = most
      while tasks_per_device % divisor:
        divisor -= 1
      if divisor > most / 2:
        assert chunk == divisor
      else:
        assert -(-tasks_per_device // chunk) == -(-tasks_per_device // most)


@pytest.mark.parametrize(
  "num_tasks, most, chunk",
  [(96, 48, 48), (97, 48, 33), (97, 97, 97), (7, 4, 4)],
)
def test_primes_are_split_unevenly(num_tasks, most, chunk):
  assert chunking.split(num_tasks, most) == chunk


@pytest.mark.parametrize(
  "platform, stats, budget",
  [
    # A cache's worth on a CPU and wherever the device does not tell.
    ("cpu", {"bytes_limit": 2**40}, 2 * 2**20),
    ("gpu", None, 2 * 2**20),
    ("gpu", {}, 2 * 2**20),
    # A quarter of the device.
    ("gpu", {"bytes_limit": 2**20}, 2**18),
  ],
)
def test_budget_is_the_devices_unless_told(
  platform, stats, budget, monkeypatch, compiled_once, per_task
):
  device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  # So many tasks that the budget ends among them; a power of two has enough
  # divisors to show it.
  tasks_per_device = 2**12
  assert per_task < budget < tasks_per_device * per_task
  found = choose_task_chunk(LEARNER, TASKS, tasks_per_device)
  assert found * per_task <= budget < 2 * found * per_task


@pytest.mark.parametrize("units, chunk", [(141, 12), (142, 1)])
def test_tasks_with_large_arrays_are_treated_alone_on_cpus(
  units, chunk, monkeypatch, compiled_once, per_task
):
  """The largest array is `units` squared, and may have 20,000 numbers."""
  arguments = (MLP(1, (units, units)), mean_squared_error, optax.sgd(0.1), 1)
  learner = maml(*arguments)
  assert choose_task_chunk(learner, TASKS, 12) == chunk
  # All tasks have the same large arrays where they do not adapt.
  anil = maml(*arguments, mask=last_layer)
  assert choose_task_chunk(anil, TASKS, 12) == 12
  budget = 12 * per_task
  assert choose_task_chunk(learner, TASKS, 12, budget_bytes=budget) == 12
  device = types.SimpleNamespace(
    platform="gpu", memory_stats=lambda: {"bytes_limit": 2**40}
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert choose_task_chunk(learner, TASKS, 12) == 12


def test_chunk_is_one_where_the_backend_tells_no_memory(monkeypatch):
  silent = types.SimpleNamespace(memory_analysis=lambda: None)
  monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: silent)
  assert choose_task_chunk(LEARNER, TASKS, 12, budget_bytes=2**40) == 1


def test_products_of_few_rows_are_counted():
  """By hand: five steps of one row, and one product of sixteen rows."""
  large, small = jnp.ones((100, 200)), jnp.ones((100, 4))

  def fn(x, y):
    def step(total, x):
      return total + x @ large, x @ small

    total, _ = jax.lax.scan(step, jnp.zeros(200), x)
    return total, y @ large

  jaxpr = jax.make_jaxpr(fn)(jnp.ones((5, 100)), jnp.ones((16, 100))).jaxpr
  thin, products = chunking._operations(jaxpr)
  assert thin == 5 * 100 * 200
  assert products == thin + 5 * 100 * 4 + 16 * 100 * 200


def test_matrices_of_each_task_are_not_shared():
  xs, matrices = jnp.ones((3, 1, 100)), jnp.ones((3, 100, 200))
  jaxpr = jax.make_jaxpr(jax.vmap(jnp.matmul))(xs, matrices).jaxpr
  assert chunking._operations(jaxpr) == (0, 3 * 100 * 200)


@pytest.mark.parametrize(
  "name, at_once", [("lstm", True), ("transformer", False)]
)
def test_recurrent_networks_take_all_tasks_at_once(name, at_once):
  """A step of an LSTM has one row of a task, a transformer all examples."""
  flat = {"name": "mlp", "hidden": (), "normalization": "none"}
  options = {"length": 41, "of_support": True}
  learner = recipes.build(
    recipes.Recipe(
      name, flat, 4, "cross_entropy", options=options, kind="reader"
    )
  )

  def tasks(rng):
    inputs = jax.random.normal(rng, (41, 200))
    targets = jnp.arange(41) % 4
    return Episode(
      Batch(inputs[:40], targets[:40]), Batch(inputs[40:], targets[40:])
    )

  assert (choose_task_chunk(learner, tasks, 16) == 16) == at_once
