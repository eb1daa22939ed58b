"""Policies: a model whose outputs are a distribution of actions."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metajax.forward import stateless
from metajax.numerics import check_number, wide
from metajax.policies.distributions import (
  Categorical,
  DiagonalGaussian,
  Distribution,
)
from metajax.tasks.playable import Actions, Continuous, Discrete
from metajax.types import Array, Model, Params, PRNGKey

Scale = Literal["free", "state"]


class Policy(NamedTuple):
  """Two pure functions, and the actions that they choose from.

  Attributes:
    init: `(rng, observations) -> params`, for observations `[n, ...]`.
    apply: `(params, observations) -> Distribution`, with the axis `[n]`.
    actions: the actions.
  """

  init: Callable[[PRNGKey, Array], Params]
  apply: Callable[[Params, Array], Any]
  actions: Actions


def categorical_policy(model: Model, actions: Discrete) -> Policy:
  """Builds a policy of discrete actions from a model of logits.

  Args:
    model: a model with `actions.number` outputs.
    actions: the actions.

  Raises:
    ValueError: if the actions are continuous; from `init` and `apply`, if the
      model has another number of outputs; from `init`, if it has running
      statistics.
  """
  if not isinstance(actions, Discrete):
    raise ValueError(
      f"actions={actions}: a categorical policy needs Discrete(number); use "
      "gaussian_policy."
    )
  model = stateless(model, "a policy")

  def apply(params: Params, observations: Array) -> Categorical:
    logits = _outputs(model, params, observations, actions.number)
    return Categorical(wide(logits))

  return _policy(model.init, apply, actions)


def gaussian_policy(
  model: Model,
  actions: Continuous,
  *,
  scale: Scale = "free",
  initial_scale: float = 1.0,
  smallest_scale: float = 1e-6,
) -> Policy:
  """Builds a policy of continuous actions from a model of their means.

  Args:
    model: a model with d outputs for `Continuous(d)`; with `scale="state"`, 2 d
      outputs, of which the second half are logarithms of the scales, less that
      of `initial_scale`.
    actions: the actions.
    scale: "free": the standard deviations are d parameters, `log_scale`.
      "state": the model computes them from the observation.
    initial_scale: the standard deviation at the beginning, above 0.
    smallest_scale: a lower bound of the standard deviation, above 0.

  Raises:
    ValueError: if the actions are discrete or a number is out of its range;
      from `init` and `apply`, if the model has another number of outputs; from
      `init`, if it has running statistics.
  """
  if not isinstance(actions, Continuous):
    raise ValueError(
      f"actions={actions}: a Gaussian policy needs Continuous(size); use "
      "categorical_policy."
    )
  if scale not in get_args(Scale):
    raise ValueError(f"scale={scale!r}: must be one of {get_args(Scale)}.")
  check_number("smallest_scale", smallest_scale, above=0, below=np.inf)
  check_number(
    "initial_scale", initial_scale, at_least=smallest_scale, below=np.inf
  )
  first, least = float(np.log(initial_scale)), float(np.log(smallest_scale))
  free = scale == "free"
  model = stateless(model, "a policy")

  def init(rng: PRNGKey, observations: Array) -> Params:
    params = model.init(rng, observations)
    if not free:
      return params
    return {"model": params, "log_scale": jnp.full(actions.size, first)}

  def apply(params: Params, observations: Array) -> DiagonalGaussian:
    inner = params["model"] if free else params
    size = actions.size * (1 if free else 2)
    outputs = wide(_outputs(model, inner, observations, size))
    if free:
      mean = outputs
      log_scale = jnp.broadcast_to(params["log_scale"], mean.shape)
    else:
      mean, log_scale = jnp.split(outputs, 2, axis=-1)
      log_scale = log_scale + first
    return DiagonalGaussian(mean, jnp.maximum(log_scale, least))

  return _policy(init, apply, actions)


def _policy(
  init: Callable[[PRNGKey, Array], Params],
  apply: Callable[[Params, Array], Distribution],
  actions: Actions,
) -> Policy:
  def checked_init(rng: PRNGKey, observations: Array) -> Params:
    params = init(rng, observations)
    jax.eval_shape(apply, params, observations)  # Checks the outputs.
    return params

  return Policy(checked_init, apply, actions)


def _outputs(
  model: Model, params: Params, observations: Array, size: int
) -> Array:
  outputs = model.apply(params, observations)
  if outputs.ndim != 2 or outputs.shape[-1] != size:
    raise ValueError(
      f"model: its outputs have shape {outputs.shape}, but the policy needs "
      f"{(observations.shape[0], size)}; build it with {size} outputs."
    )
  return outputs
