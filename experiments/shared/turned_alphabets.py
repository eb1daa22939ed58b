"""Omniglot's alphabets as clients, with drawings turned by quarters."""

import jax.numpy as jnp
import numpy as np

from metajax.runs.flags import FLAGS
from metajax.tasks.omniglot import load_omniglot
from metajax.training import Clients
from metajax.training.logging import waiting
from metajax.types import Batch

DRAWINGS = 8  # Drawings that are used of each character's 20.


@waiting("loading data")
def load() -> tuple[Clients, Batch, Batch]:
  """Returns the background alphabets as clients, others as validation and test.

  The validation and test images are those of the evaluation alphabets.
  """
  data = load_omniglot(FLAGS.data_dir)
  rng = np.random.default_rng(FLAGS.eval_seed)
  # The turned drawings of each alphabet, and their turns.
  turned = {}
  for name in np.unique(data.alphabets):
    images = data.images[data.alphabets == name, :DRAWINGS]
    images = images.reshape(-1, *images.shape[2:]).astype(np.float32) / 255
    turns = rng.integers(0, 4, len(images), np.int32)
    for turn in range(1, 4):
      chosen = turns == turn
      images[chosen] = np.rot90(images[chosen], turn, axes=(1, 2))
    turned[name] = images, turns
  background = np.unique(data.alphabets[data.is_background])
  own = [turned[name] for name in background]
  others = [turned[name] for name in turned if name not in background]

  def joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    images, turns = zip(*parts, strict=True)
    return Batch(
      jnp.asarray(np.concatenate(images)), jnp.asarray(np.concatenate(turns))
    )

  sizes = np.array([len(turns) for _, turns in own])
  clients = Clients(joined(own), sizes, np.cumsum(sizes) - sizes)
  half = len(others) // 2
  return clients, joined(others[:half]), joined(others[half:])
