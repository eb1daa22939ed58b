"""2-D navigation (Finn et al. 2017, section 5.3): walk to an unseen goal."""

import jax
import jax.numpy as jnp

from metajax.tasks.playable import Continuous, PlayableTasks, playable
from metajax.types import Array, PRNGKey

LARGEST_STEP = 0.1  # In each of the two directions.
REACHED = 0.01  # An episode ends this close to the goal, in both directions.


def navigation(horizon: int = 100) -> PlayableTasks:
  """Returns tasks of a point that walks to a goal that it does not see.

  ::

    goal ~ U[-0.5, 0.5]^2,    x_0 = 0,
    x_{t+1} = x_t + clip(0.1 a_t, -0.1, 0.1)
    r_t = -|x_{t+1} - goal|

  The observation is the position x. An episode ends within 0.01 of the goal in
  both directions. An action of 1 is the largest step, 0.1.

  The paper states the squared distance. The published code, whose returns the
  paper shows, has the distance: `maml_examples/point_env_randgoal.py` of
  cbfinn/maml_rl. Its wrapper `normalize` scales actions as above. The port
  tristandeleu/pytorch-maml-rl has the same rewards, and clips actions that are
  not scaled.

  Args:
    horizon: the largest number of steps of an episode.

  Raises:
    ValueError: if the horizon is not positive.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017.
  """

  def draw(rng: PRNGKey) -> Array:
    return jax.random.uniform(rng, (2,), minval=-0.5, maxval=0.5)

  def begin(goal: Array, rng: PRNGKey) -> tuple[Array, Array]:
    del goal, rng
    return jnp.zeros(2), jnp.zeros(2)

  def step(
    goal: Array, position: Array, action: Array, rng: PRNGKey
  ) -> tuple[Array, Array, Array, Array]:
    del rng
    position = position + LARGEST_STEP * jnp.clip(action, -1.0, 1.0)
    away = position - goal
    ended = (jnp.abs(away) < REACHED).all()
    return position, position, -jnp.sqrt(jnp.square(away).sum()), ended

  return playable(draw, begin, step, actions=Continuous(2), horizon=horizon)
