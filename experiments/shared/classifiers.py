"""Trains classifiers of Omniglot's characters, several seeds at once."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.tree_util import Partial

from metajax import distillation
from metajax.models.conv import conv4
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS
from metajax.runs.stages import Stages
from metajax.tasks.omniglot import load_omniglot, split_characters
from metajax.training import supervised_trainer
from metajax.training.logging import waiting
from metajax.types import Array, Model, Params

flags.DEFINE_integer(
  "classes",
  200,
  "Number of characters, of 1100. Within the default --steps the smallest "
  "students cannot even fit the training images of all.",
  lower_bound=2,
  upper_bound=1100,
)
flags.DEFINE_integer(
  "num_seeds", 3, "Number of seeds, trained in one program.", lower_bound=2
)
flags.DEFINE_integer(
  "batch_size", 128, "Number of images in a training step.", lower_bound=1
)

TRAIN = 15  # Training drawings of a character. The other 5 are for test.


class Data(NamedTuple):
  """Images `[n, ...]` in uint8 with labels, and images of new characters."""

  train: dict[str, Array]
  test: dict[str, Array]
  novel: Array  # [characters, 20, ...]


class Pixels:
  """A model that reads images in uint8, so that the data need less memory."""

  def __init__(self, model: Model):
    self.model = model

  def init(self, rng: Array, inputs: Array) -> Params:
    return self.model.init(rng, _scaled(inputs))

  def apply(self, params: Params, inputs: Array) -> Array:
    return self.model.apply(params, _scaled(inputs))


def _scaled(inputs: Array) -> Array:
  return inputs.astype(jnp.float32) / 255


@waiting("loading data")
def load() -> Data:
  data = load_omniglot(FLAGS.data_dir)
  known, _, novel = split_characters(data, "random", 0)
  known = known[: FLAGS.classes]

  def part(drawings: slice) -> dict[str, Array]:
    images = data.images[known, drawings]
    labels = np.repeat(np.arange(len(known), dtype=np.int32), images.shape[1])
    return {
      "inputs": jnp.asarray(images.reshape(-1, *images.shape[2:])),
      "labels": jnp.asarray(labels),
    }

  return Data(
    part(slice(TRAIN)),
    part(slice(TRAIN, None)),
    jnp.asarray(data.images[novel]),
  )


class Classifiers:
  """Trains stacks of networks `[seeds, ...]`."""

  def __init__(self, data: Data):
    self.data, self.runs = data, Stages("distill_omniglot")
    self.num_classes = int(data.train["labels"].max()) + 1

  def model(self, filters: int) -> Model:
    return _network(self.num_classes, filters)

  def features(self, filters: int) -> Model:
    """Returns the model without its head. It takes the same parameters."""
    return _network(None, filters)

  def train(
    self, name: str, init: Callable, loss: Callable, **teaching: Array
  ) -> Params:
    """Returns the trained stack.

    Args:
      name: the name of the training.
      init: `(rng, image) -> params` of one network.
      loss: the loss of a stack.
      **teaching: arrays `[examples, ...]` beside the training data.
    """

    def init_stack(rng: Array) -> Params:
      image = self.data.train["inputs"][:1]
      keys = jax.random.split(rng, FLAGS.num_seeds)
      return jax.vmap(lambda key: init(key, image))(keys)

    trainer = supervised_trainer(
      init_stack,
      loss,
      training.outer_optimizer(FLAGS.outer_schedule),
      self.data.train | teaching,
      batch_size=FLAGS.batch_size,
      rng=rng_keys.task_key(),
    )
    trained = self.runs.train(
      name,
      trainer,
      training.schedule(),
      FLAGS.batch_size,
      rates=training.outer_rates(),
    )
    return trained.state.meta_params


# The same function for the same sizes, so that its programs are compiled once.
@functools.cache
def _network(num_outputs: int | None, filters: int) -> Pixels:
  return Pixels(
    conv4(
      num_outputs,
      filters=filters,
      normalization="group",
      head_init=nn.initializers.glorot_uniform(),
    )
  )


@functools.cache
def _of_seeds(model: Model) -> Callable[[Params, Array], Array]:
  def answers(stack: Params, inputs: Array) -> Array:
    return jax.vmap(model.apply, (0, None))(stack, inputs).swapaxes(0, 1)

  return answers


def answers(model: Model, stack: Params, inputs: Array) -> Array:
  """Returns logits or features of all seeds, `[examples, seeds, ...]`."""
  return distillation.predict_all(Partial(_of_seeds(model), stack), inputs)


def hinted_init(model: Model, narrow: int, wide: int) -> Callable:
  """Returns `init` of a student and of a matrix to its teacher's features."""

  def init(rng: Array, image: Array) -> Params:
    keys = jax.random.split(rng)
    glorot = nn.initializers.glorot_uniform()
    return {
      "student": model.init(keys[0], image),
      "regressor": glorot(keys[1], (narrow, wide)),
    }

  return init


def size_and_time(
  students: Classifiers, filters: int, stack: Params
) -> dict[str, float]:
  """Returns one network's parameters, and its milliseconds for 256 images."""
  model, features = students.model(filters), students.features(filters)
  images = jnp.zeros((256, 28, 28, 1), jnp.uint8)
  params = jax.tree.map(lambda x: x[0], stack)
  apply = jax.jit(model.apply)
  seconds = []
  for _ in range(12):
    start = time.perf_counter()
    apply(params, images).block_until_ready()
    seconds.append(time.perf_counter() - start)
  shapes = jax.eval_shape(features.init, jax.random.key(0), images)
  return {
    "parameters": _count(params),
    "parameters_without_head": _count(shapes),
    "milliseconds_of_256": 1e3 * float(np.median(seconds[2:])),
  }


def _count(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
