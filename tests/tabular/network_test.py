"""The tabular network: invariances, masks, the cache and its attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.learners.heads import ABSENT
from metajax.tabular import table_transformer, tabular_classifier
from metajax.types import Batch, Episode

SIZES = {"width": 8, "hidden": 8, "num_layers": 2, "heads": 2}
LEARNER = tabular_classifier(num_classes=4, **SIZES)
ROWS, ASKED, FEATURES = 12, 5, 3


@functools.cache
def params():
  return LEARNER.init(jax.random.key(0), jnp.zeros((1, FEATURES)))


NETWORK = table_transformer(num_classes=4, **SIZES)
NAMES = np.random.default_rng(2).normal(size=(FEATURES + 1, 16))
NAMES = NAMES.astype(np.float32)


@jax.jit
def _logits(params, support, inputs, names):
  labels = jax.nn.one_hot(support.targets, 4) * support.mask[:, None]
  memory = NETWORK.read(params, support.inputs, labels, support.mask, names)
  return NETWORK.ask(params, memory, inputs)


def logits(support, inputs, columns=slice(None)):
  names = NAMES[: inputs.shape[1]][columns]
  return np.asarray(_logits(params(), support, inputs, names))


@jax.jit
def learned(params, support, inputs):
  task_params = LEARNER.adapt(params, support, jax.random.key(0))
  return LEARNER.predict(task_params, inputs)


def table(seed=0):
  """A table with a gap, a class that is absent, and a mask."""
  draw = np.random.default_rng(seed)
  x = draw.normal(size=(ROWS + ASKED, FEATURES)).astype(np.float32)
  x[2, 1] = x[ROWS + 1, 0] = np.nan
  y = draw.integers(0, 3, ROWS + ASKED)
  y[:3] = 0, 1, 2
  mask = np.arange(ROWS) < ROWS - 2
  return Batch(x[:ROWS], y[:ROWS], mask), x[ROWS:], y[ROWS:]


@pytest.mark.slow
def test_order_of_rows_and_features_has_no_effect():
  support, asked, _ = table()
  before = logits(support, asked)
  draw = np.random.default_rng(1)
  rows, columns = draw.permutation(ROWS), draw.permutation(FEATURES)
  other = jax.tree.map(lambda x: x[rows], support)
  other = other._replace(inputs=other.inputs[:, columns])
  after = logits(other, asked[:, columns], columns)
  np.testing.assert_allclose(before, after, atol=1e-5)
  # And the columns have an effect.
  assert np.abs(before - logits(support, asked[:, ::-1])).max() > 1e-3


@pytest.mark.slow
def test_padding_and_absent_features_have_no_effect():
  support, asked, _ = table()
  before = logits(support, asked)
  inputs = support.inputs.copy()
  inputs[~support.mask] = 7.0
  targets = np.where(support.mask, support.targets, 3)
  padded = support._replace(inputs=inputs, targets=targets)
  np.testing.assert_array_equal(before, logits(padded, asked))

  def wider(x, value):
    return np.concatenate([x, np.full((len(x), 1), value, np.float32)], axis=1)

  missing = support._replace(inputs=wider(support.inputs, np.nan))
  np.testing.assert_allclose(
    before, logits(missing, wider(asked, np.nan)), atol=1e-5
  )
  constant = support._replace(inputs=wider(support.inputs, 3.0))
  np.testing.assert_allclose(
    before, logits(constant, wider(asked, 9.0)), atol=1e-5
  )


def test_queries_have_no_effect_on_each_other():
  support, asked, _ = table()
  other = asked.copy()
  other[1:] = 100.0
  np.testing.assert_allclose(
    logits(support, asked)[0], logits(support, other)[0], atol=1e-6
  )


@pytest.mark.slow
def test_scales_have_no_effect_and_outliers_are_clipped():
  support, asked, _ = table()
  before = logits(support, asked)
  scale, shift = np.array([1e3, 2.0, 1e-3]), np.array([5.0, -1.0, 0.01])
  moved = support._replace(
    inputs=(support.inputs * scale + shift).astype(np.float32)
  )
  after = logits(moved, (asked * scale + shift).astype(np.float32))
  np.testing.assert_allclose(before, after, atol=2e-3)
  far = [asked + np.float32(x) for x in (1e6, 1e30)]
  np.testing.assert_allclose(*(logits(support, x) for x in far), atol=1e-6)


@pytest.mark.slow
def test_absent_class_is_masked_with_finite_gradients():
  support, asked, targets = table()
  out = np.asarray(learned(params(), support, asked))
  np.testing.assert_array_equal(out[:, 3], ABSENT * np.finfo(np.float32).max)
  assert (jax.nn.softmax(out)[:, 3] == 0).all()
  query = Batch(asked, targets, np.ones(ASKED, bool))
  episode = jax.tree.map(
    lambda x: jnp.asarray(x)[None], Episode(support, query)
  )
  grads, metrics = jax.jit(LEARNER.meta_grad)(
    params(), episode, jax.random.key(1)
  )
  assert 0 < metrics["loss"] < 5
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["layers"][0]))


@pytest.mark.slow
def test_empty_support_gives_equal_chances():
  support, asked, _ = table()
  empty = support._replace(mask=np.zeros(ROWS, bool))
  out = learned(params(), empty, asked)
  np.testing.assert_allclose(jax.nn.softmax(out), 0.25)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="heads must divide"):
    table_transformer(width=8, heads=3)
  with pytest.raises(ValueError, match="num_layers=0"):
    tabular_classifier(num_layers=0)
  support, _, _ = table()
  with pytest.raises(ValueError, match=r"\[rows, features\]"):
    LEARNER.adapt(
      params(), support._replace(inputs=np.zeros(ROWS)), jax.random.key(0)
    )
  wrong = support._replace(targets=np.full(ROWS, 4))
  with pytest.raises(ValueError, match="class 4"):
    LEARNER.adapt(params(), wrong, jax.random.key(0))


def test_network_equals_loops_in_float64():
  """Every cell by its own loop, queries among the rows: no cache."""
  support, asked, _ = table()
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
  heads, real = SIZES["heads"], np.flatnonzero(support.mask)
  x = np.concatenate([support.inputs, asked]).astype(np.float64)
  n, known = len(x), x[real]

  def dense(layer, v):
    return v @ layer["kernel"] + layer["bias"]

  def norm(layer, v):
    v = v - v.mean(-1, keepdims=True)
    v = v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5)
    return layer["scale"] * v + layer["bias"]

  def attend(layer, own, others):
    q, out = dense(layer["queries"], own), []
    k, v = dense(layer["keys"], others), dense(layer["values"], others)
    for part in np.split(np.arange(len(q)), heads):
      scores = np.exp(k[:, part] @ q[part] / np.sqrt(len(part)))
      out.append(scores @ v[:, part] / scores.sum())
    return dense(layer["merge"], np.concatenate(out))

  def gelu(v):
    inner = np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)
    return v * (1 + np.tanh(inner)) / 2

  cells = np.zeros((n, FEATURES, 3 + 16))
  cells[:, :, 3:] = NAMES[:FEATURES]
  for f in range(FEATURES):
    column = known[:, f][~np.isnan(known[:, f])]
    for r in range(n):
      value = x[r, f]
      if np.isnan(value):
        cells[r, f, :3] = 0, 0, 1
        continue
      z = np.clip((value - column.mean()) / column.std(), -5, 5)
      below = np.mean(column < value) + np.mean(column == value) / 2
      cells[r, f, :3] = z, np.sqrt(12) * (below - 0.5), 0
  first, second = p["cell"]
  t = np.zeros((n, FEATURES + 1, SIZES["width"]))
  t[:, 1:] = dense(second, np.maximum(dense(first, cells), 0))
  t[:, 0] = p["asked"] + dense(p["row"], t[:, 1:].sum(1) / np.sqrt(FEATURES))
  for r in real:
    t[r, 0] += dense(p["label"], np.eye(4)[support.targets[r]]) - p["asked"]
  for layer in p["layers"]:
    y = norm(layer["cells"]["norm"], t)
    t = t + [[attend(layer["cells"], c, row) for c in row] for row in y]
    y = norm(layer["rows"]["norm"], t)
    t = t + [
      [attend(layer["rows"], y[r, f], y[real, f]) for f in range(FEATURES + 1)]
      for r in range(n)
    ]
    y = gelu(dense(layer["hidden"], norm(layer["norm"], t)))
    t = t + dense(layer["output"], y)
  first, second = p["head"]
  out = dense(first, norm(p["norm"], t[ROWS:, 0]))
  out = dense(second, np.maximum(out, 0))
  np.testing.assert_allclose(logits(support, asked), out, atol=2e-5)


def test_integers_are_a_table_of_floats():
  table = np.random.default_rng(0).integers(0, 9, (ROWS, FEATURES))
  labels, found = jnp.arange(ROWS) % 4, []
  for x in (jnp.asarray(table), jnp.asarray(table, jnp.float32)):
    support = Batch(x, labels, jnp.ones(ROWS, bool))
    found.append(learned(params(), support, x))
  np.testing.assert_array_equal(*found)
