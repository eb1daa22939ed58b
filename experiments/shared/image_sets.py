"""The image data sets of `few_shot` by name, as images of three splits."""

import json
from pathlib import Path

import numpy as np
from absl import flags

from experiments.shared import streaming
from metajax.runs.flags import FLAGS
from metajax.tasks.cifar100 import cifar100_splits
from metajax.tasks.image_files import Images
from metajax.tasks.image_folder import (
  fingerprint,
  is_image_folder,
  read_image_folder,
)
from metajax.tasks.image_splits import ImageSplits, digest, resized_splits
from metajax.tasks.omniglot import load_omniglot, split_characters

SETS = ["omniglot", "cifar_fs", "fc100", "mini_imagenet", "folder"]
# Default height and width in pixels.
SIZES = {"omniglot": 28, "cifar_fs": 32, "fc100": 32, "mini_imagenet": 84}
OF_CIFAR100 = {"cifar_fs", "fc100"}
MINI_IMAGENET = (64, 16, 20)  # Classes of the splits.

flags.DEFINE_enum(
  "data",
  None,
  SETS,
  "Data set in --data_dir. folder: images in a sub-folder for each class, "
  "or as CSV lists or arrays, see docs/data.md. Default: folder if "
  "--data_dir has such images, otherwise omniglot.",
)
flags.DEFINE_enum(
  "eval_data",
  None,
  SETS,
  "Data set of the test tasks. Default: that of the training.",
)
flags.DEFINE_string(
  "eval_data_dir", None, "Folder of --eval_data. Default: --data_dir."
)
flags.DEFINE_enum(
  "split",
  "random",
  ["random", "official"],
  "Characters for training and test: drawn at random (1100/100/423), or the "
  "background and the evaluation alphabets.",
)


def name_of_data() -> str:
  """Returns the data set of the training."""
  return FLAGS.data or _guess(FLAGS.data_dir, "data_dir")


def name_of_eval_data() -> str | None:
  """Returns the data set of the test, or None if it is that of the training."""
  if FLAGS.eval_data is None and FLAGS.eval_data_dir is None:
    return None
  return FLAGS.eval_data or _guess(FLAGS.eval_data_dir, "eval_data_dir")


def _guess(directory: str | None, flag: str) -> str:
  """Returns the data set in a folder whose data set is not named.

  Raises:
    ValueError: for a folder that is not there, or has none of the data sets.
  """
  if is_image_folder(directory):
    return "folder"
  if directory is None:
    return "omniglot"
  folder = Path(directory)
  if not folder.is_dir():
    raise ValueError(
      f"--{flag}={directory}: no such folder. For Omniglot, python "
      f"scripts/download_omniglot.py --data_dir={directory} makes it."
    )
  if any(folder.glob("cifar-100-*")):
    raise ValueError(
      f"--{flag}={directory}: has CIFAR-100; give --data=cifar_fs or "
      "--data=fc100."
    )
  if not any(folder.glob("images_*.zip*")):
    raise ValueError(
      f"--{flag}={directory}: has neither Omniglot's archives nor folders of "
      "classes with images; see docs/data.md. For Omniglot, python "
      f"scripts/download_omniglot.py --data_dir={directory} fetches it."
    )
  return "omniglot"


def check_test(trained_on: str, split: str, given: str) -> None:
  """Refuses training classes that are among the classes of the test.

  Args:
    trained_on: the data set of the training.
    split: its --split, if it is Omniglot.
    given: the flag that names it, for messages.

  Raises:
    ValueError: if the two data sets split the same classes differently.
  """
  tested = name_of_eval_data() or name_of_data()
  if trained_on != tested and {trained_on, tested} <= OF_CIFAR100:
    raise ValueError(
      f"{given}: {trained_on} trains on classes that {tested} tests on, since "
      "both are made of CIFAR-100: test on other images."
    )
  if trained_on == tested == "omniglot" and split != FLAGS.split:
    raise ValueError(
      f"{given}: --split={split} trains on characters that --split="
      f"{FLAGS.split} tests on: give the same --split."
    )


def check_start(folder: str | None) -> None:
  """Refuses a run of --init_from that was trained on classes of the test.

  Raises:
    ValueError: see `check_test`.
  """
  try:
    config, results = (
      json.loads((Path(folder or "") / f"{name}.json").read_text())
      for name in ("config", "results")
    )
    data, own = results["protocol"]["data"], dict(config["flags"])
  except (OSError, ValueError, KeyError, TypeError):
    return  # Of other tasks, or a learner alone.
  check_test(data, own.get("split", "random"), f"--init_from={folder}")


def directory_of(flag: str) -> str | None:
  """Returns the folder of --data_dir, or of --eval_data_dir."""
  return FLAGS[flag].value or FLAGS.data_dir


def where(name: str, flag: str) -> str:
  """Returns the flag that names the data, for messages."""
  if name in ("folder", "mini_imagenet"):
    return f"--{flag}={directory_of(flag)}"
  return f"--{flag.removesuffix('_dir')}={name}"


def read(
  name: str, flag: str, size: int | None, *, may_stream: bool = False
) -> tuple[ImageSplits, str]:
  """Reads the images in the folder that a flag names.

  Args:
    name: the data set.
    flag: the flag.
    size: the height and width of the images; None: the default.
    may_stream: whether the images stay on the disk if --stream says so.

  Returns:
    The images, not inverted, and a text that identifies them.

  Raises:
    ValueError: if no folder is given, or if it holds another data set.
  """
  directory = directory_of(flag)
  if name in ("cifar_fs", "fc100"):
    images = cifar100_splits(name, directory)
    told = f"{name}-{digest(images)}"
    return resized_splits(images, size or SIZES[name]), told
  if name == "omniglot":
    return _omniglot(directory, size), name
  if not directory:
    raise ValueError(
      f"--data={name}: needs --{flag}, the folder of the images."
    )
  given = f"--{flag}={directory}"
  if not Path(directory).is_dir():
    raise ValueError(f"{given}: no such folder; give that of the images.")
  try:
    stored = may_stream and streaming.wanted(name, directory, size)
    images = read_image_folder(directory, size, stored=stored)
  except ValueError as error:
    message = str(error).replace(f"--data_dir={directory}", given)
    raise ValueError(message) from error
  classes = tuple(len(split.names) for split in images)
  if name == "mini_imagenet" and classes != MINI_IMAGENET:
    raise ValueError(
      f"{given}: {classes} classes for training, validation and test, must be "
      f"{MINI_IMAGENET} in miniImageNet; --data=folder takes any."
    )
  return images, fingerprint(directory)


def _omniglot(directory: str | None, size: int | None) -> ImageSplits:
  """Returns Omniglot's characters as images of black ink on white."""
  data = load_omniglot(directory, size or SIZES["omniglot"])
  parts = []
  for characters in split_characters(data, FLAGS.split, 0):
    drawings = data.images[characters]
    labels = np.repeat(np.arange(len(characters)), drawings.shape[1])
    names = [f"{data.alphabets[i]} {i}" for i in characters]
    flat = drawings.reshape(-1, *drawings.shape[2:])
    parts.append(Images(255 - flat, labels, names))
  return ImageSplits(*parts)
