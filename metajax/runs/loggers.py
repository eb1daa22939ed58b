"""Services that also receive the records of a run, chosen by --logger."""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from metajax.runs.flags import FLAGS
from metajax.training.logging import Logger
from metajax.training.processes import is_main


class Service(NamedTuple):
  """A service that receives records.

  Attributes:
    log: `(workdir, part) -> logger`, the logger of the training in the
      sub-folder `part`.
    finish: `(workdir, step, scores, pictures)`, called when the run has ended.
  """

  log: Callable[[Path, str], Logger]
  finish: Callable[[Path, int, Mapping[str, float], list[Path]], None]


def by_flag(workdir: Path, part: str = "") -> list[Logger]:
  """Returns the loggers that --logger names. Only the first process has any."""
  if FLAGS.logger is None or not is_main():
    return []
  return [SERVICES[FLAGS.logger].log(workdir, part)]


def finish(
  workdir: Path, step: int, scores: Mapping[str, float], pictures: list[Path]
) -> None:
  """Sends the test results and the pictures to the service of --logger."""
  if FLAGS.logger is not None and is_main():
    SERVICES[FLAGS.logger].finish(workdir, step, scores, pictures)


def _is_installed(package: str) -> bool:
  spec = importlib.util.find_spec(package)
  # wandb makes a folder `wandb`. Python finds this folder, too, but without an
  # origin.
  return spec is not None and spec.origin is not None


def _wandb_run(workdir: Path, part: str = "") -> Any:
  """Starts the run of a folder at Weights & Biases, or continues it."""
  import wandb

  folder = workdir / part
  record = folder / "wandb" / "run_id"
  if not record.exists():
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(uuid.uuid4().hex[:8])
  identity = record.read_text()
  if wandb.run is not None and wandb.run.id == identity:
    return wandb.run
  config = json.loads((workdir / "config.json").read_text())
  try:
    run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", "metajax"),
      id=identity,
      name="/".join(filter(None, (workdir.name, part))),
      group=workdir.name if part else None,
      dir=folder,
      resume="allow",
      reinit="finish_previous",
      settings=wandb.Settings(console="off"),
    )
  except wandb.Error as error:
    raise ValueError(
      f"--logger=wandb: {error} With WANDB_MODE=offline it writes to the "
      "workdir, which `wandb sync` sends later."
    ) from error
  about = config["flags"] | {"environment": config["environment"]}
  run.config.update(about, allow_val_change=True)
  return run


def _wandb(workdir: Path, part: str) -> Logger:
  run = _wandb_run(workdir, part)
  return lambda step, scalars: run.log(dict(scalars), step=step)


def _wandb_finish(
  workdir: Path, step: int, scores: Mapping[str, float], pictures: list[Path]
) -> None:
  import wandb

  run = _wandb_run(workdir)
  shown = {path.stem: wandb.Image(str(path)) for path in pictures}
  run.log({**scores, **shown}, step=step)
  run.finish()


SERVICES = {"wandb": Service(_wandb, _wandb_finish)}
flags.DEFINE_enum(
  "logger",
  None,
  sorted(SERVICES),
  "Service that also receives the records. wandb: Weights & Biases; with "
  "$WANDB_MODE=offline it writes to the workdir only.",
)
flags.register_validator(
  "logger",
  lambda name: name is None or _is_installed(name),
  "its package is not installed: pip install 'metajax[wandb]'",
)
