"""Linear regression with random weights, and its exact Bayesian posterior."""

import jax
import jax.numpy as jnp

from metajax.batches import real
from metajax.numerics import check_counts, check_number, dot
from metajax.predictive import Normal, Predictive
from metajax.tasks.form import Number
from metajax.tasks.known import KnownTasks
from metajax.tasks.points import divide, division
from metajax.types import Array, Batch, Episode, PRNGKey

# The least standard deviation of a prediction, in units of `weight_scale`, so
# that densities are finite without noise.
LEAST = 1e-4


def linear_regression(
  num_inputs: int = 20,
  *,
  shots: Number = 40,
  query_shots: Number = 10,
  max_points: int | None = None,
  noise: float = 0.0,
  weight_scale: float = 1.0,
) -> KnownTasks:
  """Builds tasks of regressing a random linear function.

  ::

    w ~ N(0, weight_scale^2 I),  x ~ N(0, I),  y = w'x + noise e,  e ~ N(0, 1)

    p(y | x, X, Y) = N(x'm, x'Sx + noise^2),
    S = (X'X / noise^2 + I / weight_scale^2)^-1,  m = S X'Y / noise^2

  The mean is that of ridge regression with the penalty
  `noise^2 / weight_scale^2`. Without noise it is the least-squares solution of
  smallest norm, and its standard deviation has the rounding of the targets,
  which few or collinear examples amplify. The defaults are those of Garg et al.

  Args:
    num_inputs: d, the numbers in an input.
    shots: number of support points, or the least and most.
    query_shots: number of query points, or the least and most.
    max_points: most points of a task, both together.
    noise: standard deviation of the noise, 0 or more.
    weight_scale: standard deviation of a weight. `num_inputs ** -0.5` gives
      targets of variance 1.

  Returns:
    Tasks whose inputs are `[n, num_inputs]` and whose targets are `[n, 1]`. The
    hyper-parameters are the weights w, `[num_inputs, 1]`. Predictions have a
    standard deviation of at least `1e-4 weight_scale`.

  Raises:
    ValueError: for an impossible number.

  References:
    Garg et al., `What Can Transformers Learn In-Context? A Case Study of Simple
    Function Classes <https://arxiv.org/abs/2208.01066>`_, 2022, section 3.
  """
  points = division(shots, query_shots, max_points)
  check_counts(num_inputs=num_inputs)
  check_number("noise", noise, at_least=0)
  check_number("weight_scale", weight_scale, above=0)

  def draw(rng: PRNGKey) -> Array:
    return weight_scale * jax.random.normal(rng, (num_inputs, 1))

  def sample(rng: PRNGKey, weights: Array) -> Episode:
    input_key, noise_key, division_key = jax.random.split(rng, 3)
    x = jax.random.normal(input_key, (points.num_points, num_inputs))
    y = dot(x, weights) + noise * jax.random.normal(noise_key, (len(x), 1))
    return divide(division_key, x, y, points)

  def normal(mean: Array, variance: Array) -> Predictive:
    least = (LEAST * weight_scale) ** 2
    return Normal(mean, jnp.sqrt(jnp.maximum(variance + noise**2, least)))

  def given(weights: Array, support: Batch, inputs: Array) -> Predictive:
    mean = dot(inputs, weights)
    return normal(mean, jnp.zeros_like(mean))

  def posterior(support: Batch, inputs: Array) -> Predictive:
    mask = real(support)[:, None]
    x, y = (jnp.where(mask, a, 0) for a in (support.inputs, support.targets))
    # Rows of zeros, so that there are num_inputs directions.
    extra = ((0, max(0, num_inputs - len(x))), (0, 0))
    x, y = jnp.pad(x, extra), jnp.pad(y, extra)
    # X = U diag(s) V': in the basis V each weight is learned by itself.
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    # Targets are rounded. Their size is sqrt(d) weight_scale.
    rounding = jnp.finfo(s.dtype).eps * num_inputs**0.5
    penalty = jnp.maximum(noise / weight_scale, rounding) ** 2
    seen = s > jnp.finfo(s.dtype).eps * max(x.shape) * s.max()
    safe = jnp.where(seen, s, 1)
    gain = jnp.where(seen, safe / (jnp.square(safe) + penalty), 0)
    left = jnp.where(seen, penalty / (jnp.square(safe) + penalty), 1)
    along = dot(inputs, vt.T)
    mean = dot(along, gain[:, None] * dot(u.T, y))
    variance = weight_scale**2 * dot(jnp.square(along), left[:, None])
    return normal(mean, variance)

  return KnownTasks(draw, sample, posterior, given)
