"""Policy learners: MAML and its relatives for reinforcement learning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.inner_loop import Memory, minimize
from metajax.learners.partition import Mask, last_layer, merge, split
from metajax.numerics import check_counts, check_number
from metajax.policies.advantages import Estimator, advantages, check_estimator
from metajax.policies.context import (
  context_alone,
  with_context,
  without_context,
)
from metajax.policies.experience import (
  Experience,
  experience_of,
  of_inner_step,
)
from metajax.policies.objectives import fisher_product, mean_drift, outer_loss
from metajax.policies.policy import Policy
from metajax.policies.protocol import PolicyLearner
from metajax.policies.rollouts import (
  Rollouts,
  along,
  check_fits,
  play_episodes,
)
from metajax.policies.surrogates import Surrogate, low_variance_curvature
from metajax.tasks.playable import PlayableTasks, checked
from metajax.types import Array, Metrics, Params, PRNGKey

_ESTIMATOR = Estimator()


def policy_learner(
  policy: Policy,
  tasks: PlayableTasks,
  *,
  inner_lr: float | optax.Schedule = 0.1,
  num_steps: int = 1,
  num_episodes: int = 20,
  inner_surrogate: Surrogate = low_variance_curvature,
  outer_surrogate: Surrogate = low_variance_curvature,
  estimator: Estimator = _ESTIMATOR,
  first_order: bool = False,
  mask: Mask | None = None,
  learned_step_sizes: bool = False,
  context: int = 0,
  credit: float = 0.0,
  fisher_every: int = 5,
) -> PolicyLearner:
  """Builds MAML for policies, and its relatives by the arguments.

  ::

    theta_{k+1} = theta_k - inner_lr(k) f * grad inner_surrogate(theta_k)
    loss        = outer_surrogate(theta_K) on new episodes of theta_K

  where f are 1, or learned factors of each parameter.

  Args:
    policy: the policy, which must fit the tasks.
    tasks: the tasks.
    inner_lr: the step size, or a function of the number of the inner step, a
      traced int32. The surrogates are means over steps.
    num_steps: inner steps in training, K, at least 0.
    num_episodes: episodes for each inner step and after the last, E.
    inner_surrogate: the loss of the inner step.
    outer_surrogate: the loss after the last inner step.
    estimator: how advantages are estimated.
    first_order: if True, inner gradients are constants (FOMAML).
    mask: which of the policy's parameters adapt; None: all.
    learned_step_sizes: if True, f are meta-parameters (Meta-SGD).
    context: with 1 or more, so many context parameters adapt, and nothing else
      (CAVIA). They begin at 0 in every task. The policy's model reads them
      after the observation.
    credit: the weight of E-MAML's term, at least 0.
    fisher_every: `fisher` reads every so many steps of the episodes.

  Raises:
    ValueError: if a number is out of its range, if the policy does not fit the
      tasks, if both a mask and a context are given, or a credit without an
      inner step.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, algorithm 3.
  """
  check_fits(policy, tasks)
  check_estimator(estimator)
  check_counts(num_steps=num_steps, context=context, at_least=0)
  check_counts(num_episodes=num_episodes, fisher_every=fisher_every)
  check_number("credit", credit, at_least=0)
  if credit and not num_steps:
    raise ValueError(
      f"credit={credit}: rewards the episodes before adaptation, but "
      "num_steps=0; give 0."
    )
  if not callable(inner_lr):
    check_number("inner_lr", inner_lr, at_least=0)
  if context:
    if mask is not None:
      raise ValueError(
        f"context={context}: only the context adapts; give no mask beside it."
      )
    policy, mask = with_context(policy, context), context_alone

  def init(rng: PRNGKey) -> Params:
    task_key, begin_key, rng = jax.random.split(rng, 3)
    _, observation = checked(tasks).begin(tasks.draw(task_key), begin_key)
    params = {"policy": policy.init(rng, observation[None])}
    fast, _ = split(params["policy"], mask)  # Raises if nothing adapts.
    if learned_step_sizes:
      params["factors"] = jax.tree.map(jnp.ones_like, fast)
    return params

  def adapt(params: Params, rollouts: Rollouts, k: int | Array = 0) -> Params:
    return inner_step(params, rollouts, advantages(rollouts, estimator), k)

  def inner_step(
    params: Params,
    rollouts: Rollouts,
    found: Array,
    k: int | Array,
    memory: Memory = "auto",
  ) -> Params:
    fast, slow = split(params["policy"], mask)
    rate = inner_lr(k) if callable(inner_lr) else inner_lr

    def loss(fast: Params, step: Array) -> Array:
      del step
      whole = merge(fast, slow)
      log_probs = along(policy, whole, rollouts).log_prob(rollouts.actions)
      old = jax.lax.stop_gradient(log_probs)
      return inner_surrogate(log_probs, old, found, rollouts.mask)

    def scale(grads: Params) -> Params:
      factors = params.get("factors")
      if factors is None:
        return jax.tree.map(lambda g: -rate * g, grads)
      return jax.tree.map(lambda g, f: -rate * f * g, grads, factors)

    optimizer = optax.stateless(lambda grads, _: scale(grads))
    stepped = minimize(
      loss, fast, optimizer, 1, first_order=first_order, memory=memory
    )
    return {**params, "policy": merge(stepped.params, slow)}

  def act(params: Params, observations: Array, rng: PRNGKey) -> Array:
    return policy.apply(params["policy"], observations).sample(rng)

  def play(
    params: Params, task: Any, rng: PRNGKey, num_episodes: int
  ) -> Rollouts:
    return play_episodes(
      policy, params["policy"], tasks, task, rng, num_episodes
    )

  def collect_one(params: Params, task: Any, rng: PRNGKey) -> Experience:
    def play_one(params: Params, rng: PRNGKey) -> tuple[Rollouts, Array]:
      rollouts = play(params, task, rng, num_episodes)
      return rollouts, advantages(rollouts, estimator)

    return experience_of(play_one, inner_step, params, rng, num_steps)

  def collect(params: Params, drawn: Any, rng: PRNGKey) -> Experience:
    if jnp.ndim(rng) == 0:
      rng = jax.random.split(rng, jax.tree.leaves(drawn)[0].shape[0])
    return jax.vmap(collect_one, in_axes=(None, 0, 0))(params, drawn, rng)

  def adapt_again(
    params: Params, experience: Experience, memory: Memory = "auto"
  ) -> Params:
    for k in range(num_steps):
      params = inner_step(params, *of_inner_step(experience, k), k, memory)
    return params

  def at_start(params: Params) -> Params:
    if not context:
      return params
    return {**params, "policy": without_context(params["policy"])}

  def outer(
    params: Params, experience: Experience
  ) -> tuple[Array, Array, Metrics]:
    return outer_loss(
      policy,
      adapt_again,
      outer_surrogate,
      credit,
      at_start(params),
      experience,
    )

  def fisher(
    params: Params, experience: Experience
  ) -> Callable[[Params], Params]:
    def from_start(params: Params, *experience: Any) -> Params:
      return adapt_again(at_start(params), *experience)

    return fisher_product(policy, from_start, fisher_every, params, experience)

  def drift(params: Params, experience: Experience) -> Array:
    return mean_drift(
      policy, inner_step, num_steps, at_start(params), experience
    )

  def meta_grad(
    params: Params, drawn: Any, rng: PRNGKey
  ) -> tuple[Params, Metrics]:
    experience = collect(params, drawn, rng)

    def loss(params: Params) -> tuple[Array, Metrics]:
      value, _, metrics = outer(params, experience)
      return value, metrics

    return jax.grad(loss, has_aux=True)(params)

  return PolicyLearner(
    init, adapt, act, play, collect, outer, fisher, drift, meta_grad
  )


# Arguments of `policy_learner` by the name of the algorithm.
POLICY_LEARNERS: dict[str, dict[str, Any]] = {
  "maml": {},
  "fomaml": {"first_order": True},
  "meta_sgd": {"learned_step_sizes": True},
  "anil": {"mask": last_layer},
  "cavia": {"context": 5},
  "pretrained": {"num_steps": 0},
}
