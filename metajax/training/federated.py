"""Federated learning, simulated: clients are tasks, the server aggregates."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import inner_loop
from metajax.aggregation import pseudo_gradient
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
)
from metajax.types import Array, Batch, LossFn, Model, Params, PRNGKey


class Clients(NamedTuple):
  """The clients' examples, padded to the largest client.

  Attributes:
    data: arrays `[clients, max_size, ...]`; padding is finite, and not used.
    sizes: int32 `[clients]`, how many examples of each client are real; at
      least 1.
  """

  data: Batch
  sizes: Array


def federated_trainer(
  model: Model,
  loss_fn: LossFn,
  clients: Clients,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
  *,
  clients_per_round: int,
  rng: PRNGKey,
  local_epochs: int = 1,
  batch_size: int | None = None,
  proximal: float = 0.0,
  client_chunk: int = 1,
  mesh: Mesh | None = None,
) -> Trainer:
  """FedAvg, FedSGD, FedProx and FedOpt, by their arguments.

  In a round the server draws clients without replacement; each trains a copy
  of the model on its own examples; the server averages, by size::

    w_k = local_epochs of client_optimizer from w on
          L_k(w_k) + proximal / 2 |w_k - w|^2
    g   = w - sum_k n_k w_k / sum_k n_k
    w   <- w + server_optimizer(g)

  With `optax.sgd(1.0)` on the server this is FedAvg, with `batch_size=None` and
  one epoch besides FedSGD, with `proximal` FedProx, and with `optax.adam` on
  the server FedAdam. The client's optimizer starts anew in every round.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`, which treats
      examples one by one: no batch statistics.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    clients: see `Clients`.
    client_optimizer: any optax optimizer.
    server_optimizer: any optax optimizer; it descends g.
    clients_per_round: how many clients train in a round.
    rng: the key of the clients drawn and of the order of their examples.
    local_epochs: passes of a client over its examples in a round.
    batch_size: examples of a step; all of a client's if None. The last batch
      of an epoch holds the rest.
    proximal: mu of FedProx.
    client_chunk: clients that train at once on a device, which bounds the
      memory; must divide `clients_per_round / mesh.size`.
    mesh: a mesh with the axis "tasks", over which the clients of a round are
      spread; None: `task_mesh(clients_per_round)`.

  Returns:
    A `Trainer` whose steps are rounds. Its metric "loss" is the mean loss of
    the round's clients, by size, before they train.

  Raises:
    ValueError: for a number out of range, or sizes that are.

  References:
    McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017, algorithm 1.
    Li et al., `Federated Optimization in Heterogeneous Networks
    <https://arxiv.org/abs/1812.06127>`_, 2020, algorithm 2.
    Reddi et al., `Adaptive Federated Optimization
    <https://arxiv.org/abs/2003.00295>`_, 2021, algorithm 2.
  """
  num_clients, max_size = jnp.shape(clients.data.targets)[:2]
  batch_size = max_size if batch_size is None else min(batch_size, max_size)
  _check(clients.sizes, max_size, clients_per_round, num_clients)
  mesh = task_mesh(clients_per_round) if mesh is None else mesh
  for name, number, low in (
    ("local_epochs", local_epochs, 1),
    ("batch_size", batch_size, 1),
    ("proximal", proximal, 0),
    ("client_chunk", client_chunk, 1),
  ):
    if number < low:
      raise ValueError(f"{name}={number}: must be {low} or more.")
  if clients_per_round % (mesh.size * client_chunk):
    raise ValueError(
      f"clients_per_round={clients_per_round}: must be a multiple of "
      f"{mesh.size} devices times client_chunk={client_chunk}."
    )
  max_steps = local_epochs * -(-max_size // batch_size)

  def losses(params: Params, data: Batch) -> Array:
    """The loss of each example, `[n]`."""
    predictions = model.apply(params, data.inputs)
    return jax.vmap(lambda p, t: loss_fn(p[None], t[None]))(
      predictions, data.targets
    )

  def train_client(
    params: Params, data: Batch, size: Array, rng: PRNGKey
  ) -> tuple[Params, Array]:
    steps_per_epoch = -(-size // batch_size)

    def local_loss(local: Params, step: Array) -> Array:
      epoch, batch = step // steps_per_epoch, step % steps_per_epoch
      # Real examples come first, in an order of this epoch's own.
      draw = jax.random.uniform(jax.random.fold_in(rng, epoch), (max_size,))
      order = jnp.argsort(jnp.where(jnp.arange(max_size) < size, draw, 2.0))
      place = batch * batch_size + jnp.arange(batch_size)
      chosen = order.at[place].get(mode="clip")
      values = losses(local, jax.tree.map(lambda x: x[chosen], data))
      distance = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), local, params)
      return _masked_mean(values, place < size) + proximal / 2 * sum(
        jax.tree.leaves(distance)
      )

    # Smaller clients are done earlier.
    optimizer = optax.transforms.conditionally_mask(
      client_optimizer,
      lambda step: step < local_epochs * steps_per_epoch,
    )
    before = _masked_mean(losses(params, data), jnp.arange(max_size) < size)
    local = inner_loop.minimize(local_loss, params, optimizer, max_steps).params
    return local, before

  def device_round(params, data, sizes, keys):
    local, before = jax.lax.map(
      lambda client: train_client(params, *client),
      (data, sizes, keys),
      batch_size=client_chunk,
    )
    loss = jnp.average(before, weights=sizes)
    means = pseudo_gradient(params, local, sizes), {"loss": loss}
    share = sizes.sum() / jax.lax.psum(sizes.sum(), TASKS)
    return jax.tree.map(
      lambda x: jax.lax.psum((share * x).astype(x.dtype), TASKS), means
    )

  sharded_round = jax.shard_map(
    device_round,
    mesh=mesh,
    in_specs=(P(), P(TASKS), P(TASKS), P(TASKS)),
    out_specs=P(),
    check_vma=False,
  )

  def one_round(state, clients, rng):
    draw_key, order_key = jax.random.split(jax.random.fold_in(rng, state.step))
    chosen = jax.random.choice(
      draw_key, num_clients, (clients_per_round,), replace=False
    )
    data, sizes = jax.tree.map(lambda x: x[chosen], clients)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(order_key, chosen)
    grads, metrics = sharded_round(state.meta_params, data, sizes, keys)
    state = next_state(server_optimizer, state, grads, metrics["loss"])
    return state, metrics

  replicated = NamedSharding(mesh, P())

  @functools.partial(jax.jit, out_shardings=replicated)
  def start(rng: PRNGKey, inputs: Array) -> TrainState:
    params = model.init(rng, inputs)
    return first_state(server_optimizer, params)

  def init(rng: PRNGKey) -> TrainState:
    return start(place(rng, replicated), clients.data.inputs[0])

  clients, rng = place((clients, rng), replicated)
  return Trainer(init, mean_over_steps(one_round, clients, rng))


def _masked_mean(values: Array, mask: Array) -> Array:
  return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def _check(
  sizes: Array, max_size: int, clients_per_round: int, num_clients: int
) -> None:
  if not 1 <= clients_per_round <= num_clients:
    raise ValueError(
      f"clients_per_round={clients_per_round}: must be 1 to {num_clients}, the "
      "number of clients."
    )
  values = np.asarray(sizes)
  if values.shape != (num_clients,):
    raise ValueError(
      f"clients.sizes of shape {values.shape}: must be ({num_clients},)."
    )
  bad = np.flatnonzero((values < 1) | (values > max_size))
  if bad.size:
    raise ValueError(
      f"clients.sizes: client {bad[0]} has {values[bad[0]]}, must be 1 to "
      f"{max_size}."
    )
