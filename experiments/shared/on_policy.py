"""RL^2 without replay: a recurrent player trained by PPO, from the flags."""

import optax
from absl import flags

from experiments.shared import player_networks
from experiments.shared.trainees import MAX_NORM, Trainee
from metajax.policies import PPO, policy_player, ppo_trainer
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.tasks.trials import Trials
from metajax.training import task_mesh

flags.DEFINE_bool(
  "ppo", True, "Also train a player by PPO, on as many tasks as the other."
)
flags.DEFINE_float("ppo_lr", 3e-3, "PPO: step size of Adam.", 0.0)
flags.DEFINE_integer(
  "ppo_epochs", 4, "PPO: number of passes over the trials of a step.", 1
)
flags.DEFINE_integer(
  "ppo_minibatches",
  4,
  "PPO: number of parts of the trials of a step. Each part is one update.",
  1,
)
flags.DEFINE_float(
  "ppo_discount", 0.9, "PPO: discount factor of rewards, per action.", 0.0, 1.0
)
flags.DEFINE_float(
  "ppo_gae", 0.3, "PPO: lambda of generalised advantage estimation.", 0.0, 1.0
)
flags.DEFINE_float(
  "ppo_value_gae",
  1.0,
  "PPO: lambda of the returns that the values learn; 1 for discounted rewards.",
  0.0,
  1.0,
)
flags.DEFINE_float(
  "ppo_value", 0.5, "PPO: weight of the values' error in the loss.", 0.0
)
flags.DEFINE_float(
  "ppo_entropy", 0.01, "PPO: weight of the policy's entropy in the loss.", 0.0
)
OWN = (
  "ppo_lr ppo_epochs ppo_minibatches ppo_discount ppo_gae ppo_value_gae "
  "ppo_value ppo_entropy"
).split()


def trainee(tasks: Trials, *, greedy: bool = True) -> Trainee:
  """Builds a recurrent player and its trainer from the flags.

  Args:
    tasks: the tasks.
    greedy: whether the player takes the most probable actions, not samples.
  """
  ppo = configuration()
  network = player_networks.network(tasks, "actor_critic")
  trainer = ppo_trainer(
    network, tasks, optimizer(ppo), ppo, rng=rng_keys.task_key()
  )

  def player(params):
    return policy_player(network, params, tasks.actions, greedy=greedy)

  return Trainee(trainer, player, rates(ppo))


def configuration() -> PPO:
  """Returns the configuration of PPO."""
  devices = task_mesh(FLAGS.meta_batch).size
  if FLAGS.meta_batch % (devices * FLAGS.ppo_minibatches):
    raise ValueError(
      f"--meta_batch={FLAGS.meta_batch}: must be a multiple of "
      f"{devices * FLAGS.ppo_minibatches}, --ppo_minibatches="
      f"{FLAGS.ppo_minibatches} on each of {devices} devices."
    )
  return PPO(
    actors=FLAGS.meta_batch,
    epochs=FLAGS.ppo_epochs,
    minibatches=FLAGS.ppo_minibatches,
    discount=FLAGS.ppo_discount,
    gae=FLAGS.ppo_gae,
    value_gae=FLAGS.ppo_value_gae,
    entropy=FLAGS.ppo_entropy,
    value=FLAGS.ppo_value,
  )


def optimizer(ppo: PPO) -> optax.GradientTransformation:
  """Returns the optimizer of a policy."""
  updates = ppo.epochs * ppo.minibatches
  return optax.chain(
    optax.clip_by_global_norm(MAX_NORM),
    training.outer_optimizer(FLAGS.outer_schedule, updates, FLAGS.ppo_lr),
  )


def rates(ppo: PPO) -> training.Rates:
  """Returns a function that records the step size of a policy."""
  return training.outer_rates(ppo.epochs * ppo.minibatches, FLAGS.ppo_lr)


def protocol(used: bool) -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`.

  `used` tells whether PPO trains a player, or the policy of one.
  """
  return flag_values("ppo", *(OWN if used else ()))
