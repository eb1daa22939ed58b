"""Hyper-parameters that are learned: where they start, and their schedules."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metajax import variables
from metajax.learned_optimizers.protocol import check_params
from metajax.numerics import check_number, wide
from metajax.types import Array, Params, PRNGKey

Each = Literal["leaf", "element"]


class MomentumState(NamedTuple):
  """The state of learned SGD and of learned Adam.

  Attributes:
    steps: int32, the number of steps taken.
    first: a tree like the parameters, the momentum; () of SGD without it.
    second: a tree like the parameters, the second moment; () of SGD.
  """

  steps: Array
  first: Params
  second: Params


def start_of(
  params: Params, step_size: float, each: Each, times: Sequence[int]
) -> Callable[[dict[str, float]], Callable[[PRNGKey], Params]]:
  """Checks arguments, and returns `logits -> init` of a learned optimizer.

  Args:
    params: see `learned_sgd`.
    step_size: see `learned_sgd`.
    each: see `learned_sgd`.
    times: see `learned_sgd`.

  Returns:
    A function of the other hyper-parameters' names and first values. Its result
    is `(rng) -> theta`, with these and "log_step_size".
  """
  check_number("step_size", step_size, above=0, below=math.inf)
  if each not in get_args(Each):
    raise ValueError(f"each={each!r}: must be one of {get_args(Each)}.")
  steps = np.asarray(times)
  if (
    steps.ndim != 1
    or not steps.size
    or steps.dtype.kind not in "iu"
    or (np.diff(steps, prepend=-1) <= 0).any()
  ):
    raise ValueError(f"times={times}: must be steps from 0 that increase.")
  shapes = jax.eval_shape(lambda p: p, variables.weights(params))
  if not jax.tree.leaves(shapes):
    raise ValueError("params: no floating point number to train.")
  check_params("learned_sgd or learned_adam", shapes)

  def filled(value: float, *knots: int) -> Params:
    return jax.tree.map(
      lambda x: jnp.full(
        (*knots, *(x.shape if each == "element" else ())),
        value,
        jnp.promote_types(x.dtype, jnp.float32),
      ),
      shapes,
    )

  def of_logits(logits: dict[str, float]) -> Callable[[PRNGKey], Params]:
    def init(rng: PRNGKey) -> Params:
      del rng  # All of them start alike.
      theta = {name: filled(value) for name, value in logits.items()}
      return {
        "log_step_size": filled(math.log(step_size), len(times)),
        **theta,
      }

    return init

  return of_logits


def step_size_at(raw: Array, count: Array, times: Sequence[int]) -> Array:
  """Interpolates the logarithms `[times, ...]` at a step."""
  at = jnp.asarray(times, raw.dtype)
  weights = jax.vmap(lambda one: jnp.interp(count.astype(raw.dtype), at, one))(
    jnp.eye(len(times), dtype=raw.dtype)
  )
  return jnp.exp(jnp.tensordot(weights, raw, 1))


def logit(probability: float) -> float:
  """Returns the inverse of the sigmoid."""
  return math.log(probability) - math.log1p(-probability)


def zeros_like(params: Params, theta: Params) -> Params:
  """Returns the first momentum, in float32 at least.

  Raises:
    ValueError: see `check_params`; if theta is that of other parameters.
  """
  check_params("learned_sgd or learned_adam", params)
  rates = theta["log_step_size"]
  trees = [str(jax.tree.structure(x)) for x in (params, rates)]
  if trees[0] != trees[1]:
    raise ValueError(
      f"params: {trees[0]} given, but theta is for {trees[1]}; build the "
      "optimizer with these parameters."
    )

  def zeros(path: Any, x: Array, raw: Array) -> Array:
    if raw.shape[1:] not in ((), jnp.shape(x)):
      raise ValueError(
        f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(x)}, but "
        f"theta is for {raw.shape[1:]}; build the optimizer with these "
        "parameters."
      )
    return jnp.zeros_like(wide(x))

  return jax.tree_util.tree_map_with_path(zeros, params, rates)


def cast_like(tree: Any, like: Any) -> Any:
  """Converts the leaves of a tree to the dtypes of another one."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)
