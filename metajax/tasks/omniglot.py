"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each."""

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.files import replaced
from metajax.tasks.few_shot import few_shot_episodes
from metajax.types import Splits

# Archive -> number of its characters.
ARCHIVES = {"images_background.zip": 964, "images_evaluation.zip": 659}
DRAWINGS = 20
# Characters of the random split. All others are for test.
TRAIN, VALIDATION = 1100, 100
VALIDATION_ALPHABETS = 5
CACHE_FORMAT = 1
SPLITS = ("random", "official")
# Errors from reading a damaged archive.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class OmniglotImages(NamedTuple):
  """The whole data set in memory.

  Attributes:
    images: uint8 `[1623, 20, size, size, 1]`. Ink is 255 and paper is 0.
    alphabets: `[1623]` strings, the alphabet of each character.
    is_background: bool `[1623]`, whether the alphabet is one of the 30 that the
      authors chose for training.
  """

  images: np.ndarray
  alphabets: np.ndarray
  is_background: np.ndarray


def omniglot(
  data_dir: str | os.PathLike | None = None,
  *,
  ways: int = 5,
  shots: int = 1,
  query_shots: int = 1,
  eval_ways: int | None = None,
  eval_query_shots: int | None = None,
  split: str = "random",
  split_seed: int = 0,
  num_rotations: int = 4,
  image_size: int = 28,
) -> Splits:
  """N-way K-shot tasks of Omniglot characters, in three disjoint splits.

  Rotated characters are classes of their own in every split. The characters are
  split before rotation, so no character is in two splits in any rotation.

  Args:
    data_dir: folder of the two official archives; `$METAJAX_DATA_DIR` if None.
    ways: N, classes per task.
    shots: K, support images per class.
    query_shots: query images per class.
    eval_ways: N for validation and test; `ways` if None.
    eval_query_shots: query images for validation and test; `query_shots` if
      None.
    split: "random" takes 1100 / 100 / 423 characters of all alphabets (Finn et
      al. 2017); "official" takes 25 / 5 of the 30 background alphabets for
      training and validation and the 20 evaluation alphabets for test (Lake et
      al. 2015).
    split_seed: the seed for drawing the split.
    num_rotations: 4 for multiples of 90 degrees, 2 for 0 and 90, 1 for none.
    image_size: height and width in pixels; the originals have 105.

  Returns:
    Task families for training, validation and test.

  Raises:
    ValueError: for arguments out of range, or damaged data.
    FileNotFoundError: if the archives are missing. The message says how to get
      them.

  References:
    Lake et al., `Human-level concept learning through probabilistic program
    induction <https://doi.org/10.1126/science.aab3050>`_, 2015.
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.2.
  """
  data = load_omniglot(data_dir, image_size)
  eval_query_shots = (
    query_shots if eval_query_shots is None else eval_query_shots
  )
  eval_ways = ways if eval_ways is None else eval_ways
  evaluation = (eval_ways, eval_query_shots)
  families = [
    few_shot_episodes(
      jnp.asarray(data.images[chosen]), ways, shots, queries, num_rotations
    )
    for chosen, (ways, queries) in zip(
      split_characters(data, split, split_seed),
      ((ways, query_shots), evaluation, evaluation),
      strict=True,
    )
  ]
  return Splits(*families)


def split_characters(
  data: OmniglotImages, split: str, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the characters' indices for training, validation and test."""
  rng = np.random.default_rng(seed)
  if split == "random":
    order = rng.permutation(len(data.images))
    train, validation, test = np.split(order, [TRAIN, TRAIN + VALIDATION])
    return train, validation, test
  if split == "official":
    alphabets = np.unique(data.alphabets[data.is_background])
    held_out = rng.choice(alphabets, VALIDATION_ALPHABETS, replace=False)
    held_out = np.isin(data.alphabets, held_out) & data.is_background
    return (
      np.flatnonzero(data.is_background & ~held_out),
      np.flatnonzero(held_out),
      np.flatnonzero(~data.is_background),
    )
  raise ValueError(f"split={split!r}: must be one of {SPLITS}.")


def load_omniglot(
  data_dir: str | os.PathLike | None = None, image_size: int = 28
) -> OmniglotImages:
  """Reads the data set, the first time from its archives, then from a cache.

  The cache is one file in `$XDG_CACHE_HOME/metajax` (`~/.cache/metajax`). If it
  cannot be written, the function decodes the archives every time.

  Args:
    data_dir: folder of the two official archives; `$METAJAX_DATA_DIR` if None.
    image_size: height and width in pixels of the resized drawings.

  Raises:
    ValueError: for an image size out of range, or damaged data.
    FileNotFoundError: if the archives are missing. The message says how to get
      them.
  """
  check_image_size(image_size)
  archives = _find_archives(data_dir)
  stamp = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in archives]
  key = hashlib.sha256(repr((CACHE_FORMAT, image_size, stamp)).encode())
  name = f"omniglot_{image_size}px_{key.hexdigest()[:16]}.npz"
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  cache = Path(base) / "metajax" / name
  if (cached := _read_cache(cache)) is not None:
    return cached
  parts = [_decode(path, ARCHIVES[path.name], image_size) for path in archives]
  data = OmniglotImages(
    np.concatenate([images for images, _ in parts]),
    np.concatenate([alphabets for _, alphabets in parts]),
    np.repeat([True, False], [len(images) for images, _ in parts]),
  )
  with contextlib.suppress(OSError):
    _write_cache(cache, data)
  return data


def check_image_size(image_size: int) -> None:
  """Raises a `ValueError` unless drawings can have this size."""
  if not 1 <= image_size <= 105:
    raise ValueError(f"image_size={image_size}: must be 1 to 105 pixels.")


def data_folder(
  data_dir: str | os.PathLike | None, script: str = "download_omniglot.py"
) -> Path:
  """Returns the folder of the data, `$METAJAX_DATA_DIR` if None is given.

  Raises:
    FileNotFoundError: if there is neither. The message names the script that
      fetches the data.
  """
  given = data_dir or os.environ.get("METAJAX_DATA_DIR")
  if not given:
    raise FileNotFoundError(
      "no data: give --data_dir or set METAJAX_DATA_DIR; "
      f"`python scripts/{script} --data_dir=DIR` fetches it."
    )
  return Path(given)


def _find_archives(data_dir: str | os.PathLike | None) -> list[Path]:
  folder = data_folder(data_dir)
  for name in ARCHIVES:
    if not (folder / name).is_file():
      raise FileNotFoundError(
        f"--data_dir={folder}: {name} is not there; "
        f"`python scripts/download_omniglot.py --data_dir={folder}` fetches it."
      )
  return [folder / name for name in ARCHIVES]


def _decode(
  path: Path, num_characters: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images `[characters, 20, size, size, 1]` and the alphabets."""
  fix = (
    f"fetch it again: remove it and run `python scripts/download_omniglot.py "
    f"--data_dir={path.parent}`."
  )
  try:
    with zipfile.ZipFile(path) as archive:
      # .../ALPHABET/CHARACTER/DRAWING.png
      drawings: dict[str, list[str]] = {}
      for member in sorted(archive.namelist()):
        if member.endswith(".png"):
          drawings.setdefault(member.rpartition("/")[0], []).append(member)
      if len(drawings) != num_characters:
        raise ValueError(
          f"{path}: {len(drawings)} characters, must be {num_characters}; {fix}"
        )
      images = []
      for character, members in drawings.items():
        if len(members) != DRAWINGS:
          raise ValueError(
            f"{path}: {character} has {len(members)} drawings, must be "
            f"{DRAWINGS}; {fix}"
          )
        images.append(
          [read_drawing(archive, m, size, path, fix) for m in members]
        )
  except DAMAGE as error:
    raise ValueError(f"{path}: damaged ({error}); {fix}") from error
  alphabets = [character.split("/")[-2] for character in drawings]
  return np.asarray(images)[..., None], np.asarray(alphabets)


def read_drawing(
  archive: zipfile.ZipFile, member: str, size: int, path: Path, fix: str
) -> np.ndarray:
  """Decodes one drawing of an archive: uint8 `[size, size]`, ink 255.

  Raises:
    ValueError: if the file is not an image. The message ends with the `fix`.
  """
  # Only decoding needs pillow. Sampling and the benchmark do not import it.
  from PIL import Image

  content = archive.read(member)
  try:
    with Image.open(io.BytesIO(content)) as image:
      # The original MAML code uses this filter. Ink is black in the files.
      small = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
  # Pillow and its decoders raise errors of many kinds.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(
      f"{path}: {member} is no image ({reason}); {fix}"
    ) from error
  return 255 - np.asarray(small, np.uint8)


def _read_cache(path: Path) -> OmniglotImages | None:
  if not path.is_file():
    return None
  try:
    with np.load(path) as stored:
      return OmniglotImages(**{k: stored[k] for k in OmniglotImages._fields})
  # A damaged file fails in many ways, and all of them have the same remedy.
  except Exception as error:
    warnings.warn(f"{path}: damaged cache ({error}), made again.", stacklevel=3)
    return None


def _write_cache(path: Path, data: OmniglotImages) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with replaced(path) as new, new.open("wb") as file:
    np.savez(file, **data._asdict())
