"""What queries attend to, against a loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import attended, tnp_d
from metajax.types import Batch

RNG = jax.random.key(0)
X = jnp.linspace(-1, 1, 5)[:, None]
SUPPORT = Batch(X, jnp.sin(3 * X), jnp.array([1, 1, 0, 1, 1], bool))
ASKED = jnp.array([[-0.3], [0.8]])


def _dense(p, x):
  return x @ np.asarray(p["kernel"], float) + np.asarray(p["bias"], float)


def _mlp(layers, x):
  for layer in layers[:-1]:
    x = np.maximum(_dense(layer, x), 0)
  return _dense(layers[-1], x)


@pytest.mark.slow
def test_weights_are_softmax_of_products_and_padding_has_none():
  learner = tnp_d(width=8, hidden=8, layers=2, heads=2)

  @jax.jit
  def solve():
    params = learner.init(RNG, X)
    return params, attended(learner.adapt(params, SUPPORT, RNG), ASKED)

  params, found = jax.tree.map(np.asarray, solve())
  assert found.shape == (2, 2, 2, 5)
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(found[..., 2], 0)

  # The first layer, whose queries are of the inputs alone.
  first = jax.tree.map(lambda w: w[0], params["blocks"])
  read = np.concatenate([SUPPORT.inputs, SUPPORT.targets], axis=1)
  asked = np.concatenate([ASKED, np.zeros((2, 1))], axis=1)
  keys = _dense(first["keys"], _mlp(params["embed"], read)).reshape(5, 2, 4)
  q = _dense(first["queries"], _mlp(params["embed"], asked)).reshape(2, 2, 4)
  real = [0, 1, 3, 4]
  for head in range(2):
    for i in range(2):
      scores = keys[real, head] @ q[i, head] / np.sqrt(4)
      weights = np.exp(scores) / np.exp(scores).sum()
      np.testing.assert_allclose(found[0, head, i, real], weights, rtol=1e-4)


@pytest.mark.parametrize(
  "task_params",
  [
    {"params": (), "summary": ()},
    # Of `transformer_learner`, whose tokens are of other parameters.
    {"params": {"inputs": (), "blocks": ()}, "cache": ()},
  ],
)
def test_task_parameters_of_other_learners_are_refused(task_params):
  with pytest.raises(ValueError, match="must be those of tnp_d or prior_fit"):
    attended(task_params, ASKED)
