"""Clients of federated learning: their examples, and mean losses over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import variables
from metajax.forward import Forward
from metajax.numerics import wide
from metajax.training.shuffling import shuffled
from metajax.types import Array, Batch, LossFn, Params, PRNGKey


class Clients(NamedTuple):
  """The clients' examples, padded to the largest client or end to end.

  Attributes:
    data: arrays `[clients, max_size, ...]`, of which a client's first ones are
      real; with `offsets` arrays `[examples, ...]`.
    sizes: integers `[clients]`, how many examples each client has; at least 1.
    offsets: integers `[clients]`, where the examples of each client begin in
      `data`; None: they are padded.
  """

  data: Batch
  sizes: Array
  offsets: Array | None = None


class Rows(NamedTuple):
  """Some of a client's examples, in an order of all of them.

  Attributes:
    rng: the key of a random order; None: as they are stored.
    size: how many examples the client has.
    offset: where they begin.
    first: the place in the order of the first of these.
    number: how many these are.
  """

  rng: PRNGKey | None
  size: Array
  offset: Array
  first: Array
  number: Array


MeanLoss = Callable[[Params, Params, Batch, Rows], Array]


def mean_of_rows(
  model: Forward, loss_fn: LossFn, batch_size: int, block: int
) -> tuple[MeanLoss, MeanLoss]:
  """Builds the mean loss of a batch, and that of any number of examples.

  Both are `(weights, params, data, rows) -> scalar`, where `params` say what is
  no weight. They compute `block` examples at once, as often as is needed.

  Args:
    model: treats examples one by one.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    batch_size: as many as a batch has at most.
    block: `batch_size` or less.
  """

  def one(prediction: Any, target: Any) -> Array:
    return loss_fn(*jax.tree.map(lambda x: x[None], (prediction, target)))

  def share(weights, params, data, rows, k=0):
    """What the k-th block adds to the mean."""
    place = k * block + jnp.arange(block)
    is_real = place < rows.number
    place = jnp.minimum(rows.first + place, rows.size - 1)
    if rows.rng is not None:
      place = shuffled(rows.rng, rows.size, place)
    chosen = rows.offset + place
    batch = jax.tree.map(lambda x: x[chosen], data)
    params = variables.combine(weights, params)
    values = jax.vmap(one)(model.apply(params, batch.inputs), batch.targets)
    return jnp.where(is_real, wide(values), 0).sum() / rows.number

  def add_up(fn, rows):
    """Sums `fn(k)` over the blocks, in float32 at least."""

    def term(k):
      return jax.tree.map(wide, fn(k))

    def add(k, total):
      return jax.tree.map(jnp.add, total, term(k))

    shapes = jax.eval_shape(term, jnp.int32(0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, -(-rows.number // block), add, zeros)

  # A loop whose length is computed has no derivative in reverse mode: each
  # block's is taken where the block is.
  @jax.custom_vjp
  def mean(weights, params, data, rows):
    return add_up(lambda k: share(weights, params, data, rows, k), rows)

  def with_gradient(weights, params, data, rows):
    value_and_grad = jax.value_and_grad(share)
    value, grads = add_up(
      lambda k: value_and_grad(weights, params, data, rows, k), rows
    )
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, weights)
    return value, grads

  def pull_back(grads, cotangent):
    grads = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads)
    return grads, None, None, None

  mean.defvjp(with_gradient, pull_back)
  return share if block == batch_size else mean, mean


def block_size(sizes: np.ndarray, batch_size: int) -> int:
  """Returns the most examples at once of which padding is half at most.

  It is halved, from that of a batch, until that is so.

  Args:
    sizes: `[clients]`.
    batch_size: examples of a step; the last batch of a client has the rest.
  """
  sizes, block = np.asarray(sizes, np.int64), batch_size

  def computed(count):
    return -(-count // block) * block

  while (
    sizes // batch_size * computed(batch_size) + computed(sizes % batch_size)
  ).sum() > 2 * sizes.sum():
    block = -(-block // 2)
  return block


def end_to_end(clients: Clients) -> tuple[Batch, np.ndarray, np.ndarray]:
  """Returns examples without padding, and sizes and offsets that are checked.

  Raises:
    ValueError: for sizes or offsets that do not fit the data.
  """
  data = clients.data
  if data.mask is not None:
    raise ValueError(
      "clients.data: a mask was given, must be None; sizes say what is real."
    )
  shape = jnp.shape(jax.tree.leaves(data)[0])
  sizes = np.asarray(clients.sizes, np.int32)
  is_padded = clients.offsets is None
  offsets = np.asarray(0 if is_padded else clients.offsets, np.int32)
  num_clients = shape[0] if is_padded else offsets.size
  if sizes.shape != (num_clients,):
    raise ValueError(
      f"clients.sizes of shape {sizes.shape}: must be ({num_clients},)."
    )
  if is_padded:
    most = np.full(num_clients, shape[1])
  else:
    most = np.where(offsets < 0, 0, shape[0] - offsets)
  bad = np.flatnonzero((sizes < 1) | (sizes > most))
  if bad.size:
    raise ValueError(
      f"clients.sizes: client {bad[0]} has {sizes[bad[0]]}, must be 1 to "
      f"{most[bad[0]]}."
    )
  if not is_padded:
    return data, sizes, offsets
  rows = np.flatnonzero(np.arange(shape[1]) < sizes[:, None])
  data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[rows], data)
  return data, sizes, np.cumsum(sizes, dtype=np.int32) - sizes
