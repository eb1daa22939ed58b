"""Whether the images of `few_shot` stay on the disk, by flags."""

import jax
from absl import flags

from metajax.runs.flags import FLAGS, refuse
from metajax.runs.memory import fits
from metajax.tasks.image_folder import bytes_in_memory
from metajax.training.logging import tell
from metajax.training.mesh import usable_cores

STORED = ("folder", "mini_imagenet")  # The data sets that may stay there.
MOST_WORKERS = 16

flags.DEFINE_bool(
  "stream",
  None,
  "Leave the images of a folder on the disk, and read those of each task when "
  "it is drawn. The tasks are the same. Default: if the images do not fit the "
  "memory, see docs/data.md.",
)
flags.DEFINE_integer(
  "stream_workers",
  None,
  "Processes that read ahead with --stream; 0: threads. Default: 0 on CPUs, "
  f"else as many as there are cores, but at most {MOST_WORKERS}.",
  lower_bound=0,
)


def wanted(name: str, directory: str | None, size: int | None) -> bool:
  """Tells whether the images of a data set are to stay on the disk.

  Args:
    name: the data set.
    directory: its folder.
    size: the height and width of the images; None: as in the arrays, or 84.
  """
  if name not in STORED or not directory:
    return False
  if FLAGS.stream is not None:
    return FLAGS.stream
  num_bytes = bytes_in_memory(directory, size)
  if fits(num_bytes):
    return False
  tell(
    f"images of {num_bytes / 2**30:.1f} GiB stay on the disk; --nostream takes "
    "them into memory"
  )
  return True


def check(name: str) -> None:
  """Raises a `ValueError` for flags of images that cannot stay on the disk."""
  if FLAGS.stream and name not in STORED:
    raise ValueError(
      f"--stream: for --data={' and '.join(STORED)}, not {name}, which is "
      "held in memory: leave it out."
    )
  if name not in STORED:
    refuse("stream_workers", given=f"with --data={name}")
  if FLAGS.stream is False:
    refuse("stream_workers", given="with --nostream")


def workers() -> int:
  """Returns how many processes read ahead."""
  if FLAGS.stream_workers is not None:
    return FLAGS.stream_workers
  on_cpu = jax.local_devices()[0].platform == "cpu"
  return 0 if on_cpu else min(usable_cores(), MOST_WORKERS)
