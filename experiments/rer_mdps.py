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

With 10 episodes and `--steps=4000 --noppo` training takes 42 minutes on a
shared core, and RER gets 148.9. With 25 episodes it takes 70 minutes and RER
gets 416.2. PPO takes 59 minutes and gets 395.8. The paper's RL^2 has 156.2 and
445.7.
"""

import functools

import jax
import numpy as np
from absl import flags

from experiments.shared import contests, replaying
from experiments.shared.references import AS_PUBLISHED, SAMPLES, Reference
from metajax import players
from metajax.evaluation import Estimate, estimate
from metajax.runs import plots, rng_keys
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.tasks.trials import Trials

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

SIZES = players.Sizes()
# Total rewards in the paper's table, by episodes.
COLUMNS = "random psrl opsrl ucrl2 beb eps_greedy greedy rl2".split()
PUBLISHED = {
  10: (100.1, 138.1, 144.1, 146.6, 150.2, 132.8, 134.8, 156.2),
  25: (250.2, 408.8, 425.2, 424.1, 427.8, 377.3, 368.8, 445.7),
  50: (499.7, 904.4, 930.7, 918.9, 917.8, 823.3, 769.3, 936.1),
  75: (749.9, 1417.1, 1449.2, 1427.6, 1422.6, 1293.9, 1172.9, 1428.8),
  100: (999.4, 1939.5, 1973.9, 1942.1, 1935.1, 1778.2, 1578.5, 1913.7),
}


def main() -> None:
  # gymnax computes at import, which must come after the devices are set up.
  from metajax.tasks.tabular_mdp import tabular_mdps

  episodes = FLAGS.episodes
  tasks = tabular_mdps(episodes)
  played = contests.play_all("rer_mdps", tasks, references(), "psrl")
  metrics = contests.totals(played, "psrl")
  metrics["optimum_of_an_episode"] = estimate(optima(tasks))
  # Mishra et al. (2018, table 4) publish shares of this optimum.
  metrics["optimum_discounted_0.99"] = estimate(optima(tasks, 0.99))
  plots.curves(
    played.workdir / "episodes.png",
    {
      name: by_episode(r, episodes)
      for name, r in contests.drawn(played).items()
    },
    "episode of the task",
    "reward of the episode",
  )
  contests.finish(
    "rer_mdps",
    played,
    {"episodes": episodes, **SIZES._asdict()},
    metrics,
    dict(zip(COLUMNS, PUBLISHED.get(episodes, ()), strict=False)),
  )


def references() -> dict[str, Reference]:
  published = functools.partial(Reference, on_test=True)
  ours = {
    "random": Reference(lambda _: players.random_player(SIZES.actions)),
    "psrl": Reference(lambda _: players.posterior_sampling(SIZES)),
    "opsrl": Reference(lambda _: players.posterior_sampling(SIZES, 5)),
    "ucrl2": Reference(
      functools.partial(players.ucrl2, SIZES),
      {f"scale {c}": c for c in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)},
    ),
    "beb": Reference(
      functools.partial(players.mdp_bonus, SIZES),
      {f"scale {c}": c for c in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)},
    ),
    "eps_greedy": Reference(
      functools.partial(players.mdp_epsilon_greedy, SIZES),
      {f"epsilon {e}": e for e in (0.01, 0.03, 0.1, 0.2, 0.3)},
    ),
    "greedy": Reference(lambda _: players.mdp_epsilon_greedy(SIZES, 0.0)),
  }
  scales = {f"scale {c:.4g}": float(c) for c in np.geomspace(1e-4, 1, 21)}
  papers = {
    "psrl": Reference(lambda _: players.tabularl_psrl(SIZES)),
    "opsrl": published(
      functools.partial(players.tabularl_psrl, SIZES),
      {f"samples {n}": n for n in SAMPLES},
    ),
    "ucrl2": published(
      functools.partial(players.tabularl_ucrl2, SIZES), scales
    ),
    "beb": published(functools.partial(players.tabularl_beb, SIZES), scales),
    "eps_greedy": published(
      functools.partial(players.tabularl_epsilon_greedy, SIZES),
      {f"epsilon {i / 10}": i / 10 for i in range(1, 11)},
    ),
    "greedy": Reference(lambda _: players.tabularl_epsilon_greedy(SIZES, 0.0)),
  }
  return ours | {name + AS_PUBLISHED: paper for name, paper in papers.items()}


def optima(tasks: Trials, discount: float = 1.0) -> np.ndarray:
  """Returns the optimal expected reward of an episode for each test MDP."""

  def one(key: jax.Array) -> jax.Array:
    task_key, _ = jax.random.split(key)  # As in `trials.play`.
    (params, *_), _ = tasks.reset(task_key)
    return players.optimal_value(params, SIZES, discount)

  keys = jax.random.split(rng_keys.evaluation_key("test"), FLAGS.eval_tasks)
  return np.asarray(jax.jit(jax.vmap(one))(keys))


def by_episode(rewards: np.ndarray, episodes: int) -> dict[float, Estimate]:
  totals = rewards.reshape(len(rewards), episodes, -1).sum(-1)
  return plots.line(range(1, episodes + 1), totals)


if __name__ == "__main__":
  run(
    main,
    defaults=replaying.DEFAULTS | DEFAULTS,
    needs=replaying.NEEDS,
    unused=replaying.UNUSED,
  )
