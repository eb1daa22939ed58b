"""Pictures of images that are completed from some of their pixels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax.runs import plots
from metajax.tasks.image_completion import pixel_places
from metajax.training.logging import waiting
from metajax.types import Batch, MetaLearner, Params

UNKNOWN = (0.25, 0.35, 0.75)  # The colour of pixels that are not given.


@waiting("drawing images")
def completions(
  path: Path,
  learner: MetaLearner,
  params: Params,
  images: np.ndarray,
  sizes: list[int],
  rng: jax.Array,
) -> None:
  """Draws given pixels, mean, deviation and truth, a column for each size.

  Args:
    path: the PNG file.
    learner: a learner of `image_completion`.
    params: its meta-parameters.
    images: `[n, height, width, channels]`, uint8, side by side.
    sizes: numbers of given pixels.
    rng: the key of the pixels and of the adaptation.
  """
  count, height, width, channels = images.shape
  places = pixel_places(height, width)
  order_key, adapt_key = jax.random.split(rng)
  order = jax.random.permutation(order_key, height * width)
  shape = height, width, channels

  @jax.jit
  def complete(params: Params, support: Batch) -> tuple[jax.Array, jax.Array]:
    task_params = learner.adapt(params, support, adapt_key)
    found = learner.predict(task_params, places)
    return found.mean, jnp.sqrt(found.variance)

  figure, grid = plots.pyplot().subplots(
    4,
    count * len(sizes),
    figsize=(1.3 * count * len(sizes) + 0.5, 5.6),
    squeeze=False,
    layout="constrained",
  )
  for i, image in enumerate(images):
    values = image.reshape(-1, channels) / np.float32(255)
    for j, size in enumerate(sizes):
      chosen = order[:size]
      support = Batch(places[chosen], jnp.asarray(values)[chosen])
      mean, deviation = complete(params, support)
      given = np.tile(np.float32(UNKNOWN), (height * width, 1))
      given[chosen] = np.broadcast_to(values[chosen], (size, 3))
      # Deviations of values in [0, 1] are at most 1/2.
      cells = {
        "given": given.reshape(height, width, 3),
        "mean": np.reshape(mean, shape),
        "deviation x 2": 2 * np.reshape(deviation, shape),
        "truth": values.reshape(shape),
      }
      column = grid[:, i * len(sizes) + j]
      for axes, cell in zip(column, cells.values(), strict=True):
        axes.imshow(np.clip(cell, 0, 1), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
      column[0].set_title(f"{size} pixels", fontsize=8)
  for axes, name in zip(grid[:, 0], cells, strict=True):
    axes.set_ylabel(name, fontsize=8)
  plots.save(figure, path)
