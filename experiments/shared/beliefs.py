"""VariBAD: a policy on a learned belief over tasks, from the flags."""

from absl import flags

from experiments.shared import on_policy, player_networks
from experiments.shared.trainees import Trainee
from metajax.policies import (
  BeliefNetwork,
  Likelihood,
  VariBAD,
  belief_network,
  policy_player,
  varibad_trainer,
)
from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.tasks.trials import Trials
from metajax.training import task_mesh
from metajax.types import Params

flags.DEFINE_bool(
  "varibad",
  False,
  "Train a player by VariBAD, whose policy reads a belief over tasks. "
  "The flags of PPO are for its policy, too.",
)
flags.DEFINE_integer("latent", 5, "VariBAD: numbers of a latent task.", 1)
flags.DEFINE_float(
  "belief_lr", 2e-3, "VariBAD: step size of Adam for encoder and decoder.", 0.0
)
flags.DEFINE_integer(
  "belief_updates",
  VariBAD().updates,
  "VariBAD: updates of encoder and decoder in a step.",
  1,
)
flags.DEFINE_integer(
  "belief_batch",
  VariBAD().batch,
  "VariBAD: number of trials of such an update. It must divide --meta_batch.",
  1,
)
flags.DEFINE_integer(
  "belief_trials",
  VariBAD().kept,
  "VariBAD: number of the last trials of each actor from which encoder and "
  "decoder learn.",
  1,
)
flags.DEFINE_float(
  "reward_scale",
  Likelihood().reward,
  "VariBAD: standard deviation of a reward, in the decoder's likelihood.",
  1e-6,
)
OWN = "latent belief_lr belief_updates belief_batch belief_trials reward_scale"


def network(tasks: Trials) -> BeliefNetwork:
  """Returns encoder, policy and decoder for the given tasks."""
  encoder = player_networks.network(tasks, "linear", 2 * FLAGS.latent)
  return belief_network(
    encoder, tasks.actions, latent=FLAGS.latent, units=FLAGS.units
  )


def trainee(tasks: Trials, *, greedy: bool = True) -> Trainee:
  """Builds a player of VariBAD and its trainer from the flags.

  Args:
    tasks: the tasks.
    greedy: whether the player takes the most probable actions, not samples.
  """
  ppo, networks = on_policy.configuration(), network(tasks)
  turns, rest = divmod(FLAGS.meta_batch, FLAGS.belief_batch)
  share = FLAGS.meta_batch // task_mesh(FLAGS.meta_batch).size
  if rest or share % turns:
    raise ValueError(
      f"--belief_batch={FLAGS.belief_batch}: must divide --meta_batch="
      f"{FLAGS.meta_batch} into so many parts that they divide the {share} "
      "tasks of a device."
    )
  trainer = varibad_trainer(
    networks,
    tasks,
    on_policy.optimizer(ppo),
    training.outer_optimizer(
      FLAGS.outer_schedule, FLAGS.belief_updates, FLAGS.belief_lr
    ),
    ppo,
    VariBAD(
      FLAGS.belief_updates,
      FLAGS.belief_batch,
      FLAGS.belief_trials,
      Likelihood(FLAGS.reward_scale),
    ),
    rng=rng_keys.task_key(),
  )

  def player(params: Params):
    return policy_player(
      networks.recurrent, params, tasks.actions, greedy=greedy
    )

  return Trainee(trainer, player, on_policy.rates(ppo))


def refuse_unused() -> None:
  """Refuses flags of VariBAD without --varibad."""
  if not FLAGS.varibad:
    refuse(*OWN.split(), given="without --varibad")


def protocol() -> dict[str, object]:
  """Returns the values of the flags above, for `results.json`."""
  return flag_values("varibad", *(OWN.split() if FLAGS.varibad else ()))
