"""Actions and observations of environments with gymnax's interface."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Array

METHODS = ("reset_env", "step_env", "is_truncated")


def check_environment(environment: Any) -> str:
  """Raises a `ValueError` for a method that is missing. Returns the name."""
  name = getattr(environment, "name", None) or type(environment).__name__
  for method in METHODS:
    if not callable(getattr(environment, method, None)):
      raise ValueError(
        f"environment={name}: has no method {method}; trials need "
        f"{', '.join(METHODS)} as gymnax 1.0 has them."
      )
  return str(name)


def action_table(environment: Any, actions: Any) -> tuple[int, Any]:
  """Returns the number of actions, and a table of the actions.

  Args:
    environment: an environment with gymnax's interface. `action_space` or
      `num_actions` gives its number of actions. Both may be methods or
      attributes.
    actions: `[num_actions, ...]`, a tree of such arrays, or None.

  Returns:
    The number, and the table as JAX arrays, or None.

  Raises:
    ValueError: if the environment lacks a method, if its actions are not
      numbers from 0 on and there is no table, or if the table does not fit the
      environment.
  """
  name = check_environment(environment)
  space = _told(environment, "action_space")
  if actions is not None:
    return _checked_table(name, space, actions)
  if space is not None and not is_discrete(space):
    raise ValueError(
      f"environment={name}: its actions are {' '.join(str(space).split())}, "
      "not 0, 1, ..., num_actions - 1; give those to choose from, actions=an "
      "array [num_actions, ...]."
    )
  number = _told(environment, "num_actions")
  if space is not None and number is not None and space.n != number:
    raise ValueError(
      f"environment={name}: num_actions={number}, but its actions are {space}; "
      "give those to choose from, actions=an array [num_actions]."
    )
  number = space.n if space is not None else number
  try:
    number = operator.index(number)
  except TypeError:
    number = 0
  if number < 1:
    raise ValueError(
      f"environment={name}: neither action_space nor num_actions says how many "
      "actions it has; give them, actions=an array [num_actions, ...]."
    )
  return number, None


def observer(environment: Any) -> Callable[[Any], Array]:
  """Returns a function that makes one array of an observation.

  A number of a discrete space becomes a one-hot vector. A tree of arrays
  becomes one vector. Any other array stays as it is.
  """
  space = _told(environment, "observation_space")

  def observe(observation: Any) -> Array:
    if not jax.tree_util.all_leaves([observation]):
      leaves = [jnp.ravel(x) for x in jax.tree.leaves(observation)]
      vectors = [x.astype(jnp.float32) for x in leaves]
      return jnp.concatenate([jnp.zeros(0), *vectors])
    if is_discrete(space) and jnp.ndim(observation) == 0:
      return jax.nn.one_hot(observation, int(space.n))
    return observation

  return observe


def box_size(environment: Any) -> int | None:
  """Returns d if the actions are vectors `[d]` of real numbers, else None."""
  space = _told(environment, "action_space")
  shape = getattr(space, "shape", None)
  is_box = hasattr(space, "low") and hasattr(space, "high")
  return int(shape[0]) if is_box and shape and len(shape) == 1 else None


def is_discrete(space: Any) -> bool:
  """Returns whether a space has the numbers 0, 1, ..., `space.n - 1`."""
  return (
    np.ndim(getattr(space, "n", ())) == 0
    and tuple(getattr(space, "shape", None) or ()) == ()
    and getattr(space, "start", 0) == 0
  )


def _told(environment: Any, name: str) -> Any:
  """Returns the value of an attribute or a method, or None.

  A method gets the default parameters of the environment.
  """
  try:
    value = getattr(environment, name)
    if not callable(value):
      return value
    if not inspect.signature(value).parameters:
      return value()
    return value(getattr(environment, "default_params", None))
  except (AttributeError, NotImplementedError):
    return None


def _checked_table(name: str, space: Any, actions: Any) -> tuple[int, Any]:
  """Checks a table of actions against the action space."""
  if isinstance(actions, list):
    actions = np.asarray(actions)
  actions = jax.tree.map(jnp.asarray, actions)
  shapes = [x.shape for x in jax.tree.leaves(actions)]
  numbers = {shape[:1] for shape in shapes}
  if len(numbers) != 1 or numbers & {(), (0,)}:
    raise ValueError(
      f"actions: arrays of shapes {shapes}; must be [num_actions, ...], with "
      "one or more actions."
    )
  shape = getattr(space, "shape", None)
  is_array = jax.tree_util.all_leaves([actions])
  if shape is not None and is_array:
    if actions[0].size != np.prod(shape, dtype=int):
      raise ValueError(
        f"actions: {actions.shape}, but an action of {name} has shape "
        f"{tuple(shape)}; must be {('num_actions', *shape)}."
      )
  if space is not None and is_discrete(space) and is_array:
    known = not isinstance(actions, jax.core.Tracer)
    if known and not np.all((actions >= 0) & (actions < space.n)):
      raise ValueError(
        f"actions={np.asarray(actions).tolist()}: {name} has the actions 0 to "
        f"{space.n - 1}."
      )
  return shapes[0][0], actions
