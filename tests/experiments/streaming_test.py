"""Runs on images on the disk: killed, disturbed, and in little memory.

Each is a process of its own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
  "stream": "true",
  "image_size": 12,
  "steps": 60,
  "meta_batch": 2,
  "task_chunk": 1,
  "filters": 4,
  "checkpoint_every": 10,
  "log_every": 5,
  "eval_every": 60,
  "eval_tasks": 4,
  "validation_tasks": 4,
  "eval_inner_steps": 1,
}
TIMEOUT = 300


def _folder(root, *, per_class=4):
  rng = np.random.default_rng(0)
  for split in ("train", "val", "test"):
    for label in range(6):
      folder = root / split / str(label)
      folder.mkdir(parents=True)
      for number in range(per_class):
        pixels = rng.integers(0, 256, (14, 14, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
  return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return _folder(tmp_path_factory.mktemp("images"))


def _start(images, workdir, **flags):
  arguments = FLAGS | {"data_dir": images, "workdir": workdir} | flags
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.few_shot"]
    + [f"--{name}={value}" for name, value in arguments.items()],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process, code=0):
  try:
    stderr = process.communicate(timeout=TIMEOUT)[1]
  finally:
    process.kill()
  assert process.returncode == code, stderr
  return stderr


def _wait_for_step(process, workdir, step):
  path, deadline = workdir / "metrics.jsonl", time.monotonic() + TIMEOUT
  while not path.exists() or len(path.read_text().splitlines()) * 5 < step:
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def _children(process):
  """The processes whose parent is this one."""
  found = []
  for path in Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:  # It has ended.
      continue
    if int(fields[1]) == process.pid and fields[0] != "Z":
      found.append(int(path.parent.name))
  return found


def _wait_for_end(pids):
  deadline = time.monotonic() + 30
  while any(Path(f"/proc/{pid}").exists() for pid in pids):
    assert time.monotonic() < deadline, pids
    time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(images, tmp_path):
  """Its processes end with it. Threads read the same images as processes."""
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  _end(_start(images, straight))
  process = _start(images, killed, stream_workers=2)
  _wait_for_step(process, killed, 25)
  children = _children(process)
  assert len(children) >= 2
  process.send_signal(signal.SIGKILL)
  _end(process, -signal.SIGKILL)
  _wait_for_end(children)
  assert "resumed at step" in _end(_start(images, killed, stream_workers=1))
  arrays = [w / "meta_params.safetensors" for w in (straight, killed)]
  assert arrays[0].read_bytes() == arrays[1].read_bytes()
  results = [
    json.loads((w / "results.json").read_text())["metrics"]
    for w in (straight, killed)
  ]
  assert results[0] == results[1]


@pytest.mark.slow
def test_images_in_memory_give_the_same_results(images, tmp_path):
  """But for rounding, because the programs differ."""
  results = []
  for stream in ("true", "false"):
    workdir = tmp_path / stream
    _end(_start(images, workdir, stream=stream, augment="true"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    results.append([json.loads(line)["loss"] for line in lines])
  np.testing.assert_allclose(*results, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_the_run_in_a_line(workers, tmp_path):
  """The checkpoint stays, and the folder that was mended is another one."""
  images, workdir = _folder(tmp_path / "images"), tmp_path / "run"
  process = _start(images, workdir, stream_workers=workers, steps=100_000)
  _wait_for_step(process, workdir, 15)
  victim = images / "train" / "3" / "2.png"
  victim.write_bytes(victim.read_bytes()[:50])
  stderr = _end(process, 2)
  last = stderr.splitlines()[-1]
  assert re.fullmatch(rf"error: {victim} has changed since the run .*", last)
  assert "Traceback" not in stderr
  assert any((workdir / "checkpoints").iterdir())
  again = _end(_start(images, workdir, steps=100_000), 2)
  assert re.search(
    r"holds a run with --data_dir=images-\w+, not images-", again
  )


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_in_a_line(images, tmp_path):
  workdir = tmp_path / "run"
  process = _start(images, workdir, stream_workers=1, steps=100_000)
  _wait_for_step(process, workdir, 15)
  for pid in _children(process):
    command = Path(f"/proc/{pid}/cmdline").read_text()
    if "spawn_main" in command:
      os.kill(pid, signal.SIGKILL)
  stderr = _end(process, 2)
  assert re.match(
    r"error: a process that reads images has ended; run the same command to "
    r"go on, or give --stream_workers=0\.",
    stderr.splitlines()[-1],
  )
  assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_signal_to_all_processes_leaves_a_checkpoint(images, tmp_path):
  """As control-C sends one."""
  workdir = tmp_path / "run"
  process = _start(images, workdir, stream_workers=1, steps=100_000)
  _wait_for_step(process, workdir, 15)
  for pid in [*_children(process), process.pid]:
    os.kill(pid, signal.SIGINT)
  stderr = _end(process, 130)
  assert "a checkpoint is written" in stderr.splitlines()[-1]
  assert "Traceback" not in stderr


def _peak(images, workdir, **flags):
  """The peak of a run's resident memory in bytes."""
  process = _start(images, workdir, **flags)
  with process.stderr:
    process.stderr.read()
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0
  return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_a_folder_may_be_ten_times_the_memory_for_it(tmp_path):
  """It takes less than a tenth of it more than a folder of few images."""
  size, splits, labels = 128, ("train", "val", "test"), range(6)
  flags = {"image_size": size, "learner": "prototypical"}
  flags |= {"steps": 20, "eval_every": 20, "log_every": 20}
  peaks, counts = [], (10, 1600)
  for count in counts:
    root = tmp_path / str(count)
    for split in splits:
      for label in labels:
        folder = root / split / str(label)
        folder.mkdir(parents=True)
        picture = folder / "0.png"
        Image.new("RGB", (size, size), (label, 9, 9)).save(picture)
        for number in range(1, count):
          (folder / f"{number}.png").hardlink_to(picture)
    peaks.append(_peak(root, tmp_path / f"run_{count}", **flags))
  bytes_of = [18 * count * size * size * 3 for count in counts]
  assert peaks[1] - peaks[0] < (bytes_of[1] - bytes_of[0]) / 10
  assert bytes_of[1] > 1.4e9
