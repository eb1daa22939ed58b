"""Runs that are killed, stopped, damaged and repeated end like any other.

Small runs of the sinusoid script, each in a process of its own.
"""

import hashlib
import json
import math
import os
import random
import re
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
from PIL import Image

from metajax.models.mlp import MLP
from metajax.training import TrainState, checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS, CHECKPOINT_EVERY, LOG_EVERY, EVAL_EVERY = 320, 20, 10, 160
FLAGS = {
  "steps": STEPS,
  "checkpoint_every": CHECKPOINT_EVERY,
  "log_every": LOG_EVERY,
  "eval_every": EVAL_EVERY,
  "meta_batch": 4,
  "task_chunk": 1,
  "eval_tasks": 8,
  "eval_inner_steps": 1,
}
# "step": at the line of metrics of this step; "new": at the first file of its
# checkpoint, which is being written then. After that, seconds of delay.
MOMENTS = random.Random(0)
KILLS = [
  ("step", MOMENTS.randrange(1, 40), 0.0),
  ("new", MOMENTS.randrange(60, 120), 0.0),
  ("new", MOMENTS.randrange(120, 180), MOMENTS.uniform(0.0, 0.2)),
]
STOPS = {signal.SIGTERM: 220, signal.SIGINT: 260}
TIMEOUT = 300


# Told where it lasts some seconds, which depends on the machine.
WAITING = re.compile("validating at step |evaluating on |drawing tasks$")


class Ended(NamedTuple):
  """How a process ended."""

  code: int
  stderr: str


def _start(workdir, **flags):
  arguments = FLAGS | {"workdir": workdir} | flags
  environment = os.environ | {"PYTHONUNBUFFERED": "1"}
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.maml_sinusoid"]
    + [f"--{name}={value}" for name, value in arguments.items()],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _wait(process):
  try:
    stderr = process.communicate(timeout=TIMEOUT)[1]
  finally:
    process.kill()
  return Ended(process.returncode, stderr)


def _run(workdir, **flags):
  return _wait(_start(workdir, **flags))


def _send(workdir, signum, moment, **flags):
  """Runs until the moment comes, then sends the signal."""
  kind, step, delay = moment
  process = _start(workdir, **flags)
  try:
    deadline = time.monotonic() + TIMEOUT
    while not _has_come(workdir, kind, step):
      assert process.poll() is None, _wait(process)
      assert time.monotonic() < deadline, f"step {step} does not come"
      time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signum)
    return _wait(process)
  finally:
    process.kill()


def _has_come(workdir, kind, step):
  if kind == "step":
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return len(lines) * LOG_EVERY >= step
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.is_dir() else []
  return any(int(re.match(r"\d*", name)[0] or 0) >= step for name in names)


def _state(workdir):
  """The newest checkpoint, which must be that of the last step."""
  params = MLP(1, (40, 40)).init(jax.random.key(0), jnp.zeros((1, 1)))
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
  like = TrainState(jnp.int32(0), params, optimizer.init(params))
  opened = checkpoint.open_checkpoints(workdir / "checkpoints")
  state = checkpoint.restore(opened, like).state
  opened.manager.close()
  assert state.step == STEPS
  return state


def _differences(one, other):
  """The number of leaves that differ in any bit."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return sum(
    np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs
  )


def _metrics(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _results(workdir):
  return json.loads((workdir / "results.json").read_text())


def _hashes(folder):
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The workdir of a run without interruption."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  ended = _run(workdir)
  assert ended.code == 0, ended.stderr
  return workdir


class Interrupted(NamedTuple):
  """A run that was interrupted many times, and how each time ended."""

  workdir: Path
  stopped: dict[int, Ended]
  # What was in `checkpoints/` after each signal.
  checkpoints: dict[int, set[str]]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("interrupted") / "run"
  for moment in KILLS:
    ended = _send(workdir, signal.SIGKILL, moment)
    assert ended.code == -signal.SIGKILL, ended.stderr
  stopped, checkpoints = {}, {}
  for signum, step in STOPS.items():
    stopped[signum] = _send(workdir, signum, ("step", step, 0.0))
    checkpoints[signum] = set(os.listdir(workdir / "checkpoints"))
  ended = _run(workdir)
  assert ended.code == 0, ended.stderr
  return Interrupted(workdir, stopped, checkpoints)


def _said_at_once(ended):
  lines = ended.stderr.splitlines()
  return [line for line in lines if not WAITING.match(line)]


def _stopped_at(ended):
  return int(re.search(r"at step (\d+);", ended.stderr)[1])


@pytest.mark.slow
def test_parameters_do_not_depend_on_kills_and_stops(straight, interrupted):
  """Bit for bit; so, too, are two runs of one seed the same."""
  assert _differences(_state(straight), _state(interrupted.workdir)) == 0


@pytest.mark.slow
def test_nothing_unfinished_is_left(straight, interrupted):
  whole = {str(STEPS - CHECKPOINT_EVERY), str(STEPS)}
  for workdir in (straight, interrupted.workdir):
    assert set(os.listdir(workdir / "checkpoints")) == whole
  assert set(os.listdir(straight)) == set(os.listdir(interrupted.workdir))


@pytest.mark.slow
def test_every_due_step_is_recorded_once_with_its_losses(straight, interrupted):
  expected, found = _metrics(straight), _metrics(interrupted.workdir)
  due = list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
  assert [line["step"] for line in expected] == due
  assert [line["step"] for line in found] == due
  # A loss is the mean since the line before, or since the run was stopped.
  stops = [_stopped_at(ended) for ended in interrupted.stopped.values()]
  cut = {step - step % LOG_EVERY + LOG_EVERY for step in stops}
  # Step sizes are those of the schedule, in every session.
  for lines in (expected, found):
    rates = [line["outer_lr"] for line in lines]
    halves = [0.5 * (1 + math.cos(math.pi * (s - 1) / STEPS)) for s in due]
    # In float32, 1 + cos is right to about 1e-7.
    np.testing.assert_allclose(rates, 1e-3 * np.array(halves), atol=2e-10)
  losses = [
    [line["loss"] for line in lines if line["step"] not in cut]
    for lines in (found, expected)
  ]
  # The steps of one call of the compiled loop are averaged in float32, and how
  # many steps a call takes depends on the time.
  np.testing.assert_allclose(*losses, rtol=1e-5)
  validations = [
    [(line["step"], line.get("validation/mse")) for line in lines]
    for lines in (expected, found)
  ]
  assert validations[0] == validations[1]
  validated = [step for step, value in validations[0] if value is not None]
  assert validated == list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY))


@pytest.mark.slow
@pytest.mark.parametrize("signum", STOPS)
def test_stop_is_one_line_and_a_checkpoint(interrupted, signum):
  ended = interrupted.stopped[signum]
  assert ended.code == 128 + signum
  step = _stopped_at(ended)
  # orbax warns ("W1231 ...") where a kill came while it removed an old
  # checkpoint.
  usual = re.compile(
    r"W\d{4} |maml_sinusoid: run in |step \d+/\d+  |stopping after a |"
    r"compiling the training loop$|resumed at step "
  )
  lines = _said_at_once(ended)
  assert [line for line in lines if not usual.match(line)] == [
    f"error: stopped by {signal.Signals(signum).name} at step {step}; a "
    "checkpoint is written, run the same command to go on."
  ]
  assert str(step) in interrupted.checkpoints[signum]


@pytest.mark.slow
def test_seeds_differ(straight, tmp_path):
  ended = _send(tmp_path / "run", signal.SIGKILL, ("step", 50, 0.0), seed=1)
  assert ended.code == -signal.SIGKILL, ended.stderr
  other = _metrics(tmp_path / "run")[:5]
  pairs = list(zip(_metrics(straight), other, strict=False))
  assert [x["step"] == y["step"] for x, y in pairs] == [True] * 5
  assert [x["loss"] != y["loss"] for x, y in pairs] == [True] * 5


@pytest.fixture(scope="module")
def repeated(straight, tmp_path_factory):
  """Runs again what has ended, once with its newest checkpoint cut short."""
  folder = tmp_path_factory.mktemp("repeated")
  workdirs = {name: folder / name for name in ("whole", "damaged")}
  for path in workdirs.values():
    shutil.copytree(straight, path)
    (path / "results.json").unlink()  # Else they are shown, and that is all.
  newest = workdirs["damaged"] / "checkpoints" / str(STEPS)
  files = [path for path in newest.rglob("*") if path.is_file()]
  victim = max(files, key=lambda path: path.stat().st_size)
  os.truncate(victim, victim.stat().st_size // 2)
  started = {name: _start(path) for name, path in workdirs.items()}
  ended = {name: _wait(process) for name, process in started.items()}
  return {name: (workdirs[name], ended[name]) for name in workdirs}


@pytest.mark.slow
def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
  straight, repeated
):
  workdir, ended = repeated["damaged"]
  assert ended.code == 0, ended.stderr
  warning = rf"checkpoint {STEPS} is damaged .*; going on from that of step "
  warnings = re.findall(warning, ended.stderr, re.MULTILINE)
  assert len(warnings) == 1
  steps = re.findall(rf"^step (\d+)/{STEPS} ", ended.stderr, re.MULTILINE)
  redone = range(STEPS - CHECKPOINT_EVERY + LOG_EVERY, STEPS + 1, LOG_EVERY)
  assert [int(step) for step in steps] == list(redone)
  assert _differences(_state(straight), _state(workdir)) == 0
  found, expected = _metrics(workdir), _metrics(straight)
  assert [x["step"] for x in found] == [x["step"] for x in expected]


@pytest.mark.slow
def test_run_that_has_ended_is_only_evaluated_again(straight, repeated):
  workdir, ended = repeated["whole"]
  assert ended.code == 0, ended.stderr
  assert _said_at_once(ended) == [
    f"maml_sinusoid: run in {workdir}",
    f"resumed at step {STEPS}",
  ]
  assert _results(workdir)["metrics"] == _results(straight)["metrics"]
  before, after = _hashes(straight), _hashes(workdir)
  same = [
    name
    for name in before
    if name.startswith(("metrics", "config", "checkpoints"))
  ]
  assert len(same) > 2
  assert [after[name] for name in same] == [before[name] for name in same]


@pytest.mark.slow
def test_results_that_are_there_are_shown_and_nothing_is_written(straight):
  before = _hashes(straight)
  ended = _run(straight)
  assert ended == (0, f"maml_sinusoid: run in {straight}\n")
  assert _hashes(straight) == before


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_that_was_longer_at_once(tmp_path):
  few = {"outer_schedule": "constant", "checkpoint_every": 40, "eval_every": 40}
  longer, at_once = tmp_path / "longer", tmp_path / "at_once"
  assert _run(longer, steps=40, **few).code == 0
  assert _run(longer, steps=80, **few).code == 0
  assert _run(at_once, steps=80, **few).code == 0
  arrays = [w / "meta_params.safetensors" for w in (longer, at_once)]
  assert arrays[0].read_bytes() == arrays[1].read_bytes()
  assert _results(longer)["metrics"] == _results(at_once)["metrics"]
  first = json.loads((longer / "earlier" / "results_0.json").read_text())
  assert first["steps"] == 40
  # Other test tasks need no training.
  ended = _run(longer, steps=80, eval_tasks=12, **few)
  steps = re.findall(r"^step \d+/", ended.stderr, re.MULTILINE)
  assert (ended.code, steps) == (0, [])
  (metric,) = _results(longer)["metrics"].values()
  assert metric["num_tasks"] == 12
  shorter = _run(longer, steps=40, eval_tasks=12, **few)
  assert (shorter.code, "--steps=80, not 40" in shorter.stderr) == (2, True)


@pytest.mark.slow
def test_a_run_whose_schedule_has_ended_does_not_go_on(straight):
  before = _hashes(straight)
  ended = _run(straight, steps=STEPS + 1)
  assert ended == (
    2,
    f"error: --steps={STEPS + 1}: the run in {straight} is of {STEPS} steps, "
    "and --outer_schedule=cosine ends at step size 0, so it cannot go on. A "
    "new --workdir trains anew.\n",
  )
  assert _hashes(straight) == before


@pytest.mark.slow
def test_workdir_of_other_flags_is_left_alone(straight):
  before = _hashes(straight)
  ended = _run(straight, outer_lr=0.5)
  assert ended == (
    2,
    f"error: --workdir={straight} holds a run with --outer_lr=0.001, not 0.5: "
    "use that value, or another --workdir.\n",
  )
  assert _hashes(straight) == before


@pytest.mark.slow
def test_results_say_what_was_measured_and_how(straight):
  results = _results(straight)
  assert list(results) == [
    "experiment",
    "protocol",
    "metrics",
    "wall_seconds",
    "compile_seconds",
    "steps",
    "seed",
    "device",
    "versions",
  ]
  assert results["experiment"] == "maml_sinusoid"
  assert (results["steps"], results["seed"]) == (STEPS, 0)
  assert 0 < results["compile_seconds"] < results["wall_seconds"]
  assert results["protocol"]["meta_batch"] == 4
  (name,) = results["metrics"]
  assert name == "mse_5_shot_1_steps"
  metric = results["metrics"][name]
  assert list(metric) == ["mean", "ci95", "num_tasks"]
  assert metric["num_tasks"] == 8
  # 12.5 would be the largest amplitude, constantly missed.
  assert 0 < metric["mean"] < 12.5
  assert 0 < metric["ci95"] < metric["mean"]


def test_config_holds_flags_versions_device_and_commit(straight):
  config = json.loads((straight / "config.json").read_text())
  flags = config["flags"]
  assert flags.pop("experiment") == "maml_sinusoid"
  given = FLAGS | {"eval_inner_steps": [1]}
  defaults = {
    "seed": 0,
    "eval_seed": 0,
    "learner": "maml",
    "inner_steps": 1,
    "inner_lr": 0.01,
    "outer_lr": 0.001,
    "outer_schedule": "cosine",
    "memory": "auto",
    "shots": 5,
    "query_shots": 10,
    "eval_shots": [5],
    "inner_optimizer": "sgd",
    "outer_optimizer": "adam",
    "inner_batch": 0,
    "carry_optimizer": False,
    "learned_rates": True,
    "step_normalization": True,
    "multi_step_part": 1 / 15,
    "first_order_part": 1 / 3,
    "proximal_strength": 2.0,
    "cg_steps": 5,
    "damping": 0.0,
    "svm_cost": 0.1,
    "num_context": 5,
    "num_seeds": 1,
    "dtype": "float32",
  }
  assert flags == given | defaults
  environment = config["environment"]
  assert environment["versions"]["jax"] == jax.__version__
  assert environment["versions"] == _results(straight)["versions"]
  assert environment["device"] in _results(straight)["device"]
  assert environment["platform"] == jax.default_backend()
  # A copy of the sources without their history has no commit.
  commit = r".*[0-9a-f]{40}(-dirty)?" if (ROOT / ".git").exists() else "unknown"
  assert re.fullmatch(commit, environment["git_commit"])


@pytest.mark.parametrize(
  "name, shape", [("learning_curve", (660, 396)), ("adaptation", (1408, 374))]
)
def test_pictures_are_whole_and_of_their_size(straight, name, shape):
  with Image.open(straight / f"{name}.png") as image:
    pixels = np.asarray(image.convert("L"))
    assert (image.format, image.size) == ("PNG", shape)
  # Mostly white, but not all.
  assert 0.5 < np.mean(pixels > 250) < 0.99


# A callback of the garbage collector, as JAX has one. Python ignores exceptions
# that it raises.
IN_A_CALLBACK = """
import gc, os, signal, sys
from metajax.runs.flags import FLAGS
from metajax.runs.script import run

def main():
  gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  gc.collect()
  print("goes on")

run(main)
"""


@pytest.mark.slow
def test_a_signal_that_comes_within_a_callback_ends_the_run(tmp_path):
  ended = subprocess.run(
    [sys.executable, "-c", IN_A_CALLBACK, f"--workdir={tmp_path / 'w'}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 128 + signal.SIGTERM
  assert ended.stdout == ""
  assert ended.stderr == "error: terminated; run the same command to go on.\n"


# As Grain's workers are, which read images.
WITH_A_WORKER = """
import multiprocessing, os, signal, time
from metajax.runs.script import run

def main():
  worker = multiprocessing.get_context("spawn").Process(
    target=time.sleep, args=(600,), daemon=True
  )
  worker.start()
  print(worker.pid, flush=True)
  os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
  run(main)
"""


@pytest.mark.slow
def test_a_signal_ends_the_workers_of_a_run_too(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(WITH_A_WORKER)
  ended = subprocess.run(
    [sys.executable, str(script), f"--workdir={tmp_path / 'w'}"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    check=False,
  )
  assert ended.returncode == 128 + signal.SIGTERM
  status = Path("/proc") / ended.stdout.strip() / "stat"
  for _ in range(100):
    try:
      # A process that nobody waits for stays as a zombie.
      state = status.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
      return
    if state == "Z":
      return
    time.sleep(0.1)
  raise AssertionError(f"{status} is still that of a process")
