"""The unit of values: it follows the returns, and rewards of any size learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from metajax.models.recurrent import recurrent
from metajax.policies import PPO, ppo_trainer
from metajax.policies.value_scale import (
  first_scale,
  seen,
  to_outputs,
  to_values,
)
from metajax.tasks.trials import Trials
from metajax.training import task_mesh

KEY = jax.random.key(0)


@functools.cache
def _seen(devices=1):
  return jax.jit(
    jax.shard_map(
      seen,
      mesh=task_mesh(devices),
      in_specs=(P(), P("tasks"), P()),
      out_specs=P(),
      check_vma=False,
    )
  )


@pytest.mark.parametrize("offset, spread", [(0, 1), (-3, 1e-3), (1e4, 20)])
def test_first_returns_set_the_unit_and_later_ones_move_it(offset, spread):
  rng = np.random.default_rng(0)
  first = (offset + spread * rng.normal(size=(4, 9))).astype(np.float32)
  scale = _seen()(first_scale(), first, jnp.int32(0))
  np.testing.assert_allclose(scale.mean, np.float64(first).mean(), rtol=1e-5)
  np.testing.assert_allclose(scale.variance, np.float64(first).var(), rtol=2e-2)
  later = first + 2 * spread
  for step in range(1, 200):
    scale = _seen()(scale, later, jnp.int32(step))
  np.testing.assert_allclose(
    scale.mean, np.float64(later).mean(), atol=1e-3 * spread, rtol=1e-6
  )
  np.testing.assert_allclose(
    jnp.sqrt(scale.variance), np.float64(later).std(), rtol=3e-2
  )


def test_values_and_outputs_are_each_others_inverse():
  returns = np.float32([[1.0, 5.0, 3.0, -1.0]])
  scale = _seen()(first_scale(), returns, jnp.int32(0))
  outputs = to_outputs(scale, returns)
  np.testing.assert_allclose(outputs.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(outputs.std(), 1, rtol=1e-6)
  np.testing.assert_allclose(to_values(scale, outputs), returns, rtol=1e-5)


def test_returns_that_are_all_the_same_have_finite_outputs():
  returns = np.full((2, 3), 7.0, np.float32)
  scale = _seen()(first_scale(), returns, jnp.int32(0))
  np.testing.assert_array_equal(to_outputs(scale, returns), 0)
  np.testing.assert_allclose(to_values(scale, jnp.ones(2)), 7, rtol=1e-6)


def test_scale_keeps_its_dtypes_with_64_bits():
  """A state whose dtypes changed could not be carried through a loop."""
  with jax.enable_x64(True):
    returns = np.random.default_rng(0).normal(size=(2, 3))
    scale = _seen()(first_scale(), returns, jnp.int32(0))
  assert [x.dtype for x in scale] == [np.float32] * 2
  np.testing.assert_allclose(scale.mean, returns.mean(), rtol=1e-5)


def _reset(rng):
  return jax.random.bernoulli(rng), jnp.zeros(1)


def _step(unit, task, action, rng):
  del rng
  # What is observed does not depend on the unit of rewards.
  hit = (action == task).astype(jnp.float32)
  return task, hit[None], unit * (hit + 0.5), jnp.array(False)


def _blind_to_rewards():
  network = recurrent(2, units=6, head="actor_critic")
  rewards = 1 + 2  # After the observation and the last action.
  return network._replace(
    read=lambda p, s, x: network.read(p, s, x.at[..., rewards].set(0.0))
  )


@pytest.mark.slow
def test_policy_learns_the_same_from_rewards_of_any_size():
  """Adam and the unit of values leave nothing of a factor."""
  found = []
  for unit in (1.0, 1e3, 1e-3):
    tasks = Trials(_reset, functools.partial(_step, unit), 2, 5)
    trainer = ppo_trainer(
      _blind_to_rewards(),
      tasks,
      optax.adam(1e-2),
      PPO(actors=8, minibatches=2, epochs=2),
      rng=KEY,
      mesh=task_mesh(1),
    )
    state = trainer.init(KEY)
    train, _ = trainer.compile(state)
    state, metrics = jax.device_get(train(state, 3))
    found.append((state.meta_params, metrics["value_error"]))
  for other in found[1:]:
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-4),
      found[0],
      other,
    )
