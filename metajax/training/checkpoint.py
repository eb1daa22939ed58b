"""Writes and reads checkpoints, and detects damaged ones."""

import contextlib
import gc
import hashlib
import logging as python_logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from metajax.training.processes import agree, is_main, whole
from metajax.training.state import TrainState


class SaveError(OSError):
  """A checkpoint could not be written. Earlier checkpoints are unchanged."""


class Restored(NamedTuple):
  """The content of a checkpoint: the training state and the run's notes."""

  state: TrainState
  notes: dict[str, float]


class Checkpoints(NamedTuple):
  """The checkpoints of one run, in one folder.

  Attributes:
    manager: orbax's manager of the folder. It writes each checkpoint under a
      temporary name and renames it when it is complete.
    directory: the folder.
  """

  manager: ocp.CheckpointManager
  directory: Path


def open_checkpoints(directory: Path, *, keep: int = 2) -> Checkpoints:
  """Opens a folder of checkpoints, and creates it if it does not exist.

  Args:
    directory: the folder.
    keep: number of checkpoints to keep. `save` deletes older ones.

  Raises:
    ValueError: if the folder cannot be made or listed.
  """
  directory = Path(directory).absolute()
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    enable_async_checkpointing=False,
  )
  try:
    directory.mkdir(parents=True, exist_ok=True)
    next(directory.iterdir(), None)
    with _quiet():
      return Checkpoints(
        ocp.CheckpointManager(directory, options=options), directory
      )
  # For a damaged file of its own, orbax raises errors of other types.
  except Exception as error:
    raise ValueError(
      f"{directory}: cannot be read as checkpoints ({_reason(error)}): move "
      "away what is there, or give another --workdir."
    ) from error


def save(
  checkpoints: Checkpoints, state: TrainState, notes: dict[str, float]
) -> None:
  """Writes a checkpoint of the state, named by its step.

  It does nothing if a checkpoint of this step exists.

  Raises:
    SaveError: if the checkpoint cannot be written. Partial files are removed.
  """
  step = int(state.step)
  state = _without_keys(state)
  steps = checkpoints.manager.all_steps()
  if step in steps:
    return
  try:
    _remove_unfinished(checkpoints)
    checkpoints.manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        notes=ocp.args.JsonSave({"digest": _digest(state), **notes}),
      ),
    )
  # orbax and the file system raise errors of many types.
  except Exception as error:
    _remove_unfinished(checkpoints)
    before = f"that of step {max(steps)} is whole" if steps else "there is none"
    raise SaveError(
      f"{checkpoints.directory}: the checkpoint of step {step} cannot be "
      f"written ({_reason(error)}); {before}"
    ) from error


def _remove_unfinished(checkpoints: Checkpoints) -> None:
  """Removes what a save that failed, or was killed, has left.

  orbax would do it whenever a folder is opened, in a thread: also where another
  process writes to the folder at that time.
  """
  if is_main():
    for rest in checkpoints.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
      shutil.rmtree(rest, ignore_errors=True)


def restore(
  checkpoints: Checkpoints, like: TrainState, *, at_most: int | None = None
) -> Restored | None:
  """Reads the newest checkpoint that is not damaged.

  If it is damaged, the one before it is read. The damaged ones are then moved
  to another folder, and a warning names them. A truncated file may be read
  without an error, so each checkpoint has a digest of its arrays.

  Args:
    checkpoints: from `open_checkpoints`.
    like: a state with the same shapes, dtypes and placement.
    at_most: the largest step to restore. None: no limit.

  Returns:
    The state and its notes. None if there is no checkpoint.

  Raises:
    ValueError: if all checkpoints are damaged or do not fit `like`. They are
      not moved in this case.
  """
  damaged: list[int] = []
  reason = ""
  for step in sorted(checkpoints.manager.all_steps(), reverse=True):
    if at_most is not None and step > at_most:
      continue
    with _quiet():
      found = _read(checkpoints, step, like)
      if not isinstance(found, Restored):
        # The collector reports reads that orbax has begun and not awaited.
        gc.collect()
    if isinstance(found, Restored):
      if damaged:
        aside = _move_aside(checkpoints, damaged)
        logging.warning(
          "%s: checkpoint %s is damaged (%s) and was moved to %s; going on "
          "from that of step %d.",
          checkpoints.directory,
          " and ".join(map(str, damaged)),
          reason,
          aside,
          step,
        )
      return found
    reason = reason or found
    damaged.append(step)
  if damaged:
    raise ValueError(
      f"{checkpoints.directory}: none of its {len(damaged)} checkpoints is a "
      f"whole one of this model and optimizer ({reason}); use the code that "
      "wrote them, or move this folder away to train anew."
    )
  return None


def _read(
  checkpoints: Checkpoints, step: int, like: TrainState
) -> Restored | str:
  """Reads the checkpoint of a step, or returns what is wrong with it."""
  template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_keys(like))
  try:
    found = checkpoints.manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template),
        notes=ocp.args.JsonRestore(),
      ),
    )
    state, notes = found["state"], dict(found["notes"])
    if notes.pop("digest") != _digest(state):
      raise ValueError("the arrays do not match their digest")
    if state.step != step:
      raise ValueError(f"the state is that of step {state.step}")
    return Restored(_with_keys(state, like), notes)
  # Damaged files raise errors of many types.
  except Exception as error:
    return _reason(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax from printing the errors that this module reports itself."""
  hook, disabled = sys.unraisablehook, python_logging.root.manager.disable
  sys.unraisablehook = lambda unraisable: None
  python_logging.disable(max(disabled, python_logging.ERROR))
  try:
    yield
  finally:
    python_logging.disable(disabled)
    sys.unraisablehook = hook


def _reason(error: BaseException) -> str:
  while error.__cause__ is not None:  # The first cause says most.
    error = error.__cause__
  return (str(error).splitlines() or [repr(error)])[0][:200]


def _move_aside(checkpoints: Checkpoints, steps: list[int]) -> Path:
  """Moves checkpoints to another folder, and returns it."""
  aside = checkpoints.directory.parent / "damaged_checkpoints"
  for step in steps if is_main() else ():
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    (checkpoints.directory / str(step)).rename(aside / str(step))
  agree(0, 0)  # The other processes wait until the files are moved.
  checkpoints.manager.reload()
  return aside


def _without_keys(tree: Any) -> Any:
  """Replaces typed random keys by their raw data, which can be written."""
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, tree
  )


def _with_keys(tree: Any, like: Any) -> Any:
  """Converts raw data back to typed keys where `like` has typed keys."""
  return jax.tree.map(
    lambda x, key: (
      jax.random.wrap_key_data(x, impl=jax.random.key_impl(key))
      if _is_key(key)
      else x
    ),
    tree,
    like,
  )


def _is_key(x: Any) -> bool:
  return isinstance(x, jax.Array) and jax.dtypes.issubdtype(
    x.dtype, jax.dtypes.prng_key
  )


def _digest(state: TrainState) -> str:
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    array = whole(leaf)
    header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
    sha.update(header.encode())
    sha.update(np.ascontiguousarray(array).tobytes())
  return sha.hexdigest()
