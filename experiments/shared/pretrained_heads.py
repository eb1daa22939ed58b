"""The heads of `pretrain`: how the trained features classify a new task."""

import functools
from collections.abc import Mapping, Sequence
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

SHOWN = "logistic"  # The head of the paper.
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


def contenders(
  learners: Mapping[str, MetaLearner],
  networks: Sequence[Params],
  averages: Sequence[Mapping[str, Params]],
) -> tuple[dict[str, tuple[MetaLearner, Params]], list[tuple[str, str]]]:
  """Returns what is tested: each head on each network, averages, an ensemble.

  Args:
    learners: the heads on the features, by name.
    networks: the trained networks, one of each generation.
    averages: averages of each network's weights, by name.

  Returns:
    Learners with their meta-parameters, by the name of the metric, and pairs of
    these names whose difference is of interest.
  """
  found = {
    f"{name}_generation_{generation}": (learner, params)
    for generation, params in enumerate(networks)
    for name, learner in learners.items()
  }
  pairs = []
  for generation, named in enumerate(averages):
    for name, params in named.items():
      key = f"{SHOWN}_{name}_generation_{generation}"
      found[key] = learners[SHOWN], params
      pairs.append((key, f"{SHOWN}_generation_{generation}"))
  if len(networks) > 1:
    together = f"{SHOWN}_ensemble"
    found[together] = _ensemble(learners[SHOWN], networks)
    first, last = (f"{SHOWN}_generation_{i}" for i in (0, len(networks) - 1))
    pairs += [(last, first), (together, first)]
  return found, pairs


def _ensemble(
  learner: MetaLearner, networks: Sequence[Params]
) -> tuple[MetaLearner, Params]:
  """Averages the probabilities of several networks, with a head on each."""
  together = learned_ensemble(
    learner,
    aggregation.stack_models(networks),
    aggregation.average_probabilities,
    cross_entropy,
  )
  return together, together.init(jax.random.key(0), None)


def _copies(change: Any, rng: Array, support: Batch) -> Batch:
  return augmented_copies(rng, support, change, COPIES)
