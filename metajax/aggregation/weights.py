"""Combines models in weight space: averages, soups, and Fisher merging."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metajax import batches, variables
from metajax.aggregation.stacks import (
  check_alike,
  check_stack,
  normalized_weights,
  one_of,
  weighted_mean,
  weighted_sum,
)
from metajax.numerics import check_counts, check_number, check_scalar, wide
from metajax.types import Array, Batch, Params


def weighted_average(stack: Params, weights: ArrayLike | None = None) -> Params:
  """Returns the weighted mean of the models.

  ::

    theta = sum_m w_m theta_m / sum_m w_m

  With equal weights, it is a uniform soup. With numbers of examples as weights,
  it is the server's step of FedAvg. If the models are adapted to tasks, it is
  the target of Reptile. Sums are in float32 at least.

  Args:
    stack: a tree of arrays `[models, ...]`.
    weights: `[models]`, not negative, of any scale; equal if None.

  Returns:
    One model, in the dtypes of the stack.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`.

  References:
    McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017, algorithm 1.
    Wortsman et al., `Model soups <https://arxiv.org/abs/2203.05482>`_, 2022.
  """
  normal = normalized_weights(weights, check_stack(stack))

  return weighted_mean(normal, stack)


def pseudo_gradient(
  params: Params, stack: Params, weights: ArrayLike | None = None
) -> Params:
  """Returns the difference of `params` and the average of trained models.

  ::

    g = sum_m w_m (theta - phi_m) / sum_m w_m

  An optimizer that descends g moves theta towards the average of the models.
  SGD with step size 1 moves to the average itself (FedAvg). SGD with a smaller
  step size is Reptile's outer step. Adam gives FedAdam.

  The differences are computed before the average, in float32 at least. If the
  models moved by less than the rounding of their average, the difference to the
  average would be 0.

  Args:
    params: theta, the start of all models.
    stack: phi, a tree of arrays `[models, ...]`.
    weights: as in `weighted_average`.

  Returns:
    A tree like `params`. Its `State` nodes hold the average state of the
    models.

  Raises:
    ValueError: see `weighted_average`; if `params` has other shapes than a
      model of the stack.

  References:
    Nichol et al., `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_, 2018, algorithm 2.
    Reddi et al., `Adaptive Federated Optimization
    <https://arxiv.org/abs/2003.00295>`_, 2021, algorithm 1.
  """
  normal = normalized_weights(weights, check_stack(stack))
  check_alike("params", params, one_of(stack))

  def difference(start: Array, leaf: Array) -> Array:
    return weighted_sum(normal, wide(start) - wide(leaf)).astype(start.dtype)

  states = weighted_mean(normal, variables.states(stack))
  return variables.combine(
    jax.tree.map(difference, *map(variables.weights, (params, stack))), states
  )


def greedy_soup(
  stack: Params, score_fn: Callable[[Params], Array]
) -> tuple[Params, list[int]]:
  """Averages the models that do not lower the validation score (greedy soup).

  Models are tried in the order of their scores, the best first. A model becomes
  an ingredient of the average if the score does not get worse.

  Args:
    stack: a tree of arrays `[models, ...]`.
    score_fn: `(params) -> scalar` on validation data; higher is better. It is
      called at most twice a model.

  Returns:
    `(soup, ingredients)`. The soup scores at least as well as the best model.
    The ingredients are indices of models, in the order of their addition.

  Raises:
    ValueError: see `check_stack`; if a score is NaN or no scalar.

  References:
    Wortsman et al., `Model soups <https://arxiv.org/abs/2203.05482>`_, 2022,
    recipe 1.
  """
  size = check_stack(stack)

  def scored(params: Params, name: str) -> float:
    found = score_fn(params)
    check_scalar("score_fn", found)
    value = float(found)
    if np.isnan(value):
      raise ValueError(f"score_fn: NaN for {name}.")
    return value

  scores = [scored(_model(stack, m), f"model {m}") for m in range(size)]
  order = sorted(range(size), key=lambda m: -scores[m])
  ingredients, best = order[:1], scores[order[0]]
  soup = _model(stack, order[0])
  for m in order[1:]:
    trial = [*ingredients, m]
    candidate = weighted_average(
      stack, jnp.zeros(size).at[jnp.asarray(trial)].set(1.0)
    )
    score = scored(candidate, f"the average of models {trial}")
    if score >= best:
      ingredients, best, soup = trial, score, candidate
  return soup, ingredients


def fisher_diagonal(
  log_likelihood: Callable[[Params, Any, Any], Array],
  params: Params,
  batch: Batch,
  *,
  batch_size: int | None = None,
) -> Params:
  """Estimates the diagonal of the empirical Fisher information.

  ::

    F_j = 1/n sum_i (d log p(y_i | x_i, theta) / d theta_j)^2

  where i runs over the real examples of the batch. If the targets are drawn
  from the model, it is an estimate of the true Fisher information.

  Args:
    log_likelihood: `(params, input, target) -> scalar`, for one example.
    params: theta.
    batch: `[n, ...]`. F is 0 if no example is real.
    batch_size: number of gradients to keep in memory at once; all if None. The
      result does not depend on it.

  Returns:
    A tree like `params`, in float32 at least; zeros in `State` nodes.

  Raises:
    ValueError: if `batch_size` is less than 1; without examples; if
      `log_likelihood` returns no scalar.

  References:
    Matena and Raffel, `Merging Models with Fisher-Weighted Averaging
    <https://arxiv.org/abs/2111.09832>`_, 2022, section 3.2.
  """
  if batch_size is not None:
    check_counts(batch_size=batch_size)
  real = batches.real(batch)
  if not len(real):
    raise ValueError("batch: no example given, at least one is needed.")
  size = min(batch_size or len(real), len(real))
  padding = -len(real) % size

  def chunked(x: Array, fill: Array) -> Array:
    x = jnp.concatenate([x, jnp.broadcast_to(fill, (padding, *x.shape[1:]))])
    return x.reshape(-1, size, *x.shape[1:])

  data = jax.tree.map(lambda x: chunked(x, x[0]), batch[:2])
  chunks = (*data, chunked(real, jnp.zeros_like(real[0])))

  def log_p(weights: Params, x: Any, y: Any) -> Array:
    value = log_likelihood(variables.combine(weights, params), x, y)
    check_scalar("log_likelihood", value)
    return value

  def add(sums: Params, chunk: tuple[Any, Any, Array]) -> tuple[Params, None]:
    inputs, targets, real = chunk
    grads = jax.vmap(jax.grad(log_p), in_axes=(None, 0, 0))(
      variables.weights(params), inputs, targets
    )

    def plus(total: Array, g: Array) -> Array:
      mask = real.reshape(-1, *[1] * (g.ndim - 1))
      return total + jnp.where(mask, jnp.square(wide(g)), 0).sum(0)

    return jax.tree.map(plus, sums, grads), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros_like(wide(x)), variables.weights(params)
  )
  sums, _ = jax.lax.scan(add, zeros, chunks)
  return variables.combine(
    jax.tree.map(lambda x: x / jnp.maximum(real.sum(), 1), sums),
    optax.tree.zeros_like(params),
  )


def fisher_average(
  stack: Params,
  fishers: Params,
  weights: ArrayLike | None = None,
  *,
  floor: float = 1e-6,
) -> Params:
  """Averages models with their Fisher information as weights.

  ::

    theta_j = sum_m w_m (F_mj + floor) theta_mj / sum_m w_m (F_mj + floor)

  The result is the mode of the product of the Gaussians `N(theta_m, 1 / F_m)`.

  Args:
    stack: a tree of arrays `[models, ...]`.
    fishers: a tree like `stack`, not negative; see `fisher_diagonal`. Its
      `State` nodes are not used.
    weights: `[models]`, not negative; equal if None.
    floor: a positive number that is added to the Fisher information. Parameters
      without information become the weighted average.

  Returns:
    One model, in the dtypes of the stack. Its `State` nodes hold the weighted
    average of the models' state.

  Raises:
    ValueError: see `check_stack` and `normalized_weights`; if `floor` is not
      positive; if `fishers` has other shapes than `stack` or a negative number.
      Traced values are not checked.

  References:
    Matena and Raffel, `Merging Models with Fisher-Weighted Averaging
    <https://arxiv.org/abs/2111.09832>`_, 2022, equation 4.
  """
  check_number("floor", floor, above=0)
  size = check_stack(stack)
  check_stack(fishers)
  normal = normalized_weights(weights, size)

  def merge(path: Sequence[Any], leaf: Array, fisher: Array) -> Array:
    name = f"fishers{jax.tree_util.keystr(tuple(path))}"
    if fisher.shape != leaf.shape:
      raise ValueError(
        f"{name} has shape {fisher.shape}, must be {leaf.shape}, the stack's."
      )
    if not isinstance(fisher, jax.core.Tracer):
      # The message of the least number is one line.
      check_number(name, float(np.asarray(fisher, float).min()), at_least=0)
    column = normal.reshape(-1, *[1] * (leaf.ndim - 1))
    mass = column * (wide(fisher) + floor)
    return ((mass * wide(leaf)).sum(0) / mass.sum(0)).astype(leaf.dtype)

  merged = jax.tree_util.tree_map_with_path(
    merge, *map(variables.weights, (stack, fishers))
  )
  states = weighted_mean(normal, variables.states(stack))
  return variables.combine(merged, states)


def _model(stack: Params, index: int) -> Params:
  return jax.tree.map(lambda leaf: leaf[index], stack)
