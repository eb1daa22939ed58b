r"""Compares the PPO of `metajax.policies` with that of brax.

  NPROC=1 taskset -c 0 python scripts/compare_policies.py --clock=cpu --json
  python scripts/compare_policies.py --environment=halfcheetah

A training step of each program plays `--actors` environments for `--horizon`
steps, and takes `--epochs` times `--minibatches` updates by Adam. An episode
ends where the environment says so, or at the horizon. Observations are not
normalised. brax is run by `brax.training.agents.ppo.train`, without
evaluations. The first program of metajax has brax's own networks and no memory.
The second is RL^2 with a GRU, which brax does not have.

The programs take turns, `--repeats` times, in one process and on one device. A
ratio compares two calls of one turn. All calls have the same number of training
steps, chosen so that the first program of metajax takes about `--seconds`. The
script needs the extra brax.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.models.recurrent import recurrent  # noqa: E402
from metajax.policies import PPO, num_outputs, ppo_trainer  # noqa: E402
from metajax.tasks.brax_tasks import brax_environment  # noqa: E402
from metajax.training import task_mesh  # noqa: E402
from scripts.benchmarks import brax_ppo, own_flags  # noqa: E402
from scripts.benchmarks.measuring import machine  # noqa: E402
from scripts.benchmarks.own_flags import FLAGS  # noqa: E402

own_flags.DEFINE_bool("json", False, "A line of JSON after the table.")
own_flags.DEFINE_enum(
  "environment",
  "inverted_pendulum",
  ["inverted_pendulum", "halfcheetah", "ant"],
  "Of brax, with the physics called spring.",
)
own_flags.DEFINE_integer("actors", 64, "Environments played at once.", 1)
own_flags.DEFINE_integer("horizon", 100, "Steps played in each of them.", 1)
own_flags.DEFINE_integer("epochs", 4, "Passes over the steps played.", 1)
own_flags.DEFINE_integer("minibatches", 4, "Updates in an epoch.", 1)
own_flags.DEFINE_integer(
  "units", 64, "Of the GRU, and of each of two layers of policy and value.", 1
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
own_flags.DEFINE_enum(
  "clock",
  "wall",
  list(CLOCKS),
  "cpu: the processor's time, for one thread on a machine with other work.",
)
RATE = 3e-4


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  if FLAGS.actors % FLAGS.minibatches:
    sys.exit(
      f"error: --actors={FLAGS.actors}: must be a multiple of "
      f"--minibatches={FLAGS.minibatches}."
    )
  try:
    environment = brax_environment(FLAGS.environment)
  except ValueError as error:
    sys.exit(f"error: {error}")
  seconds, compilation, steps = measure(environment)
  played = steps * FLAGS.actors * FLAGS.horizon
  print(f"{'':18} steps/s  brax's time over its  (least - most)  compilation")
  programs = {}
  for name, times in seconds.items():
    over = [b / t for b, t in zip(seconds["brax"], times, strict=True)]
    rate, ratio = played / statistics.median(times), statistics.median(over)
    print(
      f"{name:18} {rate:7.0f} {ratio:21.2f}  ({min(over):5.2f} - "
      f"{max(over):5.2f}) {compilation[name]:10.1f} s"
    )
    programs[name] = {
      "environment_steps_per_second": rate,
      "seconds": times,
      "ratios": over,
      "compile_seconds": compilation[name],
    }
  if FLAGS.json:
    names = ["environment", "actors", "horizon", "epochs", "minibatches"]
    setting = {n: FLAGS[n].value for n in [*names, "units", "clock"]}
    setting["training_steps_in_a_call"] = steps
    print(json.dumps({**setting, "programs": programs, **machine(1)}))


def measure(environment: Any) -> tuple[dict, dict, int]:
  """Returns seconds of calls, seconds of compilation, and steps in a call."""
  from brax.training.agents.ppo.networks import make_ppo_networks

  def build(*sizes, **options):
    both = ("policy_hidden_layer_sizes", "value_hidden_layer_sizes")
    options |= dict.fromkeys(both, [FLAGS.units] * 2)
    return make_ppo_networks(*sizes, **options)

  clock, tasks = (
    CLOCKS[FLAGS.clock],
    brax_ppo.trials(environment, FLAGS.horizon),
  )
  size = environment.observation_size
  both = build(size, environment.action_size)
  networks = {
    "metajax, no memory": brax_ppo.without_memory(
      both.policy_network, both.value_network, size
    ),
    "metajax, GRU": recurrent(
      num_outputs(tasks.actions), units=FLAGS.units, head="actor_critic"
    ),
  }
  ppo = PPO(FLAGS.actors, FLAGS.epochs, FLAGS.minibatches)
  ppo = ppo._replace(value_gae=ppo.gae)  # As brax has it.
  calls, compilation, seconds = {}, {}, {"brax": []}
  for name, network in networks.items():
    calls[name], compilation[name] = compiled(network, tasks, ppo, clock)
    seconds[name] = []

  def taken(call, steps):
    start = clock()
    jax.block_until_ready(call(steps))
    return clock() - start

  call = calls["metajax, no memory"]
  steps = max(1, round(FLAGS.seconds / max(taken(call, 1), 1e-9)))
  started = []

  def turn(played, *_):
    if played:
      seconds["brax"].append(clock() - started[-1])
      for name, call in calls.items():
        seconds[name].append(taken(call, steps))
    started.append(clock())

  brax_ppo.train(
    environment,
    build,
    ppo,
    horizon=FLAGS.horizon,
    rate=RATE,
    steps=steps,
    calls=1 + FLAGS.repeats,
    between=turn,
  )
  # brax compiles in its first call. This turn does not count.
  first, *times = seconds["brax"]
  compilation["brax"] = first - statistics.median(times)
  return {k: v[1:] for k, v in seconds.items()}, compilation, steps


def compiled(network, tasks, ppo, clock):
  """Returns `steps -> metrics`, called once, and its seconds of compilation."""
  mesh = task_mesh(ppo.actors, jax.devices()[:1])
  trainer = ppo_trainer(
    network, tasks, optax.adam(RATE), ppo, rng=jax.random.key(1), mesh=mesh
  )
  state = trainer.init(jax.random.key(2))
  start = clock()
  train, _ = trainer.compile(state)
  compilation = clock() - start

  def call(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  jax.block_until_ready(call(1))
  return call, compilation


if __name__ == "__main__":
  main(own_flags.parse(sys.argv))
