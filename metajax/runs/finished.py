"""Reads meta-parameters of runs of `experiments.few_shot`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from metajax.runs.flags import FLAGS
from metajax.runs.training import outer_optimizer
from metajax.training import TrainState, checkpoint
from metajax.types import Array, Model, Params

EXPERIMENT = "few_shot"
# Learners that differ in their meta-gradient alone.
SAME_ADAPTATION = {"fomaml": "maml"}


class Run(NamedTuple):
  """A folder that holds a run, and the run's flags."""

  folder: Path
  flags: Mapping[str, Any]


def define_runs(name: str, instead_of: str) -> None:
  """Adds the flags of scripts that use runs of conv4.

  Args:
    name: the flag for the workdirs of the runs.
    instead_of: the flag for the number of runs that the script trains if no
      workdir is given.
  """
  flags.DEFINE_integer("ways", 5, "Classes per task.", lower_bound=2)
  flags.DEFINE_integer("filters", 64, "Channels of conv4.", lower_bound=1)
  flags.DEFINE_integer(
    "eval_inner_steps", 3, "Number of inner steps at test.", lower_bound=0
  )
  flags.DEFINE_integer(
    instead_of,
    3,
    "Number of networks to train first, each from its own seed.",
    lower_bound=2,
  )
  flags.DEFINE_list(
    name,
    [],
    f"Folders of finished runs of experiments.{EXPERIMENT} to use in place of "
    f"training --{instead_of} networks. They must have the same --ways, "
    "--filters and --inner_lr, and batch normalisation.",
  )
  flags.register_validator(
    name, lambda folders: len(folders) != 1, "needs two folders or more"
  )


def find_runs(name: str) -> list[Run]:
  """Finds the runs that the flag `name` of `define_runs` lists.

  Raises:
    ValueError: if a folder holds no such run, or is --workdir itself.
  """
  return [_find_run(f"--{name}", Path(f)) for f in FLAGS[name].value or ()]


def _find_run(flag: str, folder: Path) -> Run:
  try:
    own = json.loads((folder / "config.json").read_text())["flags"]
  except (OSError, ValueError, KeyError, TypeError):
    own = {}
  if own.get("experiment") != EXPERIMENT:
    raise ValueError(
      f"{flag}: {folder} is no run of experiments.{EXPERIMENT}: train one by "
      f"python -m experiments.{EXPERIMENT} --inner_lr={FLAGS.inner_lr} "
      f"--workdir={folder}"
    )
  # Each run must adapt here in the same way as in its training.
  same = ("ways", "filters", "inner_lr")
  for name in same:  # A flag that is not given takes the first run's value.
    if name in own and FLAGS[name].using_default_value:
      setattr(FLAGS, name, own[name])
  wanted = {name: FLAGS[name].value for name in same}
  wanted |= {"model": "conv4", "normalization": "batch"}
  wanted["learner"] = SAME_ADAPTATION.get(FLAGS.learner, FLAGS.learner)
  usual = {
    "learner": "maml",
    "outer_optimizer": "adam",
    "inner_optimizer": "sgd",
    "num_seeds": 1,
    "dtype": "float32",
    "downsampling": "auto",
    "slope": 0.0,
    "joined_blocks": 1,
    "late_drop_rate": 0.0,
    "data_dir": None,  # Data other than Omniglot have a fingerprint here.
    # Its training characters must not be among those of the test here.
    "split": "random",
    "image_size": 0,
  }
  own, wanted = usual | own, wanted | usual
  own["learner"] = SAME_ADAPTATION.get(own["learner"], own["learner"])
  if own["image_size"] == 28:  # That of Omniglot by default.
    own["image_size"] = 0
  for name, value in wanted.items():
    if own.get(name) != value:
      raise ValueError(
        f"{flag}: {folder} is a run with --{name}={own.get(name)}, not "
        f"{value}: give another run, or other flags."
      )
  if FLAGS.workdir and folder.resolve() == Path(FLAGS.workdir).resolve():
    raise ValueError(
      f"--workdir={FLAGS.workdir} is that of a run in {flag}: choose another."
    )
  return Run(folder, own)


def read_run(run: Run, model: Model, inputs: Array) -> Params:
  """Reads the newest checkpoint of a run.

  Args:
    run: a run from `find_runs`.
    model: the network that was trained.
    inputs: inputs of the network, or their shape and dtype.

  Raises:
    ValueError: if there is no complete checkpoint.
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
