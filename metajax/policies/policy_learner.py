"""Policy learners: MAML and its relatives for reinforcement learning."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.inner_loop import Memory, minimize
from metajax.learners.partition import Mask, last_layer, merge, split
from metajax.numerics import check_number
from metajax.policies.advantages import (
  Estimator,
  advantages,
  check_estimator,
  masked_mean,
)
from metajax.policies.context import (
  context_alone,
  with_context,
  without_context,
)
from metajax.policies.policy import Policy
from metajax.policies.rollouts import (
  Rollouts,
  along,
  check_fits,
  play_and_adapt,
  play_episodes,
)
from metajax.policies.surrogates import (
  Surrogate,
  exploration,
  low_variance_curvature,
)
from metajax.tasks.playable import PlayableTasks
from metajax.types import Array, Metrics, Params, PRNGKey

_ESTIMATOR = Estimator()


class Experience(NamedTuple):
  """What a learner has seen of one task, before and after adaptation.

  Attributes:
    before: the rollouts of each inner step, `[K, E, T, ...]`.
    after: the rollouts of the adapted policy, `[E, T, ...]`.
    advantages_before: the advantages of `before`, `[K, E, T]`.
    advantages_after: the advantages of `after`, `[E, T]`.
    adapted: the adapted parameters, which played `after`.
  """

  before: Rollouts
  after: Rollouts
  advantages_before: Array
  advantages_after: Array
  adapted: Params


class PolicyLearner(NamedTuple):
  """A meta-learner whose data depend on its policy, as pure functions.

  Attributes:
    init: `(rng) -> params`.
    adapt: `(params, rollouts, k) -> params`. The inner step k, from 0 on, on
      the rollouts of one task. The result can be adapted again. k may be
      traced.
    act: `(params, observations, rng) -> actions`, for `[n, ...]`.
    play: `(params, task, rng, num_episodes) -> rollouts`.
    collect: `(params, tasks, rng) -> experience` of drawn tasks, `[M, ...]`.
      Adapts to each task, and plays before and after.
    outer: `(params, experience) -> (loss, divergence, metrics)`, means over
      tasks. The divergence is that of the adapted policies from the policies
      that played, in nats per step.
    fisher: `(params, experience) -> (vector -> F vector)`, for the parameters
      that collected the experience and trees like them. F is the Hessian of the
      divergence there, on every `fisher_every`-th step of the episodes.
    drift: `(params, experience) -> divergence`. That of the policies before
      each inner step from those that played there, a mean over inner steps and
      tasks, in nats per step. ProMP penalises it.
    meta_grad: `(params, tasks, rng) -> (grads, metrics)`. The gradient of
      `outer` on new experience.
  """

  init: Callable[[PRNGKey], Params]
  adapt: Callable[[Params, Rollouts, int | Array], Params]
  act: Callable[[Params, Array, PRNGKey], Array]
  play: Callable[[Params, Any, PRNGKey, int], Rollouts]
  collect: Callable[[Params, Any, PRNGKey], Experience]
  outer: Callable[[Params, Experience], tuple[Array, Array, Metrics]]
  fisher: Callable[[Params, Experience], Callable[[Params], Params]]
  drift: Callable[[Params, Experience], Array]
  meta_grad: Callable[[Params, Any, PRNGKey], tuple[Params, Metrics]]


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
      tasks, or if both a mask and a context are given.

  References:
    Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks <https://arxiv.org/abs/1703.03400>`_, 2017, algorithm 3.
  """
  check_fits(policy, tasks)
  check_estimator(estimator)
  check_number("num_steps", num_steps, at_least=0)
  check_number("num_episodes", num_episodes, at_least=1)
  check_number("credit", credit, at_least=0)
  check_number("fisher_every", fisher_every, at_least=1)
  check_number("context", context, at_least=0)
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
    _, observation = tasks.begin(tasks.draw(task_key), begin_key)
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

    (rollouts, found), adapted = play_and_adapt(
      play_one,
      lambda params, played, k: inner_step(params, played[0], played[1], k),
      params,
      rng,
      num_steps,
    )
    before = slice(max(num_steps, 1))  # Without an inner step, those after it.
    return jax.lax.stop_gradient(
      Experience(
        jax.tree.map(lambda x: x[before], rollouts),
        jax.tree.map(lambda x: x[-1], rollouts),
        found[before],
        found[-1],
        adapted,
      )
    )

  def collect(params: Params, drawn: Any, rng: PRNGKey) -> Experience:
    keys = jax.random.split(rng, jax.tree.leaves(drawn)[0].shape[0])
    return jax.vmap(lambda task, key: collect_one(params, task, key))(
      drawn, keys
    )

  def adapted(
    params: Params, experience: Experience, memory: Memory = "auto"
  ) -> Params:
    for k in range(num_steps):
      params = inner_step(params, *_before(experience, k), k, memory)
    return params

  def at_start(params: Params) -> Params:
    if not context:
      return params
    return {**params, "policy": without_context(params["policy"])}

  def outer(
    params: Params, experience: Experience
  ) -> tuple[Array, Array, Metrics]:
    params = at_start(params)

    def one(experience: Experience) -> tuple[Array, Array]:
      after, found = experience.after, experience.advantages_after
      phi = adapted(params, experience)
      distribution = along(policy, phi["policy"], after)
      log_probs = distribution.log_prob(after.actions)
      loss = outer_surrogate(log_probs, after.log_probs, found, after.mask)
      divergence = after.distribution.kl(distribution)
      return loss, masked_mean(divergence, after.mask)

    losses, divergences = jax.vmap(one)(experience)
    loss = losses.mean()
    if credit and num_steps:
      loss = loss + credit * _credit(policy, params["policy"], experience)
    metrics = {
      "loss": loss,
      "kl": divergences.mean(),
      "return_before": experience.before.rewards[:, 0].sum(-1).mean(),
      "return_after": experience.after.rewards.sum(-1).mean(),
    }
    return loss, divergences.mean(), metrics

  def fisher(
    params: Params, experience: Experience
  ) -> Callable[[Params], Params]:
    def some(time: int, tree: Any) -> Any:
      return jax.tree.map(
        lambda x: jax.lax.slice_in_dim(x, 0, None, fisher_every, time), tree
      )

    few = experience._replace(
      before=some(3, experience.before),
      after=some(2, experience.after),
      advantages_before=some(3, experience.advantages_before),
    )

    def distributions(params: Params) -> Any:
      # "plain" can be differentiated forward, too.
      return jax.vmap(
        lambda one: along(
          policy, adapted(at_start(params), one, "plain")["policy"], one.after
        )
      )(few)

    def divergence(new: Any, old: Any) -> Array:
      one = jax.vmap(lambda new, old, mask: masked_mean(old.kl(new), mask))
      return one(new, old, few.after.mask).mean()

    # The Gauss-Newton product: the divergence has no gradient at `params`.
    found, push = jax.linearize(distributions, params)
    pull = jax.linear_transpose(push, params)
    gradient = jax.grad(divergence)
    _, curve = jax.linearize(lambda new: gradient(new, found), found)
    return lambda vector: pull(curve(push(vector)))[0]

  def drift(params: Params, experience: Experience) -> Array:
    def one(experience: Experience) -> Array:
      phi, total = at_start(params), jnp.zeros(())
      for k in range(num_steps):
        rollouts, found = _before(experience, k)
        divergence = rollouts.distribution.kl(
          along(policy, phi["policy"], rollouts)
        )
        total = total + masked_mean(divergence, rollouts.mask)
        if k + 1 < num_steps:
          phi = inner_step(phi, rollouts, found, k)
      return total / max(num_steps, 1)

    return jax.vmap(one)(experience).mean()

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


def _before(experience: Experience, k: int) -> tuple[Rollouts, Array]:
  """Returns the rollouts and advantages of the inner step k."""
  return jax.tree.map(
    operator.itemgetter(k), (experience.before, experience.advantages_before)
  )


def _credit(policy: Policy, params: Params, experience: Experience) -> Array:
  """Returns E-MAML's term, with the mean return of the tasks as baseline."""
  outcomes = experience.after.returns.mean(-1)
  outcomes = outcomes - outcomes.mean()

  def one(before: Rollouts, outcome: Array) -> Array:
    first = jax.tree.map(lambda x: x[0], before)
    log_probs = along(policy, params, first).log_prob(first.actions)
    return exploration(log_probs, first.mask, outcome)

  return jax.vmap(one)(experience.before, outcomes).mean()


# Arguments of `policy_learner` by the name of the algorithm.
POLICY_LEARNERS: dict[str, dict[str, Any]] = {
  "maml": {},
  "fomaml": {"first_order": True},
  "meta_sgd": {"learned_step_sizes": True},
  "anil": {"mask": last_layer},
  "cavia": {"context": 5},
  "pretrained": {"num_steps": 0},
}
