"""Reference players, as baselines for learned players."""

from metajax.players.bandits import (
  epsilon_greedy,
  gittins,
  greedy,
  likeliest_thompson,
  random_player,
  thompson,
  ucb1,
)
from metajax.players.indices import gittins_indices
from metajax.players.mdps import (
  mdp_bonus,
  mdp_epsilon_greedy,
  posterior_sampling,
  ucrl2,
)
from metajax.players.planning import Prior, Sizes, optimal_value
from metajax.players.searching import Search, search_path, searcher
from metajax.players.tabularl import (
  tabularl_beb,
  tabularl_epsilon_greedy,
  tabularl_psrl,
  tabularl_ucrl2,
)

__all__ = [
  "Prior",
  "Search",
  "Sizes",
  "epsilon_greedy",
  "gittins",
  "gittins_indices",
  "greedy",
  "likeliest_thompson",
  "mdp_bonus",
  "mdp_epsilon_greedy",
  "optimal_value",
  "posterior_sampling",
  "random_player",
  "search_path",
  "searcher",
  "tabularl_beb",
  "tabularl_epsilon_greedy",
  "tabularl_psrl",
  "tabularl_ucrl2",
  "thompson",
  "ucb1",
  "ucrl2",
]
