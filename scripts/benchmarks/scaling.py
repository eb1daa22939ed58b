"""Measures tasks per second against devices, and estimates accelerators."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax
import numpy as np

from scripts.benchmarks import maml, own_flags
from scripts.benchmarks.exchange import (
  TARGETS,
  all_reduce_bytes,
  all_reduce_seconds,
)
from scripts.benchmarks.measuring import machine, timed
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_integer(
  "max_devices",
  8,
  "Of the suite scaling: 1, 2, 4, ... devices up to this many, into which a "
  "CPU is divided.",
  lower_bound=1,
)

FORCED = "xla_force_host_platform_device_count"


class Program(NamedTuple):
  """The meta-step for a number of tasks and a number of devices.

  Attributes:
    about: the entries of the program in the JSON line.
    seconds: `steps -> seconds`, takes meta-steps.
  """

  about: dict[str, object]
  seconds: Callable[[int], float]


def measure() -> Iterator[dict]:
  """Times the same tasks on more devices, and equally many on each device."""
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu and FORCED in os.environ.get("XLA_FLAGS", ""):
    raise ValueError(f"XLA_FLAGS: leave {FORCED} out, --max_devices says it.")
  most = FLAGS.max_devices
  if not on_cpu:
    most = min(most, len(jax.devices()))
  counts = [2**i for i in range(most.bit_length())]
  if FLAGS.tasks % counts[-1]:
    raise ValueError(
      f"--tasks={FLAGS.tasks}: must be a multiple of {counts[-1]} devices; "
      "give another number, or a smaller --max_devices."
    )
  build = _in_a_process if on_cpu else _programs
  programs = {n: build(n) for n in counts}
  # The programs take turns, because the speed of a machine changes.
  seconds = {(k, n): [] for n in counts for k in programs[n]}
  for k, n in seconds:
    programs[n][k].seconds(1)  # To warm up.
  for _ in range(FLAGS.repeats):
    for k, n in seconds:
      call = programs[n][k].seconds
      steps = max(1, round(FLAGS.seconds / call(1)))
      seconds[k, n].append(call(steps) / steps)

  alone = np.array(seconds[FLAGS.tasks, 1])
  for kind in ("strong", "weak"):
    for n in counts:
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
        **programs[n][num_tasks].about,
      }
  if len(counts) > 1:
    exchanged = programs[counts[-1]][FLAGS.tasks].about["all_reduce_bytes"]
    yield from estimates(exchanged)


def _programs(n: int) -> dict[int, Program]:
  """Compiles programs for `n` devices, by the number of tasks.

  One number is --tasks in total, the other is --tasks on each device.
  """
  result = {}
  for num_tasks in (FLAGS.tasks, FLAGS.tasks * n):
    if num_tasks not in result:
      built = maml.build(num_tasks, jax.devices()[:n])
      about = {
        "task_chunk": built.task_chunk,
        "all_reduce_bytes": all_reduce_bytes(built.executable),
        **machine(n),
      }
      result[num_tasks] = Program(
        about, lambda steps, take=built.take: timed(lambda: take(steps))
      )
  return result


def _in_a_process(n: int) -> dict[int, Program]:
  """Starts a process that divides the CPU into `n` devices.

  The process has no other devices, because the threads of unused devices slow
  it down. On one of 8 devices a step took 1.5 times as long as on an undivided
  CPU.
  """
  here, there = multiprocessing.Pipe()
  multiprocessing.get_context("spawn").Process(
    target=_serve, args=(there, sys.argv, n), daemon=True
  ).start()
  there.close()

  def ask(*request):
    here.send(request)
    return here.recv()

  def program(num_tasks, about):
    return Program(about, lambda steps: ask(num_tasks, steps))

  abouts = here.recv()
  if isinstance(abouts, ValueError):
    raise abouts
  return {k: program(k, about) for k, about in abouts.items()}


def _serve(connection: Connection, argv: list[str], n: int) -> None:
  """Takes the requested steps until the connection closes."""
  FLAGS(argv)
  jax.config.update("jax_num_cpu_devices", n)
  try:
    programs = _programs(n)
  except ValueError as error:
    connection.send(error)
    return
  connection.send({k: program.about for k, program in programs.items()})
  while True:
    try:
      num_tasks, steps = connection.recv()
    except EOFError:
      return
    connection.send(programs[num_tasks].seconds(steps))


def estimates(size: int) -> Iterator[dict]:
  """Estimates the cost of an all-reduce; see `exchange`."""
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
