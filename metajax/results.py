"""Reads and writes the files that describe a run and its results."""

import errno
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from metajax.evaluation import Estimate, OverSeeds
from metajax.files import replaced
from metajax.training.legal_json import legal_json
from metajax.training.processes import is_main

PACKAGES = ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")


def refuse_foreign(workdir: Path) -> None:
  """Checks that a folder is a run, or can become one, without making it.

  Raises:
    ValueError: if there is something else.
    OSError: if it would be below a file.
  """
  if (workdir / "config.json").exists():
    return
  below = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
  if below != workdir and not below.is_dir():
    code = errno.ENOTDIR
    raise NotADirectoryError(code, os.strerror(code), str(workdir))
  # A killed process may have left a file that it had not yet renamed.
  if workdir.exists() and (
    not workdir.is_dir() or any(p.suffix != ".tmp" for p in workdir.iterdir())
  ):
    raise ValueError(
      f"--workdir={workdir} exists and is no run of metajax: choose a new or "
      "an empty folder."
    )


def open_workdir(
  workdir: Path,
  config: Mapping[str, Any],
  defaults: Mapping[str, Any] | None = None,
  may_change: Callable[[str, Any, Any], bool] = lambda name, old, new: False,
) -> None:
  """Creates the folder of a run, or opens it if it holds the same run.

  Writes `config.json` with the given values and the environment (versions,
  device, git commit). Warns if the run began in another environment. The folder
  stays locked while this process lives.

  Args:
    workdir: the folder.
    config: the values that define the run, by flag name; JSON values.
    defaults: the values of flags that the folder's `config.json` lacks; None
      for flags without a default.
    may_change: `(name, old, new) -> bool`, whether the run may go on with the
      new value. Results and pictures with the old value are moved to
      `earlier/`. It may raise a `ValueError` that says why not.

  A run that has written nothing but `config.json` has not begun: flags were
  refused, or it was stopped while it compiled. Its flags may change.

  Raises:
    ValueError: if the folder holds other files, or a run with other flags, or
      if another process uses it.
  """
  path = workdir / "config.json"
  config, defaults = json.loads(legal_json([config, defaults or {}]))
  if path.exists():
    lock(workdir)
    try:
      written = json.loads(path.read_text())
      before = {**defaults, **written["flags"]}
      began = dict(written.get("environment", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path} is unreadable ({type(error).__name__}: {error}); choose "
        "another --workdir."
      ) from error
    differ = [
      name
      for name in sorted({*before, *config})
      if before.get(name) != config.get(name)
    ]
    if "experiment" in differ:
      raise ValueError(
        f"--workdir={workdir} holds a run of {before.get('experiment')}, not "
        f"of {config.get('experiment')}: choose another --workdir."
      )
    if differ and not _has_begun(workdir):
      write_json(path, {"flags": config, "environment": environment()})
      return
    for name in differ:
      old, new = before.get(name), config.get(name)
      if not may_change(name, old, new):
        raise ValueError(
          f"--workdir={workdir} holds a run with --{name}={_shown(old)}, not "
          f"{_shown(new)}: use that value, or another --workdir."
        )
    now = environment()
    changed = [k for k in sorted(now) if k in began and began[k] != now[k]]
    if changed:
      logging.warning(
        "%s: the run began with another %s (see config.json); what it trains "
        "from here may differ. A new --workdir starts anew.",
        workdir,
        ", ".join(changed),
      )
    if differ:
      _move_results(workdir)
      write_json(path, {**written, "flags": config})
    return
  refuse_foreign(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  lock(workdir)
  for left in workdir.glob(f"{path.name}.*.tmp"):
    left.unlink()
  write_json(path, {"flags": config, "environment": environment()})


def _shown(value: Any) -> str:
  """Writes a value as its flag takes it."""
  several = isinstance(value, list)
  return ",".join(map(str, value)) if several else str(value)


def _has_begun(workdir: Path) -> bool:
  """Returns whether there is a file beside `config.json`."""
  own = workdir / "config.json"
  return any(path != own and not path.is_dir() for path in workdir.rglob("*"))


def _move_results(workdir: Path) -> None:
  """Moves the results and their pictures to `earlier/`, with a number."""
  if not (workdir / "results.json").exists():
    return
  folder = workdir / "earlier"
  folder.mkdir(exist_ok=True)
  number = len(list(folder.glob("results_*.json")))
  # The results last: if this is cut short, the run still has them.
  for path in [*workdir.glob("*.png"), workdir / "results.json"]:
    path.rename(folder / f"{path.stem}_{number}{path.suffix}")


def read_results(workdir: Path) -> dict[str, Any] | None:
  """Reads `results.json`, with metrics as estimates; None if there is none.

  Raises:
    ValueError: if the file is damaged.
  """
  path = workdir / "results.json"
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text())
    found["metrics"] = {
      name: OverSeeds(
        float(value["mean"]),
        float(value["ci95"]),
        value["num_tasks"],
        [float(mean) for mean in value.get("of_seeds", ())],
      )
      for name, value in found["metrics"].items()
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is damaged ({type(error).__name__}: {error}): delete it to "
      "evaluate again."
    ) from error
  return found


def lock(workdir: Path) -> None:
  """Makes a folder this process's own, as long as it lives.

  Raises:
    ValueError: if it is another's.
  """
  try:
    import fcntl
  except ImportError:  # Windows has no such locks.
    return
  # Never closed: the lock is released when the process ends.
  handle = os.open(workdir, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(handle)
    raise ValueError(
      f"--workdir={workdir} is in use by another process: wait for it, or "
      "choose another."
    ) from None
  except OSError:  # Some network file systems have no locks.
    os.close(handle)


def environment() -> dict[str, Any]:
  """Returns what the results depend on besides the flags."""
  device = jax.devices()[0]
  return {
    "device": f"{device.device_kind} x{jax.device_count()}",
    "platform": device.platform,
    "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    "versions": versions(),
    "git_commit": _git_commit(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the main packages."""
  found = {"python": platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  return found


def write_results(
  workdir: Path,
  *,
  experiment: str,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  wall_seconds: float,
  compile_seconds: float | None,
  steps: int,
  seed: int,
) -> Path:
  """Writes `results.json` atomically, and returns its path.

  `compile_seconds` is None if it was not measured.
  """
  about = environment()
  path = workdir / "results.json"
  write_json(
    path,
    {
      "experiment": experiment,
      "protocol": dict(protocol),
      "metrics": {
        name: value._asdict()
        | ({"of_seeds": value.of_seeds} if value.of_seeds else {})
        for name, value in metrics.items()
      },
      "wall_seconds": wall_seconds,
      "compile_seconds": compile_seconds,
      "steps": steps,
      "seed": seed,
      "device": f"{about['device']} ({about['host']})",
      "versions": about["versions"],
    },
  )
  return path


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file atomically: under another name, then renamed.

  With several processes only the first one writes.
  """
  if not is_main():
    return
  with replaced(path) as file:
    file.write_text(legal_json(value, indent=2) + "\n")


def _git_commit() -> str:
  root = Path(__file__).resolve().parent.parent
  command = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--dirty",
    "--abbrev=40",
  ]
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
