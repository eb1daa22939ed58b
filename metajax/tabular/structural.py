"""Nodes of random structural causal models."""

import jax
import jax.numpy as jnp

from metajax.tabular.draws import between, normals, uniforms, whole
from metajax.types import Array, PRNGKey

UNITS, LAYERS = 16, 3
# The functions of nodes; those that increase are more frequent.
ACTIVATIONS = (
  lambda x: x,
  jnp.tanh,
  jax.nn.relu,
  jnp.sin,
  jnp.square,
  lambda x: jnp.exp(-jnp.square(x)),
  jnp.sign,
)
SHARES = (0.25, 0.25, 0.2, 0.1, 0.07, 0.06, 0.07)


def causal_nodes(rng: PRNGKey, num_rows: int, num_causes: Array) -> Array:
  """Draws a random structural causal model, and its nodes for each row.

  ::

    z_0 ~ the causes,  z_l = f(z_(l-1) W_l + b_l) + noise,  l = 1, 2, 3

  Each cause has its own distribution: normal, uniform, a mixture, or one with
  heavy tails. A weight is zero with a probability that a task draws. Each node
  has its own function f, or all of a layer have the same. After each layer a
  node is standardised over the rows.

  Args:
    rng: the key of the model and of the rows.
    num_rows: the number of rows.
    num_causes: how many of the 16 nodes of the first layer have an effect.

  Returns:
    `[4, rows, 16]`, the nodes by layer, the causes first.

  References:
    Hollmann et al., `TabPFN <https://arxiv.org/abs/2207.01848>`_, 2023, section
    4 and appendix C.
  """
  uniform_key, normal_key = jax.random.split(rng)
  table, square, layers = (
    (num_rows, UNITS),
    (LAYERS, UNITS, UNITS),
    (LAYERS, UNITS),
  )
  which, cause, sparse, own, same, scalars = uniforms(
    uniform_key, table, (UNITS,), square, layers, (LAYERS,), (3,)
  )
  normal, modes, weights, biases, errors = normals(
    normal_key, table, (4, UNITS), square, layers, (LAYERS, *table)
  )
  live = jnp.arange(UNITS) < num_causes
  density = between(scalars[0], 0.1, 1.0)
  noise = jnp.exp(between(scalars[1], -6.0, -1.2))
  kinds = jnp.where(scalars[2] < 0.5, same[:, None], own)
  weights = jnp.where(sparse < density, weights, 0)
  weights = weights.at[0].multiply(live[:, None])
  weights /= jnp.sqrt(jnp.square(weights).sum(1, keepdims=True) + 1e-6)
  x = standardized(_causes(cause, normal, modes, which))
  nodes = [x]
  for layer in range(LAYERS):
    y = x @ weights[layer] + 0.7 * biases[layer]
    y = _selected(kinds[layer], y)
    x = standardized(y) + noise * errors[layer]
    nodes.append(x)
  return jnp.stack(nodes)


def standardized(x: Array) -> Array:
  """Standardises nodes `[rows, ...]` over the rows; constants become 0."""
  x = x - x.mean(0)
  return x / jnp.sqrt(jnp.square(x).mean(0) + 1e-6)


def _selected(u: Array, x: Array) -> Array:
  ends = jnp.cumsum(jnp.asarray(SHARES[:-1]))
  kinds = (u[:, None] > ends).sum(-1)
  values = jnp.stack([f(x) for f in ACTIVATIONS], axis=-1)
  return jnp.sum(values * jax.nn.one_hot(kinds, len(ACTIVATIONS)), axis=-1)


def _causes(kind: Array, normal: Array, modes: Array, which: Array) -> Array:
  """Returns the causes `[rows, units]`, each of one of four distributions."""
  mode = whole(which, 0, 3)
  centres = jnp.sum(2 * modes * jax.nn.one_hot(mode, 4, axis=1), axis=1)
  kind = whole(kind, 0, 3)
  return jnp.select(
    [kind == 0, kind == 1, kind == 2],
    [normal, which, centres + 0.3 * normal],
    jnp.sinh(normal),
  )
