"""Saves trained meta-learners as files, and loads them.

A run's folder has two of them: `learner.json` describes how to build the
learner, and `meta_params.safetensors` has the arrays. Reading them runs no
code.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.files import replaced
from metajax.learners import ANY_WAYS
from metajax.learners.registry import register_installed
from metajax.recipes import Recipe, build
from metajax.results import write_json
from metajax.tasks.standardized import Channels
from metajax.training.processes import is_main, whole
from metajax.types import (
  Array,
  Batch,
  MetaLearner,
  Model,
  Params,
  PRNGKey,
)

LEARNER, META_PARAMS = "learner.json", "meta_params.safetensors"


class Loaded(NamedTuple):
  """A trained meta-learner, ready to use.

  Attributes:
    learner: its functions.
    meta_params: the trained meta-parameters.
    adapt: `(support) -> task_params`, compiled; the support is a `Batch`.
    predict: `(task_params, inputs) -> predictions`, compiled.
    recipe: the description that it was built from.
    inputs: the shape and dtype of one example.
    inverted: whether it was trained on images with dark ink as 1.
    channels: the mean and deviation of each colour channel, by which the images
      were standardised after that; None: they were not.
    rng: the key that `adapt` uses.
  """

  learner: MetaLearner
  meta_params: Params
  adapt: Callable[[Batch], Params]
  predict: Callable[[Params, Array], Array]
  recipe: Recipe
  inputs: jax.ShapeDtypeStruct
  inverted: bool = False
  channels: Channels | None = None
  rng: PRNGKey | None = None

  def __repr__(self) -> str:  # Without the arrays.
    count = sum(np.size(x) for x in jax.tree.leaves(self.meta_params))
    return (
      f"Loaded({self.recipe.learner}, {count} parameters, inputs "
      f"{self.inputs.shape} {self.inputs.dtype}, "
      f"num_outputs={self.recipe.num_outputs})"
    )


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
  about = {
    **recipe._asdict(),
    "inputs": example,
    "inverted": inverted,
    "channels": channels._asdict() if channels else None,
    "seeds": seeds,
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
    task_params = loaded.adapt(metajax.Batch(images, labels))
    logits = loaded.predict(task_params, new_images)

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
  meta_params = _filled(like, arrays, folder)
  key = jax.random.key(0) if rng is None else rng
  adapt = _adapt(learner, recipe, meta_params, key)
  return Loaded(
    learner,
    meta_params,
    adapt,
    jax.jit(learner.predict),
    recipe,
    inputs,
    about.inverted,
    about.channels,
    key,
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
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    about = _About(Recipe(**about), inputs, seeds, inverted, channels)
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


def with_outputs(loaded: Loaded, num_outputs: int) -> Loaded:
  """Returns the learner for another number of classes.

  Args:
    loaded: a learner of `ANY_WAYS`, whose parameters fit any number of classes.
    num_outputs: the number of classes.

  Raises:
    ValueError: for another learner.
  """
  recipe = loaded.recipe._replace(num_outputs=num_outputs)
  any_ways = recipe.kind == "model" and recipe.learner in ANY_WAYS
  if not any_ways or recipe.model is None:
    raise ValueError(
      f"num_outputs={num_outputs}: {recipe.learner} was trained for "
      f"{loaded.recipe.num_outputs} classes; only {sorted(ANY_WAYS)} take any."
    )
  learner = build(recipe)
  key = jax.random.key(0) if loaded.rng is None else loaded.rng
  return loaded._replace(
    learner=learner,
    adapt=_adapt(learner, recipe, loaded.meta_params, key),
    predict=jax.jit(learner.predict),
    recipe=recipe,
  )


def _adapt(
  learner: MetaLearner, recipe: Recipe, meta_params: Params, key: PRNGKey
) -> Callable[[Batch], Params]:
  """Returns the compiled `adapt`, which checks the classes of the support."""
  compiled = jax.jit(learner.adapt)

  def adapt(support: Batch) -> Params:
    targets = support.targets
    classes = recipe.loss == "cross_entropy" and not isinstance(
      targets, jax.core.Tracer
    )
    # Inside the compiled function the values are not known.
    if classes and support.mask is None and np.size(targets):
      least, largest = np.min(targets), np.max(targets)
      if least < 0 or largest >= recipe.num_outputs:
        raise ValueError(
          f"support.targets: class {largest if least >= 0 else least} given, "
          f"must be 0 to {recipe.num_outputs - 1}. "
          "metajax.saved.with_outputs takes more classes, for learners that "
          f"can: {', '.join(sorted(ANY_WAYS))}."
        )
    return compiled(meta_params, support, key)

  return adapt


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


def _filled(like: Any, arrays: Mapping[str, np.ndarray], folder: Path) -> Any:
  """Builds the tree `like` from arrays by name."""
  wanted = _named(like)
  shapes = {name: jax.eval_shape(_plain, x).shape for name, x in wanted.items()}
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
    jax.random.wrap_key_data(jnp.asarray(arrays[name]))
    if _is_key(x)
    else jnp.asarray(arrays[name], x.dtype)
    for name, x in wanted.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)
