"""One run in two processes of four devices each, over the loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.models.mlp import MLP
from metajax.training import TrainState, checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 80, 20
FLAGS = [
  "--meta_batch=8",
  "--eval_tasks=8",
  "--eval_inner_steps=1",
  "--task_chunk=1",
  "--log_every=10",
  f"--eval_every={STEPS}",
  f"--checkpoint_every={EVERY}",
  "--outer_schedule=constant",
]
TIMEOUT = 300


def _start(workdir, processes, devices):
  command = [sys.executable, "-m", "experiments.maml_sinusoid", *FLAGS]
  command += [f"--workdir={workdir}", f"--steps={STEPS}"]
  if processes > 1:
    command = ["scripts/launch_local.sh", str(processes), *command]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "GRACE": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(*arguments):
  process = _start(*arguments)
  stdout, stderr = process.communicate(timeout=TIMEOUT)
  assert process.returncode == 0, stderr
  return stdout


def _state(workdir):
  params = MLP(1, (40, 40)).init(jax.random.key(0), jnp.zeros((1, 1)))
  like = TrainState(jnp.int32(0), params, optax.adam(1e-3).init(params))
  opened = checkpoint.open_checkpoints(workdir / "checkpoints")
  state = checkpoint.restore(opened, like).state
  opened.manager.close()
  assert state.step == STEPS
  return jax.tree.map(np.asarray, state)


def _losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {(line := json.loads(text))["step"]: line["loss"] for text in lines}


class Runs(NamedTuple):
  """Workdirs of the same run, done in several ways."""

  together: Path  # Two processes.
  killed: Path  # The same, one of them killed after a checkpoint.
  alone: Path  # One process with one device.
  message: str  # Of the launcher, where one was killed.
  code: int
  seconds: float  # From the kill to the end of all.
  stdout: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  stdout = _run(folder / "together", 2, 4)
  killed = folder / "killed"
  launcher = _start(killed, 2, 4)
  deadline = time.monotonic() + TIMEOUT
  while not (killed / f"checkpoints/{EVERY}").exists():
    assert launcher.poll() is None, launcher.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.05)
  children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
  victim = next(
    pid
    for pid in map(int, children.read_text().split())
    if "--process_id=1" in Path(f"/proc/{pid}/cmdline").read_text()
  )
  os.kill(victim, signal.SIGKILL)
  before = time.monotonic()
  message = launcher.communicate(timeout=TIMEOUT)[1]
  seconds = time.monotonic() - before
  _run(folder / "alone", 1, 1)
  return Runs(
    folder / "together",
    killed,
    folder / "alone",
    message,
    launcher.returncode,
    seconds,
    stdout,
  )


def test_losses_are_those_of_one_device(runs):
  found, expected = _losses(runs.together), _losses(runs.alone)
  assert list(found) == list(expected)
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), rtol=1e-5
  )


def test_the_first_process_alone_speaks_and_writes(runs):
  assert runs.stdout.count("meta-steps in") == 1
  assert set(os.listdir(runs.together)) == set(os.listdir(runs.alone))
  found, expected = (
    json.loads((folder / "results.json").read_text())
    for folder in (runs.together, runs.alone)
  )
  assert found["protocol"]["devices"] == 8
  for name, metric in expected["metrics"].items():
    np.testing.assert_allclose(
      found["metrics"][name]["mean"], metric["mean"], rtol=1e-4
    )


def test_a_killed_process_ends_the_others_within_a_minute(runs):
  assert runs.seconds < 60
  assert runs.code == 128 + signal.SIGKILL
  assert "error: a process has ended (137), and with it the run" in runs.message


def test_it_goes_on_from_its_checkpoint_with_processes_and_without(
  runs, tmp_path
):
  """Bit for bit on as many devices; to rounding on another topology."""
  expected = jax.tree.leaves(_state(runs.together))
  for name, topology in (("two", (2, 4)), ("one", (1, 1))):
    workdir = shutil.copytree(runs.killed, tmp_path / name)
    _run(workdir, *topology)
    found = jax.tree.leaves(_state(workdir))
    for a, b in zip(found, expected, strict=True):
      if name == "two":
        assert a.tobytes() == b.tobytes()
      else:
        # By the array: Adam divides, so elements near zero have no digits.
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)
