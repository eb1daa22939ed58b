"""No two parameters are one array: a training donates each buffer once."""

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
    num_outputs=2,
  )


LEARNERS = {
  **{name: functools.partial(_of_registry, name) for name in REGISTRY},
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
  "tabular": tabular_classifier,
}


@pytest.mark.parametrize("name", LEARNERS)
def test_no_two_initial_parameters_are_one_array(name):
  init = LEARNERS[name]().init
  traced = jax.make_jaxpr(init)(jax.random.key(0), jnp.zeros((3, 1)))
  found = list(map(id, traced.jaxpr.outvars))
  assert len(found) == len(set(found))
