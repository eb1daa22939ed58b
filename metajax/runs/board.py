"""Writes results, hyper-parameters and pictures of a run for TensorBoard."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

SUFFIX = ".results"  # A later evaluation of the run replaces this file.


def finish(
  folder: Path,
  step: int,
  flags: Mapping[str, Any],
  scores: Mapping[str, float],
  pictures: Iterable[Path],
) -> None:
  """Writes an event file with results, hyper-parameters and pictures.

  Args:
    folder: the folder of the run's event files.
    step: the last meta-step.
    flags: the hyper-parameters by name.
    scores: the test results by name.
    pictures: PNG files.
  """
  for old in folder.glob(f"*{SUFFIX}"):
    old.unlink()
  with tensorboardX.SummaryWriter(str(folder), filename_suffix=SUFFIX) as board:
    for name, value in scores.items():
      board.add_scalar(name, value, step)
    shown = {
      name: value if isinstance(value, bool | int | float) else str(value)
      for name, value in flags.items()
    }
    for summary in hparams(shown, dict(scores)):
      board.file_writer.add_summary(summary)
    for path in pictures:
      board.file_writer.add_summary(_image(path), step)


def _image(path: Path) -> Summary:
  png = path.read_bytes()
  # A PNG file begins with a signature, the head of a chunk, and the image size.
  width, height = struct.unpack(">II", png[16:24])
  image = Summary.Image(
    height=height, width=width, colorspace=4, encoded_image_string=png
  )
  return Summary(value=[Summary.Value(tag=path.stem, image=image)])
