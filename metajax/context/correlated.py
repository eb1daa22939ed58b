"""Transformer neural processes with a joint normal prediction (TNP-ND)."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from metajax.context.dense import init_mlp, mlp
from metajax.context.joint import Joint
from metajax.context.objectives import maximum_likelihood
from metajax.context.transformer import transformer
from metajax.context.transformer_process import reader, with_head
from metajax.numerics import check_counts
from metajax.predictive import Normal
from metajax.types import (
  Array,
  Batch,
  LossFn,
  MetaLearner,
  Params,
  PRNGKey,
)

Covariance = Literal["cholesky", "low_rank"]
# Added to a learned scale, so that a density is finite where all agree.
LEAST = 1e-3


def tnp_nd(
  *,
  num_outputs: int = 1,
  covariance: Covariance = "cholesky",
  rank: int = 20,
  covariance_layers: int = 2,
  metrics: Mapping[str, LossFn] | None = None,
  **sizes: Any,
) -> MetaLearner:
  """Predicts all queries by one normal distribution (TNP-ND).

  ::

    y ~ N(m, S),    H = projections of the queries, [n d, rank]
    cholesky:  S = L L',  L = tril(H H')
    low_rank:  S = H H' + diag(exp(h))

  The means are those of queries that attend to the support alone. H comes from
  further layers in which the queries attend to each other, so that the
  covariance depends on all inputs.

  Args:
    num_outputs: d, numbers of a target.
    covariance: the form of S.
    rank: numbers of a projection.
    covariance_layers: layers in which queries attend to each other.
    metrics: see `autoregressive.tnp_a`.
    **sizes: see `tnp_d`.

  Returns:
    A `MetaLearner` that predicts a `Joint` of normal marginals.

  Raises:
    ValueError: for another form of S, or a size less than 1.

  References:
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, section 3.2.
  """
  if covariance not in get_args(Covariance):
    raise ValueError(
      f"covariance={covariance!r}: must be one of {get_args(Covariance)}."
    )
  check_counts(rank=rank, covariance_layers=covariance_layers)
  network = reader(num_outputs, **sizes)
  among = transformer(**{**sizes, "layers": covariance_layers})

  def init(rng: PRNGKey, inputs: Any) -> Params:
    reader_key, among_key, rank_key, scale_key = jax.random.split(rng, 4)
    between = [network.width, *[2 * network.width] * 3]
    params = {
      **with_head(network, reader_key, inputs, num_outputs),
      "among": among.init(among_key),
      "projection": init_mlp(rank_key, [*between, rank * num_outputs]),
    }
    if covariance == "low_rank":
      params["diagonal"] = init_mlp(scale_key, [*between, num_outputs])
    return params

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    del rng
    return {"params": meta_params, "cache": network.read(meta_params, support)}

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> Joint:
    params, cache = task_params["params"], task_params["cache"]
    tokens = network.ask(params, cache, network.embed(params, inputs, None))
    mean = mlp(params["head"], tokens)
    n, d = mean.shape
    real = jnp.ones(n, bool) if mask is None else mask
    related, _ = among.read(params["among"], tokens, real)
    rows = mlp(params["projection"], related).reshape(n * d, rank)
    # Padding is independent of everything, so that it has no effect.
    rows = jnp.where(jnp.repeat(real, d)[:, None], rows, 0)
    gram = jnp.matmul(rows, rows.T, precision="highest")
    identity = jnp.eye(n * d, dtype=gram.dtype)
    if covariance == "cholesky":
      factor = jnp.tril(gram) + LEAST * identity
    else:
      variances = jnp.exp(mlp(params["diagonal"], tokens)).reshape(-1)
      # More than the rounding, above which S is positive definite.
      rounding = jnp.finfo(gram.dtype).eps * jnp.trace(gram)
      floor = LEAST**2 + jax.lax.stop_gradient(rounding)
      factor = jnp.linalg.cholesky(gram + jnp.diag(variances + floor))
    scale = jnp.sqrt(jnp.square(factor).sum(1)).reshape(n, d)
    marginals = Normal(mean, scale)
    return Joint(marginals, Partial(_conditional, mean, factor))

  return maximum_likelihood(
    init, adapt, predict, metrics, num_outputs=num_outputs
  )


def _conditional(
  mean: Array, factor: Array, targets: Array, mask: Array | None
) -> Array:
  """Returns `log p(y_i | y_<i)`, `[n, d]`, by S = L L'.

  With z = L^-1 (y - m) these are log N(z_i; 0, 1) - log L_ii.
  """
  difference = targets.reshape(mean.shape) - mean
  if mask is not None:
    difference = jnp.where(mask[:, None], difference, 0)
  z = jax.scipy.linalg.solve_triangular(
    factor, difference.reshape(-1), lower=True
  )
  constant = 0.5 * jnp.log(2 * jnp.pi)
  terms = -0.5 * jnp.square(z) - jnp.log(jnp.diagonal(factor)) - constant
  return terms.reshape(mean.shape)
