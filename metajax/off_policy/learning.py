"""PEARL's configuration, and the loss of all its networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.numerics import check_counts, check_kind, check_number
from metajax.off_policy.agent import Agent
from metajax.off_policy.soft_actor_critic import actor_loss, critic_loss
from metajax.off_policy.transitions import Transition
from metajax.policies.distributions import DiagonalGaussian
from metajax.types import Array, Metrics, Params, PRNGKey


class PEARL(NamedTuple):
  """Configures PEARL.

  Attributes:
    num_tasks: training tasks, drawn once.
    capacity: the last transitions that are kept of each. They are at least
      those of a trial.
    collected: tasks in which a step plays a new trial.
    episodes: episodes of a trial, K.
    updates: updates in a step.
    meta_batch: tasks of an update.
    batch: transitions of each of them, for actor and critics.
    context: transitions of each of them, for the encoder. None: all of the
      first k episodes.
    discount: the discount of a step, below 1.
    temperature: the weight of the entropy of actions, beside rewards. It is
      fixed. The authors' code multiplies rewards instead, by a `reward_scale`
      of `1 / temperature`.
    kl_weight: the weight of KL(q(z | c) || N(0, I)).
    target_rate: by how much the targets move towards the critics in an update,
      tau, above 0 and at most 1.
  """

  num_tasks: int = 100
  capacity: int = 10_000
  collected: int = 5
  episodes: int = 2
  updates: int = 100
  meta_batch: int = 16
  batch: int = 256
  context: int | None = None
  discount: float = 0.99
  temperature: float = 0.2
  kl_weight: float = 0.1
  target_rate: float = 0.005


def check_pearl(pearl: PEARL, horizon: int) -> None:
  """Checks the configuration for episodes of up to `horizon` steps.

  Raises:
    ValueError: for a number that is out of its range.
  """
  check_kind("pearl", pearl, PEARL)
  names = "num_tasks collected episodes updates meta_batch batch capacity"
  check_counts(**{name: getattr(pearl, name) for name in names.split()})
  if pearl.context is not None:
    check_counts(context=pearl.context)
  for name in ("collected", "meta_batch"):
    if getattr(pearl, name) > pearl.num_tasks:
      raise ValueError(
        f"{name}={getattr(pearl, name)}: must be at most "
        f"num_tasks={pearl.num_tasks}, as its tasks are different ones."
      )
  longest = pearl.episodes * horizon
  if pearl.capacity < longest:
    raise ValueError(
      f"capacity={pearl.capacity}: must be {longest} or more, the steps of a "
      "trial."
    )
  check_number("discount", pearl.discount, at_least=0, below=1)
  check_number("temperature", pearl.temperature, at_least=0)
  check_number("kl_weight", pearl.kl_weight, at_least=0)
  check_number("target_rate", pearl.target_rate, above=0, at_most=1)


def pearl_loss(
  agent: Agent,
  params: Params,
  targets: Params,
  batch: Transition,
  context: Transition,
  mask: Array,
  rng: PRNGKey,
  pearl: PEARL,
) -> tuple[Array, Metrics]:
  """Computes the loss of encoder, critics and actor, a mean over tasks.

  ::

    z ~ q(z | context)
    L = critic_loss(z) + kl_weight KL(q || N(0, I)) + actor_loss(constant z)

  The terms share no parameter: encoder and critics minimise the first two, the
  actor the last. So one gradient serves all, as the separate steps of the
  paper's algorithm 1 do, but for the actor seeing the critics of before the
  update.

  Args:
    agent: from `pearl_agent`.
    params: its parameters.
    targets: the parameters of the target critics.
    batch: `[M, n]`, transitions of M tasks, for actor and critics.
    context: `[M, N]`, transitions of the same tasks, for the encoder.
    mask: `[M, N]` bool, which of the context are real.
    rng: the key of z and of actions.
    pearl: the configuration.

  Returns:
    The loss, and the metrics "loss", "critic_loss", "actor_loss", "kl" (in nats
    of a task), "q" (the mean value of kept actions) and "entropy" (of new
    actions, in nats).
  """

  def one(
    batch: Transition, context: Transition, mask: Array, rng: PRNGKey
  ) -> Metrics:
    z_key, critic_key, actor_key = jax.random.split(rng, 3)
    belief = agent.posterior(params, context, mask)
    z = belief.sample(z_key)
    prior = DiagonalGaussian(*map(jnp.zeros_like, belief))
    of_critics, values = critic_loss(
      agent,
      params,
      targets,
      batch,
      z,
      critic_key,
      discount=pearl.discount,
      temperature=pearl.temperature,
    )
    of_actor, entropy = actor_loss(
      agent, params, batch, z, actor_key, temperature=pearl.temperature
    )
    return {
      "critic_loss": of_critics,
      "actor_loss": of_actor,
      "kl": belief.kl(prior),
      **values,
      **entropy,
    }

  keys = jax.random.split(rng, mask.shape[0])
  found = jax.vmap(one)(batch, context, mask, keys)
  metrics = {name: x.mean() for name, x in found.items()}
  loss = (
    metrics["critic_loss"]
    + pearl.kl_weight * metrics["kl"]
    + metrics["actor_loss"]
  )
  return loss, metrics | {"loss": loss}
