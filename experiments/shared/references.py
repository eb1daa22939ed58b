"""Players that need no training, and the search for their parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.tasks.trials import Player, Trials, play

NO_CHOICE = {"": ()}
# Tasks that a reference plays at once. More would not fit into the cache.
TASKS_AT_ONCE = 50
# Numbers of samples of optimistic players; Duan et al. tried all of 1 to 20.
SAMPLES = (1, 2, 5, 10, 20)
AS_PUBLISHED = "_as_published"
# A published player whose parameter is chosen on validation tasks, like those
# of all other players.
ON_OTHERS = "_chosen_on_validation"


class Reference(NamedTuple):
  """A player that needs no training.

  Attributes:
    make: `(parameter) -> player`.
    grid: candidates for the parameter, by name. Integers, such as numbers of
      samples, are static in the compiled program.
    on_test: whether to choose on the test tasks, too, as a paper did.
  """

  make: Callable[[Any], Player]
  grid: Mapping[str, Any] = NO_CHOICE
  on_test: bool = False


class Found(NamedTuple):
  """The best values of a grid.

  Attributes:
    best: the name of the value that is best on validation tasks.
    level: the mean total reward of `best` on validation tasks.
    rewards: the rewards `[tasks, steps]` of `best` on test tasks.
    best_of_test: the name of the value that is best on test tasks.
    rewards_of_test: the rewards of `best_of_test` on test tasks.
  """

  best: str
  level: float
  rewards: np.ndarray
  best_of_test: str
  rewards_of_test: np.ndarray


def search(reference: Reference, tasks: Trials) -> Found:
  """Chooses a reference's value on validation tasks, and scores test tasks."""

  def rewards(split: str, value: Any) -> np.ndarray:
    keys = jax.random.split(rng_keys.evaluation_key(split), FLAGS.eval_tasks)
    static = isinstance(value, int)
    return np.asarray((fixed if static else traced)(value, keys))

  def playing(value: Any, keys: jax.Array) -> jax.Array:
    player = reference.make(value)
    return jax.lax.map(
      lambda key: play(player, tasks, key).rewards,
      keys,
      batch_size=TASKS_AT_ONCE,
    )

  fixed = jax.jit(playing, static_argnums=0)
  traced = jax.jit(playing)

  levels = {
    name: total(rewards("validation", value))
    for name, value in reference.grid.items()
  }
  best = max(levels, key=lambda name: levels[name])
  tested = {
    name: rewards("test", reference.grid[name])
    for name in (reference.grid if reference.on_test else [best])
  }
  best_of_test = max(tested, key=lambda name: total(tested[name]))
  return Found(
    best,
    levels[best],
    tested[best],
    best_of_test,
    tested[best_of_test],
  )


def total(rewards: np.ndarray) -> float:
  """Returns the mean total of `[tasks, steps]`."""
  return float(rewards.sum(-1, dtype=np.float64).mean())
