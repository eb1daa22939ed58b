"""The learner in context that the flags describe."""

from typing import Any

import jax
import numpy as np
from absl import flags

from metajax import context
from metajax.context.registry import LAYERED, LEARNERS
from metajax.recipes import Recipe
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS, flag_values
from metajax.types import TaskFamily

# In the place of the flag of the learners with a loss and a model of choice.
flags.DEFINE_enum(
  "learner",
  "tnp_d",
  sorted(LEARNERS),
  "The learner in context.",
  allow_override=True,
)
flags.DEFINE_integer(
  "width", 0, "Width of the network. 0: that of the paper.", lower_bound=0
)
flags.DEFINE_integer(
  "layers", 0, "Layers of the network. 0: as many as the paper.", lower_bound=0
)
flags.DEFINE_integer(
  "num_bars", 1000, "Bars of a prior-fitted network.", lower_bound=3
)
flags.DEFINE_integer(
  "num_knots",
  200,
  "Outputs of a prior-fitted network, between which the logits of its bars are "
  "interpolated.",
  lower_bound=2,
)
flags.DEFINE_enum(
  "objective",
  "importance",
  ["importance", "elbo"],
  "The bound that anp maximises.",
)
OWN = {  # flag -> learner
  "num_bars": "prior_fitted",
  "num_knots": "prior_fitted",
  "objective": "anp",
}


def recipe(tasks: TaskFamily) -> Recipe:
  """Describes the learner of the flags, for `recipes.build`.

  Args:
    tasks: the tasks of the training, with targets `[n, d]`.

  Raises:
    ValueError: for a flag that the learner does not have.
  """
  name = FLAGS.learner
  options = {k: v for k, v in flag_values("width", "layers").items() if v}
  if "layers" in options and name not in LAYERED:
    raise ValueError(
      f"--layers={FLAGS.layers}: {name} has a fixed number of layers; leave it "
      f"out, or take one of {', '.join(sorted(LAYERED))}."
    )
  for flag, owner in OWN.items():
    if name != owner and FLAGS[flag].present:
      raise ValueError(
        f"--{flag} is for --learner={owner}, not {name}: leave it out."
      )
  if name == "anp":
    options["objective"] = FLAGS.objective
  if name == "prior_fitted":
    options["edges"] = _edges(tasks).tolist()
    options["num_knots"] = FLAGS.num_knots
  targets = jax.eval_shape(tasks, jax.random.key(0)).query.targets
  return Recipe(
    name,
    None,
    targets.shape[-1],
    "log_likelihood",
    options=options,
    kind="context",
  )


def protocol() -> dict[str, Any]:
  """Returns the entries of the learner in `results.json`."""
  own = [flag for flag, owner in OWN.items() if owner == FLAGS.learner]
  return flag_values("learner", "width", "layers", *own)


def _edges(tasks: TaskFamily) -> np.ndarray:
  """Returns the edges of the bars, from targets of the prior."""
  keys = jax.random.split(rng_keys.task_key(), 4000)
  queries = jax.jit(jax.vmap(lambda key: tasks(key).query))(keys)
  targets = np.asarray(queries.targets)
  if queries.mask is not None:
    targets = targets[np.asarray(queries.mask)]
  return np.asarray(context.quantile_edges(targets, FLAGS.num_bars))
