"""Feature losses against loops in numpy float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.distillation import (
  attention_transfer,
  hint,
  relational_angle,
  relational_distance,
)

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = DRAW.normal(size=(5, 3)), DRAW.normal(size=(5, 7))


def _float32(*arrays):
  return [jnp.asarray(a, jnp.float32) for a in arrays]


def _huber(x):
  return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def test_hint_goes_through_the_regressor():
  weights = DRAW.normal(size=(3, 7))
  student, teacher, kernel = _float32(STUDENT, TEACHER, weights)
  found = hint(student, teacher, lambda x: x @ kernel)
  expected = ((STUDENT @ weights - TEACHER) ** 2).mean() / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert hint(teacher, teacher) == 0
  with pytest.raises(ValueError, match="features"):
    hint(student, teacher)


def test_attention_looks_at_positions_not_at_channels():
  student, teacher = (
    DRAW.normal(size=(4, 2, 3, 5)),
    DRAW.normal(size=(4, 2, 3, 2)),
  )
  expected = []
  for one, other in zip(student, teacher, strict=True):
    maps = [(f**2).mean(-1).ravel() for f in (one, other)]
    maps = [m / np.linalg.norm(m) for m in maps]
    expected.append(((maps[0] - maps[1]) ** 2).sum())
  found = attention_transfer(*_float32(student, teacher))
  np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)
  # Neither the scale of the features nor the number of channels matters.
  wide = np.concatenate([3 * student, 3 * student], axis=-1)
  same = attention_transfer(*_float32(wide, student))
  np.testing.assert_allclose(same, 0, atol=1e-12)
  with pytest.raises(ValueError, match="attention maps"):
    attention_transfer(*_float32(student[:, :1], teacher))
  # As many positions, at other places.
  turned = teacher.swapaxes(1, 2)
  with pytest.raises(ValueError, match=r"\(4, 2, 3\) but .* \(4, 3, 2\)"):
    attention_transfer(*_float32(student, turned))


def test_relational_distance_compares_pairs():
  pairs = list(itertools.combinations(range(5), 2))
  found = []
  for x in (STUDENT, TEACHER):
    distances = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    found.append(distances / distances.mean())
  expected = _huber(found[0] - found[1]).mean()
  loss = relational_distance(*_float32(STUDENT, TEACHER))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_relational_angle_compares_triples():
  def cosine(x, i, j, k):
    one, other = x[i] - x[j], x[k] - x[j]
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

  triples = list(itertools.permutations(range(5), 3))
  errors = [cosine(STUDENT, *t) - cosine(TEACHER, *t) for t in triples]
  expected = _huber(np.array(errors)).mean()
  loss = relational_angle(*_float32(STUDENT, TEACHER))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_relations_do_not_change_with_rotation_scale_and_place(loss):
  rotation, _ = np.linalg.qr(DRAW.normal(size=(7, 7)))
  moved = 2.5 * TEACHER @ rotation + 4
  np.testing.assert_allclose(loss(*_float32(moved, TEACHER)), 0, atol=1e-10)


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_equal_examples_have_finite_gradients(loss):
  student, teacher = _float32(np.ones((4, 3)), TEACHER[:4])
  grads = jax.jit(jax.grad(loss))(student, teacher)
  assert np.isfinite(grads).all()


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_examples_must_be_the_same_and_enough(loss):
  student, teacher = _float32(STUDENT, TEACHER)
  with pytest.raises(ValueError, match="embeddings of 4 and 5 examples"):
    loss(student[:4], teacher)
  with pytest.raises(ValueError, match="or more"):
    loss(student[:1], teacher[:1])
  with pytest.raises(ValueError, match="not finite"):
    loss(student, teacher.at[0, 0].set(jnp.inf))


@pytest.mark.parametrize("shape", [(4,), (4, 2, 2, 3), (4, 2, 3)])
@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_embeddings_of_other_axes_are_named(loss, shape):
  """Those of one axis have no distance, and the loss was 0."""
  with pytest.raises(ValueError, match=r"must be \[n, d\]"):
    loss(jnp.ones(shape), jnp.ones(shape))


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_features_without_positions_have_no_attention(shape):
  with pytest.raises(ValueError, match="without positions, use hint"):
    attention_transfer(jnp.ones(shape), jnp.ones(shape))
