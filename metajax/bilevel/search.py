"""Trains outer parameters by an algorithm of evosax, such as CMA-ES."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.bilevel.descent import Descender, Descent
from metajax.bilevel.estimators import renewed
from metajax.bilevel.inner import Outer
from metajax.numerics import check_counts, check_number, check_scalar
from metajax.types import Array, PRNGKey


def search(
  algorithm: Callable[[int, Outer], Any],
  loss_fn: Callable[[Outer, PRNGKey], Array],
  population: int,
  *,
  spread: float = 1.0,
  settings: Mapping[str, Any] | None = None,
) -> Descender:
  """Builds the search of outer parameters by any algorithm of evosax.

  All candidates of a step see the same key, and the mean of their losses is
  reported. A loss that is not finite counts as the largest finite one. A step
  that makes a finite number infinite or NaN is undone, for example when a
  distribution has shrunk below float32. `outer` becomes the mean of the
  distribution, or else the best candidate. Algorithms of the latter kind
  compare losses of different steps, so these should have no noise.

  Args:
    algorithm: a class of evosax (extra `evolution`), such as `CMA_ES` of
      `evosax.algorithms`, or `functools.partial` of one.
    loss_fn: `(outer, rng) -> scalar`, which need not be differentiable.
    population: the number of candidates in a step, at least 1.
    spread: deviation of a first population around `outer`, if there is one.
    settings: replace values of `default_params`, as `{"std_init": 0.1}`.

  Raises:
    ValueError: for a number that is not positive. `init` raises it for what
      `algorithm` refuses, if it is not of evosax, and for a loss that is no
      scalar.

  References:
    Lange, `evosax <https://arxiv.org/abs/2212.04180>`_, 2022.
  """
  check_counts(population=population)
  check_number("spread", spread, above=0)

  def build(outer: Outer) -> tuple[Any, Any]:
    try:
      with jax.ensure_compile_time_eval():
        built = algorithm(population, jax.tree.map(jnp.zeros_like, outer))
        params = built.default_params.replace(**(settings or {}))
    except (AssertionError, AttributeError, TypeError) as error:
      raise ValueError(
        f"algorithm={algorithm}, {population=}, {settings=}: {error}. Give a "
        "class of evosax.algorithms: pip install 'metajax[evolution]'."
      ) from error
    return built, params

  def loss_of(outer: Outer, rng: PRNGKey) -> Array:
    loss = loss_fn(outer, rng)
    check_scalar("loss_fn", loss)
    return loss

  def losses_of(candidates: Outer, rng: PRNGKey) -> tuple[Array, Array]:
    losses = jax.vmap(loss_of, (0, None))(candidates, rng)
    known = jnp.where(jnp.isfinite(losses), losses, jnp.nan)
    return jnp.where(jnp.isnan(known), jnp.nanmax(known), known), losses.mean()

  def init(outer: Outer, rng: PRNGKey) -> Descent:
    outer = jax.tree.map(jnp.asarray, outer)
    built, params = build(outer)
    key, noise_key, loss_key = jax.random.split(rng, 3)
    if hasattr(built, "get_mean"):
      state = built.init(key, outer, params)
    else:
      many = jax.tree.map(lambda x: jnp.stack([x] * population), outer)
      noise = optax.tree.random_like(noise_key, many)
      many = optax.tree.add_scale(many, spread, noise)
      state = built.init(key, many, losses_of(many, loss_key)[0], params)
    return Descent(outer, state, (), jnp.int32(0))

  def run(now: Descent, rng: PRNGKey, num_steps: int) -> tuple[Descent, Array]:
    check_counts(num_steps=num_steps, at_least=0)
    built, params = build(now.outer)
    reached = getattr(built, "get_mean", None) or built.get_best_solution

    def one_step(now: Descent, _: None) -> tuple[Descent, Array]:
      keys = jax.random.split(jax.random.fold_in(rng, now.step), 3)
      candidates, state = built.ask(keys[0], now.opt_state, params)
      losses, mean = losses_of(candidates, keys[1])
      state, _ = built.tell(keys[2], candidates, losses, state, params)
      new, old = (reached(state), state), (now.outer, now.opt_state)
      outer, state = renewed(_stays_finite(new, old), new, old)
      return Descent(outer, state, (), now.step + 1), mean

    return jax.lax.scan(one_step, now, length=num_steps)

  return Descender(init, run)


def _stays_finite(new: Any, old: Any) -> Array:
  """Returns whether all numbers are finite that were so before."""
  kept = jax.tree.map(lambda x, y: jnp.isfinite(x) >= jnp.isfinite(y), new, old)
  return jnp.stack([x.all() for x in jax.tree.leaves(kept)]).all()
