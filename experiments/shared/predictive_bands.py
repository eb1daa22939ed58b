"""Pictures of predictive distributions of functions of one number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax.runs import plots
from metajax.training.logging import waiting
from metajax.types import Episode, MetaLearner, Params

LEVELS = (0.5, 0.9)


@waiting("drawing tasks")
def bands(
  path: Path,
  learners: Mapping[str, tuple[MetaLearner, Params]],
  episodes: Mapping[str, Episode],
  bounds: tuple[float, float],
  rng: jax.Array,
) -> None:
  """Draws medians and central intervals, a row for each learner.

  Args:
    path: the PNG file.
    learners: learners and their meta-parameters by the label of their row.
    episodes: tasks without masks by the title of their column, with inputs
      `[n, 1]`.
    bounds: of the inputs shown.
    rng: the key of the adaptation.
  """
  figure, grid = plots.pyplot().subplots(
    len(learners),
    len(episodes),
    figsize=(3.2 * len(episodes), 2.4 * len(learners)),
    sharex=True,
    sharey="col",
    squeeze=False,
    layout="constrained",
  )
  line = jnp.linspace(*bounds, 200)[:, None]
  quantiles = [(1 - level) / 2 for level in LEVELS]
  for row, (label, (learner, params)) in zip(
    grid, learners.items(), strict=True
  ):
    row[0].set_ylabel(label)
    for axes, episode in zip(row, episodes.values(), strict=True):
      ends = _quantiles(learner, params, episode, line, quantiles, rng)
      for low, high in zip(ends, ends[::-1], strict=True):
        axes.fill_between(line[:, 0], low, high, color="tab:blue", alpha=0.2)
      axes.plot(line, ends[len(quantiles)], color="tab:blue", lw=1)
      query, support = episode.query, episode.support
      axes.plot(query.inputs, query.targets, "k.", ms=2, label="query")
      axes.plot(support.inputs, support.targets, "r^", ms=4, label="support")
  for axes, title in zip(grid[0], episodes, strict=True):
    axes.set_title(title, fontsize=9)
  for axes in grid[-1]:
    axes.set_xlabel("x")
  handles = grid[0, 0].get_legend_handles_labels()
  figure.legend(*handles, loc="outside upper right", ncols=2, frameon=False)
  plots.save(figure, path)


def _quantiles(
  learner: MetaLearner,
  params: Params,
  episode: Episode,
  line: jax.Array,
  quantiles: Sequence[float],
  rng: jax.Array,
) -> np.ndarray:
  """Returns lower ends, median and upper ends, `[2 * quantiles + 1, n]`."""

  @jax.jit
  def solve(params: Params, episode: Episode) -> jax.Array:
    predictions = learner.predict(
      learner.adapt(params, episode.support, rng), line
    )
    levels = sorted([*quantiles, 0.5, *(1 - q for q in quantiles)])
    return jnp.stack([predictions.quantile(q)[:, 0] for q in levels])

  return np.asarray(solve(params, episode))
