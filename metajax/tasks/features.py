"""Features of a frozen network, computed once and kept in a file."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from metajax.files import replaced
from metajax.numerics import check_counts
from metajax.tasks.image_arrays import DAMAGE
from metajax.tasks.image_files import Images
from metajax.tasks.image_splits import ImageSplits

# A batch of inputs `[n, ...]` as they are stored -> features `[n, ...]`.
Encoder = Callable[[np.ndarray], Any]


def encoded(
  inputs: Any,
  function: Encoder,
  *,
  name: str | None = None,
  cache: str | os.PathLike | None = None,
  batch_size: int = 256,
) -> Any:
  """Computes the features of inputs by any function, such as a frozen network.

  With a `cache`, the features are computed once. Later calls read them from a
  file of that folder. Its name has the name of the network and a digest of the
  inputs. It is written under another name and renamed, so it is complete.

  Args:
    inputs: array `[n, ...]`, or `StoredImages`, which are read a batch at a
      time; or `Images`, or the three splits of `ImageSplits`, whose labels and
      names are kept.
    function: a batch of inputs -> features `[batch_size, ...]`, an array of
      numpy, JAX or PyTorch. The inputs are those that are stored: images are
      uint8. Each example must be encoded by itself, so a network must be in
      evaluation mode. The last batch is filled up with copies of its last
      example, so that a compiled function is compiled once.
    name: the name of the network and its weights. Use another name when the
      weights change. Only a `cache` needs it.
    cache: the folder of the file, often that of the data; None: no file.
    batch_size: inputs of one call.

  Returns:
    float32 features `[n, ...]`; or `Images` or `ImageSplits` with features in
    place of images. `labelled_episodes` and `image_splits.episodes` make tasks
    of them.

  Raises:
    ValueError: for features that are not one finite vector for each input; for
      a file that is damaged, or of another network or other inputs.
    OSError: if the file cannot be written. No part of it is left.
  """
  check_counts(batch_size=batch_size)
  if cache is not None and not name:
    raise ValueError(
      f"name={name!r}: with a cache, must be the name of the network, by which "
      "its features are found again."
    )
  one = lambda x: _encoded(x, function, name, cache, batch_size)  # noqa: E731
  if isinstance(inputs, ImageSplits):
    return ImageSplits(*(x._replace(images=one(x.images)) for x in inputs))
  if isinstance(inputs, Images):
    return inputs._replace(images=one(inputs.images))
  return one(inputs)


class _Key(NamedTuple):
  """The network and the inputs of which a file has the features."""

  name: str
  inputs: str  # A digest.


def _encoded(
  inputs: np.ndarray,
  function: Encoder,
  name: str | None,
  cache: str | os.PathLike | None,
  batch_size: int,
) -> np.ndarray:
  if not np.shape(inputs) or not len(inputs):
    raise ValueError(
      f"inputs: shape {np.shape(inputs)}, must be [n, ...] of 1 or more."
    )
  if cache is None or name is None:
    return _computed(inputs, function, batch_size, None)
  key = _Key(name, _digest(inputs, batch_size))
  folder = Path(cache)
  file = folder / f"features_{quote(name, safe='')}_{key.inputs}.npz"
  if file.is_file():
    return _read(file, key, len(inputs))
  folder.mkdir(parents=True, exist_ok=True)
  features = _computed(inputs, function, batch_size, folder)
  _write(file, key, features)
  return features


def _computed(
  inputs: np.ndarray, function: Encoder, batch_size: int, folder: Path | None
) -> np.ndarray:
  """Returns the features of all inputs.

  If they are for a file in a folder, the room for it is looked at first.
  """
  from tqdm import tqdm  # Only encoding needs it.

  features = np.empty(0, np.float32)
  starts = range(0, len(inputs), batch_size)
  for start in tqdm(starts, "encoding", disable=None, unit="batch"):
    batch = np.asarray(inputs[start : start + batch_size])
    count = len(batch)
    if count < batch_size and start:
      last = np.repeat(batch[-1:], batch_size - count, axis=0)
      batch = np.concatenate([batch, last])
    found = _as_array(function(batch))
    if found.ndim < 1 or len(found) != len(batch):
      raise ValueError(
        f"function: features of shape {found.shape} for a batch of "
        f"{len(batch)}, must be [{len(batch)}, ...]."
      )
    if not np.isfinite(found[:count]).all():
      raise ValueError(
        f"function: features of inputs {start} to {start + count - 1} are not "
        "finite."
      )
    if not start:
      features = np.empty((len(inputs), *found.shape[1:]), np.float32)
      if folder is not None:
        _check_room(folder, features.nbytes)
    features[start : start + count] = found[:count]
  return features


def _as_array(found: Any) -> np.ndarray:
  if hasattr(found, "detach"):  # A tensor of PyTorch.
    found = found.detach().float().cpu()
  return np.asarray(found, np.float32)


def _check_room(folder: Path, needed: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise OSError(
      f"{folder}: features need {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
      "free: make room, or give another cache."
    )


def _digest(inputs: np.ndarray, batch_size: int) -> str:
  first = np.asarray(inputs[:1])
  found = hashlib.sha256(repr((first.dtype.str, np.shape(inputs))).encode())
  for start in range(0, len(inputs), batch_size):  # Parts, to save memory.
    part = np.asarray(inputs[start : start + batch_size])
    found.update(np.ascontiguousarray(part).data)
  return found.hexdigest()[:16]


def _write(file: Path, key: _Key, features: np.ndarray) -> None:
  try:
    with replaced(file) as new, new.open("wb") as opened:
      np.savez(opened, features=features, **key._asdict())
  except OSError as error:
    raise OSError(
      f"{file}: cannot be written ({error.strerror or error}): make room, or "
      "give another cache."
    ) from error


def _read(file: Path, key: _Key, count: int) -> np.ndarray:
  try:
    with file.open("rb") as opened:
      stored = np.load(opened, allow_pickle=False)
      found = _Key(*(str(stored[field]) for field in _Key._fields))
      features = stored["features"]
  except (*DAMAGE, KeyError, IndexError) as error:
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{file}: damaged ({reason}): remove it, and its features are computed "
      "again."
    ) from error
  if found != key or len(features) != count:
    raise ValueError(
      f"{file}: has features by {found.name!r} of inputs {found.inputs}, must "
      f"be by {key.name!r} of {key.inputs}: it was renamed; remove it."
    )
  return features
