"""The small problems on which learners are checked."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.losses import accuracy, cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.types import Batch, Episode, LossFn, Model, PRNGKey, TaskFamily

WAYS = 3


class Setting(NamedTuple):
  """What a learner is tried on.

  Attributes:
    tasks: the task family.
    model: a small network.
    loss_fn: the loss.
    inner_rate: the step size of the inner optimizer, SGD.
    metric: the name of the score.
    score: the score.
  """

  tasks: TaskFamily
  model: Model
  loss_fn: LossFn
  inner_rate: float
  metric: str
  score: LossFn


def _blobs(rng: PRNGKey) -> Episode:
  """Three blobs on a line, 2 + 3 points each; the task is their labels."""
  label_key, noise_key = jax.random.split(rng)
  assignments = jnp.array(list(itertools.permutations(range(WAYS))))
  classes = jnp.arange(5 * WAYS) % WAYS
  noise = jax.random.normal(noise_key, (5 * WAYS, 1))
  inputs = 2.0 * (classes[:, None] - 1) + 0.3 * noise
  labels = assignments[jax.random.randint(label_key, (), 0, len(assignments))]
  targets = labels[classes]
  split = 2 * WAYS
  return Episode(
    Batch(inputs[:split], targets[:split]),
    Batch(inputs[split:], targets[split:]),
  )


SETTINGS = {
  "regression": Setting(
    sinusoid(6, 9),
    MLP(1, (24,)),
    mean_squared_error,
    0.005,
    "mse",
    mean_squared_error,
  ),
  "classification": Setting(
    _blobs, MLP(WAYS, (24,)), cross_entropy, 0.3, "accuracy", accuracy
  ),
}


@functools.cache
def episodes_of(setting: str, num_tasks: int, seed: int) -> Episode:
  """Draws tasks of a setting, `[num_tasks, ...]`, once for all learners."""
  keys = jax.random.split(jax.random.key(seed), num_tasks)
  episodes = jax.jit(jax.vmap(SETTINGS[setting].tasks))(keys)
  return jax.tree.map(np.asarray, episodes)


def task(episodes: Episode, i: int | slice) -> Episode:
  """Returns one of several tasks, or a slice of them."""
  return jax.tree.map(lambda x: x[i], episodes)
