"""The recipe of the flags, for every learner whose steps may be traced."""

import chex
import jax
import jax.numpy as jnp
import pytest

from metajax import recipes
from metajax.learners import TRACED_STEPS
from metajax.runs import learner_options
from metajax.runs.flags import FLAGS
from metajax.types import Batch
from tests.slow import slow_but

NETWORK = {"name": "mlp", "hidden": [2]}


@pytest.fixture(autouse=True)
def _parsed():
  FLAGS.unparse_flags()
  for name in FLAGS:
    FLAGS[name].unparse()
  FLAGS(["test", "--inner_steps=2", "--inner_lr=0.1"])
  yield
  FLAGS.unparse_flags()


@pytest.mark.parametrize(
  "name", slow_but(("maml", "maml_plus_plus"), sorted(TRACED_STEPS))
)
def test_recipe_takes_a_traced_number_of_steps(name):
  inputs = jnp.linspace(-1, 1, 3)[:, None]
  if name == "cavia":
    inputs = jnp.concatenate([inputs, jnp.zeros((3, FLAGS.num_context))], 1)
  support = Batch(inputs, inputs[:, :1] ** 2)
  key = jax.random.key(0)

  def build(steps):
    outputs = 1
    loss = "mean_squared_error"
    return recipes.build(
      learner_options.recipe(name, NETWORK, loss, outputs, steps)
    )

  params = build(2).init(key, inputs)

  def after(steps):
    learner = build(steps)
    return learner.predict(learner.adapt(params, support, key), inputs)

  chex.assert_trees_all_close(jax.jit(after)(2), after(2), rtol=1e-5)


def test_more_steps_than_parameters_are_refused():
  with pytest.raises(ValueError, match="--eval_inner_steps=3: must be at most"):
    learner_options.recipe(
      "maml_plus_plus", NETWORK, "mean_squared_error", 1, 3
    )
