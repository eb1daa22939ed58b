"""Recurrent experience replay on gymnax's meta-learning tasks.

  python -m experiments.rer_gymnax --environment=MetaMaze-misc

The script trains players by replay and by PPO. The environment hides a goal in
a maze (Miconi et al. 2019), the goal of a point robot (Dorfman et al. 2021), or
the better of two arms (Wang et al. 2017). Each task draws the hidden variable
by `reset` and keeps it for all its episodes. A player that reaches the goal
gets a reward and starts again from another place.

Both trainings in the maze take 13 minutes on a shared core. Recurrent replay
earns 204.3 +- 3.8, PPO 214.1 +- 4.0, random walks 7.5 +- 0.6.
"""

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import contests, mazes, replaying, trial_plots
from experiments.shared.references import Reference
from metajax import players
from metajax.runs import plots
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.tasks.trials import trials

flags.DEFINE_enum(
  "environment",
  "MetaMaze-misc",
  ["BernoulliBandit-misc", "MetaMaze-misc", "PointRobot-misc"],
  "Environment of gymnax.",
)
flags.DEFINE_integer(
  "episodes", 1, "Number of episodes of a task.", lower_bound=1
)
DEFAULTS = {"steps": 2000}

MAZES = 4  # Mazes in the picture.
COMPASS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]


def main() -> None:
  # gymnax computes at import, which must come after the devices are set up.
  import gymnax

  environment, params = gymnax.make(FLAGS.environment)
  # Players read the time. It should have the scale of the other inputs.
  params = params.replace(normalize_time=True)
  robot = FLAGS.environment == "PointRobot-misc"
  tasks = trials(
    environment,
    FLAGS.episodes * int(params.max_steps_in_episode),
    sample_params=lambda rng: params,
    # A force in one of 8 directions, or none.
    actions=params.max_force * jnp.array(COMPASS) if robot else None,
  )
  played = contests.play_all(
    "rer_gymnax",
    tasks,
    lambda: {
      "random": Reference(lambda _: players.random_player(tasks.num_actions))
    },
    "random",
  )
  plots.curves(
    played.workdir / "within_task.png",
    {name: trial_plots.by_time(r) for name, r in played.rewards.items()},
    "step of the task",
    "mean reward of a step",
  )
  if FLAGS.environment == "MetaMaze-misc":
    mazes.draw(
      played.workdir / "maze.png",
      np.asarray(environment.occupied_map),
      mazes.searches(tasks, played.players["rer"], MAZES),
    )
  contests.finish(
    "rer_gymnax",
    played,
    flag_values("environment", "episodes"),
    contests.totals(played, "random"),
    {},
  )


if __name__ == "__main__":
  run(
    main,
    defaults=replaying.DEFAULTS | DEFAULTS,
    needs=replaying.NEEDS,
    unused=(*replaying.UNUSED, "last_observation", "references_only", "rer"),
  )
