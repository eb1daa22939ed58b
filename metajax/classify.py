"""Labels the images of a folder from a few labelled examples.

  python -m metajax.classify WORKDIR FOLDER

WORKDIR is the folder of a run that trained an image classifier, such as
`experiments.few_shot`. FOLDER has a sub-folder for each class with a few
example images. The images to label lie beside the sub-folders::

  FOLDER/cat/1.jpg  FOLDER/cat/2.jpg  FOLDER/dog/1.jpg  FOLDER/unknown.jpg ...

Writes `labels.csv` (file, label, probability) and `labels.png`, a sheet of the
images, to the folder --out.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import saved
from metajax.learners import ANY_WAYS
from metajax.loaded import Loaded, with_outputs
from metajax.tasks.image_files import (
  folders_in,
  images_in,
  read_files,
  read_images,
)
from metajax.types import Batch

COLUMNS, ROWS = 8, 8  # Of the sheet, at most.


class Labelled(NamedTuple):
  """The labels of the images of a folder.

  Attributes:
    files: the labelled images.
    images: their pixels, `[n, size, size, channels]` from 0 to 1.
    labels: the name of the class of each image, `[n]`.
    probabilities: the learner's probability of that class, `[n]`.
  """

  files: list[Path]
  images: np.ndarray
  labels: list[str]
  probabilities: np.ndarray


def classify(loaded: Loaded, folder: Path) -> Labelled:
  """Adapts to the labelled images of a folder, and labels the others.

  All images are predicted together. A network that normalises by batch
  statistics therefore uses the other images, too.

  Args:
    loaded: a learner of images.
    folder: a folder as the module describes it.

  Raises:
    ValueError: if the learner or the folder does not fit, or has no images.
  """
  if len(loaded.inputs.shape) != 3:
    raise ValueError(f"the learner takes {loaded.inputs.shape}, no images.")
  if not folder.is_dir():
    raise ValueError(f"{folder}: no such folder.")
  classes = [path for path in folders_in(folder) if images_in(path)]
  files = images_in(folder)
  if len(classes) < 2 or not files:
    raise ValueError(
      f"{folder}: {len(classes)} sub-folders with images, which must be 2 or "
      f"more, a class each; beside them {len(files)} images to be labelled, "
      "which must be 1 or more."
    )
  ways = loaded.recipe.num_outputs
  if loaded.recipe.learner not in ANY_WAYS and len(classes) != ways:
    raise ValueError(
      f"{folder}: {len(classes)} classes, but the learner tells {ways} apart: "
      f"give {ways}, or train with --ways={len(classes)}, or a learner of any "
      f"number of classes ({', '.join(sorted(ANY_WAYS))})."
    )
  size = loaded.inputs.shape[0]
  known = read_images(classes, size)
  unknown = read_files(files, size)
  support = Batch(loaded.pixels(known.images), jnp.asarray(known.labels))
  if len(classes) != ways:
    loaded = with_outputs(loaded, len(classes))
  task_params = loaded.adapt(support)
  logits = loaded.predict(task_params, loaded.pixels(unknown))
  if not np.isfinite(logits).all():
    raise ValueError(
      f"{folder}: the learner's predictions are not finite: train it again, "
      "with a smaller step size."
    )
  chances = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))
  chosen = chances.argmax(-1)
  return Labelled(
    files,
    unknown / np.float32(255),
    [classes[i].name for i in chosen],
    chances.max(-1),
  )


def write(labelled: Labelled, out: Path) -> list[Path]:
  """Writes the table and the sheet, and returns their paths."""
  out.mkdir(parents=True, exist_ok=True)
  table, sheet = out / "labels.csv", out / "labels.png"
  with open(table, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["file", "label", "probability"])
    for path, label, chance in zip(
      labelled.files, labelled.labels, labelled.probabilities, strict=True
    ):
      rows.writerow([path.name, label, f"{chance:.4f}"])
  _draw(labelled, sheet)
  return [table, sheet]


def _draw(labelled: Labelled, path: Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  # Label by label, the most certain first; only as many as can be seen.
  order = sorted(
    range(len(labelled.files)),
    key=lambda i: (labelled.labels[i], -labelled.probabilities[i]),
  )[: COLUMNS * ROWS]
  columns = min(len(order), COLUMNS)
  rows = -(-len(order) // columns)
  figure, grid = pyplot.subplots(
    rows,
    columns,
    figsize=(1.4 * columns, 1.7 * rows),
    layout="constrained",
    squeeze=False,
  )
  for axes in grid.flat:
    axes.axis("off")
  for axes, i in zip(grid.flat, order, strict=False):
    image: Any = labelled.images[i]
    if image.shape[-1] == 1:
      axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
      axes.imshow(image)
    label = f"{labelled.labels[i]} {labelled.probabilities[i]:.2f}"
    axes.set_title(f"{labelled.files[i].name}\n{label}", fontsize=7)
  if len(order) < len(labelled.files):
    figure.suptitle(f"{len(order)} of {len(labelled.files)} images", fontsize=8)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command. Bad input is an error of one line."""
  parser = argparse.ArgumentParser(
    prog="python -m metajax.classify",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("workdir", type=Path, help="Folder of a run.")
  parser.add_argument("folder", type=Path, help="Folder of images.")
  parser.add_argument(
    "--out", type=Path, default=Path("labels"), help="Where to. [labels]"
  )
  parser.add_argument("--steps", type=int, help="Inner steps. [the run's]")
  given = parser.parse_args(arguments)
  try:
    loaded = saved.load(given.workdir, num_eval_steps=given.steps)
    labelled = classify(loaded, given.folder)
    paths = write(labelled, given.out)
  except (ValueError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  width = max(len(path.name) for path in labelled.files)
  for path, label, chance in zip(
    labelled.files, labelled.labels, labelled.probabilities, strict=True
  ):
    print(f"{path.name:{width}}  {chance:.2f}  {label}")
  print("", *paths, sep="\n")


if __name__ == "__main__":
  main()
