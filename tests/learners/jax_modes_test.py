"""Every learner under the modes in which JAX looks for faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import ENCODED, REGISTRY
from metajax.losses import accuracy, cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode
from tests.slow import slow_but

# Those that are no other one with other arguments.
DISTINCT = [n for n in REGISTRY if n not in ("fomaml", "anil", "boil")]
OPTIONS = {
  "maml_plus_plus": {"step_normalization": False},
  "recurrent": {"units": 4},
  "reptile": {"held_out_report": True, "inner_batch": 2},
}
NUM_TASKS, WAYS = 2, 3


def _episodes(dtype):
  draw = np.random.default_rng(0).normal
  inputs = draw(size=(NUM_TASKS, 2 * WAYS, 2)).astype(dtype)
  labels = np.tile(np.arange(2 * WAYS, dtype=np.int32) % WAYS, (NUM_TASKS, 1))
  batch = Batch(jnp.asarray(inputs), jnp.asarray(labels))
  return Episode(batch, batch)


def _step(name, dtype=np.float32):
  """Starts a learner and takes a meta-gradient."""
  options = {"num_outputs": WAYS} if name in ENCODED else {}
  learner = REGISTRY[name](
    MLP(WAYS, (4,)),
    cross_entropy,
    optax.sgd(0.1, momentum=0.9),
    2,
    metrics={"accuracy": accuracy},
    **options,
    **OPTIONS.get(name, {}),
  )

  def run(rng, episodes):
    init_key, key = jax.random.split(rng)
    params = learner.init(init_key, episodes.support.inputs[0])
    return params, *learner.meta_grad(params, episodes, key)

  return run, (jax.random.key(0), _episodes(dtype))


pytestmark = pytest.mark.usefixtures("quick_collections")

FAST = ("maml", "imaml", "prototypical", "recurrent")


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["prototypical"], DISTINCT))
def test_no_leaks_no_key_used_twice_no_silent_promotion(name):
  """All that is looked for while a program is traced, which takes long."""
  run, arguments = _step(name)
  with (
    jax.checking_leaks(),
    jax.debug_key_reuse(True),
    jax.numpy_dtype_promotion("strict"),
  ):
    jax.jit(run).trace(*arguments)


@pytest.mark.parametrize("name", slow_but(FAST, DISTINCT))
def test_with_64_bits_gradients_have_the_dtypes_of_the_parameters(name):
  """Whatever the data have."""
  with jax.enable_x64(True):
    run, arguments = _step(name, np.float64)
    params, grads, _ = jax.eval_shape(run, *arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
