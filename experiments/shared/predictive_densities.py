"""Pictures of the predictive densities of several learners at a few inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax.runs import plots
from metajax.training.logging import waiting
from metajax.types import Episode, MetaLearner, Params

POINTS = 400


@waiting("drawing densities")
def densities(
  path: Path,
  learners: Mapping[str, tuple[MetaLearner, Params]],
  episodes: Mapping[str, Episode],
  places: Sequence[float],
  rng: jax.Array,
) -> None:
  """Draws densities of the target, a row for each task, a column for each x.

  Args:
    path: the PNG file.
    learners: learners and their meta-parameters by their name in the legend.
    episodes: tasks without masks by the label of their row, with inputs
      `[n, 1]`.
    places: the inputs.
    rng: the key of the adaptation.
  """
  x = jnp.asarray(places)[:, None]
  figure, grid = plots.pyplot().subplots(
    len(episodes),
    len(places),
    figsize=(2.6 * len(places), 2 * len(episodes)),
    squeeze=False,
    layout="constrained",
  )
  for row, (label, episode) in zip(grid, episodes.items(), strict=True):
    row[0].set_ylabel(f"density,\n{label}")
    ends = [_ends(*pair, episode, x, rng) for pair in learners.values()]
    lowest = np.min([low for low, _ in ends], axis=0)
    highest = np.max([high for _, high in ends], axis=0)
    y = np.linspace(lowest, highest, POINTS)  # [points, places]
    for name, pair in learners.items():
      found = _density(*pair, episode, x, y, rng)
      for axes, values, density in zip(row, y.T, found.T, strict=True):
        axes.plot(values, density, label=name, lw=1)
  for axes, place in zip(grid[0], places, strict=True):
    axes.set_title(f"x = {place:g}", fontsize=9)
  for axes in grid[-1]:
    axes.set_xlabel("y")
  handles = grid[0, 0].get_legend_handles_labels()
  figure.legend(
    *handles, loc="outside upper right", ncols=len(learners), frameon=False
  )
  plots.save(figure, path)


def _ends(
  learner: MetaLearner,
  params: Params,
  episode: Episode,
  x: jax.Array,
  rng: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ends `[places]` of the 99.8% intervals."""

  @jax.jit
  def solve(params: Params, support: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = learner.predict(learner.adapt(params, support, rng), x)
    return found.quantile(0.001)[:, 0], found.quantile(0.999)[:, 0]

  low, high = solve(params, episode.support)
  return np.asarray(low), np.asarray(high)


def _density(
  learner: MetaLearner,
  params: Params,
  episode: Episode,
  x: jax.Array,
  y: np.ndarray,
  rng: jax.Array,
) -> np.ndarray:
  """Returns the densities of `y [points, places]`."""

  @jax.jit
  def solve(params: Params, support: jax.Array) -> jax.Array:
    found = learner.predict(learner.adapt(params, support, rng), x)
    log_density = jax.vmap(lambda z: found.log_prob(z[:, None])[:, 0])
    return jnp.exp(log_density(jnp.asarray(y)))

  return np.asarray(solve(params, episode.support))
