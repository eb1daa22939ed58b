"""What can be combined and what cannot: the message names it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.aggregation import (
  check_stack,
  interpolate,
  match_units,
  normalized_weights,
  pseudo_gradient,
  stack_models,
  task_arithmetic,
  task_vectors,
)


def _model(value=1.0, width=3, **more):
  return {"a": {"w": jnp.full((2, width), value)}, "b": jnp.ones(4), **more}


def test_models_become_slices_of_the_stack():
  stack = stack_models([_model(1.0), _model(2.0), _model(4.0)])
  assert stack["a"]["w"].shape == (3, 2, 3)
  np.testing.assert_array_equal(stack["a"]["w"][:, 0, 0], [1.0, 2.0, 4.0])
  assert check_stack(stack) == 3


@pytest.mark.parametrize(
  "models, message",
  [
    ([], "models: none given"),
    (
      [_model(), _model(), _model(width=5)],
      r"\['a'\]\['w'\] is float32 \(2, 3\) in model 0 but float32 \(2, 5\) in "
      "model 2",
    ),
    (
      [_model(), _model(c=jnp.ones(1))],
      r"\['c'\] is missing in model 0 but float32 \(1,\) in model 1",
    ),
    (
      [_model(c=jnp.ones(1)), _model()],
      r"\['c'\] is float32 \(1,\) in model 0 but missing in model 1",
    ),
    (
      [_model(), _model() | {"b": jnp.ones(4, jnp.bfloat16)}],
      r"\['b'\] is float32 \(4,\) in model 0 but bfloat16 \(4,\) in model 1",
    ),
    (
      [_model(), _model(jnp.nan)],
      r"model 1 is not finite in \['a'\]\['w'\]; leave it out",
    ),
    ([_model(), _model(jnp.inf), _model(jnp.nan)], "model 1 is not finite"),
    ([jnp.ones(2), jnp.ones(3)], r"the array is float32 \(2,\) in model 0"),
    ([{"n": jnp.arange(2)}], r"\['n'\] is int32, only floating point"),
    ([{}, {}], "a tree without arrays"),
  ],
)
def test_models_that_cannot_be_stacked_are_named(models, message):
  with pytest.raises(ValueError, match=message):
    stack_models(models)


@pytest.mark.parametrize(
  "stack, message",
  [
    ({"a": jnp.ones(())}, r"\['a'\] has shape \(\), must be \[models, ...\]"),
    ({"a": jnp.ones((0, 2))}, "with at least one model"),
    (
      {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))},
      r"\['a'\] has shape \(3, 2\) but \['b'\] \(4, 2\)",
    ),
    ({"a": jnp.ones((3, 2)), "b": jnp.ones(())}, r"but \['b'\] \(\)"),
  ],
)
def test_trees_that_are_no_stack_are_named(stack, message):
  with pytest.raises(ValueError, match=message):
    check_stack(stack)


@pytest.mark.parametrize(
  "weights, expected",
  [
    (None, [0.25, 0.25, 0.25, 0.25]),
    ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]),
    ([0.0, 0.0, 5.0, 0.0], [0, 0, 1, 0]),
    ([1e30, 1e30, 1e30, 1e30], [0.25, 0.25, 0.25, 0.25]),
    ([1e-30, 3e-30, 0.0, 0.0], [0.25, 0.75, 0, 0]),
  ],
)
def test_weights_sum_to_one_whatever_their_scale(weights, expected):
  np.testing.assert_allclose(normalized_weights(weights, 4), expected, 1e-6)


@pytest.mark.parametrize(
  "weights, message",
  [
    ([1.0, -1.0], "must be finite and 0 or more"),
    ([1.0, jnp.nan], "must be finite and 0 or more"),
    ([1.0, jnp.inf], "must be finite and 0 or more"),
    ([0.0, 0.0], "one must be above 0"),
    ([1.0, 1.0, 1.0], r"of shape \(3,\): must be \(2,\)"),
    (1.0, r"of shape \(\): must be \(2,\)"),
  ],
)
def test_weights_that_are_none_are_named(weights, message):
  with pytest.raises(ValueError, match=message):
    normalized_weights(weights, 2)


def test_values_inside_jit_are_not_looked_at():
  weights = jax.jit(lambda w: normalized_weights(w, 2))(jnp.array([1.0, 3.0]))
  np.testing.assert_allclose(weights, [0.25, 0.75])


SHAPES = [(1,), (), (2, 3), (1, 3), (4,)]


def _vectors_of(base):
  return task_vectors({"w": jnp.ones((2, 3))}, base)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
  "function, name",
  [
    (_vectors_of, "base"),
    (lambda x: task_arithmetic(x, {"w": jnp.ones((2, 3))}, 1.0), "base"),
    (lambda x: pseudo_gradient(x, {"w": jnp.ones((2, 3))}), "params"),
    (lambda x: interpolate({"w": jnp.ones(3)}, x, 0.5), "other"),
    (
      lambda x: match_units({"w": jnp.ones(3)}, x, {"['w']": ("units",)}),
      "model",
    ),
  ],
)
def test_models_of_other_shapes_are_not_broadcast(function, name, shape):
  with pytest.raises(ValueError) as error:
    function({"w": jnp.ones(shape)})
  assert str(error.value).startswith(
    f"{name}: the shape of ['w'] is {shape}, must be (3,);"
  )
  with pytest.raises(ValueError, match=r"\['w'\] is missing"):
    function({"v": jnp.ones(3)})
  function({"w": jnp.ones(3)})


@pytest.mark.parametrize("stack", [{"w": [1.0, 2.0]}, {"w": 1.0}])
def test_numbers_in_place_of_arrays_are_named(stack):
  with pytest.raises(ValueError, match="must be .models, ...."):
    check_stack(stack)
