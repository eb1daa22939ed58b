"""VariBAD's networks: a belief over tasks, a policy on it, and a decoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.forward import forward
from metajax.models.mlp import MLP
from metajax.models.recurrent import Recurrent, output_head
from metajax.numerics import check_counts, check_number, wide
from metajax.policies.decoder import product, transitions
from metajax.policies.distributions import DiagonalGaussian
from metajax.policies.recurrent_policy import num_outputs
from metajax.tasks.playable import Actions, as_actions
from metajax.tasks.trials import Step
from metajax.types import Array, Params, PRNGKey


class BeliefNetwork(NamedTuple):
  """A network whose state is a belief over the task.

  The parameters are a dict of "encoder", "policy" and "decoder", and of "seen",
  running means of what the policy reads and of its square.

  Attributes:
    recurrent: the network for players. Its hidden vector is what the policy
      reads: the observation, and mean and log scale of the belief. Its head has
      no derivative with respect to the hidden vector, so no loss of the policy
      reaches the encoder.
    posterior: `(hidden [..., units]) -> DiagonalGaussian`, the belief of a
      hidden vector.
    rewards: `(params, latents [K, latent], steps [T + 1, ...]) -> [K, T]`, the
      expected rewards of a trial's actions for each of K tasks.
    observations: likewise the expected next observations, `[K, T, size]`.
    actions: what an action is.
    latent: numbers of a latent task.
  """

  recurrent: Recurrent
  posterior: Callable[[Array], DiagonalGaussian]
  rewards: Callable[[Params, Array, Step], Array]
  observations: Callable[[Params, Array, Step], Array]
  actions: Actions
  latent: int


def belief_network(
  encoder: Recurrent,
  actions: Actions | int,
  *,
  latent: int = 5,
  units: int = 64,
  scale: float = 0.1,
) -> BeliefNetwork:
  """Builds VariBAD's networks (Zintgraf et al. 2020, section 3).

  ::

    q(m | past) = N(mean, (scale exp(log_scale))^2)
    mean, log_scale = encoder(past)
    pi, value = policy(s, mean, log_scale)
    E[r | s, a, s', m] = f(m) . g(s, a, s', end)
    E[s' | s, a, m] = F(m) . G(s, a)

  where f, g, F, G and the policy are MLPs with two hidden layers. The product
  of two networks costs little: all T + 1 beliefs of a trial decode all its T
  steps by one matrix product. With a one-hot g it is the paper's decoder for
  gridworlds, which has an output for each cell. After an action that ended an
  episode, s' would be the start of the next one, so g sees zeros instead.

  What the policy reads is scaled to mean 0 and variance 1 by `params["seen"]`,
  as in the authors' code: beliefs may vary little beside observations.

  Args:
    encoder: a network with a "linear" head of `2 * latent` outputs.
    actions: those of the tasks. A number n stands for `Discrete(n)`.
    latent: numbers of a latent task m.
    units: width of the layers of policy and decoder.
    scale: about the standard deviation of a new network's beliefs. With 1, that
      of the prior, samples are mostly noise at first, which slows learning.

  Raises:
    ValueError: for a size below 1; when it is called, for an encoder with
      another head.
  """
  actions = as_actions(actions)
  width = actions[0]  # Of an action that is read.
  check_counts(actions=width, latent=latent, units=units)
  check_number("scale", scale, above=0)
  trunk = forward(MLP(None, (units, units)))
  init_head, apply_head = output_head(
    num_outputs(actions), units=units, head="actor_critic"
  )
  reward_init, reward_apply = product(units)
  observation_init, observation_apply = product(units)

  def init(rng: PRNGKey, inputs: Array) -> Params:
    keys = jax.random.split(rng, 5)
    size = inputs.shape[-1] - width - 2
    m = jnp.zeros((1, latent))
    return {
      "encoder": encoder.init(keys[0], inputs),
      "policy": {
        "trunk": trunk.init(keys[1], jnp.zeros((1, size + 2 * latent))),
        "head": init_head(keys[2]),
      },
      "decoder": {
        "rewards": reward_init(keys[3], m, 2 * size + width + 1, 1),
        "observations": observation_init(keys[4], m, size + width, size),
      },
      "seen": {
        "mean": jnp.zeros(size + 2 * latent),
        "square": jnp.ones(size + 2 * latent),
      },
    }

  def read(params: Params, state: Any, inputs: Array) -> tuple[Array, Any]:
    hidden, state = encoder.read(params["encoder"], state, inputs)
    belief = encoder.head(params["encoder"], hidden)
    if getattr(belief, "shape", (0,))[-1] != 2 * latent:
      raise ValueError(
        f"encoder: its head must give {2 * latent} numbers, mean and log scale "
        f'of latent={latent}; build it with so many outputs and head="linear".'
      )
    observation = inputs[..., : -width - 2]
    return jnp.concatenate([observation, belief], -1), state

  def head(params: Params, hidden: Array) -> tuple[Array, Array]:
    seen = jax.lax.stop_gradient(_standardized(params["seen"], hidden))
    rows = seen.reshape(-1, seen.shape[-1])
    found = trunk.apply(params["policy"]["trunk"], rows)
    found = found.reshape(*seen.shape[:-1], units)
    return apply_head(params["policy"]["head"], found)

  def posterior(hidden: Array) -> DiagonalGaussian:
    mean, log_scale = jnp.split(wide(hidden[..., -2 * latent :]), 2, -1)
    return DiagonalGaussian(mean, log_scale + np.log(scale))

  def rewards(params: Params, latents: Array, steps: Step) -> Array:
    before, action, after, ended = transitions(steps, actions)
    features = jnp.concatenate([before, action, after, ended], -1)
    part = params["decoder"]["rewards"]
    return reward_apply(part, latents, features, 1)[..., 0]

  def observations(params: Params, latents: Array, steps: Step) -> Array:
    before, action, _, _ = transitions(steps, actions)
    features = jnp.concatenate([before, action], -1)
    part = params["decoder"]["observations"]
    return observation_apply(part, latents, features, before.shape[-1])

  network = Recurrent(init, encoder.start, read, head)
  return BeliefNetwork(
    network, posterior, rewards, observations, actions, latent
  )


def seen_more(seen: Params, hidden: Array, rate: Array) -> Params:
  """Moves `params["seen"]` towards the means of hidden vectors `[..., units]`.

  ::

    mean += rate (mean of hidden - mean)

  and so for the squares. A device of a mesh averages the result with others.
  """
  axes = tuple(range(hidden.ndim - 1))
  new = {"mean": hidden.mean(axes), "square": jnp.square(hidden).mean(axes)}
  return jax.tree.map(lambda x, y: x + rate * (y - x), seen, new)


def _standardized(seen: Params, hidden: Array) -> Array:
  variance = jnp.maximum(seen["square"] - jnp.square(seen["mean"]), 0.0)
  scaled = (hidden - seen["mean"]) / jnp.sqrt(variance + 1e-5)
  return jnp.clip(scaled, -10.0, 10.0)
