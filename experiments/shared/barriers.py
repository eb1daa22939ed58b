"""The loss on the line between two models, before they are averaged."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax import aggregation
from metajax.evaluation import Estimate
from metajax.runs import plots, rng_keys
from metajax.types import Array, MetaLearner, Params, TaskFamily

POINTS = 11  # Points on a line, with its ends.


def loss_after_adaptation(
  learner: MetaLearner, tasks: TaskFamily
) -> Callable[[Params], Array]:
  """Returns `meta_params -> mean query loss` on 100 fixed tasks."""
  rng = rng_keys.evaluation_key("picture")

  def loss(params: Params) -> Array:
    def chunk(key):
      task_key, adapt_key = jax.random.split(key)
      episodes = jax.vmap(tasks)(jax.random.split(task_key, 10))
      return learner.meta_grad(params, episodes, adapt_key)[1]["loss"]

    return jax.lax.map(chunk, jax.random.split(rng, 10)).mean()

  return loss


def draw(
  path: Path, loss: Callable[[Params], Array], stacks: Mapping[str, Params]
) -> None:
  """Draws the loss on the lines from the first model of a stack to the others.

  The mean over the lines has no interval, because the lines are few and share
  an end.

  Args:
    path: the PNG file.
    loss: `(params) -> scalar`.
    stacks: models `[models, ...]` by the name in the legend. All stacks have
      the same shapes.
  """

  @jax.jit
  def line(stack: Params, index: Array) -> Array:
    one, other = (jax.tree.map(lambda x, i=i: x[i], stack) for i in (0, index))
    return aggregation.loss_barrier(loss, one, other, num_points=POINTS).losses

  def mean_line(stack: Params) -> dict[float, Estimate]:
    others = range(1, len(jax.tree.leaves(stack)[0]))
    losses = np.stack([line(stack, jnp.int32(i)) for i in others])
    return {
      place: Estimate(float(mean), 0.0, len(losses))
      for place, mean in zip(
        np.linspace(0, 1, POINTS), losses.mean(0), strict=True
      )
    }

  plots.curves(
    path,
    {name: mean_line(stack) for name, stack in stacks.items()},
    "place on the line from one run to another",
    "validation loss after adaptation",
  )
