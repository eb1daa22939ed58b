"""Training of policy learners, from the flags."""

from typing import NamedTuple

import optax
from absl import flags

from metajax.policies import (
  POLICY_LEARNERS,
  SURROGATES,
  KLPenalty,
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
from metajax.tasks.playable import PlayableTasks, told
from metajax.training import Trainer

flags.DEFINE_enum(
  "algorithm",
  "maml",
  [*POLICY_LEARNERS, "oracle"],
  "The meta-learning algorithm. An oracle observes the task, and it and "
  "pretrained take no inner step in training.",
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
  "kl_penalty",
  0.0,
  "PPO: first weight of ProMP's penalty, and 0 for none. ProMP has 5e-4.",
  0.0,
)
flags.DEFINE_float(
  "kl_target", 0.01, "PPO: target of the penalty, in nats per step.", 1e-9
)
flags.DEFINE_float("credit", 0.0, "Weight of E-MAML's term.", 0.0)
flags.DEFINE_float(
  "later_lr",
  0.3,
  "Factor of the inner step size from one inner step to the next.",
  0,
)
flags.DEFINE_integer(
  "episodes", 20, "Episodes for each inner step and after the last.", 1
)
WITHOUT_STEPS = ("pretrained", "oracle")
SMALLEST_WEIGHT = 1e-4  # Of the penalty, unless it begins below.
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


def seen(tasks: PlayableTasks) -> PlayableTasks:
  """Returns the tasks as the algorithm of the flags observes them."""
  return told(tasks) if FLAGS.algorithm == "oracle" else tasks


def build(policy: Policy, tasks: PlayableTasks) -> Training:
  """Builds a learner and its trainer from the flags.

  Args:
    policy: the policy.
    tasks: the tasks, see `seen`.
  """
  if FLAGS.algorithm in WITHOUT_STEPS:
    refuse("inner_steps", "surrogate", "credit", "kl_penalty")
  if FLAGS.outer == "trpo":
    refuse("outer_lr", "outer_schedule")
  else:
    refuse("max_kl")
  if FLAGS.outer != "ppo":
    refuse("epochs", "kl_penalty")
  if not FLAGS.kl_penalty:
    refuse("kl_target")
  options = POLICY_LEARNERS[
    "pretrained" if FLAGS.algorithm == "oracle" else FLAGS.algorithm
  ]
  epochs = FLAGS.epochs if FLAGS.outer == "ppo" else 1
  learner = policy_learner(
    policy,
    tasks,
    # A step size for the first step is too long for the later ones.
    inner_lr=lambda k: FLAGS.inner_lr * FLAGS.later_lr**k,
    num_episodes=FLAGS.episodes,
    inner_surrogate=SURROGATES[FLAGS.surrogate],
    outer_surrogate=(
      clipped() if FLAGS.outer == "ppo" else low_variance_curvature
    ),
    credit=FLAGS.credit,
    **{"num_steps": FLAGS.inner_steps, **options},
  )
  optimizer = TrustRegion(max_kl=FLAGS.max_kl)
  if FLAGS.outer != "trpo":
    optimizer = optax.chain(
      optax.clip_by_global_norm(MAX_NORM),
      training.outer_optimizer(FLAGS.outer_schedule, epochs),
    )
  weight = FLAGS.kl_penalty
  penalty = KLPenalty(weight, FLAGS.kl_target, min(weight, SMALLEST_WEIGHT))
  trainer = policy_trainer(
    learner,
    tasks,
    optimizer,
    meta_batch=FLAGS.meta_batch,
    rng=rng_keys.task_key(),
    epochs=epochs,
    penalty=penalty if weight else None,
  )
  rates = None if FLAGS.outer == "trpo" else training.outer_rates(epochs)
  return Training(learner, trainer, rates)


def protocol() -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`."""
  names = "algorithm outer episodes inner_lr later_lr"
  if FLAGS.algorithm not in WITHOUT_STEPS:
    names += " surrogate inner_steps credit"
  names += {
    "trpo": " max_kl",
    "ppo": " epochs kl_penalty",
    "adam": "",
  }[FLAGS.outer]
  if FLAGS.kl_penalty:
    names += " kl_target"
  without = {"outer_lr": None, "outer_schedule": None}  # TRPO reads neither.
  return {
    **(without if FLAGS.outer == "trpo" else {}),
    **flag_values(*names.split()),
    "outer_optimizer": "trpo" if FLAGS.outer == "trpo" else "adam",
  }
