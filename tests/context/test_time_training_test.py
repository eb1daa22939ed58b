"""Layers that learn: linear attention where the paper says so, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import ttt_linear
from metajax.context.reconstruction import learn, untrained

C, N = 4, 7


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _linear(weights, key):
  return weights @ key


def _tokens(seed=0):
  """Keys, values and queries `[N, C]`."""
  return np.random.default_rng(seed).normal(size=(3, N, C))


def _weights_over_time(initial, keys, values, rates, minibatch):
  @jax.jit
  def run(initial):
    def one(state, token):
      state = learn(_linear, initial, state, *token, minibatch)
      return state, initial + state.now

    return jax.lax.scan(one, untrained(initial), (keys, values, rates))[1]

  return run(initial)


def test_gradient_descent_from_zero_is_linear_attention():
  """Sun et al. 2024, theorem 1: all gradients at W_0 = 0, step size 1/2."""
  keys, values, queries = _tokens()
  found = _weights_over_time(
    jnp.zeros((C, C)), keys, values, np.full(N, 0.5), None
  )
  scores = np.tril(queries @ keys.T)
  outputs = np.einsum("nij,nj->ni", found, queries)
  np.testing.assert_allclose(outputs, scores @ values, rtol=1e-9)


@pytest.mark.parametrize("minibatch", [1, 3])
def test_steps_are_of_gradients_at_the_last_minibatch(minibatch):
  keys, values, _ = _tokens()
  draw = np.random.default_rng(1)
  rates, weights = draw.uniform(0, 0.1, N), draw.normal(size=(C, C))
  found = _weights_over_time(weights, keys, values, rates, minibatch)
  anchor = weights
  for t in range(N):
    if t % minibatch == 0:
      anchor = weights
    error = anchor @ keys[t] - values[t]
    weights = weights - rates[t] * 2 * np.outer(error, keys[t])
    np.testing.assert_allclose(found[t], weights, rtol=1e-9)


WIDTH, HEADS, BATCH = 6, 2, 2


def _norm(params, x):
  x = x - x.mean()
  return (
    params["scale"] * x / np.sqrt(np.square(x).mean() + 1e-5) + (params["bias"])
  )


def _dense(params, x):
  return x @ params["kernel"] + params["bias"]


def _block_by_hand(params, xs):
  """One block on `[n, width]`; gradients by central differences."""
  size = WIDTH // HEADS
  weights = [
    {k: params["learner"][k][h].copy() for k in ("kernel", "bias")}
    for h in range(HEADS)
  ]
  scales = [
    jax.tree.map(lambda x, h=h: x[h], params["learner_norm"])
    for h in range(HEADS)
  ]
  anchors, outputs, normed = None, [], []
  for t, x in enumerate(xs):
    if t % BATCH == 0:
      anchors = [{k: v.copy() for k, v in w.items()} for w in weights]
    normed.append(_norm(params["norms"][0], x))
    past = [np.zeros(WIDTH)] * 3 + normed
    y = (params["taps"] * np.stack(past[-4:])).sum(0)
    y = y / (1 + np.exp(-y))
    views = [
      _dense(params[name], y).reshape(HEADS, size)
      for name in ("keys", "values", "queries")
    ]
    rates = 1 / (1 + np.exp(-_dense(params["rates"], y))) / size
    out = np.zeros((HEADS, size))
    for h in range(HEADS):
      key, value, query = (view[h] for view in views)

      def f(w, z, h=h):
        return z + _norm(scales[h], _dense(w, z))

      def loss(w, f=f, key=key, value=value):
        return np.square(f(w, key) - value).sum()

      for name in ("kernel", "bias"):
        gradient = np.zeros_like(weights[h][name])
        for place in np.ndindex(gradient.shape):
          ends = []
          for step in (1e-5, -1e-5):
            moved = {k: v.copy() for k, v in anchors[h].items()}
            moved[name][place] += step
            ends.append(loss(moved))
          gradient[place] = (ends[0] - ends[1]) / 2e-5
        weights[h][name] = weights[h][name] - rates[h] * gradient
      out[h] = f(weights[h], query)
    x = x + _dense(params["merge"], out.ravel())
    hidden = _norm(params["norms"][1], x)
    hidden = np.maximum(_dense(params["mlp"][0], hidden), 0)
    outputs.append(x + _dense(params["mlp"][1], hidden))
  return outputs


@pytest.mark.slow
def test_equals_a_loop_over_tokens_heads_and_differences():
  network = ttt_linear(3, width=WIDTH, heads=HEADS, layers=2, minibatch=BATCH)
  draw = np.random.default_rng(0)
  inputs = draw.normal(size=(5, 4))
  params = jax.tree.map(
    lambda x: np.asarray(x + draw.normal(0, 0.3, x.shape)),
    network.init(jax.random.key(0), inputs),
  )

  @jax.jit
  def run(params):
    def one(state, x):
      hidden, state = network.read(params, state, x)
      return state, network.head(params, hidden)

    return jax.lax.scan(one, network.start(), inputs)[1]

  xs = [_dense(params["input"], x) for x in inputs]
  for layer in range(2):
    block = jax.tree.map(lambda x, i=layer: x[i], params["blocks"])
    xs = _block_by_hand(block, xs)
  expected = [_dense(params["output"], _norm(params["norm"], x)) for x in xs]
  np.testing.assert_allclose(run(params), np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"heads": 3}, "width=64, heads=3: heads must divide the width"),
    ({"minibatch": 0}, "minibatch=0: must be 1 or more"),
  ],
)
def test_bad_sizes_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    functools.partial(ttt_linear, 2)(**sizes)
