"""Whether data fit the memory, for a host and an accelerator of given sizes."""

import resource
from types import SimpleNamespace

import jax
import pytest

from metajax.runs import memory


@pytest.mark.parametrize(
  "platform, most",
  [
    ("cpu", 4000 / 2 / 5),  # Two copies, and one of each of three devices.
    ("gpu", 4000 / 2 / 2),
  ],
)
def test_data_may_take_half_of_the_host(platform, most, monkeypatch):
  device = SimpleNamespace(
    platform=platform, memory_stats=lambda: {"bytes_limit": 10**6}
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [device] * 3)
  monkeypatch.setattr(jax, "local_device_count", lambda: 3)
  monkeypatch.setattr(memory, "host_memory", lambda: 4000)
  assert memory.fits(int(most)) and not memory.fits(int(most) + 1)


def test_data_may_take_a_quarter_of_an_accelerator(monkeypatch):
  device = SimpleNamespace(
    platform="gpu", memory_stats=lambda: {"bytes_limit": 400}
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  monkeypatch.setattr(memory, "host_memory", lambda: 10**6)
  assert memory.fits(100) and not memory.fits(101)


def test_limits_of_a_process_and_of_a_container_count(monkeypatch, tmp_path):
  whole = memory.host_memory()
  assert 2**28 < whole < 2**50
  path = tmp_path / "memory.max"
  path.write_text("max\n")
  monkeypatch.setattr(memory, "LIMITS", (path, tmp_path / "missing"))
  assert memory.host_memory() >= whole
  path.write_text("1000\n")
  assert memory.host_memory() == 1000
  monkeypatch.setattr(resource, "getrlimit", lambda kind: (500, 500))
  assert memory.host_memory() == 500
