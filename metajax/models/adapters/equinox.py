"""Models of equinox modules."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from metajax.models.adapters.common import (
  AdaptedModel,
  check_mask,
  mask_keyword,
  only_function,
  parameters,
  switches,
)
from metajax.types import Array, Params, PRNGKey, State


def from_equinox(
  build: Callable[[PRNGKey], Any],
  *,
  batched: bool = False,
  axis_name: Hashable = "batch",
  train: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> AdaptedModel:
  """Makes a model of an `equinox.Module`: `from_equinox(lambda key: Net(key))`.

  Its parameters are `{"params": arrays, "state": State(...)}`: the module with
  its arrays alone, and its `equinox.nn.State`. Whatever is no array (numbers,
  activation functions) is the same for all parameters.

  A module is called for each example as `module(x)`, with `state=` if it has
  state and returns `(prediction, state)`, and with `key=` if `__call__` has
  such an argument: example i's is the i-th of `jax.random.split(rng, n)`. In
  training it is as it was built, in evaluation as by
  `equinox.nn.inference_mode`. There the key is a constant: what has no
  `inference` to switch it off, nor a keyword, is given none.

  Args:
    build: `(key) -> module`.
    batched: call the module once, for inputs `[n, ...]` and one key, not for
      each example.
    axis_name: what the module's `equinox.nn.BatchNorm` calls the examples.
    train: keywords of the call in training; None: `{"train": True}` if
      `__call__` has such an argument, likewise training, is_training,
      deterministic, use_running_average, inference, eval.
    evaluation: those in evaluation, likewise.

  Raises:
    ValueError: if it is given a module; in use, if a batch has a mask, and the
      module changes its state but has no argument `mask`: padding would be
      counted; or if a module with state takes none.
  """
  only_function(build, "equinox", "from_equinox(lambda key: Net(key))")

  @functools.cache
  def static() -> Any:
    """The module without its arrays."""
    import equinox as eqx

    module, _ = eqx.filter_eval_shape(
      lambda: eqx.nn.make_with_state(build)(jax.random.key(0))
    )
    return eqx.filter(module, _is_shape, inverse=True)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del inputs
    import equinox as eqx

    module, state = eqx.nn.make_with_state(build)(rng)
    params = {"params": eqx.filter(module, eqx.is_array), "state": State(state)}
    # What is made of a Python number, a counter, say, has a weak type, which it
    # would lose in the first step.
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), params)

  def run(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None,
    *,
    training: bool,
  ) -> tuple[Any, Params]:
    import equinox as eqx

    built = eqx.combine(params["params"], static())
    module = built
    if not training or rng is None:
      module = eqx.nn.inference_mode(built)
    if training and rng is None:
      module = _with_batch_norms_of(built, module)
    arguments = parameters(type(module).__call__)
    keywords = train if training else evaluation
    if keywords is None:
      keywords = switches(arguments, training=training)
    if rng is None and (keywords or _has_switch(module)):
      rng = jax.random.key(0)
    # Equinox forbids a second use of the very same state.
    state = jax.tree.map(lambda x: x, params["state"].value)
    takes_state = bool(jax.tree.leaves(state)) or _needs_state(arguments)
    if takes_state and "state" not in arguments:
      raise ValueError(
        f"{type(module).__name__} has state, but its call takes no argument "
        "`state`: give it one, and let it return (prediction, state)."
      )

    def run_all(
      module: Any, state: Any, inputs: Any, keys: Any, mask: Array | None
    ) -> Any:
      def call(x: Any, key: PRNGKey | None, mask: Array | None) -> Any:
        given = dict(keywords) | mask_keyword(arguments, mask)
        if "key" in arguments:
          given["key"] = key
        if takes_state:
          return module(x, state=state, **given)
        return module(x, **given), state

      if not batched:
        call = jax.vmap(call, out_axes=(0, None), axis_name=axis_name)
      return call(inputs, keys, mask)

    keys = rng
    if rng is not None and not batched:
      keys = jax.random.split(rng, jax.tree.leaves(inputs)[0].shape[0])
    predictions, new = _without_mesh(run_all)(module, state, inputs, keys, mask)
    check_mask(
      arguments, mask, params["state"].value, new, type(module).__name__
    )
    return predictions, {**params, "state": State(new)}

  def apply(params: Params, inputs: Any, mask: Array | None = None) -> Any:
    return run(params, inputs, None, mask, training=False)[0]

  def train_pass(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None = None,
  ) -> tuple[Any, Params]:
    return run(params, inputs, rng, mask, training=True)

  return AdaptedModel(init, apply, train_pass)


def _without_mesh(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Lets a function be traced as if there were no mesh.

  In a `shard_map` the type of an array names the mesh, and the type of a
  constant does not. Equinox would refuse a constant as a new state there, such
  as that of `BatchNorm(mode="ema")`.
  """

  def call(*arguments: Any) -> Any:
    if jax.sharding.get_abstract_mesh().empty:
      return fn(*arguments)
    import equinox as eqx

    arrays, others = eqx.partition(arguments, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)

    def of_leaves(*leaves: Array) -> Any:
      return fn(*eqx.combine(jax.tree.unflatten(tree, leaves), others))

    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
      jaxpr, out = jax.make_jaxpr(of_leaves, return_shape=True)(
        *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
      )
    found = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *leaves)
    return jax.tree.unflatten(jax.tree.structure(out), found)

  return call


def _is_shape(x: Any) -> bool:
  return isinstance(x, jax.ShapeDtypeStruct)


def _has_inference(x: Any) -> bool:
  return hasattr(x, "inference")


def _has_switch(module: Any) -> bool:
  return any(
    map(_has_inference, jax.tree.leaves(module, is_leaf=_has_inference))
  )


def _needs_state(arguments: Mapping[str, Any]) -> bool:
  argument = arguments.get("state")
  return argument is not None and argument.default is argument.empty


def _with_batch_norms_of(built: Any, module: Any) -> Any:
  from equinox.nn import BatchNorm

  return jax.tree.map(
    lambda own, other: own if isinstance(own, BatchNorm) else other,
    built,
    module,
    is_leaf=lambda x: isinstance(x, BatchNorm),
  )
