"""Task families whose exact predictions are known, to compare learners with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.batches import concatenate, num_examples, real
from metajax.losses import masked_mean
from metajax.predictive import Predictive
from metajax.types import Array, Batch, Episode, MetaLearner, PRNGKey


# A NamedTuple cannot be given to `jax.jit`.
@dataclasses.dataclass(frozen=True, eq=False)
class KnownTasks:
  """A task family with its exact predictive distributions.

  A task has hyper-parameters, and is drawn in two steps::

    h ~ p(h),  episode ~ p(episode | h)

  It is a task family: `tasks(rng)` is an episode.

  Attributes:
    draw: `(rng) -> h`, the hyper-parameters of a task, a tree of arrays.
    sample: `(rng, h) -> episode`.
    posterior: `(support, inputs) -> Predictive`, `p(y | x, support)`. No
      learner can have a greater expected log-likelihood.
    given: `(h, support, inputs) -> Predictive`, `p(y | x, support, h)`. It is
      told what a learner is not, and is an upper bound on what `posterior`
      reaches on average.
    log_evidence: `(batch) -> log p(targets | inputs)` of all real examples
      together, a scalar in nats; None if the tasks have only the others.
  """

  draw: Callable[[PRNGKey], Any]
  sample: Callable[[PRNGKey, Any], Episode]
  posterior: Callable[[Batch, Any], Predictive]
  given: Callable[[Any, Batch, Any], Predictive]
  log_evidence: Callable[[Batch], Array] | None = None

  def __call__(self, rng: PRNGKey) -> Episode:
    """Returns one task, unbatched."""
    draw_key, sample_key = jax.random.split(rng)
    return self.sample(sample_key, self.draw(draw_key))


def exact_learner(tasks: KnownTasks) -> MetaLearner:
  """Returns the learner that predicts by the exact posterior of the tasks.

  It has no parameters: `()`. `evaluate` scores it on the same tasks as a
  trained learner.
  """

  def predict(
    support: Batch, inputs: Any, mask: Array | None = None
  ) -> Predictive:
    del mask  # No prediction depends on another.
    return tasks.posterior(support, inputs)

  return MetaLearner(
    init=lambda rng, inputs: (),
    adapt=lambda params, support, rng: support,
    predict=predict,
    meta_grad=lambda params, episodes, rng: (params, {}),
  )


def revealed(tasks: KnownTasks) -> KnownTasks:
  """Returns the same tasks, in which the inputs tell the hyper-parameters.

  The inputs are `(inputs, h)`, with a copy of h for each example. The posterior
  is the `given` of the tasks, with their hyper-parameters. The same key draws
  the same task, so `evaluate(exact_learner(revealed(tasks)), (),
  revealed(tasks), ...)` and the score of a learner on `tasks` are paired.
  """

  def sample(rng: PRNGKey, hyper: Any) -> Episode:
    def tell(batch: Batch) -> Batch:
      count = num_examples(batch)
      copies = jax.tree.map(
        lambda h: jnp.broadcast_to(h, (count, *jnp.shape(h))), hyper
      )
      return batch._replace(inputs=(batch.inputs, copies))

    return Episode(*map(tell, tasks.sample(rng, hyper)))

  def posterior(support: Batch, inputs: Any) -> Predictive:
    x, copies = inputs
    hyper = jax.tree.map(lambda h: h[0], copies)
    return tasks.given(hyper, support._replace(inputs=support.inputs[0]), x)

  def given(hyper: Any, support: Batch, inputs: Any) -> Predictive:
    del hyper
    return posterior(support, inputs)

  return KnownTasks(tasks.draw, sample, posterior, given)


def joint_log_likelihood(
  posterior: Callable[[Batch, Any], Predictive], episode: Episode
) -> Array:
  """Log density of all query targets together, divided by their number.

  ::

    1/m log p(y_1, ..., y_m | support)
      = 1/m sum_i log p(y_i | support, y_1, ..., y_{i-1})

  Args:
    posterior: `(support, inputs) -> Predictive`.
    episode: one task of m real query examples.

  Returns:
    A scalar, in nats for each number of the targets.
  """
  support, query = episode
  seen = concatenate(support, query)
  mask = real(seen)
  place = jnp.arange(len(mask)) - num_examples(support)

  def term(i: Array) -> Array:
    before = seen._replace(mask=mask & (place < i))
    one = jax.tree.map(lambda x: x[i][None], (query.inputs, query.targets))
    return posterior(before, one[0]).log_prob(one[1])[0]

  terms = jax.lax.map(term, jnp.arange(num_examples(query)))
  return masked_mean(terms, query.mask)


def joint_by_evidence(tasks: KnownTasks, episode: Episode) -> Array:
  """The same as `joint_log_likelihood` of the posterior, by two evidences.

  ::

    1/m (log p(support, query) - log p(support))

  Raises:
    ValueError: if the tasks have no `log_evidence`.
  """
  if tasks.log_evidence is None:
    raise ValueError(
      "tasks: they have no log_evidence; use joint_log_likelihood with their "
      "posterior."
    )
  both, before = concatenate(*episode), episode.support
  surplus = tasks.log_evidence(both) - tasks.log_evidence(before)
  return surplus / jnp.maximum(real(episode.query).sum(), 1)
