"""Regression of functions drawn from Gaussian processes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_range, dot
from metajax.predictive import Normal, NormalMixture, Predictive
from metajax.tasks.conditioning import condition, noise_variance
from metajax.tasks.covariances import Covariance, Hyper, periodic, rbf
from metajax.tasks.form import Number
from metajax.tasks.hyper_grid import Range, checked_range, midpoint_grid
from metajax.tasks.known import KnownTasks
from metajax.tasks.points import divide, division
from metajax.types import Array, Batch, Episode, PRNGKey

# Grid points whose covariances are factorised together.
TOGETHER = 64


def gaussian_processes(
  covariance: Covariance = rbf,
  *,
  shots: Number = 10,
  query_shots: Number = 10,
  max_points: int | None = None,
  num_inputs: int = 1,
  input_range: tuple[float, float] = (-2.0, 2.0),
  length: Range = 0.4,
  scale: Range = 1.0,
  noise: Range = 0.02,
  period: Range = 1.0,
  nodes: int | Sequence[int] = 20,
) -> KnownTasks:
  """Builds tasks of regressing a random function from noisy points of it.

  ::

    f ~ GP(0, k),  x ~ U[input_range],  y = f(x) + noise e,  e ~ N(0, 1)

  A hyper-parameter is fixed, or it is drawn uniformly for each task. If all are
  fixed, the posterior is normal. Otherwise it is the mixture over a grid, by
  the midpoint rule in the logarithm of the hyper-parameters::

    p(y | x, D) = sum_h w_h p(y | x, D, h),  w_h ~ h p(D | h)

  The rule is accurate if the grid is finer than the posterior of the
  hyper-parameters is wide. Compare with twice as many `nodes`. With 20, the
  mean log-likelihood of `tnp_processes` is right to 0.0001 nats. A period that
  is repeated often is known so sharply that it needs many more.

  Args:
    covariance: the covariance function.
    shots: number of support points, or the least and most.
    query_shots: number of query points, or the least and most.
    max_points: most points of a task, both together.
    num_inputs: numbers in an input.
    input_range: bounds of each of them.
    length: length scale, in the unit of the inputs; or its bounds.
    scale: standard deviation of f; or its bounds.
    noise: standard deviation of the noise; or its bounds. Less than 0.3% of the
      scale is raised to 0.3%, in the tasks as in their posterior.
    period: the period of a periodic covariance; or its bounds.
    nodes: grid points for each hyper-parameter that is drawn, or one number for
      each of them, in the order of the arguments.

  Returns:
    Tasks whose inputs are `[n, num_inputs]` and whose targets are `[n, 1]`. The
    hyper-parameters are a `Hyper`. The posterior costs O(n^3) for each point of
    the grid.

  Raises:
    ValueError: for an impossible number or range.

  References:
    Rasmussen and Williams, `Gaussian Processes for Machine Learning
    <https://gaussianprocess.org/gpml/>`_, 2006, algorithm 2.1.
  """
  points = division(shots, query_shots, max_points)
  check_counts(num_inputs=num_inputs)
  check_range("input_range", input_range)
  bounds = [
    checked_range("length", length),
    checked_range("scale", scale),
    checked_range("noise", noise),
    checked_range("period", period),
  ]
  grid, log_prior = midpoint_grid(bounds, nodes)

  def draw(rng: PRNGKey) -> Hyper:
    keys = jax.random.split(rng, len(bounds))
    return Hyper(
      *(
        jax.random.uniform(key, (), minval=low, maxval=high)
        for key, (low, high) in zip(keys, bounds, strict=True)
      )
    )

  def sample(rng: PRNGKey, hyper: Hyper) -> Episode:
    input_key, function_key, division_key = jax.random.split(rng, 3)
    shape = points.num_points, num_inputs
    low, high = input_range
    x = jax.random.uniform(input_key, shape, minval=low, maxval=high)
    noise = noise_variance(hyper) * jnp.eye(len(x))
    root = jnp.linalg.cholesky(covariance(x, x, hyper) + noise)
    y = dot(root, jax.random.normal(function_key, (len(x), 1)))
    return divide(division_key, x, y, points)

  def given(hyper: Hyper, support: Batch, inputs: Array) -> Predictive:
    mean, scale, _ = condition(covariance, hyper, support, inputs)
    return Normal(mean[:, None], scale[:, None])

  def on_grid(batch: Batch, inputs: Array) -> tuple[tuple[Array, Array], Array]:
    """Returns means and scales `[K, m]`, and log p(targets, h) `[K]`."""

    def at(hyper: Hyper) -> Array:
      mean, scale, evidence = condition(covariance, hyper, batch, inputs)
      # One array: `map` takes no arrays of size 0, as of no inputs.
      return jnp.concatenate([mean, scale, evidence[None]])

    found = jax.lax.map(at, grid, batch_size=TOGETHER)
    means, scales = jnp.split(found[:, :-1], 2, axis=1)
    return (means, scales), found[:, -1] + log_prior

  def posterior(support: Batch, inputs: Array) -> Predictive:
    if len(log_prior) == 1:
      return given(jax.tree.map(lambda h: h[0], grid), support, inputs)
    moments, weights = on_grid(support, inputs)
    means, scales = (x.T[:, None] for x in moments)
    weights = jnp.broadcast_to(jax.nn.log_softmax(weights), means.shape)
    return NormalMixture(means, scales, weights)

  def log_evidence(batch: Batch) -> Array:
    return jax.nn.logsumexp(on_grid(batch, batch.inputs[:0])[1])

  return KnownTasks(draw, sample, posterior, given, log_evidence)


def tnp_processes(covariance: Covariance = rbf) -> KnownTasks:
  """Builds the one-dimensional tasks of transformer neural processes.

  ::

    x ~ U[-2, 2],  length ~ U[0.1, 0.6],  scale ~ U[0.1, 1],
    period ~ U[0.1, 0.5],  noise = 0.02 (a standard deviation),
    n ~ U{3, ..., 46},  m ~ U{3, ..., 49 - n}

  n and m are the numbers of support and query points. These are the numbers of
  the authors' program, `regression/data/gp.py`. Its upper bounds are exclusive,
  those that the paper states are 47 and 50 - n. The program draws n and m for a
  batch of tasks, this function for each task.

  Args:
    covariance: `rbf`, `matern52` or `periodic` in the paper.

  Returns:
    Tasks with masks, of arrays `[46, 1]`.

  References:
    Nguyen and Grover, `Transformer Neural Processes: Uncertainty-Aware Meta
    Learning Via Sequence Modeling <https://arxiv.org/abs/2207.04179>`_, 2022,
    section 5.1.
  """
  return gaussian_processes(
    covariance,
    shots=(3, 46),
    query_shots=(3, 46),
    max_points=49,
    length=(0.1, 0.6),
    scale=(0.1, 1.0),
    period=(0.1, 0.5) if covariance is periodic else 1.0,
    noise=0.02,
  )
