"""2-D navigation by PEARL (Rakelly et al. 2019), off policy.

  python -m experiments.pearl_navigation

The tasks of maml_navigation: a point walks to a goal that it does not see. An
agent plays an episode with a guess of the task, and each further one with a
sample of what it believes after the episodes before. No step of a gradient is
taken at meta-test. The script reports the mean returns of the first 3 episodes
on the same 100 test goals as maml_navigation, whose policies play 20 episodes
for each gradient step.

The rewards here are dense, so the walk of an episode tells much of the goal.
The paper's sparse variant is not here.

It takes 37 minutes on a core with much other work, 11 of them to compile, and
gets -54.5, -7.3 and -3.3.
"""

from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.shared import paths
from metajax.evaluation import estimate
from metajax.models.mlp import MLP
from metajax.off_policy import (
  PEARL,
  Agent,
  Episodes,
  pearl_agent,
  pearl_trainer,
  played_trials,
)
from metajax.runs import (
  folder,
  loggers,
  plots,
  report,
  rng_keys,
  training,
)
from metajax.runs.flags import FLAGS, define_integers, flag_values
from metajax.runs.script import run
from metajax.tasks.navigation import navigation
from metajax.training import TrainState
from metajax.training.logging import tell
from metajax.training.loop import fit

flags.DEFINE_integer("horizon", 100, "Largest length of an episode.", 1)
define_integers(
  "hidden",
  [64, 64],
  "Hidden units of each layer of all networks.",
  lower_bound=1,
)
flags.DEFINE_integer("latent", 10, "Size of the latent task z.", 1)
flags.DEFINE_integer("train_tasks", 100, "Training goals, drawn once.", 2)
flags.DEFINE_integer("collected", 20, "Goals that a step plays anew.", 1)
flags.DEFINE_integer("episodes", 3, "Episodes of a trial in training.", 1)
flags.DEFINE_integer("updates", 50, "Updates in a step.", 1)
flags.DEFINE_integer("batch", 16, "Transitions of a goal, for the critics.", 1)
flags.DEFINE_integer(
  "context", 128, "Transitions of a goal, for the encoder. 0: all.", 0
)
flags.DEFINE_integer("capacity", 2000, "Transitions kept of each goal.", 1)
flags.DEFINE_float("discount", 0.8, "Discount of a step.", 0.0, 1.0)
flags.DEFINE_float("temperature", 0.04, "Weight of the actions' entropy.", 0.0)
flags.DEFINE_float("kl_weight", 1e-4, "Weight of the belief's divergence.", 0.0)
flags.DEFINE_float(
  "target_rate", 0.02, "How far targets move in an update, tau.", 1e-9, 1.0
)
flags.DEFINE_bool(
  "deterministic", False, "Take the modes of actions in validation and test."
)
flags.DEFINE_integer("validation_tasks", 50, "Goals of a validation.", 2)
DEFAULTS = {
  "steps": 600,
  "meta_batch": 16,
  "outer_lr": 2e-3,
  "outer_schedule": "cosine",
  "eval_tasks": 100,
  "log_every": 10,
  "eval_every": 50,
  "checkpoint_every": 50,
}
# Flags of every training script that have no effect here.
UNUSED = ("learner", "task_chunk", "memory", "inner_steps", "inner_lr")
OWN = (
  *("horizon", "hidden", "latent", "train_tasks", "collected", "episodes"),
  *("updates", "batch", "context", "capacity", "discount", "temperature"),
  *("kl_weight", "target_rate", "deterministic"),
)
EVALUATED = 3  # Episodes.
DRAWN = 3  # Goals in the picture.


def main() -> None:
  tasks = navigation(FLAGS.horizon)
  agent = networks(tasks.actions)
  trainer = pearl_trainer(
    agent,
    tasks,
    training.outer_optimizer(FLAGS.outer_schedule, FLAGS.updates),
    configuration(),
    rng=rng_keys.task_key(),
  )
  # One program for validation and test.
  play = played_trials(
    agent,
    tasks,
    num_episodes=EVALUATED,
    deterministic=FLAGS.deterministic,
    tasks_at_once=FLAGS.validation_tasks,
  )

  def validate(state: TrainState) -> dict[str, float]:
    key = rng_keys.evaluation_key("validation")
    _, trials = play(state.meta_params, key, FLAGS.validation_tasks)
    return {name: float(x.mean()) for name, x in by_episode(trials).items()}

  workdir = folder.start("pearl_navigation")
  if report.show_finished(workdir, saves_learner=False):
    return
  if jax.device_count() > 1:
    tell(f"1 of {jax.device_count()} devices is used: PEARL trains on one")
  trained = fit(
    trainer,
    rng_keys.init_key(),
    training.schedule(),
    workdir,
    tasks_per_step=FLAGS.collected,
    validate=validate,
    rates=training.outer_rates(FLAGS.updates),
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
  names = [f"episode_{k + 1}" for k in range(EVALUATED)]
  plots.learning_curve(
    workdir,
    {f"validation/return_{x}": x.replace("_", " ") for x in names},
    "return of an episode",
  )
  goals, trials = play(
    trained.state.meta_params, rng_keys.evaluation_key("test"), FLAGS.eval_tasks
  )
  paths.draw(
    workdir / "paths.png",
    goals[:DRAWN],
    trials.steps.observation[:DRAWN, :, None],
    trials.mask[:DRAWN, :, None],
    [x.replace("_", " ") for x in names],
  )
  report.finish(
    workdir,
    "pearl_navigation",
    {**flag_values(*OWN), "devices": 1},
    {name: estimate(values) for name, values in by_episode(trials).items()},
    trained,
  )


def networks(actions: Any) -> Agent:
  """Returns the networks of the flags."""
  encoder, actor, critic = (
    MLP(outputs, FLAGS.hidden)
    for outputs in (2 * FLAGS.latent, 2 * actions.size, 1)
  )
  return pearl_agent(encoder, actor, critic, actions, latent=FLAGS.latent)


def configuration() -> PEARL:
  """Returns PEARL's numbers of the flags."""
  return PEARL(
    num_tasks=FLAGS.train_tasks,
    context=FLAGS.context or None,
    **flag_values(
      *("capacity", "collected", "episodes", "updates", "meta_batch", "batch"),
      *("discount", "temperature", "kl_weight", "target_rate"),
    ),
  )


def by_episode(trials: Episodes) -> dict[str, np.ndarray]:
  """Returns the returns of each goal, by the number of the episode."""
  returns = np.asarray(trials.returns).T
  return {f"return_episode_{k + 1}": x for k, x in enumerate(returns)}


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=UNUSED)
