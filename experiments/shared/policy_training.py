"""Training of policy learners, from the flags."""

from typing import NamedTuple

import optax
from absl import flags

from metajax.policies import (
  POLICY_LEARNERS,
  SURROGATES,
  Policy,
  PolicyLearner,
  TrustRegion,
  clipped,
  low_variance_curvature,
  policy_learner,
  policy_trainer,
)
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.tasks.playable import PlayableTasks
from metajax.training import Trainer

flags.DEFINE_enum(
  "algorithm", "maml", list(POLICY_LEARNERS), "The meta-learning algorithm."
)
flags.DEFINE_enum(
  "surrogate", "lvc", list(SURROGATES), "Loss of the inner steps."
)
flags.DEFINE_enum("outer", "trpo", ["trpo", "ppo", "adam"], "Outer step.")
flags.DEFINE_float(
  "max_kl", 0.01, "TRPO: bound of the divergence, in nats per step.", 1e-6
)
flags.DEFINE_integer("epochs", 5, "PPO: updates on the same episodes.", 1)
flags.DEFINE_float(
  "later_lr",
  0.3,
  "Factor of the inner step size from one inner step to the next.",
  0,
)
flags.DEFINE_integer(
  "episodes", 20, "Episodes for each inner step and after the last.", 1
)
MAX_NORM = 1.0  # Adam's gradients are clipped to this norm.


class Training(NamedTuple):
  """A learner and its trainer.

  Attributes:
    learner: the learner.
    trainer: its trainer.
    rates: the outer step sizes, see `training.loop.fit`; None for TRPO.
  """

  learner: PolicyLearner
  trainer: Trainer
  rates: training.Rates | None


def build(policy: Policy, tasks: PlayableTasks) -> Training:
  """Builds a learner and its trainer from the flags."""
  if FLAGS.outer == "trpo":
    refuse("outer_lr", "outer_schedule")
  else:
    refuse("max_kl")
  if FLAGS.outer != "ppo":
    refuse("epochs")
  epochs = FLAGS.epochs if FLAGS.outer == "ppo" else 1
  learner = policy_learner(
    policy,
    tasks,
    # A step size for the first step is too long for the later ones.
    inner_lr=lambda k: FLAGS.inner_lr * FLAGS.later_lr**k,
    num_steps=FLAGS.inner_steps,
    num_episodes=FLAGS.episodes,
    inner_surrogate=SURROGATES[FLAGS.surrogate],
    outer_surrogate=(
      clipped() if FLAGS.outer == "ppo" else low_variance_curvature
    ),
    **POLICY_LEARNERS[FLAGS.algorithm],
  )
  optimizer = TrustRegion(max_kl=FLAGS.max_kl)
  if FLAGS.outer != "trpo":
    optimizer = optax.chain(
      optax.clip_by_global_norm(MAX_NORM),
      training.outer_optimizer(FLAGS.outer_schedule, epochs),
    )
  trainer = policy_trainer(
    learner,
    tasks,
    optimizer,
    meta_batch=FLAGS.meta_batch,
    rng=rng_keys.task_key(),
    epochs=epochs,
  )
  rates = None if FLAGS.outer == "trpo" else training.outer_rates(epochs)
  return Training(learner, trainer, rates)


def protocol() -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`."""
  names = "algorithm surrogate outer episodes inner_steps inner_lr later_lr"
  names += {"trpo": " max_kl", "ppo": " epochs", "adam": ""}[FLAGS.outer]
  without = {"outer_lr": None, "outer_schedule": None}  # TRPO reads neither.
  return {
    **(without if FLAGS.outer == "trpo" else {}),
    **flag_values(*names.split()),
    "outer_optimizer": "trpo" if FLAGS.outer == "trpo" else "adam",
    "devices": 1,
  }
