"""Pictures of what queries attend to, beside what is predicted of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax.context import attended
from metajax.runs import plots
from metajax.training.logging import waiting
from metajax.types import Episode, MetaLearner, Params

LEARNERS = ("tnp_d", "prior_fitted")
POINTS = 200


@waiting("drawing attention")
def attention(
  path: Path,
  learner: MetaLearner,
  params: Params,
  episode: Episode,
  bounds: tuple[float, float],
  rng: jax.Array,
) -> None:
  """Draws the weights of all queries, a row for each layer.

  The first column has the 90% intervals and the support. In the others, one for
  each head, a line of the picture is a support point, in the order of their
  inputs, and a column is a query.

  Args:
    path: the PNG file.
    learner: one of `LEARNERS`.
    params: its meta-parameters.
    episode: a task without masks, with inputs `[n, 1]`.
    bounds: of the queries shown.
    rng: the key of the adaptation.
  """
  line = jnp.linspace(*bounds, POINTS)[:, None]
  order = jnp.argsort(episode.support.inputs[:, 0])
  support = jax.tree.map(lambda x: x[order], episode.support)

  @jax.jit
  def solve(params: Params) -> tuple[jax.Array, ...]:
    task_params = learner.adapt(params, support, rng)
    predictions = learner.predict(task_params, line)
    ends = (predictions.quantile(q)[:, 0] for q in (0.05, 0.5, 0.95))
    return attended(task_params, line), *ends

  weights, low, middle, high = map(np.asarray, solve(params))
  layers, heads, _, shots = weights.shape
  figure, grid = plots.pyplot().subplots(
    layers,
    1 + heads,
    figsize=(2.2 * (1 + heads), 1.5 * layers),
    sharex=True,
    squeeze=False,
    layout="constrained",
  )
  for i, row in enumerate(grid):
    row[0].fill_between(line[:, 0], low, high, color="tab:blue", alpha=0.2)
    row[0].plot(line[:, 0], middle, color="tab:blue", lw=1)
    row[0].plot(support.inputs, support.targets, "r^", ms=4)
    row[0].set_ylabel(f"layer {i + 1}")
    for axes, of_head in zip(row[1:], weights[i], strict=True):
      shown = axes.imshow(
        of_head.T,
        extent=(*bounds, shots - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=0,
        vmax=1,
      )
      # Where a query is the support point itself.
      axes.plot(support.inputs[:, 0], range(shots), "r^", ms=2)
      axes.set_yticks([0, shots - 1])
  grid[0, 0].set_title("90% interval", fontsize=9)
  for head, axes in enumerate(grid[0, 1:]):
    axes.set_title(f"head {head + 1}", fontsize=9)
  for axes in grid[-1]:
    axes.set_xlabel("x of the query")
  grid[0, 1].set_ylabel("support point")
  figure.colorbar(shown, ax=grid[:, 1:], label="weight", aspect=40)
  plots.save(figure, path)
