"""A recurrent network that reads characters and the labels before them."""

from collections.abc import Callable
from typing import get_args

from absl import flags

from experiments.shared import presentations
from metajax.learners import recurrent, sequence_learner
from metajax.losses import accuracy, cross_entropy
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.recurrent import Cell
from metajax.runs.flags import FLAGS, refuse
from metajax.types import (
  Array,
  MetaLearner,
  Model,
  Params,
  TaskFamily,
)

flags.DEFINE_enum(
  "encoder",
  "conv4",
  ["conv4", "pixels"],
  "What the recurrent network reads: features of conv4, trained with it, or "
  "pixels, as in the paper.",
)
flags.DEFINE_integer("filters", 32, "Channels of conv4.", lower_bound=1)
flags.DEFINE_enum("cell", "delta", get_args(Cell), "Recurrent cell.")
flags.DEFINE_integer(
  "units", 128, "Number of units of the recurrent network.", lower_bound=1
)


def learner() -> MetaLearner:
  """Returns the learner that trains the network."""
  return recurrent(
    encoder(), cross_entropy, metrics={"accuracy": accuracy}, **sizes()
  )


def encoder() -> Model:
  if FLAGS.encoder == "pixels":
    refuse("filters", given="with --encoder=pixels")
    return MLP(None, ())
  # Group normalisation is within an image, so no image sees later ones.
  return conv4(None, filters=FLAGS.filters, normalization="group")


def sizes() -> dict:
  return {
    "num_outputs": FLAGS.ways,
    "units": FLAGS.units,
    "cell": FLAGS.cell,
  }


def scorer(
  family: TaskFamily, split: str, num_tasks: int
) -> Callable[[Params], Array]:
  """Returns `params -> accuracies [tasks, presentations]` on fixed tasks."""
  reader = sequence_learner(encoder(), **sizes())
  return presentations.scorer(
    reader, family, split, num_tasks, FLAGS.presentations
  )
