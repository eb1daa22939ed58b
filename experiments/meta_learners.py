"""The meta-learner that the flags describe, with the options of each."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from absl import flags

from experiments.flags import FLAGS, refuse
from metajax.learners import ENCODED, REGISTRY
from metajax.models.precision import compute_in
from metajax.types import LossFn, MetaLearner, Model

flags.DEFINE_enum(
  "inner_optimizer",
  "sgd",
  ["sgd", "adam"],
  "Of the inner loop. adam: with b1=0, as Reptile's authors have it.",
)
flags.DEFINE_enum(
  "outer_optimizer",
  "adam",
  ["adam", "sgd"],
  "Of the meta-parameters. sgd: Reptile's, with --outer_lr=1.",
)
flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Of what the network computes; parameters, losses, optimizers: float32.",
)
flags.DEFINE_integer(
  "inner_batch",
  0,
  "reptile: examples of an inner step; 0: all of the task's.",
  lower_bound=0,
)
flags.DEFINE_bool(
  "carry_optimizer",
  False,
  "reptile: the inner optimizer's moments go on from task to task, as in the "
  "authors' code.",
)
flags.DEFINE_bool(
  "learned_rates",
  True,
  "maml_plus_plus: learn a step size for each array of parameters and step.",
)
flags.DEFINE_bool(
  "step_normalization",
  True,
  "maml_plus_plus: learn scale and bias of normalisations for each step; by "
  "default where the network has any.",
)
flags.DEFINE_float(
  "multi_step_part",
  1 / 15,
  "maml_plus_plus: the part of the training, from its beginning, in which the "
  "loss after every inner step counts.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_float(
  "first_order_part",
  1 / 3,
  "maml_plus_plus: the part of the training, from its beginning, that is first "
  "order.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_float(
  "proximal_strength",
  2.0,
  "imaml: of the pull to the initialisation in the inner loss.",
  lower_bound=1e-6,
)
flags.DEFINE_float(
  "damping",
  0.0,
  "imaml: d of the system ((1 + d) I + H / strength) x = g that conjugate "
  "gradients solve.",
  lower_bound=0.0,
)
flags.DEFINE_integer(
  "cg_steps",
  5,
  "imaml: steps of conjugate gradients.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "num_context",
  5,
  "cavia: numbers that adapt.",
  lower_bound=1,
)

for _name in (
  "multi_step_part",
  "first_order_part",
  "proximal_strength",
  "damping",
):
  flags.register_validator(_name, math.isfinite, "must be a finite number")

# The flags of the inner loop, for learners that have one.
INNER = ("inner_optimizer", "inner_steps", "inner_lr", "memory")
# Learners that tell any number of classes apart with the same meta-parameters.
ANY_WAYS = ("prototypical", "ridge")
# The flags that are a learner's own.
OWN = {
  "reptile": ("inner_batch", "carry_optimizer"),
  "maml_plus_plus": (
    "learned_rates",
    "step_normalization",
    "multi_step_part",
    "first_order_part",
  ),
  "imaml": ("proximal_strength", "damping", "cg_steps"),
  "cavia": ("num_context",),
}


def build(
  name: str,
  network: Callable[[int | None], Model],
  loss_fn: LossFn,
  num_outputs: int,
  eval_steps: int,
  metrics: Mapping[str, LossFn] | None = None,
) -> MetaLearner:
  """Builds a learner of the registry with the options that the flags give it.

  Args:
    name: its name.
    network: `(num_outputs) -> Model`; of None, one that encodes.
    loss_fn: see `metajax.learners.maml`.
    num_outputs: classes, or numbers to be predicted.
    eval_steps: inner steps at test.
    metrics: see `metajax.learners.maml`.

  Raises:
    ValueError: for a flag that does not go with the learner.
  """
  if not _has_step(name, eval_steps):
    raise ValueError(
      f"--eval_inner_steps={eval_steps}: must be at most --inner_steps="
      f"{FLAGS.inner_steps}, since each step of {name} has parameters of its "
      "own."
    )
  options = own(name)
  if name in ENCODED:
    refuse(*INNER)
    options["num_outputs"] = num_outputs
  model = network(None if name in ENCODED else num_outputs)
  if FLAGS.dtype != "float32":
    model = compute_in(model, FLAGS.dtype)
  return REGISTRY[name](
    model,
    loss_fn,
    inner_optimizer(),
    FLAGS.inner_steps,
    num_eval_steps=eval_steps,
    metrics=metrics,
    memory=FLAGS.memory,
    **options,
  )


def inner_optimizer() -> optax.GradientTransformation:
  if FLAGS.inner_optimizer == "adam":
    # The root keeps the second derivative finite where a gradient is zero.
    return optax.adam(FLAGS.inner_lr, b1=0.0, eps_root=1e-12)
  return optax.sgd(FLAGS.inner_lr)


def own(name: str) -> dict[str, Any]:
  """Returns a learner's own options.

  Raises:
    ValueError: if a flag of another learner is given.
  """
  for other, names in OWN.items():
    for flag in names:
      if other != name and FLAGS[flag].present:
        raise ValueError(
          f"--{flag} is for --learner={other}, not {name}: leave it out."
        )
  match name:
    case "reptile":
      return {
        "inner_batch": FLAGS.inner_batch or None,
        "carry_optimizer": FLAGS.carry_optimizer,
      }
    case "maml_plus_plus":
      return {
        "learned_rates": FLAGS.learned_rates,
        "step_normalization": _step_normalization(),
        "multi_step_loss": round(FLAGS.multi_step_part * FLAGS.steps),
        "first_order_until": round(FLAGS.first_order_part * FLAGS.steps),
      }
    case "imaml":
      pull = FLAGS.inner_lr * FLAGS.proximal_strength
      if FLAGS.inner_optimizer == "sgd" and pull >= 2:
        raise ValueError(
          f"--inner_lr={FLAGS.inner_lr}: times --proximal_strength="
          f"{FLAGS.proximal_strength} must be below 2, or the inner loop "
          "diverges; give a smaller one of them."
        )
      return {
        "strength": FLAGS.proximal_strength,
        "damping": FLAGS.damping,
        "cg_steps": FLAGS.cg_steps,
      }
    case "cavia":
      return {"num_context": FLAGS.num_context}
  return {}


def num_context(name: str) -> int:
  """Returns how many numbers a network takes beside its inputs."""
  return FLAGS.num_context if name == "cavia" else 0


def possible_steps(name: str, wanted: Iterable[int]) -> list[int]:
  """Sorts numbers of inner steps, and leaves out those that a learner has not.

  MAML++ has parameters for each step that it was trained with, and no more;
  where there is no inner loop, there are no steps.
  """
  if name in ENCODED:
    return []
  return sorted(k for k in set(wanted) if _has_step(name, k))


def _has_step(name: str, steps: int) -> bool:
  own_steps = FLAGS.learned_rates or _step_normalization()
  bounded = name == "maml_plus_plus" and own_steps
  return not bounded or steps <= FLAGS.inner_steps


def _step_normalization() -> bool:
  """What the flag says, or by default whether the network normalises."""
  if FLAGS["step_normalization"].present or not FLAGS.step_normalization:
    return FLAGS.step_normalization
  return "normalization" in FLAGS and FLAGS.normalization != "none"


def protocol(name: str) -> dict[str, Any]:
  """What `results.json` says of the learner."""
  inner = () if name in ENCODED else INNER
  return {
    "learner": name,
    "dtype": FLAGS.dtype,
    **{flag: FLAGS[flag].value for flag in inner},
    "outer_optimizer": FLAGS.outer_optimizer,
    **own(name),
  }
