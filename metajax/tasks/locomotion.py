"""Locomotion (Finn et al. 2017, section 5.3): run in an unseen way, in brax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.tasks.brax_tasks import brax_environment, brax_tasks
from metajax.tasks.playable import PlayableTasks
from metajax.types import Array, PRNGKey


class Animal(NamedTuple):
  """What the rewards of an animal have in common.

  Attributes:
    environment: its name in brax.
    effort: the weight of the squared action.
    alive: added to the reward of each step.
    fastest: the largest goal velocity, in m/s.
    content: added to minus the distance from the goal velocity.
  """

  environment: str
  effort: float
  alive: float
  fastest: float
  content: float


CHEETAH = Animal("halfcheetah", 0.05, 0.0, 2.0, 0.0)
ANT = Animal("ant", 0.005, 0.05, 3.0, 1.0)
LOCOMOTION: dict[str, tuple[Animal, str]] = {
  "cheetah_direction": (CHEETAH, "direction"),
  "cheetah_velocity": (CHEETAH, "velocity"),
  "ant_direction": (ANT, "direction"),
  "ant_velocity": (ANT, "velocity"),
}


def locomotion(
  name: str, horizon: int = 200, *, backend: str = "spring"
) -> PlayableTasks:
  """Returns tasks of an animal that does not see how it should run.

  ::

    direction:  task ~ U{-1, 1},       r = task v - effort |a|^2 + alive
    velocity:   task ~ U[0, fastest],  r = -|v - task| + content
                                           - effort |a|^2 + alive

  v is the torso's velocity along x in m/s, and a the action, clipped to
  [-1, 1]. Effort, alive, fastest and content are 0.05, 0, 2 and 0 for the
  cheetah, and 0.005, 0.05, 3 and 1 for the ant, as in
  `half_cheetah_env_rand.py`, `ant_env_rand.py` and their `_direc` of
  cbfinn/maml_rl. (The cheetah's goal velocities are from the paper. That file
  draws from [0.1, 0.8].) The ant's episode ends if its torso is below 0.2 or
  above 1 m.

  Returns are not comparable with the published ones. Those are of MuJoCo, with
  other bodies, observations and lengths of a step (brax: 0.05 s), and the
  published ant also pays for forces of contact.

  Args:
    name: a name in `LOCOMOTION`.
    horizon: the largest number of steps of an episode.
    backend: the physics, see `brax_environment`.

  Raises:
    ValueError: for an unknown name, if brax is not installed, or if the horizon
      is not positive.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017.
  """
  if name not in LOCOMOTION:
    raise ValueError(f"name={name!r}: must be one of {', '.join(LOCOMOTION)}.")
  animal, goal = LOCOMOTION[name]
  draw, gain = (_direction if goal == "direction" else _velocity)(animal)

  def reward(task: Array, state: Any, action: Array) -> Array:
    gained = gain(task, state.metrics["x_velocity"])
    return gained - animal.effort * jnp.square(action).sum() + animal.alive

  environment = brax_environment(animal.environment, backend)
  return brax_tasks(environment, draw, reward, horizon=horizon)


Goal = tuple[Callable[[PRNGKey], Array], Callable[[Array, Array], Array]]


def _direction(animal: Animal) -> Goal:
  """Returns `(draw, gain)` of the tasks forward and backward."""
  del animal

  def draw(rng: PRNGKey) -> Array:
    return jnp.where(jax.random.bernoulli(rng), 1.0, -1.0)

  return draw, lambda task, velocity: task * velocity


def _velocity(animal: Animal) -> Goal:
  """Returns `(draw, gain)` of the tasks to run at a velocity."""

  def draw(rng: PRNGKey) -> Array:
    return jax.random.uniform(rng, maxval=animal.fastest)

  return draw, lambda task, speed: animal.content - jnp.abs(speed - task)
