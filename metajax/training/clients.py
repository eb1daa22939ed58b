"""Clients of federated learning: their examples and their mean losses."""

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
  """The examples of all clients, padded or concatenated.

  Attributes:
    data: without `offsets`, arrays `[clients, max_size, ...]`. The first
      examples of a client are real, and the others are padding. With `offsets`,
      arrays `[examples, ...]`, the concatenated examples of all clients.
    sizes: integers `[clients]`, the number of examples of each client; at least
      1.
    offsets: integers `[clients]`, the index in `data` of the first example of
      each client. None: the data are padded.
  """

  data: Batch
  sizes: Array
  offsets: Array | None = None


class Rows(NamedTuple):
  """A range of a client's examples, in a given order of all its examples.

  Attributes:
    rng: the key of a random order. None: the order of the data.
    size: number of examples of the client.
    offset: the index in the data of the client's first example.
    first: the place in the order where the range starts.
    number: number of examples in the range.
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

  Both are `(weights, params, data, rows) -> scalar`. `params` gives the leaves
  that are not weights. They compute the examples in blocks of `block`.

  Args:
    model: a model whose prediction of an example does not depend on others.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    batch_size: largest number of examples of a batch.
    block: number of examples to compute at once, at most `batch_size`.

  Returns:
    `(batch_mean, client_mean)`.
  """

  def one(prediction: Any, target: Any) -> Array:
    return loss_fn(*jax.tree.map(lambda x: x[None], (prediction, target)))

  def share(weights, params, data, rows, k=0):
    """Returns the term of the k-th block in the mean."""
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

  # JAX has no reverse mode for a loop of traced length. The rule below computes
  # the gradient of each block inside the loop instead.
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
  """Chooses the number of examples to compute at once.

  Starting from `batch_size`, it is halved until at most half of the computed
  examples are padding.

  Args:
    sizes: `[clients]`, the number of examples of each client.
    batch_size: examples of a step. The last batch of a client may be smaller.
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
  """Concatenates the clients' examples, and checks sizes and offsets.

  Returns:
    `(data, sizes, offsets)`, the data without padding.

  Raises:
    ValueError: if the data have a mask, or if sizes or offsets do not fit them.
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
