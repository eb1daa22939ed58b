"""The Omniglot challenge: the 20 published runs of one-shot classification."""

import os
import zipfile

import jax.numpy as jnp
import numpy as np

from metajax.tasks.omniglot import (
  DAMAGE,
  check_image_size,
  data_folder,
  read_drawing,
)
from metajax.types import Batch, Episode

ARCHIVE = "all_runs.zip"
RUNS, WAYS = 20, 20
URL = (
  "https://github.com/brendenlake/omniglot/raw/master/python/"
  f"one-shot-classification/{ARCHIVE}"
)
# The alphabets of the authors' minimal sets for learning to learn, 5 of 30.
MINIMAL = {
  "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
  "small2": (
    "Greek",
    "Japanese_(katakana)",
    "Latin",
    "Sanskrit",
    "Tagalog",
  ),
}


def load_one_shot_runs(
  data_dir: str | os.PathLike | None = None, image_size: int = 28
) -> Episode:
  """Reads the 20 runs, each with 20 characters of one evaluation alphabet.

  The support of a run is one drawing of each character by one drawer. The query
  is one drawing of each character by another drawer. There are 400 trials.

  Args:
    data_dir: folder of `all_runs.zip`; `$METAJAX_DATA_DIR` if None.
    image_size: height and width in pixels.

  Returns:
    Episodes with a leading axis of 20 runs. Inputs are float32 `[20, 20, size,
    size, 1]` in [0, 1]. Targets are int32 `[20, 20]`, the number of the support
    drawing of the same character.

  Raises:
    ValueError: for an image size out of range, or if the archive is damaged or
      has other contents.
    FileNotFoundError: if the archive is missing. The message says where to get
      it.

  References:
    Lake et al., `Human-level concept learning through probabilistic program
    induction <https://doi.org/10.1126/science.aab3050>`_, 2015, figure 6.
  """
  check_image_size(image_size)
  folder = data_folder(data_dir)
  path = folder / ARCHIVE
  if not path.is_file():
    raise FileNotFoundError(
      f"--data_dir={folder}: {ARCHIVE} is not there; fetch it from {URL}"
    )
  fix = f"fetch it again from {URL}"
  images = np.zeros((2, RUNS, WAYS, image_size, image_size, 1), np.float32)
  targets = np.zeros((2, RUNS, WAYS), np.int32)
  targets[0] = np.arange(WAYS)
  try:
    with zipfile.ZipFile(path) as archive:
      for run in range(RUNS):
        labels = archive.read(f"run{run + 1:02d}/class_labels.txt").decode()
        pairs = [line.split() for line in labels.splitlines() if line.strip()]
        given = sorted({pair[-1] for pair in pairs})
        if {len(pair) for pair in pairs} != {2} or not (
          len(given) == len(pairs) == WAYS
        ):
          raise ValueError(f"{path}: run {run + 1} is no run of 20; {fix}")
        for i, (item, _) in enumerate(pairs):
          for part, member in ((0, given[i]), (1, item)):
            drawing = read_drawing(archive, member, image_size, path, fix)
            images[part, run, i, :, :, 0] = drawing / np.float32(255)
        targets[1, run] = [given.index(train) for _, train in pairs]
  except (*DAMAGE, KeyError, UnicodeError) as error:
    raise ValueError(f"{path}: damaged ({error}); {fix}") from error
  support, query = (
    Batch(jnp.asarray(x), jnp.asarray(y))
    for x, y in zip(images, targets, strict=True)
  )
  return Episode(support, query)
