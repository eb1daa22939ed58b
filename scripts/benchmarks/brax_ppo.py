"""PPO by brax, and by metajax on the same environment with the same networks.

`train` needs brax.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.models.recurrent import Recurrent
from metajax.policies import PPO
from metajax.tasks.brax_tasks import brax_tasks
from metajax.tasks.trials import Trials, trials_of


def trials(environment: Any, horizon: int) -> Trials:
  """Makes trials of `horizon` steps of an environment, with its own reward.

  As with brax's `AutoResetWrapper`, an episode that ends is followed by another
  one with the same start.
  """
  tasks = brax_tasks(
    environment,
    draw=lambda rng: jnp.float32(0),
    reward=lambda task, state, action: state.reward,
    horizon=horizon,
  )
  return trials_of(tasks, horizon, new_starts=False)


def without_memory(policy: Any, value: Any, observation_size: int) -> Recurrent:
  """Makes a `Recurrent` of two networks of brax, such as those of its PPO.

  Its state is empty. It passes on the observation, the first numbers of its
  input, and nothing else. So the head computes all steps of a trial at once, as
  in brax.
  """

  def init(rng, inputs):
    del inputs
    policy_key, value_key = jax.random.split(rng)
    return {"policy": policy.init(policy_key), "value": value.init(value_key)}

  def read(params, state, inputs):
    del params
    return inputs[..., :observation_size], state

  def head(params, hidden):
    # None: no statistics of observations.
    return (
      policy.apply(None, params["policy"], hidden),
      value.apply(None, params["value"], hidden),
    )

  return Recurrent(init, tuple, read, head)


def train(
  environment: Any,
  build: Callable[..., Any],
  ppo: PPO,
  *,
  horizon: int,
  rate: float,
  steps: int,
  calls: int,
  between: Callable[..., None],
) -> None:
  """Trains with brax's PPO, without evaluations, on one device.

  Args:
    environment: see `brax_environment`.
    build: brax's `make_ppo_networks`, or one of its kind.
    ppo: the configuration.
    horizon: steps of an episode, and of each environment in a training step.
    rate: step size of Adam.
    steps: training steps of a call.
    calls: number of calls of brax's compiled program.
    between: called before the first call and after each one, with the number of
      environment steps so far, and more.
  """
  from brax.training.agents.ppo import train as brax_train

  if not hasattr(jax, "device_put_replicated"):
    # JAX 0.10 has removed it. brax 0.14.2 calls it before it trains.
    jax.device_put_replicated = replicated
  brax_train.train(
    environment,
    num_timesteps=calls * steps * ppo.actors * horizon,
    max_devices_per_host=1,
    num_envs=ppo.actors,
    episode_length=horizon,
    unroll_length=horizon,
    batch_size=ppo.actors // ppo.minibatches,
    num_minibatches=ppo.minibatches,
    num_updates_per_batch=ppo.epochs,
    learning_rate=rate,
    entropy_cost=ppo.entropy,
    discounting=ppo.discount,
    gae_lambda=ppo.gae,
    clipping_epsilon=ppo.clip,
    vf_loss_coefficient=ppo.value,
    network_factory=build,
    num_evals=calls + 1,
    run_evals=False,
    policy_params_fn=between,
  )


def replicated(tree: Any, devices: list[jax.Device]) -> Any:
  """Copies a tree to devices, along a new first axis.

  The axis has brax's name, or brax would compile its program twice.
  """
  where = NamedSharding(Mesh(np.asarray(devices), ("i",)), P("i"))
  return jax.tree.map(
    lambda x: jax.device_put(jnp.stack([x] * len(devices)), where), tree
  )
