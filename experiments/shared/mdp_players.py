"""The players of random MDPs that need no training."""

import functools

import numpy as np

from experiments.shared.references import AS_PUBLISHED, SAMPLES, Reference
from metajax import players

# Total rewards in the paper's table, by episodes.
COLUMNS = "random psrl opsrl ucrl2 beb eps_greedy greedy rl2".split()
PUBLISHED = {
  10: (100.1, 138.1, 144.1, 146.6, 150.2, 132.8, 134.8, 156.2),
  25: (250.2, 408.8, 425.2, 424.1, 427.8, 377.3, 368.8, 445.7),
  50: (499.7, 904.4, 930.7, 918.9, 917.8, 823.3, 769.3, 936.1),
  75: (749.9, 1417.1, 1449.2, 1427.6, 1422.6, 1293.9, 1172.9, 1428.8),
  100: (999.4, 1939.5, 1973.9, 1942.1, 1935.1, 1778.2, 1578.5, 1913.7),
}


def published(episodes: int) -> dict[str, float]:
  """Returns the paper's total rewards by player, if it has so many episodes."""
  return dict(zip(COLUMNS, PUBLISHED.get(episodes, ()), strict=False))


def references(sizes: players.Sizes) -> dict[str, Reference]:
  """Returns the players of the RL^2 paper, with our priors and as published."""
  on_test = functools.partial(Reference, on_test=True)
  ours = {
    "random": Reference(lambda _: players.random_player(sizes.actions)),
    "psrl": Reference(lambda _: players.posterior_sampling(sizes)),
    "opsrl": Reference(lambda _: players.posterior_sampling(sizes, 5)),
    "ucrl2": Reference(
      functools.partial(players.ucrl2, sizes),
      {f"scale {c}": c for c in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)},
    ),
    "beb": Reference(
      functools.partial(players.mdp_bonus, sizes),
      {f"scale {c}": c for c in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)},
    ),
    "eps_greedy": Reference(
      functools.partial(players.mdp_epsilon_greedy, sizes),
      {f"epsilon {e}": e for e in (0.01, 0.03, 0.1, 0.2, 0.3)},
    ),
    "greedy": Reference(lambda _: players.mdp_epsilon_greedy(sizes, 0.0)),
  }
  scales = {f"scale {c:.4g}": float(c) for c in np.geomspace(1e-4, 1, 21)}
  papers = {
    "psrl": Reference(lambda _: players.tabularl_psrl(sizes)),
    "opsrl": on_test(
      functools.partial(players.tabularl_psrl, sizes),
      {f"samples {n}": n for n in SAMPLES},
    ),
    "ucrl2": on_test(functools.partial(players.tabularl_ucrl2, sizes), scales),
    "beb": on_test(functools.partial(players.tabularl_beb, sizes), scales),
    "eps_greedy": on_test(
      functools.partial(players.tabularl_epsilon_greedy, sizes),
      {f"epsilon {i / 10}": i / 10 for i in range(1, 11)},
    ),
    "greedy": Reference(lambda _: players.tabularl_epsilon_greedy(sizes, 0.0)),
  }
  return ours | {name + AS_PUBLISHED: paper for name, paper in papers.items()}
