"""What a learned optimizer is, and its file."""

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.files import replaced
from metajax.types import Params, PRNGKey


class LearnedOptimizer(NamedTuple):
  """An optimizer whose parameters are learned.

  `optimizer` has the signature of an inner optimizer in `metajax.bilevel`, with
  theta as the outer parameters.

  Attributes:
    init: `(rng) -> theta`, a tree of arrays.
    optimizer: `(theta) -> optax.GradientTransformation`. Its updates are
      differentiable functions of theta. theta may be traced.
  """

  init: Callable[[PRNGKey], Params]
  optimizer: Callable[[Params], optax.GradientTransformation]


def save(path: str | os.PathLike, theta: Params) -> None:
  """Writes the parameters of a learned optimizer, atomically.

  Args:
    path: the safetensors file.
    theta: a tree of arrays.
  """
  from safetensors.numpy import save_file

  arrays = {name: np.asarray(x, order="C") for name, x in _named(theta).items()}
  with replaced(path) as file:
    save_file(arrays, file)


def load(path: str | os.PathLike, learned: LearnedOptimizer) -> Params:
  """Reads the parameters of a learned optimizer.

  Args:
    path: the file that `save` wrote.
    learned: the optimizer, built with the same arguments.

  Returns:
    theta, a tree like that of `learned.init`.

  Raises:
    ValueError: if the file is absent or damaged, or is of another optimizer.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    arrays = load_file(path)
  except (OSError, SafetensorError) as error:
    raise ValueError(
      f"{path}: cannot be read ({error}); give a file that "
      "learned_optimizers.save has written."
    ) from error
  like = jax.eval_shape(learned.init, jax.random.key(0))
  wanted = {name: x.shape for name, x in _named(like).items()}
  found = {name: x.shape for name, x in arrays.items()}
  if wanted != found:
    name = min(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    raise ValueError(
      f"{path}: {name} has the shape {found.get(name)}, but "
      f"{wanted.get(name)} in this optimizer; build it with the arguments that "
      "it was trained with."
    )
  leaves = [jnp.asarray(arrays[name]) for name in wanted]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_params(name: str, params: Params | None) -> Params:
  """Returns the parameters to train, or raises a `ValueError`.

  Args:
    name: the optimizer.
    params: what its `init` or `update` was given.
  """
  if params is None:
    raise ValueError(
      f"{name}: params=None; it reads the parameters, so call "
      "update(grads, state, params)."
    )
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
      raise ValueError(
        f"{name}: params{jax.tree_util.keystr(path)} is "
        f"{jnp.result_type(x)}; must be real floating point. optax.masked "
        "leaves others out."
      )
  return params


def _named(tree: Params) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
