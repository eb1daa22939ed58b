"""Where records of a run go, beside its own files: services, by --logger."""

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
  """A service for records of runs.

  Attributes:
    log: `(workdir, part) -> logger` of a training, in the sub-folder `part`.
    finish: `(workdir, step, scores, pictures)`, once the run has ended.
  """

  log: Callable[[Path, str], Logger]
  finish: Callable[[Path, int, Mapping[str, float], list[Path]], None]


def by_flag(workdir: Path, part: str = "") -> list[Logger]:
  """Returns the logger of --logger, in the first process, if there is one."""
  if FLAGS.logger is None or not is_main():
    return []
  return [SERVICES[FLAGS.logger].log(workdir, part)]


def finish(
  workdir: Path, step: int, scores: Mapping[str, float], pictures: list[Path]
) -> None:
  """Hands results of tests and pictures to the service of --logger."""
  if FLAGS.logger is not None and is_main():
    SERVICES[FLAGS.logger].finish(workdir, step, scores, pictures)


def _is_installed(package: str) -> bool:
  spec = importlib.util.find_spec(package)
  # A folder of that name, where its runs are, has no origin.
  return spec is not None and spec.origin is not None


def _wandb_run(workdir: Path, part: str = "") -> Any:
  """Begins a run of Weights & Biases, or goes on with that of this folder."""
  import wandb

  folder = workdir / part
  name = folder / "wandb" / "run_id"
  if not name.exists():
    name.parent.mkdir(parents=True, exist_ok=True)
    name.write_text(uuid.uuid4().hex[:8])
  identity = name.read_text()
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
  "Where the records go, beside metrics.jsonl and TensorBoard. wandb: Weights "
  "& Biases, by its own settings ($WANDB_MODE=offline writes to the workdir).",
)
flags.register_validator(
  "logger",
  lambda name: name is None or _is_installed(name),
  "its package is not installed: pip install 'metajax[wandb]'",
)
