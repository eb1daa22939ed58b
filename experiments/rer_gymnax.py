"""Recurrent experience replay on the meta-learning tasks that gymnax has.

  python -m experiments.rer_gymnax --environment=MetaMaze-misc

trains players by replay and by PPO in environments that hide something: a goal
in a maze (Miconi et al. 2019), a point robot's goal (Dorfman et al. 2021), or
which of two arms is better (Wang et al. 2017). A task is a draw of what `reset`
draws, kept for all its episodes. Whoever finds the goal is paid and set down
elsewhere, to find it again.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import contests, replaying, trial_plots
from metajax import players
from metajax.evaluation import Estimate, estimate
from metajax.runs import plots, rng_keys
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.tasks.trials import Player, Step, Trials, play, trials
from metajax.types import Array, PRNGKey

flags.DEFINE_enum(
  "environment",
  "MetaMaze-misc",
  ["BernoulliBandit-misc", "MetaMaze-misc", "PointRobot-misc"],
  "Environment of gymnax.",
)
flags.DEFINE_integer("episodes", 1, "Episodes of a task.", lower_bound=1)
DEFAULTS = {
  "steps": 2000,
}

MAZES = 4  # In the picture.
BINS = 20  # Of the curve of rewards within a task.
COMPASS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]


def main() -> None:
  # gymnax computes as it is imported, and devices are made before anything is.
  import gymnax

  environment, params = gymnax.make(FLAGS.environment)
  # Players read the time, which is best of the size of all else.
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
    {
      "random": contests.Reference(
        lambda _: players.random_player(tasks.num_actions)
      )
    },
    "random",
  )
  plots.curves(
    played.workdir / "within_task.png",
    {name: by_time(r) for name, r in played.rewards.items()},
    "step of the task",
    "mean reward of a step",
  )
  if FLAGS.environment == "MetaMaze-misc":
    trained = played.players["rer"]
    trial_plots.walks(
      played.workdir / "maze.png",
      np.asarray(environment.occupied_map),
      walks(tasks, trained),
    )
  contests.finish(
    "rer_gymnax",
    played,
    {"environment": FLAGS.environment, "episodes": FLAGS.episodes},
    contests.totals(played, "random"),
    {},
  )


def by_time(rewards: np.ndarray) -> dict[float, Estimate]:
  """Mean rewards of a step, in parts of a task, by the middle of each."""
  edges = np.linspace(0, rewards.shape[1], BINS + 1).astype(int)
  return {
    (a + b) / 2: estimate(rewards[:, a:b].mean(-1))
    for a, b in zip(edges, edges[1:], strict=False)
    if b > a
  }


def walks(tasks: Trials, player: Player) -> dict[str, list[trial_plots.Walk]]:
  """Plays test mazes; returns the first and the last search of the goal.

  By the number of the task: where the player was at each step, and the goal.
  """

  def reset(rng: PRNGKey) -> tuple[Any, Array]:
    task, observation = tasks.reset(rng)
    return task, _seen(task, observation)

  def step(task: Any, action: Array, rng: PRNGKey) -> tuple:
    task, observation, reward, ended = tasks.step(task, action, rng)
    return task, _seen(task, observation), reward, ended

  def act(memory: Any, seen: Step, rng: PRNGKey) -> tuple[Array, Any]:
    return player.act(
      memory, seen._replace(observation=seen.observation[4:]), rng
    )

  shown = Player(player.start, act), tasks._replace(reset=reset, step=step)
  keys = jax.random.split(rng_keys.evaluation_key("test"), MAZES)
  steps = jax.jit(jax.vmap(lambda key: play(*shown, key).steps))(keys)
  places, goals = np.split(np.asarray(steps.observation[..., :4], int), 2, -1)
  rewarded, ended = np.asarray(steps.reward) > 0, np.asarray(steps.ended)
  parts: dict[str, list[trial_plots.Walk]] = {
    "first search": [],
    "last search": [],
  }
  for place, goal, found, end in zip(
    places, goals, rewarded, ended, strict=True
  ):
    # After a reward, or an episode's end, the next search begins elsewhere.
    borders = [0, *np.flatnonzero(found | end), len(found)]
    searches = [(a, b) for a, b in itertools.pairwise(borders) if a < b]
    finished = [(a, b) for a, b in searches if b < len(found) and found[b]]
    last = finished[-1] if finished else searches[0]
    for name, (a, b) in zip(parts, (searches[0], last), strict=True):
      # Who has reached the goal is seen elsewhere at once.
      reached = goal[:1] if (a, b) in finished else goal[:0]
      way = np.concatenate([place[a:b], reached])
      parts[name].append(trial_plots.Walk(way, goal[0]))
  return parts


def _seen(task: Any, observation: Array) -> Array:
  """Adds what players do not see: where they are, and where the goal is."""
  return jnp.concatenate([task.state.pos, task.state.goal, observation])


if __name__ == "__main__":
  run(
    main,
    defaults=replaying.DEFAULTS | DEFAULTS,
    needs=replaying.NEEDS,
    unused=(*replaying.UNUSED, "last_observation", "references_only"),
  )
