"""Linear regression in context: which algorithm does a learner become?

  python -m experiments.context_linear

A task is a vector w of N(0, I) and a sequence of inputs x of N(0, I) with
labels `w x`, or with noise. Errors are squares divided by the number of inputs,
so that without noise predicting zero has an error of 1. There are two studies.

--study=context_lengths (Garg et al. 2022) trains a causal transformer on every
prefix of the sequences. It compares the error after each number of examples
with those of least squares, 3 nearest neighbours and, with noise, the mean of
the exact posterior (ridge regression). The default has 5 inputs and 11
points. `--preset=garg` is the paper's size, for a GPU, without the paper's
curriculum.

--study=gradient_steps (von Oswald et al. 2023, `--preset=oswald`) trains K
looped layers of linear attention. It compares them with K steps of gradient
descent from zero with the best rate, with GD++, and with Meta-SGD, which is
MAML with learned rates. For one step the best error has a closed form. The
inputs of the paper are of U(-1, 1).
"""

from absl import flags

from experiments.shared import context_lengths, gradient_steps
from metajax.runs import report
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.runs.script import run

STUDIES = {
  "context_lengths": context_lengths,
  "gradient_steps": gradient_steps,
}
flags.DEFINE_enum(
  "study", "context_lengths", list(STUDIES), "What is compared, see above."
)
flags.DEFINE_integer("dims", 5, "Numbers of an input.", lower_bound=1)
flags.DEFINE_integer(
  "points", 11, "Points of a sequence, with the last query.", lower_bound=2
)
flags.DEFINE_float("noise", 0.0, "Deviation of the noise.", lower_bound=0.0)
DEFAULTS = {
  "steps": 8000,
  "meta_batch": 32,
  "outer_schedule": "cosine",
  "eval_tasks": 2000,
  "log_every": 500,
  "checkpoint_every": 1000,
}
PRESETS = {
  "garg": {
    "dims": 20,
    "points": 41,
    "width": 256,
    "layers": 12,
    "heads": 8,
    "steps": 500_000,
    "meta_batch": 64,
    "outer_lr": 1e-4,
    "outer_schedule": "constant",
  },
  "garg_small": {},
  "garg_noisy": {"noise": 0.5},
  "oswald": {
    "study": "gradient_steps",
    "dims": 10,
    "steps": 4000,
    "meta_batch": 256,
    "inner_lr": 0.1,
    "outer_lr": 3e-3,
    "eval_tasks": 10_000,
  },
}


def main() -> None:
  for name, other in STUDIES.items():
    if name != FLAGS.study:
      refuse(*other.OWN_FLAGS)
  if FLAGS.study != "gradient_steps" or "meta_sgd" not in (
    FLAGS.rows or gradient_steps.TRAINED
  ):
    refuse("inner_lr", "memory", given="without the row meta_sgd")
  study = STUDIES[FLAGS.study].study
  stages, protocol, metrics = study("context_linear")
  report.finish(
    stages.workdir,
    "context_linear",
    {**flag_values("study", "dims", "points", "noise"), **protocol},
    metrics,
    stages.total(),
  )


if __name__ == "__main__":
  # Least squares and the posterior factorise matrices.
  run(
    main,
    PRESETS,
    DEFAULTS,
    unused=("learner", "inner_steps"),
    spare_threads=True,
  )
