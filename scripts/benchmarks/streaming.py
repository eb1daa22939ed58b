"""Measures training on images that stay on a disk, beside those in memory."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.tasks.image_folder import image_folder
from metajax.training import task_mesh
from metajax.training.streaming import keys_on_host
from metajax.types import Stream, TaskFamily
from scripts.benchmarks import maml, own_flags
from scripts.benchmarks.measuring import machine, seconds_per_step
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_list(
  "workers",
  ["0", "2"],
  "Of the suite streaming: numbers of processes that read; 0: threads.",
)
own_flags.DEFINE_integer(
  "stored_size",
  0,
  "Of the suite streaming: height and width in pixels of the images in files, "
  "which --image_size resizes; 0: --image_size.",
  lower_bound=0,
)
own_flags.DEFINE_enum(
  "suffix", "jpg", ["jpg", "png"], "Of the suite streaming: kind of the files."
)
CHANNELS = 3  # Of the images in files.


def measure() -> Iterator[dict]:
  """Times the meta-step of the flags, and reading alone.

  Yields a row for images in memory, and one for each of --workers. The share
  that waits is 1 - t_memory / t, of the seconds of a meta-step.
  """
  if not all(x.isdecimal() for x in FLAGS.workers):
    raise ValueError(
      f"--workers={','.join(FLAGS.workers)}: must be numbers of 0 or more."
    )
  if FLAGS["channels"].present and FLAGS.channels != CHANNELS:
    raise ValueError(
      f"--channels={FLAGS.channels}: images in files have {CHANNELS}; leave it "
      "out."
    )
  with tempfile.TemporaryDirectory() as folder:
    _make_images(Path(folder))
    in_memory = _measured(_tasks(folder))
    yield _row("in memory", in_memory)
    for workers in map(int, FLAGS.workers):
      stream = _tasks(folder, stream=True, workers=workers)
      rate = _images_per_second(stream)
      found = _measured(stream)
      yield {
        **_row(f"{workers} processes" if workers else "threads", found),
        "read_images_per_second": rate,
        "share_that_waits": 1 - in_memory.seconds / found.seconds,
      }


class Measured(NamedTuple):
  """A meta-step.

  Attributes:
    seconds: the median of its seconds.
    cpu_seconds: the seconds of this process on all cores. Those of processes
      that read do not count. Other programs hardly change them.
  """

  seconds: float
  cpu_seconds: float


def _row(images: str, found: Measured) -> dict:
  return {
    **maml.setting(),
    "channels": CHANNELS,
    "stored_size": FLAGS.stored_size or FLAGS.image_size,
    "suffix": FLAGS.suffix,
    "images": images,
    "seconds_per_meta_step": found.seconds,
    "cpu_seconds_per_meta_step": found.cpu_seconds,
    "images_per_second": FLAGS.tasks * _images_per_task() / found.seconds,
    **machine(task_mesh(FLAGS.tasks).size),
  }


def _images_per_task() -> int:
  return FLAGS.ways * (FLAGS.shots + FLAGS.query_shots)


def _tasks(folder: str, **options) -> Any:
  return image_folder(
    folder,
    ways=FLAGS.ways,
    shots=FLAGS.shots,
    query_shots=FLAGS.query_shots,
    image_size=FLAGS.image_size,
    **options,
  ).train


def _measured(tasks: TaskFamily) -> Measured:
  built, steps = maml.build(tasks=tasks), 0

  def take(count: int):
    nonlocal steps
    steps += count
    return built.take(count)

  began = time.process_time()
  seconds = float(np.median(seconds_per_step(take)))
  return Measured(seconds, (time.process_time() - began) / steps)


def _images_per_second(stream: Stream) -> float:
  """Reads alone for about --seconds, after a start."""
  keys = jax.random.split(jax.random.key(0), 2**16)
  data = stream.ahead(keys_on_host(keys), range(len(keys)))
  for _ in itertools.islice(data, 16):
    pass
  count, began = 0, time.perf_counter()
  while time.perf_counter() < began + max(FLAGS.seconds, 0.1):
    next(data)
    count += 1
  return count * _images_per_task() / (time.perf_counter() - began)


def _make_images(root: Path) -> None:
  """Writes smooth random images, which compress like photographs."""
  from PIL import Image  # Only this suite needs it.

  rng = np.random.default_rng(0)
  size = FLAGS.stored_size or FLAGS.image_size
  per_class = max(maml.PER_CLASS, FLAGS.shots + FLAGS.query_shots)
  splits = {"train": maml.CLASSES, "val": FLAGS.ways, "test": FLAGS.ways}
  for split, classes in splits.items():
    for label in range(classes):
      folder = root / split / str(label)
      folder.mkdir(parents=True)
      for number in range(per_class):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        image = Image.fromarray(coarse).resize((size, size))
        image.save(folder / f"{number}.{FLAGS.suffix}")
