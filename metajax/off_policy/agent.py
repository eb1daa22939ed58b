"""PEARL's networks: an encoder of transitions, an actor and two critics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.forward import Forward, stateless
from metajax.numerics import check_counts, wide
from metajax.off_policy.posterior import (
  encoder_inputs,
  factors_of,
  product_of_gaussians,
)
from metajax.off_policy.squashed import TanhGaussian
from metajax.off_policy.transitions import Transition
from metajax.policies.distributions import DiagonalGaussian
from metajax.tasks.playable import Actions, Continuous
from metajax.types import Array, Model, Params, PRNGKey

# Logarithms of the smallest and the largest scale of an action before its tanh,
# as in the authors' code.
LOG_SCALES = -20.0, 2.0


class Agent(NamedTuple):
  """The networks of PEARL, as pure functions.

  The parameters are a dict of "encoder", "actor" and the pair
  "critics".

  Attributes:
    init: `(rng, observation [n]) -> params`.
    posterior: `(params, steps [N], mask) -> DiagonalGaussian [latent]`, the
      belief after some transitions of one task. The mask is `[N]` or None.
    policy: `(params, observations [n, ...], z) -> TanhGaussian`, `[n]`.
    values: `(critics, observations [n, ...], actions [n, d], z) -> [2, n]`, for
      `params["critics"]` or their targets.
    actions: the actions.
    latent: the size of z.
  """

  init: Callable[[PRNGKey, Array], Params]
  posterior: Callable[[Params, Transition, Array | None], DiagonalGaussian]
  policy: Callable[[Params, Array, Array], TanhGaussian]
  values: Callable[[Params, Array, Array, Array], Array]
  actions: Continuous
  latent: int


def pearl_agent(
  encoder: Model,
  actor: Model,
  critic: Model,
  actions: Actions,
  *,
  latent: int = 5,
) -> Agent:
  """Builds PEARL's networks from three models.

  ::

    q(z | c)   = product of N(z; m_n, s_n^2),   m_n, s_n = encoder(s, a, r, s')
    pi(a | s, z) = tanh of N(m, s^2),           m, log s = actor(s, z)
    Q_i(s, a, z) = critic_i(s, a, z),           i = 1, 2

  All models read vectors, in which the parts stand in this order.

  Args:
    encoder: a model with `2 * latent` outputs.
    actor: a model with `2 * actions.size` outputs.
    critic: a model with one output. The two critics differ in their
      parameters.
    actions: the actions of the tasks. Those of the agent are in (-1, 1).
    latent: the size of z.

  Raises:
    ValueError: if the actions are discrete, or `latent` is below 1; from
      `init`, if a model has another number of outputs or running statistics.
  """
  if not isinstance(actions, Continuous):
    raise ValueError(
      f"actions={actions}: PEARL's actor needs Continuous(size)."
    )
  check_counts(latent=latent)
  outputs = {
    "encoder": 2 * latent,
    "actor": 2 * actions.size,
    "critic": 1,
  }
  models = {
    name: stateless(model, "PEARL")
    for name, model in zip(outputs, (encoder, actor, critic), strict=True)
  }

  def of(name: str, params: Params, *inputs: Array) -> Array:
    return _checked(name, models[name], outputs[name], params, *inputs)

  def init(rng: PRNGKey, observation: Array) -> Params:
    keys = jax.random.split(rng, 4)
    seen = jnp.zeros((1, observation.size))
    action, z = jnp.zeros((1, actions.size)), jnp.zeros((1, latent))
    context = jnp.zeros((1, 2 * observation.size + actions.size + 1))
    acting = jnp.concatenate([seen, z], -1)
    valued = jnp.concatenate([seen, action, z], -1)
    params = {
      "encoder": models["encoder"].init(keys[0], context),
      "actor": models["actor"].init(keys[1], acting),
      "critics": tuple(models["critic"].init(k, valued) for k in keys[2:]),
    }
    jax.eval_shape(lambda p: of("encoder", p["encoder"], context), params)
    jax.eval_shape(lambda p: of("actor", p["actor"], acting), params)
    jax.eval_shape(lambda p: of("critic", p["critics"][0], valued), params)
    return params

  def posterior(
    params: Params, steps: Transition, mask: Array | None = None
  ) -> DiagonalGaussian:
    found = of("encoder", params["encoder"], encoder_inputs(steps))
    return product_of_gaussians(factors_of(found), mask)

  def policy(params: Params, observations: Array, z: Array) -> TanhGaussian:
    found = of("actor", params["actor"], observations, z)
    mean, log_scale = jnp.split(wide(found), 2, -1)
    return TanhGaussian(mean, jnp.clip(log_scale, *LOG_SCALES))

  def values(
    critics: Params, observations: Array, actions: Array, z: Array
  ) -> Array:
    found = [of("critic", p, observations, actions, z) for p in critics]
    return wide(jnp.stack(found))[..., 0]

  return Agent(init, posterior, policy, values, actions, latent)


def _checked(
  name: str, model: Forward, size: int, params: Any, *inputs: Array
) -> Array:
  """Applies a model to rows. Vectors among its inputs belong to every row."""
  rows = inputs[0].shape[0]
  spread = [jnp.broadcast_to(x, (rows, x.shape[-1])) for x in inputs]
  outputs = model.apply(params, jnp.concatenate(spread, -1))
  if getattr(outputs, "shape", None) != (rows, size):
    raise ValueError(
      f"{name}: its outputs have shape {getattr(outputs, 'shape', outputs)}, "
      f"but PEARL needs {(rows, size)}; build it with {size} outputs."
    )
  return outputs
