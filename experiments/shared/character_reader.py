"""A recurrent network that reads characters and the labels before them."""

from collections.abc import Callable
from typing import get_args

import jax
from absl import flags

from metajax.learners import recurrent, sequence_learner
from metajax.losses import accuracy, accuracy_by_presentation, cross_entropy
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.recurrent import Cell
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.types import (
  Array,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
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
  keys = jax.random.split(rng_keys.evaluation_key(split), num_tasks)

  def one(params: Params, family: TaskFamily, key: PRNGKey) -> Array:
    sequence = family(key).support
    nothing = reader.start(params, sequence.inputs)
    logits, _ = reader.read(params, nothing, sequence)
    accuracies = accuracy_by_presentation(logits, sequence.targets)
    return accuracies[: FLAGS.presentations]

  @jax.jit
  def score(params: Params, family: TaskFamily) -> Array:
    return jax.lax.map(lambda k: one(params, family, k), keys, batch_size=20)

  return lambda params: score(params, family)
