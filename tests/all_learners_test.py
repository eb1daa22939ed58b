"""What all learners share: parameters apart, and inputs of any dtype."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax import context
from metajax.context import registry
from metajax.learners import ENCODED, REGISTRY, learn_by_reading
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.tabular import tabular_classifier
from metajax.types import Batch, Episode

NARROW = {
  "convcnp": {"width": 8},
  "prior_fitted": {"width": 8, "edges": [0.0, 1.0, 2.0, 3.0]},
}


def _of_registry(name):
  model = MLP(None if name in ENCODED else 2, (4,))
  options = {"num_outputs": 2} if name in ENCODED else {}
  if name == "maml_plus_plus":
    options = {"step_normalization": False}  # The model has none.
  return REGISTRY[name](model, mean_squared_error, optax.sgd(0.1), 1, **options)


def _of_reader(name):
  return learn_by_reading(
    MLP(None, (4,)),
    context.build_reader(name),
    mean_squared_error,
    num_outputs=1,
  )


IN_CONTEXT = {
  **{
    name: functools.partial(
      registry.build, name, **NARROW.get(name, {"width": 8})
    )
    for name in registry.LEARNERS
  },
  **{
    f"reader_{name}": functools.partial(_of_reader, name)
    for name in context.READERS
  },
  "attention_descent": lambda: context.attention_descent(
    mean_squared_error, plus_plus=True
  ),
  "bayesian_maml": context.bayesian_maml,
  "linear_attention": lambda: context.linear_attention(mean_squared_error),
}
LEARNERS = {
  **{name: functools.partial(_of_registry, name) for name in REGISTRY},
  **IN_CONTEXT,
  "tabular": tabular_classifier,
}


@pytest.mark.parametrize("name", LEARNERS)
def test_no_two_initial_parameters_are_one_array(name):
  """A training that donates them needs each buffer once."""
  init = LEARNERS[name]().init
  traced = jax.make_jaxpr(init)(jax.random.key(0), jnp.zeros((3, 1)))
  found = list(map(id, traced.jaxpr.outvars))
  assert len(found) == len(set(found))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", IN_CONTEXT)
def test_inputs_of_another_dtype_than_the_parameters_are_read(name, x64):
  """Loops over layers had a carry of the dtype of the inputs."""
  with jax.enable_x64(x64):
    learner, key = IN_CONTEXT[name](), jax.random.key(0)
    params = jax.eval_shape(learner.init, key, jnp.zeros((3, 1)))
    dtype = jnp.float32 if x64 else jnp.bfloat16
    x = jnp.ones((1, 3, 1), dtype)
    episodes = Episode(Batch(x, x), Batch(x, x))
    grads, _ = jax.eval_shape(learner.meta_grad, params, episodes, key)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
