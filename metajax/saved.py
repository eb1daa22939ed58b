"""Saves trained meta-learners as files, and loads them.

A run's folder has two of them: `learner.json` describes how to build the
learner, and `meta_params.safetensors` has the arrays. Reading them runs no
code.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.files import replaced
from metajax.learners.registry import register_installed
from metajax.loaded import Loaded, compiled
from metajax.recipes import Recipe, build
from metajax.results import write_json
from metajax.tasks.standardized import Channels
from metajax.training.processes import is_main, whole
from metajax.types import (
  Array,
  Model,
  Params,
  PRNGKey,
)

LEARNER, META_PARAMS = "learner.json", "meta_params.safetensors"


def save(
  folder: str | os.PathLike,
  recipe: Recipe,
  meta_params: Params,
  inputs: jax.ShapeDtypeStruct,
  *,
  seeds: int = 1,
  inverted: bool = False,
  channels: Channels | None = None,
) -> None:
  """Writes a trained meta-learner. Each file is written atomically.

  Args:
    folder: the folder to write to.
    recipe: the description of the learner.
    meta_params: its meta-parameters, `[seeds, ...]` if there are several seeds.
    inputs: the shape and dtype of one example.
    seeds: the number of trainings.
    inverted: whether it was trained on images with dark ink as 1.
    channels: the mean and deviation by which images are standardised; None:
      they are not.
  """
  from safetensors.numpy import save_file

  arrays = {
    name: np.asarray(whole(_plain(leaf)), order="C")
    for name, leaf in _named(meta_params).items()
  }
  if not is_main():
    return
  with replaced(Path(folder) / META_PARAMS) as file:
    save_file(arrays, file)
  example = {"shape": list(inputs.shape), "dtype": inputs.dtype.name}
  keys = {
    name: str(jax.random.key_impl(leaf))
    for name, leaf in _named(meta_params).items()
    if _is_key(leaf)
  }
  about = {
    **recipe._asdict(),
    "inputs": example,
    "inverted": inverted,
    "channels": channels._asdict() if channels else None,
    "seeds": seeds,
    "keys": keys,
  }
  write_json(Path(folder) / LEARNER, about)


def load(
  workdir: str | os.PathLike,
  *,
  seed: int = 0,
  num_eval_steps: int | None = None,
  model: Model | None = None,
  rng: PRNGKey | None = None,
) -> Loaded:
  """Loads a trained meta-learner from the folder of its run.

  ::

    loaded = metajax.load("runs/few_shot-1a2b3c4d")
    support = metajax.Batch(loaded.pixels(images), labels)
    task_params = loaded.adapt(support)
    logits = loaded.predict(task_params, loaded.pixels(new_images))

  `pixels` converts uint8 images. Other inputs are given as in the training.

  Args:
    workdir: the folder.
    seed: the index of the training, from 0, if the run has several seeds.
    num_eval_steps: inner steps; None: as many as in the run's test.
    model: the model, if it is not one of metajax's.
    rng: the key for learners that draw random numbers when they adapt; None:
      `jax.random.key(0)`.

  Raises:
    ValueError: if the folder has no learner, or its files do not match.
  """
  register_installed()
  folder = Path(workdir)
  about, arrays = _read(folder)
  recipe, inputs = about.recipe, about.inputs
  if not 0 <= seed < about.seeds:
    raise ValueError(
      f"seed={seed}: {folder} has trainings 0 to {about.seeds - 1}."
    )
  if num_eval_steps is not None:
    if not recipe.has_inner_steps:
      raise ValueError(
        f"num_eval_steps={num_eval_steps}: {recipe.learner} has no inner "
        "steps; leave it out."
      )
    recipe = recipe._replace(num_eval_steps=num_eval_steps)
  try:
    learner = build(recipe, model=model)
  except (TypeError, KeyError, AttributeError) as error:
    raise _damaged(folder, error) from error
  support = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)
  like = jax.eval_shape(learner.init, jax.random.key(0), support)
  if about.seeds > 1:
    arrays = {name: array[seed] for name, array in arrays.items()}
  meta_params = _filled(like, arrays, about.keys, folder)
  return compiled(
    learner,
    meta_params,
    recipe,
    inputs,
    jax.random.key(0) if rng is None else rng,
    inverted=about.inverted,
    channels=about.channels,
  )


def is_whole(folder: Path) -> bool:
  """Tells whether a folder has a saved learner that can be read."""
  try:
    _read(folder)
  except ValueError:
    return False
  return True


class _About(NamedTuple):
  """The content of `learner.json`, see `save`."""

  recipe: Recipe
  inputs: jax.ShapeDtypeStruct
  seeds: int
  inverted: bool
  channels: Channels | None
  keys: dict[str, str]


def _read(folder: Path) -> tuple[_About, dict[str, np.ndarray]]:
  from safetensors.numpy import load_file

  try:
    about = json.loads((folder / LEARNER).read_text())
    with open(folder / META_PARAMS, "rb"):  # `load_file` would say less.
      arrays = load_file(folder / META_PARAMS)
    example = about.pop("inputs")
    shape, dtype = tuple(example["shape"]), jnp.dtype(example["dtype"])
    seeds, inverted = int(about.pop("seeds")), about.pop("inverted")
    # Learners that were saved before images were standardised do not say it.
    measured = about.pop("channels", None)
    channels = measured and Channels(*(tuple(x) for x in measured.values()))
    keys = dict(about.pop("keys", {}))  # Older files do not say it either.
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    about = _About(Recipe(**about), inputs, seeds, inverted, channels, keys)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ValueError(
      f"{folder}: has no {LEARNER} and {META_PARAMS}, which a run of one "
      "meta-learner writes at its end: give the folder of such a run, or run "
      "its command again."
    ) from error
  except PermissionError as error:
    raise ValueError(
      f"{folder}: {LEARNER} or {META_PARAMS} cannot be read ({error}): ask for "
      "the permission, or copy the folder."
    ) from error
  except Exception as error:  # Readers of damaged files raise many kinds.
    raise _damaged(folder, error) from error
  return about, arrays


def _damaged(folder: Path, error: Exception) -> ValueError:
  return ValueError(
    f"{folder}: {LEARNER} or {META_PARAMS} is damaged ({type(error).__name__}: "
    f"{error}): run the command of the run again, which writes them anew."
  )


def _named(tree: Any) -> dict[str, Any]:
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in paths
  }


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Array) -> Array:
  """Returns the data of a random key; other arrays as they are."""
  return jax.random.key_data(x) if _is_key(x) else x


def _shape(x: Any, kind: str | None) -> tuple[int, ...]:
  """Returns the shape of an array in the file; None: of the default kind."""
  if _is_key(x):
    one = jax.eval_shape(
      lambda: jax.random.key_data(jax.random.key(0, impl=kind))
    )
    return (*x.shape, *one.shape)
  return x.shape


def _filled(
  like: Any,
  arrays: Mapping[str, np.ndarray],
  keys: Mapping[str, str],
  folder: Path,
) -> Any:
  """Builds the tree `like` from arrays by name, and the kinds of its keys."""
  wanted = _named(like)
  shapes = {name: _shape(x, keys.get(name)) for name, x in wanted.items()}
  found = {name: x.shape for name, x in arrays.items()}
  if shapes != found:
    differ = sorted(
      name for name in {*shapes, *found} if shapes.get(name) != found.get(name)
    )
    raise ValueError(
      f"{folder}: {differ[0]} is {found.get(differ[0])} in {META_PARAMS}, but "
      f"{shapes.get(differ[0])} in the learner of {LEARNER}: they are not of "
      "one run, or the model is another."
    )
  leaves = [
    jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=keys.get(name))
    if _is_key(x)
    else jnp.asarray(arrays[name], x.dtype)
    for name, x in wanted.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)
