"""The attentive neural process: a latent variable beside attention."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from metajax.batches import concatenate, real
from metajax.context.objectives import numbers
from metajax.context.paths import LEAST_SCALE, paths
from metajax.learners.meta_gradients import gradient_of_mean
from metajax.losses import over_examples
from metajax.numerics import check_counts
from metajax.predictive import NormalMixture, normal_log_prob
from metajax.types import (
  Array,
  Batch,
  Episode,
  LossFn,
  MetaLearner,
  Metrics,
  Params,
  PRNGKey,
)

Objective = Literal["importance", "elbo"]


def attentive_neural_process(
  *,
  num_outputs: int = 1,
  width: int = 128,
  num_latent: int = 128,
  objective: Objective = "importance",
  num_samples: int = 4,
  num_eval_samples: int = 50,
  least_scale: float = LEAST_SCALE,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Predicts from attention to the support and a latent variable (ANP).

  ::

    z ~ p(z | C) = N(m(C), s(C)^2),    y ~ N(m(x, r(x), z), s(x, r(x), z)^2)

  C is the support, and D the n points of support and query. The training
  maximises a lower bound of 1/n log p(y of D | C), with z_k ~ q = p(z | D)::

    importance:  1/n log 1/K sum_k p(y | z_k) p(z_k | C) / q(z_k)
    elbo:        1/n (1/K sum_k log p(y | z_k) - KL(q, p(z | C)))

  The importance-weighted bound grows with K; for K = 1 both have the same mean.
  A prediction is the mixture over samples of p(z | C), which `adapt` draws.

  Args:
    num_outputs: d, numbers of a target.
    width: width of all layers, a multiple of 8, the number of heads.
    num_latent: numbers of z.
    objective: the bound.
    num_samples: K, samples of z for each task in training.
    num_eval_samples: samples of z of a prediction.
    least_scale: see `conditional_neural_process`.
    metrics: `(predictions, targets) -> scalar` functions of the query, reported
      by `meta_grad` beside "loss". The mixture in training is of K samples.

  Returns:
    A `MetaLearner` that predicts a `NormalMixture` of `[n, d]`.

  Raises:
    ValueError: for another objective, or less than one sample.

  References:
    Kim et al., `Attentive Neural Processes
    <https://arxiv.org/abs/1901.05761>`_, 2019, equation 3: the evidence bound.
    Burda et al., `Importance Weighted Autoencoders
    <https://arxiv.org/abs/1509.00519>`_, 2016, equation 8.
    Nguyen and Grover, `Transformer Neural Processes
    <https://arxiv.org/abs/2207.04179>`_, 2022, for sizes and samples.
  """
  if objective not in get_args(Objective):
    raise ValueError(
      f"objective={objective!r}: must be one of {get_args(Objective)}."
    )
  check_counts(
    num_latent=num_latent,
    num_samples=num_samples,
    num_eval_samples=num_eval_samples,
  )
  networks = paths(
    num_outputs, width, least_scale, attends=True, num_latent=num_latent
  )

  def latent(params: Params, batch: Batch) -> tuple[Array, Array]:
    mean, scale = jnp.split(networks.whole(params, batch), 2)
    return mean, 0.1 + 0.9 * jax.nn.sigmoid(scale)

  def draw(rng: PRNGKey, count: int, mean: Array, scale: Array) -> Array:
    return mean + scale * jax.random.normal(rng, (count, num_latent))

  def decode(
    params: Params, memory: Any, inputs: Any, z: Array
  ) -> tuple[Array, Array]:
    """Returns means and scales `[K, n, d]` for samples `[K, num_latent]`."""
    local = networks.at(params, memory, inputs)
    return jax.vmap(lambda z: networks.decode(params, inputs, local, z))(z)

  def adapt(meta_params: Params, support: Batch, rng: PRNGKey) -> Params:
    return {
      "params": meta_params,
      "local": networks.local(meta_params, support),
      "z": draw(rng, num_eval_samples, *latent(meta_params, support)),
    }

  def predict(
    task_params: Params, inputs: Any, mask: Array | None = None
  ) -> NormalMixture:
    del mask
    params, memory, z = (task_params[k] for k in ("params", "local", "z"))
    return _mixture(*decode(params, memory, inputs, z))

  def meta_loss(
    meta_params: Params, episode: Episode, rng: PRNGKey
  ) -> tuple[Array, Metrics]:
    support, query = episode
    prior_key, posterior_key = jax.random.split(rng)
    everything = concatenate(support, query)
    prior = latent(meta_params, support)
    posterior = latent(meta_params, everything)
    z = draw(posterior_key, num_samples, *posterior)
    memory = networks.local(meta_params, support)
    mean, scale = decode(meta_params, memory, everything.inputs, z)
    terms = normal_log_prob(numbers(everything, num_outputs), mean, scale)
    mask = real(everything)
    likelihood = jnp.where(mask[:, None], terms, 0).sum((1, 2))
    if objective == "importance":
      odds = normal_log_prob(z, *prior) - normal_log_prob(z, *posterior)
      weights = likelihood + odds.sum(1)
      bound = jax.nn.logsumexp(weights) - math.log(num_samples)
    else:
      bound = likelihood.mean() - _divergence(posterior, prior)
    loss = -bound / jnp.maximum(mask.sum() * num_outputs, 1)
    predictions = _mixture(
      *decode(
        meta_params, memory, query.inputs, draw(prior_key, num_samples, *prior)
      )
    )
    scores = {
      name: over_examples(f, predictions, query.targets, query.mask)
      for name, f in dict(metrics or {}).items()
    }
    return loss, {"loss": loss, **scores}

  return MetaLearner(networks.init, adapt, predict, gradient_of_mean(meta_loss))


def _mixture(mean: Array, scale: Array) -> NormalMixture:
  """Returns the even mixture of normals `[K, n, d]`."""
  mean, scale = (jnp.moveaxis(x, 0, -1) for x in (mean, scale))
  log_weights = jnp.full_like(mean, -math.log(mean.shape[-1]))
  return NormalMixture(mean, scale, log_weights)


def _divergence(q: tuple[Array, Array], p: tuple[Array, Array]) -> Array:
  """Returns KL(q, p) of normal distributions `(mean, scale)`, in nats."""
  ratio = jnp.square(q[1] / p[1])
  moved = jnp.square((q[0] - p[0]) / p[1])
  return 0.5 * (ratio + moved - 1 - jnp.log(ratio)).sum()
