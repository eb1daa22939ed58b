"""Reference players: what learned ones are compared with."""

from metajax.players.bandits import (
  epsilon_greedy,
  gittins,
  greedy,
  random_player,
  thompson,
  ucb1,
)
from metajax.players.indices import gittins_indices
from metajax.players.mdps import (
  Sizes,
  mdp_bonus,
  mdp_epsilon_greedy,
  optimal_value,
  posterior_sampling,
  ucrl2,
)

__all__ = [
  "Sizes",
  "epsilon_greedy",
  "gittins",
  "gittins_indices",
  "greedy",
  "mdp_bonus",
  "mdp_epsilon_greedy",
  "optimal_value",
  "posterior_sampling",
  "random_player",
  "thompson",
  "ucb1",
  "ucrl2",
]
