"""CAVIA for policies: only a context that the policy reads adapts."""

import jax
import jax.numpy as jnp

from metajax.numerics import floating
from metajax.policies.policy import Policy
from metajax.types import Array, Params, PRNGKey


def with_context(policy: Policy, size: int) -> Policy:
  """Returns a policy that also reads context parameters c, zero at first.

  ::

    pi(a | s; theta, c) = pi_theta(a | [s, c])

  Args:
    policy: a policy of vectors. Its observations get `size` more numbers,
      arrays become vectors, and integers float32.
    size: the number of context parameters, at least 1.

  Returns:
    A policy whose parameters are `{"context": c, "weights": theta}`.

  References:
    Zintgraf et al., `Fast Context Adaptation via Meta-Learning
    <https://arxiv.org/abs/1810.03642>`_, 2019, section 3.3.
  """

  def widen(observations: Array, context: Array) -> Array:
    # An integer context would be truncated.
    flat = floating(observations.reshape(observations.shape[0], -1))
    added = jnp.broadcast_to(context, (flat.shape[0], size))
    return jnp.concatenate([flat, added.astype(flat.dtype)], axis=-1)

  def init(rng: PRNGKey, observations: Array) -> Params:
    context = jnp.zeros(size)
    weights = policy.init(rng, widen(observations, context))
    return {"context": context, "weights": weights}

  def apply(params: Params, observations: Array) -> object:
    return policy.apply(
      params["weights"], widen(observations, params["context"])
    )

  return Policy(init, apply, policy.actions)


def context_alone(params: Params) -> Params:
  """Masks the context among the parameters of `with_context`."""
  return {
    "context": True,
    "weights": jax.tree.map(lambda _: False, params["weights"]),
  }


def without_context(params: Params) -> Params:
  """Returns the parameters with a context of zeros, which is a constant."""
  return {**params, "context": jnp.zeros_like(params["context"])}
