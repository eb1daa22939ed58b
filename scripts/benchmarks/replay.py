"""Measures a step of recurrent experience replay, and the buffer's share."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from metajax.models.recurrent import recurrent
from metajax.training.mesh import TASKS, task_mesh
from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import machine, seconds_per_step
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_integer("pulls", 100, "Pulls of a bandit (suite replay).", 1)
own_flags.DEFINE_integer("arms", 10, "Arms of a bandit (suite replay).", 2)
own_flags.DEFINE_integer("units", 64, "Of the GRU (suite replay).", 1)
own_flags.DEFINE_integer(
  "actors", 64, "Tasks played at once (suite replay).", 1
)
own_flags.DEFINE_float("replay_ratio", 2.0, "Of the suite replay.", 1e-3)


def measure() -> Iterator[dict]:
  """Times a whole step of acting and learning, then the buffer alone."""
  # These modules need the extra rl, unlike other suites. They compute at
  # import, which must come after the devices are chosen.
  from metajax.replay import (
    Objective,
    Replay,
    replay_trainer,
    updates_per_step,
  )
  from metajax.replay.buffers import add, make_buffer, set_priorities
  from metajax.tasks.bandits import bandits

  tasks = bandits(FLAGS.arms, FLAGS.pulls)
  replay = Replay(
    actors=FLAGS.actors,
    length=FLAGS.pulls,
    period=FLAGS.pulls,
    capacity=4096,
    batch=FLAGS.actors,
    ratio=FLAGS.replay_ratio,
  )
  mesh = task_mesh(replay.actors)
  trainer = replay_trainer(
    recurrent(FLAGS.arms, units=FLAGS.units, head="dueling"),
    tasks,
    optax.adam(1e-3),
    Objective(FLAGS.arms, FLAGS.pulls),
    replay,
    rng=jax.random.key(1),
    mesh=mesh,
  )
  state = trainer.init(jax.random.key(2))
  train, executable = trainer.compile(state)

  def call(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  step = seconds_per_step(call)

  buffer = make_buffer(replay, mesh.size)
  updates = updates_per_step(replay, tasks.num_steps)

  def on_device(stored, steps):
    stored = jax.tree.map(lambda x: x[0], stored)
    new = buffer.sample(stored, jax.random.key(0)).experience

    def update(i, carry):
      stored, read = carry
      sample = buffer.sample(stored, jax.random.fold_in(jax.random.key(3), i))
      # The sum uses all values, so that the compiler removes none of the reads.
      read += sum(x.sum() for x in jax.tree.leaves(sample.experience))
      priorities = 1 + sample.probabilities
      stored = set_priorities(buffer, stored, sample.indices, priorities)
      return stored, read

    def one(i, carry):
      stored, read = carry
      stored = add(buffer, stored, new, jnp.ones(replay.batch // mesh.size))
      return jax.lax.fori_loop(0, updates, update, (stored, read))

    _, read = jax.lax.fori_loop(0, steps, one, (stored, jnp.float32(0)))
    return read[None]

  buffer_steps = jax.jit(
    jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(P(TASKS), P()),
      out_specs=P(TASKS),
      check_vma=False,
    )
  )
  stored = state.opt_state.buffer
  alone = seconds_per_step(functools.partial(buffer_steps, stored))
  median, buffer_median = float(np.median(step)), float(np.median(alone))
  yield {
    "pulls": FLAGS.pulls,
    "arms": FLAGS.arms,
    "units": FLAGS.units,
    "actors": replay.actors,
    "updates_per_step": updates,
    "sequences_per_update": replay.batch,
    "seconds_per_step": median,
    "seconds_min": float(step.min()),
    "seconds_max": float(step.max()),
    "environment_steps_per_second": replay.actors * FLAGS.pulls / median,
    "seconds_in_buffer": buffer_median,
    "share_in_buffer": buffer_median / median,
    "peak_temp_bytes": executable.memory_analysis().temp_size_in_bytes,
    **machine(mesh.size),
  }
