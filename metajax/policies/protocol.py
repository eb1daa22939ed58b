"""The protocol of policy learners: `MetaLearner` for data that they play."""

from collections.abc import Callable
from typing import Any, NamedTuple

from metajax.policies.experience import Experience
from metajax.policies.rollouts import Rollouts
from metajax.types import Array, Metrics, Params, PRNGKey


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
      Adapts to each task, and plays before and after. The rng is a key, or the
      `[M]` keys that `jax.random.split` makes of it.
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
