"""Meta-parameters of runs of `experiments.maml_omniglot`, for other scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.training import outer_optimizer
from metajax.training import TrainState, checkpoint
from metajax.types import Array, Model, Params

EXPERIMENT = "maml_omniglot"


class Run(NamedTuple):
  """A folder that holds a run, and the run's flags."""

  folder: Path
  flags: Mapping[str, Any]


def find_run(flag: str, folder: Path, **wanted: Any) -> Run:
  """Finds a run that another script is to build on.

  Args:
    flag: the flag that names the folder, for messages.
    folder: the workdir of the run.
    **wanted: values that the run's own flags must have.

  Raises:
    ValueError: if there is no such run there.
  """
  try:
    flags = json.loads((folder / "config.json").read_text())["flags"]
  except (OSError, ValueError, KeyError, TypeError):
    flags = {}
  if flags.get("experiment") != EXPERIMENT:
    raise ValueError(
      f"{flag}: {folder} is no run of experiments.{EXPERIMENT}: train one by "
      f"python -m experiments.{EXPERIMENT} --workdir={folder}"
    )
  for name, value in wanted.items():
    if flags[name] != value:
      raise ValueError(
        f"{flag}: {folder} is a run with --{name}={flags[name]}, not {value}: "
        "give another run, or other flags."
      )
  return Run(folder, flags)


def read_run(run: Run, model: Model, inputs: Array) -> Params:
  """Reads the newest checkpoint of a run.

  Args:
    run: from `find_run`.
    model: the network that was trained.
    inputs: its inputs, or their shape and dtype.

  Raises:
    ValueError: if there is no whole checkpoint.
  """
  optimizer = outer_optimizer(run.flags["outer_schedule"])

  @jax.jit
  def init(rng):
    params = model.init(rng, jnp.zeros(inputs.shape, inputs.dtype))
    return TrainState(jnp.int32(0), params, optimizer.init(params))

  checkpoints = checkpoint.open_checkpoints(run.folder / "checkpoints")
  restored = checkpoint.restore(checkpoints, init(jax.random.key(0)))
  checkpoints.manager.close()
  if restored is None:
    raise ValueError(
      f"{run.folder} has no checkpoint yet: let its run come to one."
    )
  return restored.state.meta_params
