"""The players of random MDPs that need no training."""

import functools

import numpy as np

from experiments.shared.references import AS_PUBLISHED, SAMPLES, Reference
from metajax import players


def references(sizes: players.Sizes) -> dict[str, Reference]:
  """Returns the players of the RL^2 paper, with our priors and as published."""
  published = functools.partial(Reference, on_test=True)
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
    "opsrl": published(
      functools.partial(players.tabularl_psrl, sizes),
      {f"samples {n}": n for n in SAMPLES},
    ),
    "ucrl2": published(
      functools.partial(players.tabularl_ucrl2, sizes), scales
    ),
    "beb": published(functools.partial(players.tabularl_beb, sizes), scales),
    "eps_greedy": published(
      functools.partial(players.tabularl_epsilon_greedy, sizes),
      {f"epsilon {i / 10}": i / 10 for i in range(1, 11)},
    ),
    "greedy": Reference(lambda _: players.tabularl_epsilon_greedy(sizes, 0.0)),
  }
  return ours | {name + AS_PUBLISHED: paper for name, paper in papers.items()}
