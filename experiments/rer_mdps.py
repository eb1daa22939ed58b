"""Tabular MDPs by recurrent experience replay, and by players that plan.

  python -m experiments.rer_mdps --episodes=10
  python -m experiments.rer_mdps --episodes=25 --steps=4000

The script computes a row of the RL^2 paper's table (Duan et al. 2016, section
3.2): the total reward in `--episodes` episodes of a random MDP (10 states, 5
actions, horizon 10), as the mean over 1000 new MDPs. The recurrent player
("rer") learns in its hidden state only. The other players know the prior. Their
parameters are chosen on validation MDPs. Players "as_published" follow the
paper: they do not know the prior, and their parameters are chosen on the test
MDPs. With --references_only the script trains nothing and takes 11 to 22
minutes.

--preset=gridworld is VariBAD's: 4 episodes of 15 steps with a hidden goal. PPO
trains a recurrent player (RL^2), which is compared with the Bayes-optimal
search ("search") and with a known goal. It takes 13 minutes on a busy core, and
gets 36.9, where the search gets 37.3. --varibad trains VariBAD, too, which gets
36.3 after 5 minutes of CPU time.

With 10 episodes and `--steps=4000 --noppo` training takes 42 minutes on a
shared core, and RER gets 148.9. With 25 episodes it takes 70 minutes and RER
gets 416.2. PPO takes 59 minutes and gets 395.8. The paper's RL^2 has 156.2 and
445.7.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.shared import (
  belief_plots,
  beliefs,
  contests,
  mdp_players,
  replaying,
)
from experiments.shared.references import Reference
from metajax import players
from metajax.evaluation import Estimate, estimate
from metajax.runs import plots, rng_keys
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.tasks.gridworld import best_return, gridworld
from metajax.tasks.trials import Trials, trials_of, with_last_observation

flags.DEFINE_enum(
  "env",
  "random_mdp",
  ["random_mdp", "gridworld"],
  "Random MDPs, or VariBAD's gridworld with a hidden goal.",
)
flags.DEFINE_integer(
  "episodes", 10, "Number of episodes in a task, all of one MDP.", lower_bound=1
)
# An MDP has more to remember than a bandit, hence more units. Its rewards are
# noisy. An early bootstrap reduces the noise of a target.
DEFAULTS = {
  "units": 128,
  "n_step": 1,
  "discount": 0.8,
  "rescale": False,
  "replay_ratio": 4.0,
  "outer_lr": 2e-3,
  "steps": 1500,
  "ppo_discount": 0.8,
}
PRESETS = {
  "gridworld": {
    "env": "gridworld",
    "episodes": 4,
    "rer": False,
    "units": 64,
    "steps": 1000,
    "ppo_discount": 0.95,
    "ppo_gae": 0.9,
    "ppo_entropy": 0.05,
    "ppo_lr": 1e-3,
  }
}

SIZES = players.Sizes()


def main() -> None:
  random_mdps() if FLAGS.env == "random_mdp" else hidden_goals()


def random_mdps() -> None:
  # gymnax computes at import, which must come after the devices are set up.
  from metajax.tasks.tabular_mdp import tabular_mdps

  tasks = tabular_mdps(FLAGS.episodes)
  played = contests.play_all(
    "rer_mdps", tasks, lambda: mdp_players.references(SIZES), "psrl"
  )
  metrics = contests.totals(played, "psrl")
  metrics["optimum_of_an_episode"] = estimate(optima(tasks))
  # Mishra et al. (2018, table 4) publish shares of this optimum.
  metrics["optimum_discounted_0.99"] = estimate(optima(tasks, 0.99))
  finish(
    played,
    SIZES._asdict(),
    metrics,
    mdp_players.published(FLAGS.episodes),
  )


def hidden_goals() -> None:
  goals = gridworld()
  tasks = trials_of(goals, FLAGS.episodes * goals.horizon)
  search = players.search_path(episodes=FLAGS.episodes)
  played = contests.play_all(
    "rer_mdps",
    tasks,
    lambda: {
      "random": Reference(lambda _: players.random_player(tasks.num_actions)),
      "search": Reference(lambda _: players.searcher(search)),
    },
    "search",
  )
  metrics = contests.totals(played, "search")
  for name, rewards in played.rewards.items():
    for episode, found in by_episode(rewards).items():
      metrics[f"{name}_episode_{episode:g}"] = found
  if "varibad" in played.players:
    seen = with_last_observation(tasks) if FLAGS.last_observation else tasks
    metrics |= belief_plots.report(
      played.workdir,
      beliefs.network(seen),
      played.params["varibad"],
      played.players["varibad"],
      seen,
      goals.horizon,
    )
  metrics["known_goal_of_an_episode"] = estimate(
    np.asarray(best_return(task_params(tasks), goals.horizon))
  )
  finish(played, {"bayes_optimal": search.total}, metrics, {})


def finish(
  played: contests.Played,
  protocol: Mapping[str, Any],
  metrics: Mapping[str, Estimate],
  published: Mapping[str, float],
) -> None:
  plots.curves(
    played.workdir / "episodes.png",
    {name: by_episode(r) for name, r in contests.drawn(played).items()},
    "episode of the task",
    "reward of the episode",
  )
  protocol = {**flag_values("env", "episodes"), **protocol}
  contests.finish("rer_mdps", played, protocol, metrics, published)


def optima(tasks: Trials, discount: float = 1.0) -> np.ndarray:
  """Returns the optimal expected reward of an episode for each test MDP."""
  one = lambda params: players.optimal_value(params, SIZES, discount)  # noqa: E731
  return np.asarray(jax.jit(jax.vmap(one))(task_params(tasks)))


def task_params(tasks: Trials) -> Any:
  """Returns what was drawn for the test tasks, `[tasks, ...]`."""

  def one(key: jax.Array) -> Any:
    task_key, _ = jax.random.split(key)  # As in `trials.play`.
    return tasks.reset(task_key)[0].params

  keys = jax.random.split(rng_keys.evaluation_key("test"), FLAGS.eval_tasks)
  return jax.jit(jax.vmap(one))(keys)


def by_episode(rewards: np.ndarray) -> dict[float, Estimate]:
  totals = rewards.reshape(len(rewards), FLAGS.episodes, -1).sum(-1)
  return plots.line(range(1, FLAGS.episodes + 1), totals)


if __name__ == "__main__":
  run(
    main,
    presets=PRESETS,
    defaults=replaying.DEFAULTS | DEFAULTS,
    needs=replaying.NEEDS,
    unused=replaying.UNUSED,
  )
