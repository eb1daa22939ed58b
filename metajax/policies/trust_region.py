"""TRPO's step: conjugate gradients on the Fisher matrix, and a line search."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from metajax.numerics import check_counts, check_number
from metajax.types import Array, Metrics, Params


class TrustRegion(NamedTuple):
  """Configures the step.

  Attributes:
    max_kl: the bound of the divergence, in nats per step, above 0.
    cg_steps: steps of conjugate gradients, at least 1.
    damping: added to the Fisher matrix's diagonal, at least 0.
    backtracks: step lengths that the line search tries, at least 1.
    shrink: the factor between two of them, between 0 and 1.
  """

  max_kl: float = 0.01
  cg_steps: int = 10
  damping: float = 1e-2
  backtracks: int = 10
  shrink: float = 0.8


def check_trust_region(region: TrustRegion) -> None:
  """Checks the numbers of a configuration.

  Raises:
    ValueError: if one is out of its range.
  """
  check_number("max_kl", region.max_kl, above=0)
  check_counts(cg_steps=region.cg_steps)
  check_number("damping", region.damping, at_least=0)
  check_counts(backtracks=region.backtracks)
  check_number("shrink", region.shrink, above=0, below=1)


def trust_region_step(
  outer: Callable[[Params], tuple[Array, Array, Metrics]],
  params: Params,
  region: TrustRegion,
  *,
  fisher: Callable[[Params], Params] | None = None,
) -> tuple[Params, Metrics]:
  """Takes the step that decreases a loss most, within a bound of divergence.

  ::

    x = (F + damping)^-1 g,    s = sqrt(2 max_kl / x' (F + damping) x) x

  The step is -s, times the first of 1, shrink, shrink^2, ... at which the loss
  is lower and the divergence at most `max_kl`. If there is none, the parameters
  stay.

  Args:
    outer: `(params) -> (loss, divergence, metrics)`.
    params: the parameters; the divergence is 0 there.
    region: the configuration, see `check_trust_region`.
    fisher: `(vector) -> F vector` for trees like `params`; None: F is the
      Hessian of the divergence. Another matrix, such as one of fewer data, only
      changes the direction: the line search keeps the bound with the divergence
      itself.

  Returns:
    The new parameters, and metrics: those of `outer` at `params`, and "kl" and
    "step_length" of the step, 0 if none was taken.

  References:
    Schulman et al., `Trust Region Policy Optimization
    <https://arxiv.org/abs/1502.05477>`_, 2015.
  """
  flat, whole = ravel_pytree(params)

  def loss(flat: Array) -> tuple[Array, Metrics]:
    value, _, metrics = outer(whole(flat))
    return value, metrics

  (before, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(flat)
  if fisher is None:
    # What does not depend on the vector is computed once.
    slope = jax.grad(lambda params: outer(params)[1])
    _, fisher = jax.linearize(slope, params)

  def multiply(vector: Array) -> Array:
    return ravel_pytree(fisher(whole(vector)))[0] + region.damping * vector

  # A direction that is not one of descent fails the line search below. Few
  # equations are solved before the last step, and 0 / 0 would come after it.
  tolerance = float(jnp.finfo(flat.dtype).eps)
  direction, _ = cg(multiply, gradient, tol=tolerance, maxiter=region.cg_steps)
  # The residual is orthogonal to x, so x' (F + damping) x = x' g.
  squared = direction @ gradient
  length = jnp.sqrt(2 * region.max_kl / jnp.maximum(squared, 1e-20))

  def goes_on(carry: tuple) -> Array:
    tries, _, _, accepted = carry
    return (tries < region.backtracks) & ~accepted

  def shorten(carry: tuple) -> tuple:
    tries, *_ = carry
    share = region.shrink ** tries.astype(flat.dtype)
    value, kl, _ = outer(whole(flat - share * length * direction))
    accepted = (value < before) & (kl <= region.max_kl)
    return tries + 1, share, kl.astype(flat.dtype), accepted

  nothing = jnp.zeros((), flat.dtype)
  _, share, kl, accepted = jax.lax.while_loop(
    goes_on, shorten, (jnp.int32(0), nothing, nothing, jnp.bool_(False))
  )
  taken = jnp.where(accepted, share, 0.0)
  new = whole(flat - taken * length * direction)
  # The parameters themselves, bit for bit, where no step was taken.
  new = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, params)
  kl = jnp.where(accepted, kl, 0.0)
  gradient_norm = optax.tree.norm(gradient)
  return new, {
    **metrics,
    "kl": kl,
    "step_length": taken,
    "gradient_norm": gradient_norm,
  }
