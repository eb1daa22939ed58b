"""Bandits by recurrent experience replay, and by players that need no training.

  python -m experiments.rer_bandits --pulls=100 --arms=5

The script computes a row of the RL^2 paper's table (Duan et al. 2016, section
3.1): the total reward in `--pulls` pulls of Bernoulli arms with uniform
probabilities, as the mean over 1000 new bandits. The recurrent player ("rer")
learns in its hidden state only. The other players know the prior. Their
parameters are chosen on validation bandits. Players "as_published" follow the
paper: ties go to the first arm, and parameters are chosen on the test bandits.
With --references_only the script trains nothing and takes minutes.

With 5 arms and 100 pulls training takes 9 minutes on a shared core. PPO takes
the same time again. RER gets 78.6, PPO 77.0 and Gittins indices 79.0. The
paper's RL^2 has 78.7. `--preset=ppo` trains PPO alone, in larger batches.
"""

import functools

import numpy as np
from absl import flags

from experiments.shared import contests, replaying
from experiments.shared.references import AS_PUBLISHED, SAMPLES, Reference
from metajax import players
from metajax.evaluation import Estimate
from metajax.runs import plots
from metajax.runs.flags import FLAGS
from metajax.runs.script import run

flags.DEFINE_integer(
  "pulls", 100, "Number of pulls in a bandit task.", lower_bound=1
)
flags.DEFINE_integer("arms", 5, "Number of arms of a bandit.", lower_bound=2)

# Total rewards in the paper's table, by (pulls, arms).
COLUMNS = "random gittins ts ots ucb1 eps_greedy greedy rl2".split()
PUBLISHED = {
  (10, 5): (5.0, 6.6, 5.7, 6.5, 6.7, 6.6, 6.6, 6.7),
  (10, 10): (5.0, 6.6, 5.5, 6.2, 6.7, 6.6, 6.6, 6.7),
  (10, 50): (5.1, 6.5, 5.2, 5.5, 6.6, 6.5, 6.5, 6.8),
  (100, 5): (49.9, 78.3, 74.7, 77.9, 78.0, 75.4, 74.8, 78.7),
  (100, 10): (49.9, 82.8, 76.7, 81.4, 82.4, 77.4, 77.1, 83.5),
  (100, 50): (49.8, 85.2, 64.5, 67.7, 84.3, 78.3, 78.0, 84.9),
  (500, 5): (249.8, 405.8, 402.0, 406.7, 405.8, 388.2, 380.6, 401.6),
  (500, 10): (249.0, 437.8, 429.5, 438.9, 437.1, 408.0, 395.0, 432.5),
  (500, 50): (249.6, 463.7, 427.2, 437.6, 457.6, 413.6, 402.8, 438.9),
}
POINTS = 25  # Points of a curve of regret.
PRESETS = {
  "ppo": {
    "rer": False,
    "meta_batch": 512,
    "steps": 750,
    "ppo_minibatches": 8,
    "ppo_discount": 0.99,
    "ppo_value": 2.0,
  }
}


def main() -> None:
  # gymnax computes at import, which must come after the devices are set up.
  from metajax.tasks.bandits import bandits

  arms, pulls = FLAGS.arms, FLAGS.pulls
  played = contests.play_all(
    "rer_bandits", bandits(arms, pulls), lambda: references(arms, pulls), "ts"
  )
  best_arm = arms / (arms + 1)  # The mean of the largest probability.
  plots.curves(
    played.workdir / "regret.png",
    {name: regret(r, best_arm) for name, r in contests.drawn(played).items()},
    "pulls",
    "regret: reward of the best arm minus reward",
  )
  contests.finish(
    "rer_bandits",
    played,
    {"pulls": pulls, "arms": arms},
    contests.totals(played, "ts", "gittins"),
    dict(zip(COLUMNS, PUBLISHED.get((pulls, arms), ()), strict=False)),
  )


def references(arms: int, pulls: int) -> dict[str, Reference]:
  published = functools.partial(Reference, on_test=True)
  discounts = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
  tenths = [i / 10 for i in range(11)]
  ours = {
    "random": Reference(lambda _: players.random_player(arms)),
    "gittins": Reference(
      functools.partial(players.gittins, arms),
      {f"discount {d}": players.gittins_indices(pulls, d) for d in discounts},
    ),
    "ts": Reference(lambda _: players.thompson(arms)),
    "ots_may": Reference(lambda _: players.thompson(arms, optimistic=True)),
    "ucb1": Reference(
      functools.partial(players.ucb1, arms),
      {f"scale {c}": c for c in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)},
    ),
    "eps_greedy": Reference(
      functools.partial(players.epsilon_greedy, arms),
      {f"epsilon {e}": e for e in (0.01, 0.02, 0.05, 0.1, 0.2)},
    ),
    "greedy": Reference(lambda _: players.greedy(arms)),
  }
  papers = {
    "ots": published(
      functools.partial(players.likeliest_thompson, arms),
      {f"samples {n}": n for n in SAMPLES},
    ),
    "ucb1": published(
      functools.partial(players.ucb1, arms, ties="first", count_first=False),
      {f"scale {c}": c for c in tenths},
    ),
    "eps_greedy": published(
      functools.partial(players.epsilon_greedy, arms, ties="first"),
      {f"epsilon {e}": e for e in tenths},
    ),
    "greedy": Reference(lambda _: players.greedy(arms, ties="first")),
  }
  return ours | {name + AS_PUBLISHED: paper for name, paper in papers.items()}


def regret(rewards: np.ndarray, best: float) -> dict[float, Estimate]:
  """Returns the regret against the best arm, by the number of pulls."""
  pulls = rewards.shape[1]
  places = np.unique(np.linspace(1, pulls, min(POINTS, pulls), dtype=int))
  totals = rewards.cumsum(axis=1)
  return plots.line(places.tolist(), places * best - totals[:, places - 1])


if __name__ == "__main__":
  run(
    main,
    PRESETS,
    defaults=replaying.DEFAULTS,
    needs=replaying.NEEDS,
    unused=replaying.UNUSED,
  )
