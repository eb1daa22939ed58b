"""PEARL: an off-policy agent that infers its task and acts on samples of it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import optimizers
from metajax.numerics import check_key
from metajax.off_policy.agent import Agent
from metajax.off_policy.learning import PEARL, check_pearl, pearl_loss
from metajax.off_policy.rings import (
  Rings,
  draw_batch,
  draw_context,
  empty_rings,
  store,
)
from metajax.off_policy.transitions import vector
from metajax.off_policy.trials import empty_trial, play_trial
from metajax.tasks.playable import PlayableTasks, check_playable
from metajax.training.mesh import task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  choose,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import Metrics, Params, PRNGKey


class PEARLState(NamedTuple):
  """The state of the trainer, without the parameters.

  Attributes:
    optimizer: the state of the optimizer.
    targets: the parameters of the target critics.
    rings: what is kept of each training task.
  """

  optimizer: optax.OptState
  targets: Params
  rings: Rings


def pearl_trainer(
  agent: Agent,
  tasks: PlayableTasks,
  optimizer: optax.GradientTransformation,
  pearl: PEARL,
  *,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer of PEARL (Rakelly et al. 2019, algorithm 1).

  The training tasks are drawn once, by `rng`. In a step, the agent plays a new
  trial in some of them, as it would at meta-test, see `play_trial`. Then it
  takes some updates. An update draws tasks, and for each of them a batch of all
  its kept transitions, for the soft actor-critic, and a context of its newest
  trial, for the encoder. So the critics learn off policy, and contexts are near
  those of meta-test (section 5.1). The first trials of all tasks are played by
  `init`.

  The authors' code has contexts of the prior's episodes alone, unless the
  rewards are sparse. Here the context is the first k episodes of a trial, for a
  random k.

  Args:
    agent: from `pearl_agent`.
    tasks: the tasks, of continuous actions in (-1, 1).
    optimizer: any optax optimizer, of all networks together.
    pearl: the configuration.
    rng: the key of all tasks, actions and samples.
    mesh: the device. PEARL trains on one; None: the first.

  Returns:
    A `Trainer`. Its metrics are those of `pearl_loss`, means over the updates
    of a step, and "return_1", ..., "return_K", the mean returns of the episodes
    of the step's trials.

  Raises:
    ValueError: if a number of `pearl` is out of its range, if the agent's
      actions are not those of the tasks, or for a mesh of several devices.

  References:
    Rakelly et al., `Efficient Off-Policy Meta-Reinforcement Learning via
    Probabilistic Context Variables <https://arxiv.org/abs/1903.08254>`_, 2019.
    Haarnoja et al., `Soft Actor-Critic Algorithms and Applications
    <https://arxiv.org/abs/1812.05905>`_, 2018.
  """
  check_key(rng)
  check_playable(tasks)
  if not isinstance(agent, Agent):
    raise ValueError(
      f"agent: {type(agent).__name__} given, must be pearl_agent(...)."
    )
  check_pearl(pearl, tasks.horizon)
  if agent.actions != tasks.actions or type(agent.actions) is not type(
    tasks.actions
  ):
    raise ValueError(
      f"agent: its actions are {agent.actions}, but the tasks have "
      f"{tasks.actions}; build it with actions=tasks.actions."
    )
  mesh = task_mesh(1) if mesh is None else mesh
  if mesh.size > 1:
    raise ValueError(
      f"mesh: has {mesh.size} devices, but PEARL trains on one; give "
      "mesh=task_mesh(1), or None."
    )
  replicated = NamedSharding(mesh, P())

  def draw_tasks(rng: PRNGKey) -> Any:
    return jax.vmap(tasks.draw)(jax.random.split(rng, pearl.num_tasks))

  def play(params: Params, drawn: Any, keys: PRNGKey) -> Any:
    return jax.vmap(
      lambda task, key: play_trial(
        agent, params, tasks, task, key, pearl.episodes
      )
    )(drawn, keys)

  def update(
    inner: TrainState, rng: PRNGKey, rings: Rings
  ) -> tuple[TrainState, Metrics]:
    optimizer_state, targets = inner.opt_state
    tasks_key, draw_key, loss_key = jax.random.split(rng, 3)
    places = _some(tasks_key, pearl.num_tasks, pearl.meta_batch)

    def draw(place: Any, key: PRNGKey) -> Any:
      batch_key, context_key = jax.random.split(key)
      batch = draw_batch(rings, place, batch_key, pearl.batch)
      return batch, *draw_context(rings, place, context_key, pearl.context)

    batch, context, mask = jax.vmap(draw)(
      places, jax.random.split(draw_key, pearl.meta_batch)
    )
    grads, metrics = jax.grad(
      lambda params: pearl_loss(
        agent, params, targets, batch, context, mask, loss_key, pearl
      ),
      has_aux=True,
    )(inner.meta_params)
    new = next_state(
      optimizer,
      TrainState(inner.step, inner.meta_params, optimizer_state),
      grads,
      metrics["loss"],
    )
    targets = optax.incremental_update(
      new.meta_params["critics"], targets, pearl.target_rate
    )
    return new._replace(opt_state=(new.opt_state, targets)), metrics

  def step(
    state: TrainState, rng: PRNGKey, drawn: Any
  ) -> tuple[TrainState, Metrics]:
    params, kept = state.meta_params, state.opt_state
    rng = jax.random.fold_in(rng, state.step)
    tasks_key, play_key, learn_key = jax.random.split(rng, 3)
    places = _some(tasks_key, pearl.num_tasks, pearl.collected)
    trials = play(
      params,
      jax.tree.map(lambda x: x[places], drawn),
      jax.random.split(play_key, pearl.collected),
    )
    rings = store(kept.rings, places, trials)
    inner, metrics = jax.lax.scan(
      functools.partial(update, rings=rings),
      TrainState(state.step, params, (kept.optimizer, kept.targets)),
      jax.random.split(learn_key, pearl.updates),
    )
    metrics = {name: x.mean() for name, x in metrics.items()}
    for k, value in enumerate(trials.returns.mean(0)):
      metrics[f"return_{k + 1}"] = value
    # If one update was not finite, the step keeps nothing.
    every = inner.step - state.step == pearl.updates
    learned, targets = inner.opt_state
    new = TrainState(
      state.step + 1, inner.meta_params, PEARLState(learned, targets, rings)
    )
    return choose(every, new, state), metrics

  @functools.partial(jax.jit, out_shardings=replicated)
  def init(init_rng: PRNGKey, drawn: Any, play_key: PRNGKey) -> TrainState:
    first = jax.tree.map(lambda x: x[0], drawn)
    _, seen = tasks.begin(first, play_key)
    params = agent.init(init_rng, vector(seen))
    empty = empty_trial(agent, tasks, first, pearl.episodes)
    several = jax.tree.map(lambda x: jnp.stack([x] * pearl.num_tasks), empty)
    # The actions of an actor of zeros are noise. Those of a fresh one are not:
    # it would walk far away, and what the critics then learn hides the tasks.
    still = params | {"actor": jax.tree.map(jnp.zeros_like, params["actor"])}
    trials = play(still, drawn, jax.random.split(play_key, pearl.num_tasks))
    rings = store(
      empty_rings(pearl.capacity, several), jnp.arange(pearl.num_tasks), trials
    )
    kept = PEARLState(
      optimizers.init(optimizer, params), params["critics"], rings
    )
    return TrainState(jnp.int32(0), params, kept)

  draw_key, first_key, step_key = jax.random.split(place(rng, replicated), 3)
  drawn = jax.jit(draw_tasks, out_shardings=replicated)(draw_key)
  return trainer_on(
    mesh,
    lambda init_rng: init(init_rng, drawn, first_key),
    mean_over_steps(step, step_key, drawn),
  )


def _some(rng: PRNGKey, num_tasks: int, number: int) -> Any:
  """Draws the numbers of some tasks, all different, `[number]` int32."""
  return jax.random.permutation(rng, num_tasks)[:number]
