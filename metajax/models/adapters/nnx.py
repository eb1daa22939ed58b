"""Models of flax.nnx modules."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from metajax.models.adapters.common import (
  AdaptedModel,
  check_mask,
  mask_keyword,
  moved,
  only_function,
  parameters,
  switches,
)
from metajax.types import Array, Params, PRNGKey, State


def from_nnx(
  build: Callable[..., Any],
  *,
  train: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> AdaptedModel:
  """Makes a model of a `flax.nnx.Module`: `from_nnx(lambda rngs: Net(rngs))`.

  Its parameters are `{"params": weights, "state": State(...)}`, dictionaries by
  the names of attributes: `nnx.Param` are weights, all other variables state,
  but for the streams of random numbers. These are no part of the parameters:
  `train` seeds them with its key, as `nnx.reseed` does.

  In training the module is as it was built, where layers of nnx are in training
  mode; in evaluation it is as after `module.eval()`.

  Args:
    build: `(rngs) -> module`, given `nnx.Rngs(key)`.
    train: what a pass in training changes. Names that `__call__` takes are its
      keywords, others attributes of the layers. None: `{"train": True}` if
      `__call__` has such an argument, likewise training, is_training,
      deterministic, use_running_average, inference, eval.
    evaluation: the same for evaluation; None: the same keywords.

  Raises:
    ValueError: if it is given a module; in use, if a batch has a mask, and the
      module changes its state but has no argument `mask`; or if random numbers
      are drawn where there is no key.
  """
  only_function(build, "flax.nnx", "from_nnx(lambda rngs: Net(rngs))")

  @functools.cache
  def skeleton() -> tuple[Any, Any, Any]:
    """The module without its parameters: graph, streams and bare arrays."""
    from flax import nnx

    # Outside of any trace, where nnx takes a bare array for static.
    with jax.ensure_compile_time_eval():
      parts: Any = nnx.split(
        build(nnx.Rngs(0)), nnx.RngState, nnx.Variable, ...
      )
      graph, streams, _, arrays = parts
    # Without variables, which must be new in every trace.
    return graph, nnx.to_pure_dict(streams), nnx.to_pure_dict(arrays)

  def init(rng: PRNGKey, inputs: Any) -> Params:
    del inputs
    from flax import nnx

    return _parameters(build(nnx.Rngs(rng)))

  def run(
    params: Params,
    inputs: Any,
    rng: PRNGKey | None,
    mask: Array | None,
    *,
    training: bool,
  ) -> tuple[Any, Params]:
    from flax import nnx

    graph, streams, arrays = skeleton()
    state = params["state"].value
    module = nnx.merge(graph, streams, arrays, params["params"], state)
    arguments = parameters(type(module).__call__)
    chosen = train if training else evaluation
    if chosen is None:
      chosen = switches(arguments, training=training)
    if not training:
      module.eval()
    attributes = {k: v for k, v in chosen.items() if k not in arguments}
    if attributes:
      module.set_attributes(**attributes)
    keywords = {k: v for k, v in chosen.items() if k in arguments}
    if rng is not None:
      _seed(module, rng)
    elif training:
      module.set_attributes(deterministic=True, raise_if_not_found=False)
      keywords |= {"deterministic": True} if "deterministic" in keywords else {}
    before = nnx.state(module, nnx.RngState)
    predictions = module(inputs, **keywords, **mask_keyword(arguments, mask))
    who = type(module).__name__
    if rng is None and moved(before, nnx.state(module, nnx.RngState)):
      raise ValueError(
        f"{who}: draws random numbers where there is no key, in evaluation "
        "say; give from_nnx the keywords or attributes that switch it off, "
        "evaluation={...}."
      )
    new = _like(state, _parameters(module)["state"].value)
    check_mask(arguments, mask, state, new, who)
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


def _parameters(module: Any) -> Params:
  from flax import nnx

  weights = nnx.state(module, nnx.Param)
  others = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))
  state = nnx.state(module, nnx.All(nnx.Variable, others))
  return {
    "params": nnx.to_pure_dict(weights),
    "state": State(nnx.to_pure_dict(state)),
  }


def _seed(module: Any, rng: PRNGKey) -> None:
  """Seeds all streams, those of one name as `nnx.reseed` does with the key."""
  from flax import nnx

  keys = nnx.to_flat_state(nnx.state(module, nnx.RngKey))
  names = sorted({key.tag for _, key in keys})
  seeds: Any = {
    name: jax.random.fold_in(rng, i) for i, name in enumerate(names)
  }
  if len(names) == 1:
    seeds = {names[0]: rng}
  nnx.reseed(module, policy="match_shape", **seeds)


def _like(old: Any, new: Any) -> Any:
  """Leaves out what a pass has added: intermediate values, say."""
  if not isinstance(old, dict):
    return new
  return {name: _like(value, new[name]) for name, value in old.items()}
