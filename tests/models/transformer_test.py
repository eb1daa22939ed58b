"""The transformer: causal, aware of order, and the same with less kept."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.transformer import Transformer

RNG = jax.random.key(0)
TOKENS = jax.random.randint(RNG, (2, 6), 0, 7)


def _model(**options):
  return Transformer(vocabulary=7, width=8, blocks=2, heads=2, **options)


@functools.cache
def _params():
  return jax.jit(_model().init)(RNG, TOKENS)


@functools.cache
def _logits(tokens):
  return np.asarray(jax.jit(_model().apply)(_params(), jnp.array(tokens)))


def _of(tokens):
  return _logits(tuple(map(tuple, np.asarray(tokens).tolist())))


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_token_matters_to_itself_and_to_what_follows(place):
  other = TOKENS.at[0, place].add(1) % 7
  changed = np.abs(_of(TOKENS) - _of(other)).max(-1)
  np.testing.assert_allclose(changed[0, :place], 0, atol=1e-6)
  assert np.all(changed[0, place:] > 1e-4)
  np.testing.assert_allclose(changed[1], 0, atol=1e-6)


@pytest.mark.slow
def test_order_matters():
  """Of the same tokens, the last alike, another prediction."""
  tokens = np.array([[1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]])
  first, second = _of(tokens)[:, -1]
  assert np.abs(first - second).max() > 1e-4


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients():
  def loss(params, model):
    return jnp.square(model.apply(params, TOKENS)).mean()

  plain, remat = (
    jax.jit(jax.value_and_grad(functools.partial(loss, model=model)))(_params())
    for model in (_model(), _model(remat=True))
  )
  chex.assert_trees_all_close(plain, remat, rtol=1e-5, atol=1e-7)


def test_parameters_of_the_blocks_are_stacked():
  (stack,) = {
    leaf.shape[0] for leaf in jax.tree.leaves(_params()["params"]["blocks"])
  }
  assert stack == 2
  kernel = _params()["params"]["blocks"]["Dense_0"]["kernel"]
  assert np.abs(kernel[0] - kernel[1]).max() > 1e-3  # Drawn separately.


def test_heads_that_do_not_divide_the_width_are_named():
  model = Transformer(vocabulary=7, width=8, heads=3)
  with pytest.raises(ValueError, match="heads=3: must divide the width, 8"):
    model.init(RNG, TOKENS)
