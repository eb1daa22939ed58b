"""Checkpoints that are whole or not there at all."""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from metajax.training.step import TrainState


class Restored(NamedTuple):
  """The newest whole checkpoint: the training state and the run's own notes."""

  state: TrainState
  notes: dict[str, float]


class Checkpoints(NamedTuple):
  """The checkpoints of one run, in one folder.

  Attributes:
    manager: orbax's manager of the folder, which writes each checkpoint under
      another name and renames it when it is whole.
    directory: the folder.
  """

  manager: ocp.CheckpointManager
  directory: Path


def open_checkpoints(directory: Path, *, keep: int = 2) -> Checkpoints:
  """Opens a folder of checkpoints, made if needed, keeping the newest few."""
  directory = Path(directory).absolute()
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    cleanup_tmp_directories=True,
    enable_async_checkpointing=False,
  )
  return Checkpoints(
    ocp.CheckpointManager(directory, options=options), directory
  )


def save(
  checkpoints: Checkpoints, state: TrainState, notes: dict[str, float]
) -> None:
  """Writes the state under its step number, unless that is there already."""
  step = int(state.step)
  if step in checkpoints.manager.all_steps():
    return
  checkpoints.manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      notes=ocp.args.JsonSave({"digest": _digest(state), **notes}),
    ),
  )


def restore(checkpoints: Checkpoints, like: TrainState) -> Restored | None:
  """Reads the newest checkpoint that is whole.

  A damaged one is moved aside with a warning once the one before it has proved
  whole. A file cut short may be read without an error, so each checkpoint holds
  a digest of its arrays.

  Args:
    checkpoints: from `open_checkpoints`.
    like: a state of the same shapes, dtypes and placement.

  Returns:
    The state and its notes; None if there is no checkpoint.

  Raises:
    ValueError: if there are checkpoints and none is a whole one of such a
      state; they are left where they are.
  """
  damaged: list[int] = []
  template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  reason = ""
  for step in sorted(checkpoints.manager.all_steps(), reverse=True):
    try:
      found = checkpoints.manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(template),
          notes=ocp.args.JsonRestore(),
        ),
      )
      notes = dict(found["notes"])
      if notes.pop("digest") != _digest(found["state"]):
        raise ValueError("the arrays do not match their digest")
    # Damage shows as whatever the reader of the damaged file happens to raise.
    except Exception as error:
      reason = str(error).splitlines()[0] if str(error) else repr(error)
      logging.warning(
        "checkpoint %d in %s is damaged (%s); trying the one before.",
        step,
        checkpoints.directory,
        reason[:200],
      )
      damaged.append(step)
    else:
      _move_aside(checkpoints, damaged)
      return Restored(found["state"], notes)
  if damaged:
    raise ValueError(
      f"{checkpoints.directory}: none of its {len(damaged)} checkpoints is a "
      f"whole one of this model and optimizer ({reason[:200]}); use the code "
      "that wrote them, or another --workdir."
    )
  return None


def _move_aside(checkpoints: Checkpoints, steps: list[int]) -> None:
  aside = checkpoints.directory.parent / "damaged_checkpoints"
  for step in steps:
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (checkpoints.directory / str(step)).rename(aside / str(step))
  if steps:
    checkpoints.manager.reload()


def _digest(state: TrainState) -> str:
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    array = np.asarray(leaf)
    header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
    sha.update(header.encode())
    sha.update(np.ascontiguousarray(array).tobytes())
  return sha.hexdigest()
