"""Tasks per second against devices, and what eight accelerators would lose."""

import os
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags

from scripts.benchmarks import maml
from scripts.benchmarks.exchange import (
  TARGETS,
  all_reduce_bytes,
  all_reduce_seconds,
)
from scripts.benchmarks.measuring import machine, timed

FLAGS = flags.FLAGS

flags.DEFINE_integer(
  "max_devices",
  8,
  "Of the suite scaling: 1, 2, 4, ... devices up to this many, into which a "
  "CPU is divided.",
  lower_bound=1,
)


def measure() -> Iterator[dict]:
  """Times the same tasks on more devices, and as many on each of more."""
  if "xla_force_host_platform_device_count" not in os.environ.get(
    "XLA_FLAGS", ""
  ):
    jax.config.update("jax_num_cpu_devices", FLAGS.max_devices)
  devices = jax.devices()
  most = min(FLAGS.max_devices, len(devices))
  counts = [2**i for i in range(most.bit_length())]
  if FLAGS.tasks % counts[-1]:
    raise ValueError(
      f"--tasks={FLAGS.tasks}: must be a multiple of {counts[-1]} devices; "
      "give another number, or a smaller --max_devices."
    )
  cases = [(kind, n) for kind in ("strong", "weak") for n in counts]
  built = {}
  for kind, n in cases:
    num_tasks = FLAGS.tasks * (n if kind == "weak" else 1)
    if (num_tasks, n) not in built:
      built[num_tasks, n] = maml.build(num_tasks, devices[:n])
  # In turns, since a machine's speed changes.
  seconds = {key: [] for key in built}
  for program in built.values():  # To warm up.
    timed(lambda t=program.take: t(1))
  for _ in range(FLAGS.repeats):
    for key, program in built.items():
      steps = max(1, round(FLAGS.seconds / timed(lambda t=program.take: t(1))))
      call = timed(lambda t=program.take, s=steps: t(s))
      seconds[key].append(call / steps)

  alone = np.array(seconds[FLAGS.tasks, 1])
  for kind, n in cases:
    num_tasks = FLAGS.tasks * (n if kind == "weak" else 1)
    times = np.array(seconds[num_tasks, n])
    speedups = num_tasks / FLAGS.tasks * alone / times
    yield {
      **maml.setting(),
      "scaling": kind,
      "devices": n,
      "tasks": num_tasks,
      "tasks_per_second": num_tasks / float(np.median(times)),
      "speedup": float(np.median(speedups)),
      "speedup_min": float(speedups.min()),
      "speedup_max": float(speedups.max()),
      "task_chunk": built[num_tasks, n].task_chunk,
      "all_reduce_bytes": all_reduce_bytes(built[num_tasks, n].executable),
      **machine(n),
    }
  if len(counts) > 1:
    exchanged = built[FLAGS.tasks, counts[-1]].executable
    yield from estimates(all_reduce_bytes(exchanged))


def estimates(size: int) -> Iterator[dict]:
  """Estimates what an all-reduce would cost; see `exchange`."""
  for name, n, rate, hop in TARGETS:
    seconds = all_reduce_seconds(size, n, rate, hop)
    yield {
      **maml.setting(),
      "estimate": name,
      "devices": n,
      "all_reduce_bytes": size,
      "all_reduce_seconds": seconds,
      "step_seconds_for_90_percent": 9 * seconds,
    }
