"""The heads of `pretrain`: how the trained features classify a new task."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from absl import flags

from experiments.shared import augmentations
from experiments.shared.pretraining import Data, network_of
from metajax import aggregation
from metajax.learners import embedding, fine_tuned, heads, learned_ensemble
from metajax.losses import cross_entropy
from metajax.runs.flags import FLAGS
from metajax.tasks.augmentation import augmented_copies
from metajax.types import Array, Batch, MetaLearner, Params

COPIES = 5  # Tian et al. 2020, section 4.1.

flags.DEFINE_integer(
  "fine_tune_steps",
  0,
  "Steps of Adam on the support that fine-tune the whole network, as one more "
  "head; 0: leave this head out. Dhillon et al. (2020) take 25.",
  lower_bound=0,
)
flags.DEFINE_float(
  "fine_tune_lr", 5e-5, "Step size of --fine_tune_steps.", lower_bound=0.0
)


def learners(data: Data, ways: int) -> dict[str, MetaLearner]:
  """Returns learners with a head on the features, by the name of the head.

  With --augment, the heads are fitted to augmented copies of the support.
  """
  features = network_of(data, None)
  change = augmentations.augmentation(data.protocol["image_size"])
  copies = functools.partial(_copies, change) if change else None
  made = {
    "logistic": heads.logistic(ways),
    "ridge": heads.ridge(ways),
    "nearest_mean": heads.nearest_mean(ways),
    "cosine": heads.cosine(ways),
  }
  found = {
    name: embedding(
      features, head, cross_entropy, normalize=True, prepare=copies
    )
    for name, head in made.items()
  }
  if FLAGS.fine_tune_steps:
    found["fine_tuned"] = fine_tuned(
      features,
      cross_entropy,
      optax.adam(FLAGS.fine_tune_lr),
      FLAGS.fine_tune_steps,
      ways=ways,
      prepare=copies,
    )
  return found


def ensemble(
  learner: MetaLearner, networks: Sequence[Params]
) -> tuple[MetaLearner, Params]:
  """Averages the probabilities of several networks, with a head on each.

  Returns:
    The ensemble as a learner, and its meta-parameters: equal weights.
  """
  together = learned_ensemble(
    learner,
    aggregation.stack_models(networks),
    aggregation.average_probabilities,
    cross_entropy,
  )
  return together, together.init(jax.random.key(0), None)


def _copies(change: Any, rng: Array, support: Batch) -> Batch:
  return augmented_copies(rng, support, change, COPIES)
