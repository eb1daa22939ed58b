"""Policies train on two devices as on one."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent
from metajax.policies import (
  PPO,
  KLPenalty,
  TrustRegion,
  VariBAD,
  belief_network,
  clipped,
  gaussian_policy,
  policy_learner,
  policy_trainer,
  varibad_trainer,
)
from metajax.tasks.gridworld import gridworld
from metajax.tasks.navigation import navigation
from metajax.tasks.trials import trials_of
from metajax.training import task_mesh
from tests.processes import run_python

TASKS, STEPS = 4, 2
TRAININGS = {
  "trpo": ({}, TrustRegion(), {}),
  "promp": (
    {"outer_surrogate": clipped(), "credit": 0.3},
    optax.adam(1e-2),
    {"epochs": 2, "penalty": KLPenalty()},
  ),
}


def _trained(name, devices):
  options, optimizer, more = TRAININGS[name]
  tasks = navigation(5)
  policy = gaussian_policy(MLP(2, (4,)), tasks.actions)
  learner = policy_learner(policy, tasks, num_episodes=3, **options)
  trainer = policy_trainer(
    learner,
    tasks,
    optimizer,
    meta_batch=TASKS,
    rng=jax.random.key(1),
    mesh=task_mesh(TASKS, jax.devices()[:devices]),
    **more,
  )
  # Conjugate gradients would multiply the rounding of float32.
  state = jax.tree.map(
    lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.inexact) else x,
    trainer.init(jax.random.key(0)),
  )
  train, program = trainer.compile(state)
  return train(state, STEPS), program.as_text()


def compare():
  """Runs in a process of its own, which has two devices and float64."""
  # Threads for the Cholesky factors beside those that wait in all-reduces.
  os.environ["NPROC"] = "4"
  assert len(jax.devices()) == 2
  for name in TRAININGS:
    (state, metrics), _ = _trained(name, 1)
    (shared, of_both), program = _trained(name, 2)
    assert shared.step == STEPS
    for x in jax.tree.leaves(shared):
      assert len(x.sharding.device_set) == 2 and x.is_fully_replicated
    # Gradients are summed. What was played stays where it was played.
    assert "all-reduce" in program
    assert "all-gather" not in program and "all-to-all" not in program, name
    first = jax.tree.leaves((state.meta_params, metrics))
    second = jax.tree.leaves((shared.meta_params, of_both))
    for x, y in zip(first, second, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.slow
def test_two_devices_take_the_steps_of_one():
  run_python(
    "-c",
    "from tests.policies import devices_test as t; t.compare()",
    devices=2,
    x64=True,
  )


def compare_beliefs():
  """Runs in a process of its own, which has two devices.

  The policy's updates scale the advantages of a device, so they differ on
  other devices. Those of the belief do not, whatever is played.
  """
  assert len(jax.devices()) == 2
  tasks = trials_of(gridworld(3, 4), 8)
  network = belief_network(recurrent(4, units=3), 5, latent=2, units=4)
  found = []
  for devices in (1, 2):
    trainer = varibad_trainer(
      network,
      tasks,
      optax.sgd(0.0),
      optax.sgd(1e-3),
      PPO(actors=8, epochs=1, minibatches=2),
      VariBAD(updates=3, batch=4, kept=2),
      rng=jax.random.key(1),
      mesh=task_mesh(8, jax.devices()[:devices]),
    )
    start = trainer.init(jax.random.key(0))
    before = jax.device_get(start.meta_params)
    train, _ = trainer.compile(start)
    state, metrics = train(start, 3)
    ring = state.opt_state.trials.reward.sharding
    assert len(ring.device_set) == devices
    assert ring.is_fully_replicated == (devices == 1)
    for x in jax.tree.leaves(state.meta_params):
      assert x.is_fully_replicated
    names = ("elbo", "reward_error", "kl", "reward")
    metrics = {name: metrics[name] for name in names}
    moved = jax.tree.map(np.subtract, jax.device_get(state.meta_params), before)
    found.append(jax.device_get((moved, state.opt_state.trials, metrics)))
  assert max(np.abs(x).max() for x in jax.tree.leaves(found[0][0])) > 1e-3
  for x, y in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_devices_learn_the_belief_of_one():
  run_python(
    "-c",
    "from tests.policies import devices_test as t; t.compare_beliefs()",
    devices=2,
  )


def test_tasks_that_devices_cannot_share_are_refused():
  tasks = navigation(5)
  policy = gaussian_policy(MLP(2, (4,)), tasks.actions)

  class Mesh:
    size = 3

  with pytest.raises(ValueError, match="meta_batch=4: must be a multiple of 3"):
    policy_trainer(
      policy_learner(policy, tasks),
      tasks,
      TrustRegion(),
      meta_batch=4,
      rng=jax.random.key(0),
      mesh=Mesh(),
    )
