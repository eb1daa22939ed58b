"""Playable tasks of brax environments, which need the extra `brax`."""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.tasks.playable import Continuous, PlayableTasks, playable
from metajax.types import Array, PRNGKey


def brax_environment(name: str, backend: str = "spring", **options: Any) -> Any:
  """Returns an environment of brax.

  Args:
    name: a name of `brax.envs`, such as "halfcheetah" or "ant".
    backend: the physics: "spring" is the fastest on CPUs.
    **options: further arguments of the environment.

  Raises:
    ValueError: if brax is not installed, or has no such environment.
  """
  if importlib.util.find_spec("brax") is None:
    raise ValueError(
      "brax: not installed, and it has the physics of these tasks. "
      "Run pip install 'metajax[brax]'."
    )
  # MuJoCo prints what else could be installed.
  with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
    # brax and its jaxopt warn that they are no longer developed.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", "Brax System", UserWarning)
    # The import of MuJoCo takes seconds.
    import mujoco
    from brax import envs

    # MuJoCo would write what it warns of to a file of the working directory.
    mujoco.set_mju_user_warning(lambda message: None)
    known = envs._envs  # There is no public list.
    if name not in known:
      raise ValueError(f"name={name!r}: must be one of {', '.join(known)}.")
    return envs.get_environment(name, backend=backend, **options)


def brax_tasks(
  environment: Any,
  draw: Callable[[PRNGKey], Any],
  reward: Callable[[Any, Any, Array], Array],
  *,
  horizon: int,
) -> PlayableTasks:
  """Makes tasks of one environment, which differ by their rewards.

  Actions are clipped to [-1, 1], the range of brax. An episode ends where the
  environment says so. It also ends with the reward 0 if the physics is no
  longer finite.

  Args:
    environment: a `brax.envs.Env` without wrappers, see `brax_environment`.
    draw: `(rng) -> task`.
    reward: `(task, state, action) -> reward`, of the clipped action and the
      `brax.envs.State` after it. Its `metrics` have the velocities.
    horizon: the largest number of steps of an episode.

  Raises:
    ValueError: if the horizon is not positive.
  """

  def begin(task: Any, rng: PRNGKey) -> tuple[Any, Array]:
    del task
    state = environment.reset(rng)
    return state, state.obs

  def step(
    task: Any, state: Any, action: Array, rng: PRNGKey
  ) -> tuple[Any, Array, Array, Array]:
    del rng
    action = jnp.clip(action, -1.0, 1.0)
    new = environment.step(state, action)
    gained = reward(task, new, action)
    finite = jnp.isfinite(new.obs).all() & jnp.isfinite(gained)
    # The last state that was finite: what follows must not compute with NaN.
    new = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, state)
    gained = jnp.where(finite, gained, 0.0)
    return new, new.obs, gained, (new.done > 0) | ~finite

  actions = Continuous(environment.action_size)
  return playable(draw, begin, step, actions=actions, horizon=horizon)
