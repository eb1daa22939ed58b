"""What recurrent players of trials read, by replay and by PPO alike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.models.recurrent import Recurrent
from metajax.tasks.playable import Actions, Discrete, as_actions
from metajax.tasks.trials import Step, Trials, check_trials, first_step
from metajax.types import Array, Params, PRNGKey


def encode(step: Step, actions: Actions | int) -> Array:
  """Encodes steps as the inputs of a recurrent player, `[..., features]`.

  The features are the observation, the last action (one-hot if it is discrete),
  its reward, and whether it ended an episode (Duan et al. 2016, section 2.3).
  At the first step of a task, all but the observation are zeros.
  """
  axes = step.reward.shape
  past = jnp.concatenate(
    [
      encode_action(step.action, actions),
      step.reward[..., None],
      step.ended.astype(jnp.float32)[..., None],
    ],
    axis=-1,
  )
  past = jnp.where(step.first[..., None], 0.0, past)
  return jnp.concatenate([step.observation.reshape(*axes, -1), past], axis=-1)


def encode_action(action: Array, actions: Actions | int) -> Array:
  """Encodes actions as numbers: one-hot if they are discrete."""
  actions = as_actions(actions)
  if isinstance(actions, Discrete):
    return jax.nn.one_hot(action, actions.number)
  return action


def first_params(network: Recurrent, tasks: Trials, rng: PRNGKey) -> Params:
  """Initialises the parameters of a network for the given tasks."""
  _, observation = jax.eval_shape(tasks.reset, rng)
  step = first_step(jnp.zeros(observation.shape), tasks.actions)
  return network.init(rng, encode(step, tasks.actions))


def check_head(
  network: Recurrent, tasks: Trials, checked: Callable[[Any], Any]
) -> None:
  """Calls `checked(outputs)` on the outputs of a network's head.

  The outputs are traced, so nothing is computed.

  Raises:
    ValueError: if the tasks are no trials, or the network is none; what
      `checked` raises.
  """
  check_trials(tasks)
  if not isinstance(network, Recurrent):
    raise ValueError(
      f"network: {type(network).__name__} given, must be a Recurrent, such as "
      "models.recurrent.recurrent(...)."
    )

  def read(rng: PRNGKey) -> None:
    params = first_params(network, tasks, rng)
    _, observation = tasks.reset(rng)
    step = first_step(observation, tasks.actions)
    features = encode(step, tasks.actions)
    hidden, _ = network.read(params, network.start(), features)
    checked(network.head(params, hidden))

  jax.eval_shape(read, jax.eval_shape(lambda: jax.random.key(0)))
