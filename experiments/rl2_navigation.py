"""2-D navigation by RL^2: a recurrent policy that PPO trains over trials.

  python -m experiments.rl2_navigation

The tasks of maml_navigation: a point walks to a goal that it does not see. A
trial is of 3 episodes with one goal. The policy reads positions, actions and
rewards, and learns the goal in its recurrent state alone. An episode lasts to
the horizon: after the goal is reached nothing happens, and rewards are 0. The
script reports the mean returns of the episodes on the same 100 test goals as
maml_navigation and pearl_navigation. With `--varibad` the policy reads a
learned belief over the goal instead (VariBAD).

It takes 6 minutes on a core with other work, and gets -2.9, -1.3 and -1.3.
"""

from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from experiments.shared import beliefs, on_policy, paths
from experiments.shared.trainees import Trainee
from metajax.evaluation import estimate
from metajax.policies.evaluation import over_new_tasks
from metajax.runs import folder, loggers, plots, report, rng_keys, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import lasting
from metajax.tasks.trials import Trials, play, trials_of
from metajax.training import TrainState
from metajax.training.loop import fit
from metajax.types import Array, Params, PRNGKey

flags.DEFINE_integer("horizon", 100, "Length of an episode.", 1)
flags.DEFINE_integer("episodes", 3, "Episodes of a trial.", 1)
flags.DEFINE_bool(
  "deterministic", False, "Take the means of actions in validation and test."
)
flags.DEFINE_integer("validation_tasks", 50, "Goals of a validation.", 2)
DEFAULTS = {
  "steps": 600,
  "meta_batch": 32,
  "outer_schedule": "cosine",
  "eval_tasks": 100,
  "log_every": 10,
  "eval_every": 50,
  "checkpoint_every": 50,
  "ppo_lr": 1e-3,
  "ppo_discount": 0.95,
  "ppo_gae": 0.9,
  "ppo_entropy": 0.0,
}
# Flags of every training script, and of its parts, that have no effect here.
UNUSED = (
  *("learner", "task_chunk", "memory", "inner_steps", "inner_lr"),
  *("outer_lr", "ppo"),
)
OWN = ("horizon", "episodes", "deterministic", "units", "cell")
DRAWN = 3  # Goals in the picture.


def main() -> None:
  beliefs.refuse_unused()
  learned_by = beliefs if FLAGS.varibad else on_policy
  trainee = learned_by.trainee(trials(), greedy=FLAGS.deterministic)
  # One program for validation and test.
  played = over_new_tasks(of_new_goal(trainee), FLAGS.validation_tasks)

  def validate(state: TrainState) -> dict[str, float]:
    key = rng_keys.evaluation_key("validation")
    _, _, rewards = played(state.meta_params, key, FLAGS.validation_tasks)
    return {name: float(x.mean()) for name, x in by_episode(rewards).items()}

  workdir = folder.start("rl2_navigation")
  if report.show_finished(workdir, saves_learner=False):
    return
  trained = fit(
    trainee.trainer,
    rng_keys.init_key(),
    training.schedule(),
    workdir,
    tasks_per_step=FLAGS.meta_batch,
    validate=validate,
    rates=trainee.rates,
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
  names = [f"episode {k + 1}" for k in range(FLAGS.episodes)]
  plots.learning_curve(
    workdir,
    {f"validation/return_{x.replace(' ', '_')}": x for x in names},
    "return of an episode",
  )
  goals, places, rewards = played(
    trained.state.meta_params, rng_keys.evaluation_key("test"), FLAGS.eval_tasks
  )
  paths.draw(
    workdir / "paths.png",
    goals[:DRAWN],
    places[:DRAWN, :, None],
    np.ones(places[:DRAWN, :, None].shape[:-1], bool),
    names,
  )
  report.finish(
    workdir,
    "rl2_navigation",
    {
      **flag_values(*OWN, *on_policy.OWN),
      **beliefs.protocol(),
      "outer_lr": FLAGS.ppo_lr,
    },
    {name: estimate(values) for name, values in by_episode(rewards).items()},
    trained,
  )


def trials(goal: Array | None = None) -> Trials:
  """Returns trials of new goals, or of one goal."""
  tasks = lasting(navigation(FLAGS.horizon))
  if goal is not None:
    tasks = tasks._replace(draw=lambda rng: goal)
  return trials_of(tasks, FLAGS.episodes * FLAGS.horizon, new_starts=False)


def of_new_goal(
  trainee: Trainee,
) -> Callable[[Params, PRNGKey], tuple[Array, Array, Array]]:
  """Returns `(params, key) -> (goal, places, rewards)` of a new goal.

  Places are `[episodes, T, 2]`, before each action, and rewards `[episodes,
  T]`. The same key gives the same goal as in the scripts of the other learners.
  """

  def one(params: Params, key: PRNGKey) -> tuple[Array, Array, Array]:
    task_key, play_key = jax.random.split(key)
    goal = navigation(FLAGS.horizon).draw(task_key)
    trial = play(trainee.player(params), trials(goal), play_key)
    shape = FLAGS.episodes, FLAGS.horizon
    places = trial.steps.observation[:-1].reshape(*shape, -1)
    return goal, places, trial.rewards.reshape(shape)

  return one


def by_episode(rewards: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the returns of each goal, by the number of the episode."""
  returns = np.asarray(rewards).sum(-1).T
  return {f"return_episode_{k + 1}": x for k, x in enumerate(returns)}


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=UNUSED)
