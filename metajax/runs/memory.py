"""The memory that this process may use."""

import os
import resource
from pathlib import Path

import jax

# The limits of a Linux container, of versions 2 and 1 of control groups.
LIMITS = (
  Path("/sys/fs/cgroup/memory.max"),
  Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def host_memory() -> int:
  """Returns the bytes of memory that this process may use on its host."""
  found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
    limit, _ = resource.getrlimit(kind)
    if limit != resource.RLIM_INFINITY:
      found.append(limit)
  for path in LIMITS:
    try:
      found.append(int(path.read_text()))
    except (OSError, ValueError):  # No such file, or "max".
      pass
  return min(found)


def fits(num_bytes: int) -> bool:
  """Tells whether data of this size fit the memory, with room for all else.

  While a folder is read, the host has its images twice. Then each device has a
  copy. All of them may take half of the memory of the host. The copy on an
  accelerator may take a quarter of its memory.
  """
  device = jax.local_devices()[0]
  on_cpu = device.platform == "cpu"
  copies = 2 + (jax.local_device_count() if on_cpu else 0)
  stats = None if on_cpu else device.memory_stats()
  if stats and 4 * num_bytes > stats.get("bytes_limit", float("inf")):
    return False
  return 2 * copies * num_bytes <= host_memory()
