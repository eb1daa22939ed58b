"""Small images of a few classes, for distillation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from metajax.runs.flags import FLAGS, refuse
from metajax.tasks.omniglot import load_omniglot
from metajax.training.logging import waiting
from metajax.types import Batch

flags.DEFINE_enum(
  "data",
  "digits",
  ["digits", "omniglot"],
  "Images. digits: scikit-learn's digits, 8 x 8 pixels. omniglot: "
  "characters, 14 x 14 pixels.",
)
flags.DEFINE_integer(
  "classes",
  20,
  "Number of characters, with --data=omniglot, of 1623.",
  lower_bound=2,
  upper_bound=1623,
)


class Data(NamedTuple):
  """Real images: a training set `[classes, n, ...]` and a test set."""

  train: jax.Array
  test: Batch


@waiting("loading data")
def load() -> Data:
  """Splits the images of every class into training and test, by --eval_seed."""
  rng = np.random.default_rng(FLAGS.eval_seed)
  if FLAGS.data == "digits":
    refuse("classes", "data_dir", given="with --data=digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    classes = [rng.permutation(images[digits.target == c]) for c in range(10)]
    num_train = 120
  else:
    data = load_omniglot(FLAGS.data_dir, 14)
    chosen = rng.permutation(len(data.images))[: FLAGS.classes]
    images = data.images[chosen].astype(np.float32) / 255
    classes = [rng.permutation(x) for x in images]
    num_train = 15
  labels = [c for c, x in enumerate(classes) for _ in x[num_train:]]
  test = np.concatenate([x[num_train:] for x in classes])
  return Data(
    jnp.stack([jnp.asarray(x[:num_train]) for x in classes]),
    Batch(jnp.asarray(test), jnp.asarray(labels, jnp.int32)),
  )


def flat(images: jax.Array) -> jax.Array:
  """Maps `[classes, n, ...]` to `[n classes, ...]`. Classes vary fastest."""
  return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
