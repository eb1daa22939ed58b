"""Which devices a run uses: the mesh, and one device for each CPU core."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import metajax
from metajax.training import mesh, task_mesh
from metajax.training.mesh import usable_cores


@pytest.mark.parametrize(
  "meta_batch, available, expected",
  [
    (1, 8, 1),
    (2, 8, 2),
    (4, 3, 2),
    (7, 8, 7),
    (8, 8, 8),
    (9, 8, 3),
    (11, 8, 1),
    (12, 8, 6),
    (25, 8, 5),
    (32, 1, 1),
    (32, 6, 4),
    (32, 8, 8),
  ],
)
def test_mesh_takes_the_most_devices_that_divide(
  meta_batch, available, expected
):
  devices = _devices(available)
  mesh = task_mesh(meta_batch, devices)
  assert mesh.axis_names == ("tasks",)
  assert list(mesh.devices) == devices[:expected]


def test_mesh_is_of_all_devices_unless_told(monkeypatch):
  devices = _devices(3)
  monkeypatch.setattr(jax, "devices", lambda: devices)
  assert list(task_mesh(6).devices) == devices
  assert list(task_mesh(4).devices) == devices[:2]


def test_every_process_has_the_same_part_of_the_mesh():
  devices = _devices(4, process=0) + _devices(3, process=1)
  assert list(task_mesh(12, devices).devices) == devices[:3] + devices[4:]
  assert list(task_mesh(8, devices).devices) == devices[:2] + devices[4:6]
  with pytest.raises(ValueError, match="^meta_batch=9: .* the 2 processes"):
    task_mesh(9, devices)


def _devices(number, process=0):
  """To a mesh, devices are any objects."""

  class Device:
    process_index = process

  return [Device() for _ in range(number)]


@pytest.mark.parametrize("meta_batch", [0, -2])
def test_meta_batch_that_is_not_positive_is_named(meta_batch):
  with pytest.raises(ValueError, match=f"^meta_batch={meta_batch}: must be 1"):
    task_mesh(meta_batch)


def test_usable_cores_are_those_of_this_process(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 64)
  monkeypatch.setattr(
    os, "sched_getaffinity", lambda pid: {3, 5, 9}, raising=False
  )
  assert usable_cores() == 3
  # Where processes have no affinity, such as macOS.
  monkeypatch.delattr(os, "sched_getaffinity")
  assert usable_cores() == 64
  monkeypatch.setattr(os, "cpu_count", lambda: None)
  assert usable_cores() == 1


@pytest.mark.parametrize(
  "content, expected",
  [
    ("max 100000", 8),
    ("200000 100000", 2),
    ("250000 100000", 2),
    ("50000 100000", 1),
    ("6400000 100000", 8),
    ("", 8),
  ],
)
def test_usable_cores_are_those_of_the_container(
  content, expected, monkeypatch, tmp_path
):
  quota = tmp_path / "cpu.max"
  quota.write_text(content)
  monkeypatch.setattr(mesh, "CPU_QUOTA", quota)
  monkeypatch.setattr(
    os, "sched_getaffinity", lambda pid: set(range(8)), raising=False
  )
  assert usable_cores() == expected


def _use_cpu_cores(before="", xla_flags=""):
  """A fresh process runs `before`, then use_cpu_cores, and counts devices."""
  script = "\n".join(
    [
      "import os, jax",
      before,
      "from metajax.training.mesh import task_mesh, use_cpu_cores",
      "use_cpu_cores()",
      "assert {d.platform for d in jax.devices()} == {'cpu'}",
      "print(jax.device_count(), task_mesh(60).size)",
    ]
  )
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "-1",  # JAX's default.
    "PYTHONPATH": str(Path(metajax.__file__).parents[1]),
    "XLA_FLAGS": xla_flags,
  }
  return subprocess.run(
    [sys.executable, "-c", script],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


CORES = len(os.sched_getaffinity(0))
ONE_CORE = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


@pytest.mark.slow
@pytest.mark.parametrize(
  "before, xla_flags, expected",
  [
    ("", "", CORES),
    (ONE_CORE, "", 1),
    ("", "--xla_force_host_platform_device_count=3", 3),
    ("jax.config.update('jax_num_cpu_devices', 5)", "", 5),
  ],
  ids=["cores", "one core", "XLA_FLAGS", "jax_num_cpu_devices"],
)
def test_a_device_for_each_core_unless_the_number_is_set(
  before, xla_flags, expected
):
  done = _use_cpu_cores(before, xla_flags)
  assert done.returncode == 0, done.stderr
  divisors = np.flatnonzero(60 % np.arange(1, expected + 1) == 0) + 1
  assert done.stdout.split() == [str(expected), str(divisors.max())]


@pytest.mark.slow
def test_cores_cannot_be_claimed_once_devices_are_in_use():
  done = _use_cpu_cores("jax.devices()")
  assert done.returncode != 0
  assert done.stderr.splitlines()[-1].startswith("RuntimeError:")


def _factorize_between_all_reduces():
  """Factorises matrices on every device, in turn with an all-reduce."""
  mesh.use_cpu_cores(spare_threads=True)
  matrices = jnp.eye(49) + 0.01 * jnp.ones((64, 49, 49))

  def step(x, _):
    sums = jnp.linalg.cholesky(matrices + x).sum()
    return x + 1e-6 * jax.lax.pmean(sums, "tasks"), None

  @jax.jit
  @functools.partial(
    jax.shard_map, mesh=task_mesh(CORES), in_specs=P(), out_specs=P()
  )
  def steps(x):
    return jax.lax.scan(step, x, length=100)[0]

  print(steps(jnp.zeros(())))


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="one device never waits for another")
@pytest.mark.parametrize("threads", [{}, {"NPROC": "1"}], ids=["", "NPROC=1"])
def test_devices_that_wait_for_each_other_leave_threads_for_others(threads):
  """With a thread for each core, the factorisation waits for ever."""
  environment = {k: v for k, v in os.environ.items() if k != "NPROC"} | threads
  root = Path(metajax.__file__).parents[1]
  subprocess.run(
    [sys.executable, __file__],
    env={**environment, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
    check=True,
    timeout=100,
  )


if __name__ == "__main__":
  _factorize_between_all_reduces()
