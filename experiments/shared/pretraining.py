"""The data and the training of `pretrain`, from its flags."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from experiments.shared import (
  augmentations,
  image_data,  # noqa: F401  Defines flags.
  image_networks,
  image_sets,
)
from metajax import recipes
from metajax.distillation import alone, taught
from metajax.models.inputs import on_inputs
from metajax.optimizers import last_step_size
from metajax.runs import rng_keys
from metajax.runs.breadth import TaskMaker
from metajax.runs.flags import FLAGS
from metajax.tasks.image_splits import split_episodes
from metajax.tasks.standardized import Channels, channels_of
from metajax.training import (
  Trainer,
  TrainState,
  on_changed,
  supervised_trainer,
)
from metajax.training.loop import Trained
from metajax.types import Array, Model, Params, TaskFamily

# Tian et al. 2020, section 4.1.
WEIGHT_DECAY, MOMENTUM = 5e-4, 0.9
DROPS = (0.6, 0.8)  # Of the steps.
# The weight of the teacher and its temperature are those of the authors' code.
TEACHING = {"alpha": 0.5, "temperature": 4.0}
PRESETS = {
  f"{data}_rfs_{shots}s": {"data": data, "shots": shots, "color_jitter": 0.4}
  for data in ("cifar_fs", "fc100")
  for shots in (1, 5)
}


class Data(NamedTuple):
  """Training images, and tasks of other classes.

  Attributes:
    train: "inputs" in uint8 and "labels".
    num_classes: the number of training classes.
    tasks: validation and test tasks, with pixels in [0, 1].
    test: makes test tasks of other sizes.
    channels: the mean and deviation of the training images.
    protocol: the entries of the data in `results.json`.
    fingerprint: identifies images in a folder; None: the data have a name.
  """

  train: dict[str, Array]
  num_classes: int
  tasks: dict[str, TaskFamily]
  test: TaskMaker
  channels: Channels
  protocol: dict[str, Any]
  fingerprint: str | None


def load() -> Data:
  """Reads the data that the flags name.

  Raises:
    ValueError: if the data are damaged, or do not suffice for the tasks.
  """
  augmentations.check()
  name = image_sets.name_of_data()
  size = FLAGS.image_size or image_sets.SIZES.get(name)
  images, told = image_sets.read(name, "data_dir", size)
  query_shots = FLAGS.query_shots or FLAGS.shots

  def tasks(split: str, ways: int, shots: int) -> TaskFamily:
    return split_episodes(
      getattr(images, split),
      image_sets.where(name, "data_dir"),
      split,
      ways,
      query_shots,
      shots=shots,
    )

  train = {
    "inputs": jnp.asarray(images.train.images),
    "labels": jnp.asarray(images.train.labels, jnp.int32),
  }
  protocol = {
    "data": told if name == "folder" else name,
    "query_shots": query_shots,
    "image_size": images.train.images.shape[1],
    "classes": len(images.train.names),
    **augmentations.protocol(),
  }
  return Data(
    train,
    len(images.train.names),
    {
      split: tasks(split, FLAGS.ways, FLAGS.shots)
      for split in ("validation", "test")
    },
    TaskMaker(functools.partial(tasks, "test"), lambda: images.test),
    channels_of(images.train.images),
    protocol,
    told if name in ("folder", "mini_imagenet") else None,
  )


def network_of(data: Data, num_outputs: int | None) -> Model:
  """Returns the network with or without its head, for the same parameters."""

  def pixels(images: Array) -> Array:
    if jnp.issubdtype(images.dtype, jnp.integer):
      images = images.astype(jnp.float32) / 255
    return data.channels.standardize(images)

  network = image_networks.network("prototypical")
  return on_inputs(recipes.build_model(network, num_outputs), pixels)


def trainer(
  data: Data,
  generation: int,
  teacher: Params | None,
  wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Trainer:
  """Returns the trainer of a network. Its teacher is the network before.

  `wrap` changes its optimizer.
  """
  model = network_of(data, data.num_classes)
  loss = alone(model)
  if teacher is not None:
    loss = taught(model, Partial(model.apply, teacher), **TEACHING)
  change = augmentations.augmentation(data.protocol["image_size"])
  if change:
    loss = on_changed(loss, change)
  optimizer = optax.chain(
    optax.add_decayed_weights(WEIGHT_DECAY),
    optax.sgd(_step_size(), momentum=MOMENTUM),
  )
  return supervised_trainer(
    lambda rng: model.init(rng, data.train["inputs"][:1]),
    loss,
    wrap(optimizer),
    data.train,
    batch_size=FLAGS.meta_batch,
    rng=rng_keys.task_key(generation),
  )


def _step_size() -> optax.Schedule:
  drops = {int(part * FLAGS.steps): 0.1 for part in DROPS}
  return optax.piecewise_constant_schedule(FLAGS.outer_lr, drops)


def rates(state: TrainState) -> dict[str, float]:
  """Returns the values that are recorded beside the metrics."""
  return {"outer_lr": last_step_size(_step_size(), state.opt_state)}


def without_head(data: Data, trained: Trained) -> Trained:
  """Leaves the parameters of the embedding, which `recipe` describes."""
  like = jax.eval_shape(
    network_of(data, None).init, jax.random.key(0), data.train["inputs"][:1]
  )

  def kept(params: Any, like: Any) -> Any:
    if not isinstance(like, dict):
      return params
    return {name: kept(params[name], like[name]) for name in like}

  params = kept(trained.state.meta_params, like)
  return trained._replace(state=trained.state._replace(meta_params=params))


def recipe() -> recipes.Recipe:
  """Describes the prototypical network on the trained features."""
  return recipes.Recipe(
    "prototypical",
    image_networks.network("prototypical"),
    FLAGS.ways,
    "cross_entropy",
    {"name": "sgd", "learning_rate": 0.0},
    0,
    0,
  )


def example(data: Data) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of one image of a task."""
  return jax.ShapeDtypeStruct(data.train["inputs"].shape[1:], jnp.float32)
