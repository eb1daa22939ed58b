"""VariBAD: a policy on a belief, which a variational autoencoder learns."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import optimizers
from metajax.numerics import check_key
from metajax.players.recurrent import check_head, first_params
from metajax.policies.belief import BeliefNetwork, seen_more
from metajax.policies.belief_learning import (
  VariBAD,
  check_varibad,
  learn_belief,
)
from metajax.policies.ppo import PPO, Rollout, check_ppo, loss_of_outputs
from metajax.policies.recurrent_policy import (
  checked_policy,
  hidden_along,
  of_hidden,
)
from metajax.policies.recurrent_ppo import (
  gather,
  in_one_step,
  in_unit,
  learn,
  mean_reward,
)
from metajax.policies.value_scale import ValueScale, first_scale
from metajax.tasks.playable import as_actions
from metajax.tasks.trials import Step, Trials, check_trials, first_step
from metajax.training.mesh import TASKS, task_mesh, with_split_state
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  mean_over_steps,
  trainer_on,
)
from metajax.types import Array, Metrics, Params, PRNGKey

# How fast the statistics of what the policy reads follow a step's trials.
SEEN_RATE = 0.05


class VariBADState(NamedTuple):
  """The state of the trainer, without the parameters.

  Attributes:
    policy: the state of the policy's optimizer.
    values: the unit of the policy's values.
    belief: the state of the optimizer of encoder and decoder.
    trials: the last trials of each actor, `[actors, kept, T + 1, ...]`. The
      trial of step s is in place `s % kept`.
  """

  policy: optax.OptState
  values: ValueScale
  belief: optax.OptState
  trials: Step


def varibad_trainer(
  network: BeliefNetwork,
  tasks: Trials,
  optimizer: optax.GradientTransformation,
  belief_optimizer: optax.GradientTransformation,
  ppo: PPO,
  varibad: VariBAD,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer of VariBAD.

  In a step, every actor plays one new task. PPO then updates the policy, which
  reads the belief as a constant. At last the ELBO of `policies.elbo` updates
  encoder and decoder, on trials that are drawn from the last ones of each
  actor. So neither loss reaches the parameters of the other (Zintgraf et al.
  2020, section 3). A draw depends on the number of the actor, and so not on
  the number of devices.

  Args:
    network: from `belief_network`.
    tasks: the tasks to play.
    optimizer: any optax optimizer, for the policy.
    belief_optimizer: any optax optimizer, for encoder and decoder.
    ppo: the configuration of PPO.
    varibad: the configuration of the rest.
    rng: the key of all tasks, actions, minibatches and samples.
    mesh: a mesh with the axis "tasks". If None, it is `task_mesh(actors)`.

  Returns:
    A `Trainer`. Its metrics are those of `ppo_trainer`, and "elbo",
    "reward_error" (the mean squared error of decoded rewards) and "kl" of the
    belief, means over its updates.

  Raises:
    ValueError: as `ppo_trainer`; and if a number of `varibad` is out of its
      range, or the actors cannot take turns.

  References:
    Zintgraf et al., `VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via
    Meta-Learning <https://arxiv.org/abs/1910.08348>`_, 2020.
  """
  check_key(rng)
  if mesh is None:
    mesh = task_mesh(ppo.actors, name="actors")
  share = check_ppo(ppo, mesh)
  if not isinstance(network, BeliefNetwork):
    raise ValueError(
      f"network: {type(network).__name__} given, must be belief_network(...)."
    )
  check_varibad(varibad, ppo.actors, share)
  check_trials(tasks)
  actions = as_actions(tasks.actions)
  if network.actions != actions:
    raise ValueError(
      f"network: built for the actions {network.actions}, but those of the "
      f"tasks are {actions}; build it by belief_network(encoder, "
      "tasks.actions)."
    )
  check_head(
    network.recurrent, tasks, lambda head: checked_policy(head, actions)
  )
  policy_updates = ppo.epochs * ppo.minibatches

  def device_step(
    state: TrainState, rng: PRNGKey
  ) -> tuple[TrainState, Metrics]:
    params, kept = state.meta_params, state.opt_state
    rng = jax.random.fold_in(rng, state.step)
    act_key, learn_key = jax.random.split(rng)
    policy_key, belief_key = jax.random.split(learn_key)
    device = jax.lax.axis_index(TASKS)
    actors = device * share + jnp.arange(share)
    rollout = gather(
      network.recurrent, params, kept.values, tasks, ppo, act_key, actors
    )
    rollout, values = in_unit(rollout, kept.values, state.step)

    # The encoder is constant here, so the trials are read once.
    hidden = hidden_along(network.recurrent, params, rollout.steps, actions)

    def policy_loss(
      policy: Params, part: tuple[Rollout, Array]
    ) -> tuple[Array, Metrics]:
      rollout, hidden = part
      outputs = of_hidden(
        network.recurrent,
        params | {"policy": policy},
        hidden,
        actions,
      )
      return loss_of_outputs(*outputs, rollout, ppo)

    policy, metrics = learn(
      optimizer,
      policy_loss,
      TrainState(state.step, params["policy"], kept.policy),
      (rollout, hidden),
      ppo,
      jax.random.fold_in(policy_key, device),
    )
    trials = jax.tree.map(
      lambda ring, x: ring.at[:, state.step % varibad.kept].set(x),
      kept.trials,
      rollout.steps,
    )

    belief, found = learn_belief(
      network,
      belief_optimizer,
      varibad,
      TrainState(policy.step, _of_belief(params), kept.belief),
      trials,
      ppo.actors,
      jnp.minimum(state.step + 1, varibad.kept),
      belief_key,
    )
    metrics["reward"] = mean_reward(rollout)
    metrics |= found
    rate = jnp.maximum(1 / (state.step + 1), SEEN_RATE)
    seen = jax.lax.pmean(seen_more(params["seen"], hidden, rate), TASKS)
    new = TrainState(
      belief.step,
      belief.meta_params | {"policy": policy.meta_params, "seen": seen},
      VariBADState(policy.opt_state, values, belief.opt_state, kept.trials),
    )
    new = in_one_step(new, state, policy_updates + varibad.updates)
    return new._replace(
      opt_state=new.opt_state._replace(trials=trials)
    ), metrics

  everywhere: Any = P()
  split: Any = P(TASKS)
  places = TrainState(
    everywhere,
    everywhere,
    VariBADState(everywhere, everywhere, everywhere, split),
  )
  step, where = with_split_state(device_step, mesh, places)

  @functools.partial(jax.jit, out_shardings=where)
  def init(rng: PRNGKey) -> TrainState:
    params = first_params(network.recurrent, tasks, rng)
    _, observation = jax.eval_shape(tasks.reset, rng)
    one = first_step(jnp.zeros(observation.shape), actions)
    shape = ppo.actors, varibad.kept, tasks.num_steps + 1
    trials = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), one)
    state = VariBADState(
      optimizers.init(optimizer, params["policy"]),
      first_scale(),
      optimizers.init(belief_optimizer, _of_belief(params)),
      trials,
    )
    return TrainState(jnp.int32(0), params, state)

  rng = place(rng, NamedSharding(mesh, P()))
  return trainer_on(mesh, init, mean_over_steps(step, rng))


def _of_belief(params: Params) -> Params:
  return {name: params[name] for name in ("encoder", "decoder")}
