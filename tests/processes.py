"""Python in a process of its own, with as many CPU devices as wanted."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(*arguments: object, devices: int, x64: bool = False) -> None:
  """Runs `python ARGUMENTS` in the checkout; whatever goes wrong is raised."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_ENABLE_X64": str(int(x64)),
    "PYTHONPATH": str(ROOT),
  }
  command = [sys.executable, *map(str, arguments)]
  subprocess.run(command, cwd=ROOT, env=environment, check=True)
