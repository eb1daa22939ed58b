"""Selects real examples that represent a whole data set."""

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, wide
from metajax.types import Array


def herding(features: Array, num_chosen: int) -> Array:
  """Chooses examples whose mean is close to the mean of all examples.

  ::

    next = argmin_i |mean - (sum of the k chosen + features_i) / (k + 1)|

  where i runs over the examples that have not been chosen yet.

  Args:
    features: `[n, ...]`, of one class.
    num_chosen: number of examples to choose, from 1 to n.

  Returns:
    Indices `[num_chosen]`, in the order of the choice.

  Raises:
    ValueError: if `num_chosen` is out of range, or if known features are not
      finite.

  References:
    Welling, `Herding Dynamical Weights to Learn
    <https://doi.org/10.1145/1553374.1553517>`_, 2009.
    Rebuffi et al., `iCaRL <https://arxiv.org/abs/1611.07725>`_, 2017, algorithm
    4: the form that is used here.
  """
  size = features.shape[0]
  if not 1 <= num_chosen <= size:
    raise ValueError(f"num_chosen={num_chosen}: must be 1 to {size}.")
  check_counts(num_chosen=num_chosen)
  features = wide(features).reshape(size, -1)
  if (
    not isinstance(features, jax.core.Tracer)
    and not jnp.isfinite(features).all()
  ):
    raise ValueError("features: not finite; leave such examples out.")
  mean = features.mean(0)

  def choose(carry, count):
    total, is_free = carry
    means = (total + features) / (count + 1)
    errors = jnp.square(mean - means).sum(-1)
    best = jnp.argmin(jnp.where(is_free, errors, jnp.inf))
    return (total + features[best], is_free.at[best].set(False)), best

  start = jnp.zeros_like(mean), jnp.ones(size, bool)
  return jax.lax.scan(choose, start, jnp.arange(num_chosen))[1]
