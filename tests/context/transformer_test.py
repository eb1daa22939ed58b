"""Attention and its cache, against numpy in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context.transformer import transformer

RNG = jax.random.key(0)
WIDTH, HIDDEN, LAYERS, HEADS = 8, 12, 3, 2
SUPPORT, QUERY = 5, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", params=[False, True], ids=["post", "pre"])
def network(request):
  """`(network, params, normed_first)`; all parameters matter."""
  made = transformer(
    width=WIDTH,
    hidden=HIDDEN,
    layers=LAYERS,
    heads=HEADS,
    normed_first=request.param,
  )
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.asarray(x) + draw.normal(0, 0.3, x.shape), made.init(RNG)
  )
  read = jax.jit(made.read, static_argnames="causal")
  return made._replace(read=read, ask=jax.jit(made.ask)), params, request.param


def _tokens(n, seed=1):
  return np.random.default_rng(seed).normal(size=(n, WIDTH))


def _dense(p, x):
  return x @ p["kernel"] + p["bias"]


def _norm(p, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return p["scale"] * x + p["bias"]


def _attention(q, k, v, mask):
  """A loop over heads and queries."""
  size = WIDTH // HEADS
  out = np.zeros_like(q)
  for head in range(HEADS):
    part = slice(head * size, (head + 1) * size)
    for i in range(len(q)):
      seen = np.flatnonzero(mask[i])
      if len(seen):
        scores = k[seen][:, part] @ q[i, part] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[i, part] = weights / weights.sum() @ v[seen][:, part]
  return out


def _one_pass(params, x, mask, normed_first):
  """The whole sequence at once, `[n, WIDTH]`, with the mask `[n, n]`."""
  for i in range(LAYERS):
    p = jax.tree.map(lambda w, i=i: np.asarray(w[i]), params)
    y = _norm(p["norms"][0], x) if normed_first else x
    q, k, v = (_dense(p[name], y) for name in ("queries", "keys", "values"))
    x = x + _dense(p["merge"], _attention(q, k, v, mask))
    if not normed_first:
      x = _norm(p["norms"][0], x)
    y = _norm(p["norms"][1], x) if normed_first else x
    x = x + _dense(p["output"], np.maximum(_dense(p["hidden"], y), 0))
    if not normed_first:
      x = _norm(p["norms"][1], x)
  return x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("among", ["none", "themselves", "before"])
def test_cache_equals_one_pass_over_all_tokens(network, causal, among):
  made, params, normed_first = network
  x, y = _tokens(SUPPORT), _tokens(QUERY, seed=2)
  real = np.array([True, True, False, True, True])
  inside = {
    "none": np.zeros((QUERY, QUERY), bool),
    "themselves": np.eye(QUERY, dtype=bool),
    "before": np.tril(np.ones((QUERY, QUERY), bool)),
  }[among]
  mask = np.zeros((SUPPORT + QUERY,) * 2, bool)
  mask[:, :SUPPORT] = real
  if causal:
    mask[:SUPPORT] = np.tril(mask[:SUPPORT])
  mask[SUPPORT:, SUPPORT:] = inside
  expected = _one_pass(params, np.concatenate([x, y]), mask, normed_first)
  hidden, cache = made.read(params, x, real, causal=causal)
  found = made.ask(params, cache, y, None if among == "none" else inside)
  np.testing.assert_allclose(hidden, expected[:SUPPORT], rtol=1e-9)
  np.testing.assert_allclose(found, expected[SUPPORT:], rtol=1e-9)


@pytest.mark.slow
def test_causal_tokens_know_nothing_of_later_ones(network):
  """The Jacobian is zero above the diagonal, and only there."""
  made, params, _ = network

  def outputs(x):
    return made.read(params, x, causal=True)[0]

  jacobian = jax.jacobian(outputs)(jnp.asarray(_tokens(4)))
  size = np.abs(jacobian).sum((1, 3))
  np.testing.assert_array_equal(np.triu(size, 1), 0)
  assert np.tril(size)[np.tril_indices(4)].min() > 1e-6


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="heads=3: heads must divide the width"):
    transformer(width=8, heads=3)
  with pytest.raises(ValueError, match="layers=0: must be 1 or more"):
    transformer(layers=0)
