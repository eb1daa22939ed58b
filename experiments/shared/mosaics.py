"""Draws sets of images, with a column for each class."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metajax.runs import plots


def draw(
  path: Path,
  images: Mapping[int, Mapping[str, np.ndarray]],
  num_classes: int,
  *,
  columns: int = 10,
) -> None:
  """Draws each set of images as a panel, with a column for each class.

  Args:
    path: the PNG file.
    images: sets by the number of images of a class (a row of panels) and by
      name. A set is `[n, height, width, 1]`. Image i is of class
      `i % num_classes`.
    num_classes: number of classes. The first ones are shown.
    columns: the most classes that are shown.
  """
  columns = min(columns, num_classes)
  names = list(next(iter(images.values())))
  heights = [max(number, 1) for number in images]
  figure, grid = plots.pyplot().subplots(
    len(images),
    len(names),
    figsize=(
      2.2 * len(names),
      2.2 * sum(heights) / columns + 0.5 * len(images),
    ),
    height_ratios=heights,
    layout="constrained",
    squeeze=False,
  )
  for row, (number, sets) in zip(grid, images.items(), strict=True):
    for axes, name in zip(row, names, strict=True):
      stack = np.asarray(sets[name])[..., 0]
      stack = stack.reshape(number, num_classes, *stack.shape[1:])[:, :columns]
      # A line of background separates the images.
      stack = np.pad(stack, ((0, 0), (0, 0), (0, 1), (0, 1)))
      axes.imshow(
        1 - np.concatenate(np.concatenate(stack, axis=1), axis=1),
        cmap="gray",
        vmin=-0.2,
        vmax=1.2,
      )
      axes.set_title(f"{name}, {number} a class", fontsize=8)
      axes.set(xticks=[], yticks=[])
  plots.save(figure, path)
