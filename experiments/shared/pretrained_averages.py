"""Averages of the weights of `pretrain`'s networks, over their training."""

import functools
from collections.abc import Callable

import jax
import optax
from absl import flags
from jax.tree_util import Partial

from experiments.shared import augmentations
from experiments.shared.pretraining import DROPS, Data, network_of
from metajax import aggregation, variables
from metajax.aggregation import RunningAverage
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.training import TrainState
from metajax.types import Array, Params

flags.DEFINE_bool(
  "averages",
  False,
  "Also test two averages of each network's weights: a moving one (EMA, "
  "0.999), and the mean of 100 models after the first drop of the step size "
  "(soup).",
)


def averaging(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Lets an optimizer keep the averages that --averages asks for."""
  made = _averages()
  return aggregation.averaging(optimizer, made) if made else optimizer


def networks(
  data: Data, state: TrainState, generation: int
) -> dict[str, Params]:
  """Returns the averaged networks by name, with statistics of their own."""
  change = augmentations.augmentation(data.protocol["image_size"])
  draw = Partial(functools.partial(_draw, change), data.train["inputs"])
  model = network_of(data, data.num_classes)
  return {
    name: aggregation.refresh_statistics(
      model,
      variables.combine(
        average.value(state.opt_state.averages[name]), state.meta_params
      ),
      draw,
      rng_keys.statistics_key(generation),
    )
    for name, average in _averages().items()
  }


def _averages() -> dict[str, RunningAverage]:
  if not FLAGS.averages:
    return {}
  start = int(DROPS[0] * FLAGS.steps)
  period = max(1, (FLAGS.steps - start) // 100)
  return {
    "ema": aggregation.ema(0.999),
    "soup": aggregation.swa(start, period),
  }


def _draw(change: Callable | None, images: Array, rng: Array) -> Array:
  chosen_key, change_key = jax.random.split(rng)
  chosen = jax.random.randint(chosen_key, (FLAGS.meta_batch,), 0, len(images))
  batch = images[chosen]
  return change(change_key, batch) if change else batch
