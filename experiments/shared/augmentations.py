"""Random changes of training images, by flags."""

from typing import Any

from absl import flags

from metajax.runs.flags import FLAGS
from metajax.tasks.augmentation import (
  Augmentation,
  color_jitter,
  compose,
  cutout,
  random_crop,
  random_flip,
)

flags.DEFINE_bool(
  "augment",
  False,
  "Crop and mirror the images of training tasks at random. Crops are of images "
  "with a margin of zeros: 4 pixels for images of up to 32 pixels, else 8. For "
  "photographs, not for characters.",
)
flags.DEFINE_float(
  "color_jitter",
  0.0,
  "Part of --augment: multiply brightness, contrast and saturation by random "
  "factors between 1 - x and 1 + x. Published settings are 0.4; 0: none.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_integer(
  "cutout",
  0,
  "Part of --augment: set a random square of this many pixels a side to zero; "
  "0: none.",
  lower_bound=0,
)
PARTS = ("color_jitter", "cutout")


def check() -> None:
  """Raises a `ValueError` if a part of --augment is given without it."""
  if not FLAGS.augment:
    for name in PARTS:
      if FLAGS[name].present and FLAGS[name].value:
        raise ValueError(f"--{name}: needs --augment, of which it is a part.")


def augmentation(size: int) -> Augmentation | None:
  """Returns the changes of images of this height and width; None for none.

  Raises:
    ValueError: if --cutout leaves nothing of an image.
  """
  if not FLAGS.augment:
    return None
  if FLAGS.cutout >= size:
    raise ValueError(
      f"--cutout={FLAGS.cutout}: must be less than the {size} pixels of a side "
      "of the images."
    )
  return compose(
    random_crop(4 if size <= 32 else 8),
    color_jitter(*3 * (FLAGS.color_jitter,)),
    random_flip(),
    cutout(FLAGS.cutout),
  )


def protocol() -> dict[str, Any]:
  """Returns the entries of `results.json`."""
  parts = {name: FLAGS[name].value for name in PARTS}
  if not FLAGS.augment:
    parts = dict.fromkeys(PARTS, 0)
  return {"augment": FLAGS.augment, **parts}
