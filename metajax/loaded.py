"""A trained meta-learner, ready to use on new tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.learners import ANY_WAYS
from metajax.recipes import Recipe, build
from metajax.tasks.image_files import in_channels, resized
from metajax.tasks.standardized import Channels
from metajax.types import Array, Batch, MetaLearner, Params, PRNGKey

NO_EXAMPLE = "inputs: no example given, must be 1 or more."


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

  def pixels(self, images: np.ndarray) -> Array:
    """Converts images to the inputs that the learner was trained on.

    They are resized, made grey or coloured, scaled to [0, 1], and inverted and
    standardised if the images of the training were.

    Args:
      images: uint8 `[n, height, width, 1 or 3]`, dark is 0.

    Returns:
      `[n, *inputs.shape]`.

    Raises:
      ValueError: if the learner takes no images or integers, or for other
        arrays.
    """
    if len(self.inputs.shape) != 3:
      raise ValueError(
        f"the learner takes examples of shape {self.inputs.shape}, no images."
      )
    images = np.asarray(images)
    if (
      images.dtype != np.uint8
      or images.ndim != 4
      or (images.shape[-1] not in (1, 3))
    ):
      raise ValueError(
        f"images: {images.dtype} of shape {images.shape}, must be uint8 [n, "
        "height, width, 1 or 3]."
      )
    if not jnp.issubdtype(self.inputs.dtype, jnp.floating):
      raise ValueError(
        f"the learner takes {self.inputs.dtype}, in which pixels from 0 to 1 "
        "would be 0: give it images as its training did."
      )
    size, _, channels = self.inputs.shape
    x = in_channels(resized(images, size), channels) / np.float32(255)
    pixels = jnp.asarray(1 - x if self.inverted else x)
    if self.channels is not None:
      pixels = self.channels.standardize(pixels)
    return pixels.astype(self.inputs.dtype)

  def __repr__(self) -> str:  # Without the arrays.
    count = sum(np.size(x) for x in jax.tree.leaves(self.meta_params))
    return (
      f"Loaded({self.recipe.learner}, {count} parameters, inputs "
      f"{self.inputs.shape} {self.inputs.dtype}, "
      f"num_outputs={self.recipe.num_outputs})"
    )


def compiled(
  learner: MetaLearner,
  meta_params: Params,
  recipe: Recipe,
  inputs: jax.ShapeDtypeStruct,
  rng: PRNGKey,
  **about: Any,
) -> Loaded:
  """Compiles a learner, and checks what it is given.

  Args:
    learner: its functions.
    meta_params: the trained meta-parameters.
    recipe: the description that it was built from.
    inputs: the shape and dtype of one example.
    rng: the key that `adapt` uses.
    **about: the other attributes of `Loaded`.
  """
  adapting, predicting = jax.jit(learner.adapt), jax.jit(learner.predict)

  def adapt(support: Batch) -> Params:
    support = _checked(recipe, support)
    return _tried(inputs, support.inputs, adapting, meta_params, support, rng)

  def predict(task_params: Params, x: Any, *mask: Array, **options: Any) -> Any:
    x = _as_array(x)
    return _tried(inputs, x, predicting, task_params, x, *mask, **options)

  return Loaded(
    learner, meta_params, adapt, predict, recipe, inputs, rng=rng, **about
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
  return compiled(
    build(recipe),
    loaded.meta_params,
    recipe,
    loaded.inputs,
    jax.random.key(0) if loaded.rng is None else loaded.rng,
    inverted=loaded.inverted,
    channels=loaded.channels,
  )


def _as_array(x: Any) -> Any:
  return np.asarray(x) if isinstance(x, list) else x


def _checked(recipe: Recipe, support: Batch) -> Batch:
  """Checks the labels, whose values a compiled function does not know."""
  if not isinstance(support, Batch):
    raise ValueError(
      f"support: {type(support).__name__} given, must be "
      "metajax.Batch(inputs, targets)."
    )
  inputs, targets, mask = map(_as_array, support)
  support = Batch(inputs, targets, mask)
  leaves = jax.tree.leaves(inputs)
  if recipe.kind == "model" and any(jnp.shape(x)[:1] == (0,) for x in leaves):
    raise ValueError(NO_EXAMPLE)
  if recipe.loss != "cross_entropy" or isinstance(targets, jax.core.Tracer):
    return support
  if np.asarray(targets).dtype.kind not in "iu":
    raise ValueError(
      f"support.targets: {np.asarray(targets).dtype} given, must be integers, "
      "the classes; np.unique(names, return_inverse=True)[1] numbers names."
    )
  if isinstance(support.mask, jax.core.Tracer):
    return support
  real = np.asarray(targets)
  mask = None if support.mask is None else np.asarray(support.mask, bool)
  if mask is not None and mask.shape == real.shape:
    real = real[mask]  # Padding may have any label.
  if not real.size:
    return support
  least, largest = np.min(real), np.max(real)
  if least < 0 or largest >= recipe.num_outputs:
    raise ValueError(
      f"support.targets: class {largest if least >= 0 else least} given, "
      f"must be 0 to {recipe.num_outputs - 1}. "
      "metajax.loaded.with_outputs takes more classes, for learners that "
      f"can: {', '.join(sorted(ANY_WAYS))}."
    )
  return support


def _tried(
  like: jax.ShapeDtypeStruct,
  inputs: Any,
  call: Callable[..., Any],
  *arguments: Any,
  **options: Any,
) -> Any:
  """Calls a compiled function, and names inputs that it cannot take."""
  leaves = jax.tree.leaves(inputs)
  bytes_given = any(jnp.result_type(x) == jnp.uint8 for x in leaves)
  if bytes_given and like.dtype != jnp.uint8:
    raise ValueError(
      f"inputs: uint8 given, but the learner was trained on {like.dtype}: give "
      "`loaded.pixels(images)`, or whatever the training computed of them."
    )
  try:
    return call(*arguments, **options)
  except Exception as error:
    if any(jnp.shape(x)[:1] == (0,) for x in leaves):
      raise ValueError(NO_EXAMPLE) from error
    shapes = {jnp.shape(x)[1:] for x in leaves}
    if shapes == {like.shape}:
      raise
    raise ValueError(
      f"inputs: examples of shape {', '.join(map(str, shapes))}, but the "
      f"learner was trained on {like.shape}."
    ) from error
