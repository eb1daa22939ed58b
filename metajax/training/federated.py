"""Simulates federated learning: clients train, and a server averages them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from metajax import optimizers, variables
from metajax.aggregation import pseudo_gradient
from metajax.forward import forward
from metajax.numerics import check_counts, check_key, check_number, wide
from metajax.training.clients import (
  Clients,
  Rows,
  block_size,
  end_to_end,
  mean_of_rows,
)
from metajax.training.mesh import TASKS, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import LossFn, Model, PRNGKey


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
  proximal: ArrayLike = 0.0,
  client_chunk: int = 1,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer of FedAvg, FedSGD, FedProx or FedOpt.

  In a round, the server draws clients without replacement. Each client trains a
  copy of the model on its own examples. The server averages the copies,
  weighted by the clients' numbers of examples::

    w_k = local_epochs of client_optimizer from w on
          L_k(w_k) + proximal / 2 |w_k - w|^2
    g   = w - sum_k n_k w_k / sum_k n_k
    w   <- w + server_optimizer(g)

  The arguments decide which method it is:

  - FedAvg: `server_optimizer=optax.sgd(1.0)`.
  - FedSGD: as FedAvg, with `batch_size=None` and one local epoch.
  - FedProx: as FedAvg, with `proximal > 0`.
  - FedAdam (FedOpt): `server_optimizer=optax.adam(...)`.

  The state of the client's optimizer is reset in every round.

  The cost of a round grows with the examples of its clients, not with the
  largest client. A client takes one step for each of its batches. If a batch is
  larger than most clients, a step computes it in blocks, so that at most half
  of the computed examples are padding.

  Args:
    model: pure `init(rng, inputs)` and `apply(params, inputs)`. Its prediction
      of an example may not depend on other examples, so it may not have batch
      statistics. It is applied as in evaluation: there is no dropout, and its
      state does not change.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    clients: see `Clients`.
    client_optimizer: any optax optimizer.
    server_optimizer: any optax optimizer. It descends g.
    clients_per_round: number of clients that train in a round.
    rng: the key of the drawn clients and of the orders of their examples.
    local_epochs: number of passes of a client over its examples in a round.
    batch_size: examples of a step. If None, a step uses all examples of the
      client. The last batch of an epoch may be smaller.
    proximal: mu of FedProx.
    client_chunk: number of clients that train at once on a device. It bounds
      the memory, and must divide `clients_per_round / mesh.size`. The clients
      of a chunk have similar sizes. All of them take as many steps as the
      largest.
    mesh: a mesh with the axis "tasks", over which the clients of a round are
      split. If None, it is `task_mesh(clients_per_round)`.

  Returns:
    A `Trainer` whose steps are rounds. Its metric "loss" is the mean loss of
    the round's clients before they train, weighted by their sizes.

  Raises:
    ValueError: if a number is out of its range, or if `clients` is invalid (see
      `clients.end_to_end`).

  References:
    McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017, algorithm 1.
    Li et al., `Federated Optimization in Heterogeneous Networks
    <https://arxiv.org/abs/1812.06127>`_, 2020, algorithm 2.
    Reddi et al., `Adaptive Federated Optimization
    <https://arxiv.org/abs/2003.00295>`_, 2021, algorithm 2.
  """
  check_key(rng)
  data, sizes, offsets = end_to_end(clients)
  num_clients, max_size = len(sizes), int(sizes.max())
  if not 1 <= clients_per_round <= num_clients:
    raise ValueError(
      f"clients_per_round={clients_per_round}: must be 1 to {num_clients}, the "
      "number of clients."
    )
  batch_size = max_size if batch_size is None else min(batch_size, max_size)
  if mesh is None:
    mesh = task_mesh(clients_per_round, name="clients_per_round")
  check_counts(
    clients_per_round=clients_per_round,
    local_epochs=local_epochs,
    batch_size=batch_size,
    client_chunk=client_chunk,
  )
  check_number("proximal", proximal, at_least=0)
  if clients_per_round % (mesh.size * client_chunk):
    raise ValueError(
      f"clients_per_round={clients_per_round}: must be a multiple of "
      f"{mesh.size} devices times client_chunk={client_chunk}."
    )
  model = forward(model)
  batch_mean, client_mean = mean_of_rows(
    model, loss_fn, batch_size, block_size(sizes, batch_size)
  )

  def train_client(params, data, size, offset, rng):
    steps_per_epoch = -(-size // batch_size)
    start = variables.weights(params)

    def step(carry):
      weights, opt_state, k = carry
      order_key = jax.random.fold_in(rng, k // steps_per_epoch)
      first = k % steps_per_epoch * batch_size
      count = jnp.minimum(batch_size, size - first)
      rows = Rows(order_key, size, offset, first, count)

      def loss_of(weights):
        squares = jax.tree.map(
          lambda a, b: jnp.square(wide(a) - wide(b)).sum(), weights, start
        )
        distance = sum(jax.tree.leaves(squares))
        return batch_mean(weights, params, data, rows) + proximal / 2 * distance

      loss, grads = jax.value_and_grad(loss_of)(weights)
      updates, opt_state = optimizers.update(
        client_optimizer,
        grads,
        opt_state,
        weights,
        value=loss,
        value_fn=loss_of,
      )
      return optax.apply_updates(weights, updates), opt_state, k + 1

    everything = Rows(None, size, offset, jnp.int32(0), size)
    before = client_mean(start, params, data, everything)
    opt_state = optimizers.init(client_optimizer, start)
    weights, opt_state, _ = jax.lax.while_loop(
      lambda carry: carry[-1] < local_epochs * steps_per_epoch,
      step,
      (start, opt_state, jnp.int32(0)),
    )
    return optimizers.evaluation_params(opt_state, weights), before

  def device_round(params, data, sizes, offsets, keys):
    local, before = jax.lax.map(
      lambda client: train_client(params, data, *client),
      (sizes, offsets, keys),
      batch_size=client_chunk if client_chunk > 1 else None,
    )
    grads = pseudo_gradient(variables.weights(params), local, sizes)
    means = grads, {"loss": jnp.average(before, weights=sizes)}
    share = sizes.sum() / jax.lax.psum(sizes.sum(), TASKS)
    grads, metrics = jax.tree.map(
      lambda x: jax.lax.psum(share * wide(x), TASKS).astype(x.dtype), means
    )
    return variables.combine(grads, params), metrics

  sharded_round = jax.shard_map(
    device_round,
    mesh=mesh,
    in_specs=(P(), P(), P(TASKS), P(TASKS), P(TASKS)),
    out_specs=P(),
    check_vma=False,
  )

  def one_round(state, data, sizes, offsets, rng):
    draw_key, order_key = jax.random.split(jax.random.fold_in(rng, state.step))
    chosen = jax.random.choice(
      draw_key, num_clients, (clients_per_round,), replace=False
    )
    # Sorts clients by size and deals them out to the devices in turn. The
    # clients of a chunk then have similar sizes, and the devices similar work.
    chosen = chosen[jnp.argsort(-sizes[chosen])]
    chosen = chosen.reshape(-1, mesh.size).T.reshape(-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(order_key, chosen)

    def at(params):
      return sharded_round(params, data, sizes[chosen], offsets[chosen], keys)

    grads, metrics = at(state.meta_params)
    loss = metrics["loss"]
    return next_state(server_optimizer, state, grads, loss, at=at), metrics

  replicated = NamedSharding(mesh, P())
  of_first = slice(int(offsets[0]), int(offsets[0] + sizes[0]))

  @functools.partial(jax.jit, out_shardings=replicated)
  def start(rng: PRNGKey, inputs: Any) -> TrainState:
    inputs = jax.tree.map(lambda x: x[of_first], inputs)
    return first_state(server_optimizer, model.init(rng, inputs))

  def init(rng: PRNGKey) -> TrainState:
    return start(place(rng, replicated), data.inputs)

  data, sizes, offsets, rng = place((data, sizes, offsets, rng), replicated)
  train = mean_over_steps(one_round, data, sizes, offsets, rng)
  return trainer_on(mesh, init, train)
