"""Computing in bfloat16 with parameters in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.models.precision import compute_in
from metajax.tasks import sinusoid

MODEL = MLP(1, (16,))
INPUTS = jnp.linspace(-2, 2, 7)[:, None]
PARAMS = MODEL.init(jax.random.key(0), INPUTS)


def test_every_operation_between_the_casts_is_in_the_precision():
  model = compute_in(MODEL, jnp.bfloat16)
  jaxpr = jax.make_jaxpr(model.apply)(PARAMS, INPUTS)
  types = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(jaxpr))
  assert types == ["bf16", "bf16"]
  assert model.apply(PARAMS, INPUTS).dtype == jnp.float32


def test_predictions_are_those_of_numpy_with_rounded_numbers():
  def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)

  layers = [PARAMS["params"][f"Dense_{i}"] for i in range(2)]
  x = rounded(INPUTS)
  for i, layer in enumerate(layers):
    x = rounded(rounded(x @ rounded(layer["kernel"])) + rounded(layer["bias"]))
    if i == 0:
      x = np.maximum(x, 0)
  found = compute_in(MODEL, jnp.bfloat16).apply(PARAMS, INPUTS)
  # A sum that ends near a tie may round to the next number.
  np.testing.assert_allclose(found, x, rtol=2**-6, atol=2**-7)
  exact = MODEL.apply(PARAMS, INPUTS)
  assert 0 < np.abs(found - exact).max() < 0.05


@pytest.mark.slow
def test_meta_gradients_are_of_the_parameters_and_nearly_those_of_float32():
  episodes = jax.vmap(sinusoid(5, 10))(jax.random.split(jax.random.key(1), 8))
  grads = []
  for model in (MODEL, compute_in(MODEL, jnp.bfloat16)):
    learner = maml(model, mean_squared_error, optax.sgd(0.01), 2)
    grad = jax.jit(learner.meta_grad)(PARAMS, episodes, jax.random.key(2))[0]
    leaves = jax.tree.leaves(grad)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    grads.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
  exact, found = grads
  assert found @ exact > 0.999 * np.linalg.norm(found) * np.linalg.norm(exact)
