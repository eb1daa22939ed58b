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

__all__ = [
  "epsilon_greedy",
  "gittins",
  "gittins_indices",
  "greedy",
  "random_player",
  "thompson",
  "ucb1",
]
