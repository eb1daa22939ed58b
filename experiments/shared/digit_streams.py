"""Streams of scikit-learn's digits, and methods that learn the streams."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from metajax import continual
from metajax.files import replaced
from metajax.models.mlp import MLP
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.types import Array, Batch, Params, PRNGKey

NUM_TEST = 597  # Test images. A third of the other 1200 is for validation.
STREAMS = {"rotations": continual.rotated, "permutations": continual.permuted}


def load() -> tuple[Batch, Batch, Batch]:
  """Splits the digits for training, validation and test, by --eval_seed."""
  digits = load_digits()
  order = np.random.default_rng(FLAGS.eval_seed).permutation(len(digits.target))
  images = jnp.asarray(digits.images[order] / 16, jnp.float32)[..., None]
  labels = jnp.asarray(digits.target[order], jnp.int32)
  bounds = np.cumsum([0, 800, 400, NUM_TEST])
  train, validation, test = (
    Batch(images[a:b], labels[a:b])
    for a, b in zip(bounds, bounds[1:], strict=False)
  )
  return train, validation, test


def streams(
  train: Batch, test: Batch, split: str, number: int
) -> continual.Stream:
  """Makes the fixed streams of a split, `[streams, tasks, ...]`."""
  make = STREAMS[FLAGS.stream]
  keys = jax.random.split(rng_keys.evaluation_key(split), number)
  one = lambda key: make(train, test, FLAGS.tasks, FLAGS.examples, key)  # noqa: E731
  return jax.jit(jax.vmap(one))(keys)


def model() -> MLP:
  return MLP(10, (FLAGS.hidden, FLAGS.hidden))


def loss(params: Params, example: Batch) -> Array:
  logits = model().apply(params, example.inputs[None])[0]
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, example.targets
  )


class Method(NamedTuple):
  """A continual learner, the names of its numbers, and their candidates."""

  make: Callable[..., continual.ContinualLearner]
  names: tuple[str, ...]
  values: list[tuple[float, ...]]


def play(
  method: Method,
  values: list[tuple[float, ...]],
  streams: continual.Stream,
  rng: PRNGKey,
) -> np.ndarray:
  """Learns streams. Returns accuracies `[values, streams, tasks, tasks]`.

  `rng` is the key of the networks and of what the method draws.
  """

  def one(values: Array, stream: continual.Stream, key: PRNGKey) -> Array:
    init_key, learn_key = jax.random.split(key)
    params = model().init(init_key, stream.train.inputs[0, :1])
    return continual.accuracies_over_stream(
      method.make(*values), model(), params, stream, learn_key
    )

  number = streams.train.targets.shape[0]
  keys = jax.random.split(rng, number)
  both = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))
  return np.asarray(jax.jit(both)(jnp.array(values), streams, keys))


def choose(
  method: Method, trial: continual.Stream, final: continual.Stream
) -> tuple[int, np.ndarray]:
  """Returns the values that retain most at trial, and their final accuracies.

  The values are given by their index. The accuracies are in percent.
  """
  # The values are not chosen by networks that begin as those of the test.
  tried = play(method, method.values, trial, rng_keys.task_key())
  best = int(tried[:, :, -1].mean((1, 2)).argmax())
  chosen = [method.values[best]]
  return best, 100 * play(method, chosen, final, rng_keys.init_key())[0]


def once(
  path: Path, compute: Callable[[], tuple[int, np.ndarray]]
) -> tuple[int, np.ndarray]:
  """Reads the result of an interrupted run, or computes and writes it."""
  if not path.exists():
    best, accuracies = compute()
    with replaced(path) as new, new.open("wb") as file:
      np.savez(file, best=best, accuracies=accuracies)
  with np.load(path) as found:
    return int(found["best"]), found["accuracies"]
