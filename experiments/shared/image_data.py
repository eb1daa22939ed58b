"""The tasks of `few_shot`: data, ways and shots by flags."""

from typing import Any, NamedTuple

import jax
from absl import flags

from experiments.shared import (
  augmentations,
  streaming,
  task_sizes,  # noqa: F401  Defines flags.
)
from experiments.shared.image_sets import (
  SIZES,
  check_test,
  name_of_data,
  name_of_eval_data,
  read,
  where,
)
from metajax.runs.breadth import TaskMaker
from metajax.runs.flags import FLAGS, refuse
from metajax.tasks import omniglot
from metajax.tasks.augmentation import augmented
from metajax.tasks.image_splits import episodes, split_episodes, with_channels
from metajax.tasks.standardized import Channels, channels_of, standardized
from metajax.types import Splits, TaskFamily

flags.DEFINE_integer(
  "image_size",
  0,
  "Height and width of images in pixels; 0: 28 for Omniglot, 32 for CIFAR, "
  "else 84 (arrays stay as they are).",
  lower_bound=0,
)
flags.DEFINE_enum(
  "rotations",
  "0",
  ["0", "1", "2", "4"],
  "Quarter turns that make classes of their own; 0: 4 for Omniglot, else 1.",
)
flags.DEFINE_bool(
  "standardize",
  None,
  "Give each channel mean 0 and deviation 1, by the training classes. Default: "
  "for cifar_fs, fc100 and mini_imagenet.",
)


class ImageData(NamedTuple):
  """The training and test data of `few_shot`.

  Attributes:
    splits: the tasks. Training tasks have `train_ways` classes.
    fingerprint: identifies the training data; None for Omniglot.
    eval_fingerprint: identifies the test data; None if they are of the same
      data set.
    protocol: the entries of the data in `results.json`.
    inverted: whether ink is 1, for `metajax.saved`.
    channels: the mean and deviation that standardise the images, or None.
    test: makes test tasks of other sizes.
  """

  splits: Splits
  fingerprint: str | None
  eval_fingerprint: str | None
  protocol: dict[str, Any]
  inverted: bool
  channels: Channels | None
  test: TaskMaker


def load(ways: int, train_ways: int) -> ImageData:
  """Reads the data that the flags name.

  Raises:
    ValueError: if the data are damaged, or do not suffice for the tasks.
    FileNotFoundError: if the data are missing.
  """
  try:
    return _load(ways, train_ways)
  except ValueError as error:
    raise ValueError(_by_flags(str(error))) from error


def _by_flags(message: str) -> str:
  """Names the flags of numbers that differ between training and test."""
  others = {
    "train_ways": ("ways", FLAGS.ways),
    "eval_query_shots": ("query_shots", FLAGS.query_shots or FLAGS.shots),
  }
  for flag, (name, other) in others.items():
    value = FLAGS[flag].value
    if value not in (0, other):
      message = message.replace(f" {name}={value}:", f" {flag}={value}:")
  return message


def _load(ways: int, train_ways: int) -> ImageData:
  name = name_of_data()
  of_omniglot = name == "omniglot"
  if of_omniglot:
    refuse("standardize", "augment", *augmentations.PARTS)
  elif name_of_eval_data() != "omniglot":
    refuse("split")
  check_test(name, FLAGS.split, f"--data={name}")
  augmentations.check()
  streaming.check(name)
  query_shots = FLAGS.query_shots or FLAGS.shots
  tasks = {
    "ways": train_ways,
    "shots": FLAGS.shots,
    "query_shots": query_shots,
    "eval_ways": ways,
    "eval_query_shots": FLAGS.eval_query_shots or query_shots,
    "num_rotations": _rotations(name),
  }
  size, channels, told = FLAGS.image_size or SIZES.get(name), None, None
  if not of_omniglot:
    images, told = read(name, "data_dir", size, may_stream=True)
    size = images.train.images.shape[1]
    wanted = (
      name != "folder" if FLAGS.standardize is None else FLAGS.standardize
    )
    channels = channels_of(images.train.images) if wanted else None

  def made(**changed: Any) -> Splits:
    options: dict[str, Any] = {**tasks, **changed}
    if of_omniglot:
      return omniglot(
        FLAGS.data_dir, split=FLAGS.split, image_size=size, **options
      )
    workers = streaming.workers()
    return episodes(images, where(name, "data_dir"), workers=workers, **options)

  splits = made()
  if FLAGS.train_shots:
    splits = splits._replace(train=made(shots=FLAGS.train_shots).train)
  if change := augmentations.augmentation(size):
    splits = splits._replace(train=augmented(splits.train, change, change))

  def finished(family: TaskFamily) -> TaskFamily:
    return standardized(family, channels) if channels else family

  test = TaskMaker(
    lambda ways, shots: finished(made(eval_ways=ways, shots=shots).test),
    lambda: (
      read(name, "data_dir", size)[0].test if of_omniglot else images.test
    ),
    tasks["num_rotations"],
  )
  protocol = {
    "ways": ways,
    "train_ways": train_ways,
    "shots": FLAGS.shots,
    "train_shots": FLAGS.train_shots or FLAGS.shots,
    "query_shots": query_shots,
    "eval_query_shots": tasks["eval_query_shots"],
    "data": told if name == "folder" else name,
    "split": {"omniglot": FLAGS.split, "folder": "folder"}.get(
      name, "published"
    ),
    "split_seed": 0,
    "image_size": size,
    "rotations": tasks["num_rotations"],
    "channels": channels._asdict() if channels else None,
    **augmentations.protocol(),
  }
  splits = Splits(*map(finished, splits))
  found = ImageData(splits, told, None, protocol, of_omniglot, channels, test)
  if name_of_eval_data() is not None:
    return _tested_elsewhere(found)
  return found


def _tested_elsewhere(found: ImageData) -> ImageData:
  """Replaces the test tasks by tasks of --eval_data.

  The images are converted to the form of the training images: the same size and
  channels, and inverted and standardised in the same way.
  """
  name = name_of_eval_data()
  of_training = jax.eval_shape(found.splits.test, jax.random.key(0)).support
  size = of_training.inputs.shape[1]
  images, told = read(
    name, "eval_data_dir", size, may_stream=not found.inverted
  )
  test = with_channels(images.test, of_training.inputs.shape[-1])
  if found.inverted:
    test = test._replace(images=255 - test.images)

  def tasks(ways: int, shots: int) -> TaskFamily:
    return split_episodes(
      test,
      where(name, "eval_data_dir"),
      "test",
      ways,
      found.protocol["eval_query_shots"],
      shots=shots,
      num_rotations=_rotations(name),
      channels=found.channels,
    )

  shown = told if name == "folder" else name
  return found._replace(
    splits=found.splits._replace(test=tasks(FLAGS.ways, FLAGS.shots)),
    eval_fingerprint=told,
    protocol={
      **found.protocol,
      "eval_data": shown,
      "eval_rotations": _rotations(name),
    },
    test=TaskMaker(tasks, lambda: images.test, _rotations(name)),
  )


def _rotations(name: str) -> int:
  return int(FLAGS.rotations) or (4 if name == "omniglot" else 1)
