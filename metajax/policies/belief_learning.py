"""How VariBAD's belief is learned, from trials that are kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.numerics import check_counts, check_kind
from metajax.policies.belief import BeliefNetwork
from metajax.policies.elbo import Likelihood, check_likelihood, mean_elbo
from metajax.tasks.trials import Step
from metajax.training.mesh import TASKS
from metajax.training.state import TrainState, next_state
from metajax.types import Array, Metrics, Params, PRNGKey


class VariBAD(NamedTuple):
  """Configures how the belief is learned.

  Attributes:
    updates: updates of encoder and decoder in a step.
    batch: trials of an update, on all devices together. The actors take turns:
      each gives a trial to every `actors / batch`-th update.
    kept: number of the last trials of an actor from which these are drawn. With
      1, the belief is learned on policy, too.
    likelihood: of what the decoder predicts.
  """

  updates: int = 16
  batch: int = 16
  kept: int = 100
  likelihood: Likelihood = Likelihood()


def check_varibad(varibad: VariBAD, actors: int, share: int) -> None:
  """Checks the configuration for so many actors, and `share` of a device.

  Raises:
    ValueError: for a number that is out of its range, or actors that cannot
      take turns.
  """
  check_kind("varibad", varibad, VariBAD)
  check_counts(updates=varibad.updates, batch=varibad.batch, kept=varibad.kept)
  turns, rest = divmod(actors, varibad.batch)
  if rest or share % turns:
    raise ValueError(
      f"batch={varibad.batch}: must divide actors={actors} into so many parts "
      f"that they divide the {share} actors of a device."
    )
  check_likelihood(varibad.likelihood)


def learn_belief(
  network: BeliefNetwork,
  optimizer: optax.GradientTransformation,
  varibad: VariBAD,
  state: TrainState,
  trials: Step,
  actors: int,
  filled: Array,
  rng: PRNGKey,
) -> tuple[TrainState, Metrics]:
  """Takes the updates of a step, inside `shard_map`.

  Args:
    network: from `belief_network`.
    optimizer: any optax optimizer.
    varibad: the configuration.
    state: the state before. Its parameters are "encoder" and "decoder".
    trials: `[share, kept, T + 1, ...]`, those of the actors of this device.
    actors: number of actors on all devices.
    filled: number of places that have trials, int32.
    rng: the key of the step, the same on all devices.

  Returns:
    The state, whose `step` counts finite updates, and the mean metrics.
  """
  share, _, length = trials.reward.shape
  turns = actors // varibad.batch
  first = jax.lax.axis_index(TASKS) * share

  def update(inner: TrainState, number: Array) -> tuple[TrainState, Metrics]:
    chosen = number % turns + turns * jnp.arange(share // turns)
    key = jax.random.fold_in(rng, number)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + chosen)
    places, noise = jax.vmap(
      lambda key: place_and_noise(key, filled, length - 1, network)
    )(keys)
    part = jax.tree.map(lambda x: x[chosen, places], trials)

    def loss(belief: Params) -> tuple[Array, Metrics]:
      elbo, found = mean_elbo(network, belief, part, noise, varibad.likelihood)
      return -elbo, found

    grads, found = jax.grad(loss, has_aux=True)(inner.meta_params)
    grads, found = jax.lax.pmean((grads, found), TASKS)
    return next_state(optimizer, inner, grads, found["elbo"]), found

  inner, found = jax.lax.scan(update, state, jnp.arange(varibad.updates))
  return inner, {k: v.mean() for k, v in found.items()}


def place_and_noise(
  rng: PRNGKey, filled: Array, num_steps: int, network: BeliefNetwork
) -> tuple[Array, Array]:
  """Draws one of the kept trials, and noise for a sample of each belief."""
  place_key, noise_key = jax.random.split(rng)
  place = jax.random.randint(place_key, (), 0, filled)
  return place, jax.random.normal(noise_key, (num_steps + 1, network.latent))
