"""Every learner under the modes in which JAX looks for faults."""



import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.key_reuse._core import check_key_reuse

from metajax.learners import ENCODED, REGISTRY
from metajax.losses import accuracy, cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode

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


def _everything(name, dtype=np.float32):
  """Starts a learner, takes a meta-gradient, adapts and predicts."""
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
    init_key, key, adapt_key = jax.random.split(rng, 3)
    support, query = jax.tree.map(lambda x: x[0], episodes)
    params = learner.init(init_key, support.inputs)
    grads, metrics = learner.meta_grad(params, episodes, key)
    adapted = learner.adapt(params, support, adapt_key)
    return params, grads, metrics, learner.predict(adapted, query.inputs)

  return run, (jax.random.key(0), _episodes(dtype))


@pytest.mark.parametrize("name", DISTINCT)
def test_no_tracer_leaks(name):
  run, arguments = _everything(name)
  with jax.checking_leaks():
    jax.jit(run).trace(*arguments)


@pytest.mark.parametrize("name", DISTINCT)
def test_no_key_is_used_twice(name):
  run, arguments = _everything(name)
  check_key_reuse(run, *arguments)


@pytest.mark.parametrize("name", DISTINCT)
def test_no_dtype_is_promoted_silently(name):
  run, arguments = _everything(name)
  with jax.numpy_dtype_promotion("strict"):
    jax.eval_shape(run, *arguments)


@pytest.mark.parametrize("name", DISTINCT)
def test_with_64_bits_dtypes_are_those_of_the_data(name):
  """float32 parameters stay so; float64 ones have float64 gradients."""
  with jax.enable_x64(True):
    run, arguments = _everything(name)
    params, grads, *_ = jax.eval_shape(run, *arguments)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {np.dtype("float32")}
