"""SNAIL, against the published network in a loop over examples and layers."""

import jax
import numpy as np
import pytest

from metajax.context import snail

N, FEATURES, WAYS, CHANNELS = 5, 3, 2, 4
ATTENTION = ((4, 3), (5, 2))
LENGTH = 6  # Dilations 1, 2 and 4.


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _dense(params, x):
  return x @ params["kernel"] + params["bias"]


def _published(params, tokens):
  """Outputs of one causal pass over tokens, all in the same way."""
  x = list(tokens)
  for layer in params["layers"]:
    new = []
    for t in range(len(x)):
      if "queries" in layer:
        size = layer["queries"]["bias"].size
        both = [_dense(layer["memory"], y) for y in x[: t + 1]]
        query = _dense(layer["queries"], x[t])
        scores = np.array([query @ y[:size] for y in both]) / np.sqrt(size)
        weights = np.exp(scores) / np.exp(scores).sum()
        new.append(weights @ np.stack([y[size:] for y in both]))
      else:
        before = t - layer["dilation"]
        past = x[before] if before >= 0 else np.zeros_like(x[t])
        a, b = np.split(_dense(layer, np.concatenate([past, x[t]])), 2)
        new.append(np.tanh(a) / (1 + np.exp(-b)))
    x = [np.concatenate([y, z]) for y, z in zip(x, new, strict=True)]
  return np.stack([_dense(params["head"], y) for y in x])


@pytest.mark.slow
def test_equals_the_published_network_on_each_prefix():
  """Examples with labels, and at last one without."""
  reader = snail(WAYS, length=LENGTH, channels=CHANNELS, attention=ATTENTION)
  draw = np.random.default_rng(0)
  features = draw.normal(size=(N, FEATURES))
  labels = np.eye(WAYS)[draw.integers(0, WAYS, N)]
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.5, x.shape),
    reader.init(jax.random.key(0), features),
  )

  @jax.jit
  def run(params):
    nothing = reader.start(params, features)
    outputs, memory = reader.read(params, nothing, features, labels)
    return outputs, reader.predict(params, memory, features[:2])

  outputs, predictions = run(params)
  known = jax.tree.map(np.asarray, params)
  convolutions = [x for x in known["layers"] if "queries" not in x]
  assert len(convolutions) == 3
  for layer, dilation in zip(convolutions, (1, 2, 4), strict=True):
    layer["dilation"] = dilation
  tokens = np.concatenate([features, labels], axis=1)

  def last(n, feature):
    asked = np.concatenate([feature, np.zeros(WAYS)])
    return _published(known, [*tokens[:n], asked])[-1]

  for i in range(N):
    np.testing.assert_allclose(outputs[i], last(i, features[i]), rtol=1e-9)
  for i in range(2):
    np.testing.assert_allclose(predictions[i], last(N, features[i]), rtol=1e-9)


def test_has_the_published_sizes():
  reader = snail(5, length=6)  # 5-way 1-shot.
  params = jax.eval_shape(reader.init, jax.random.key(0), np.zeros((5, 64)))
  # 64 features and 5 labels; attention to 32, 128 and 256 values; twice 3
  # dilated convolutions of 128 channels.
  assert params["head"]["kernel"].shape == (69 + 416 + 2 * 3 * 128, 5)


def test_bad_sizes_are_named():
  with pytest.raises(ValueError, match="length=0: must be 1 or more"):
    snail(2, length=0)
  with pytest.raises(ValueError, match="attention=0: must be 1"):
    snail(2, attention=((4, 0),))
