"""The flags that every training script has."""

import math
import sys
from typing import get_args

from absl import flags

from metajax import learners
from metajax.inner_loop import Memory
from metajax.learners.registry import register_installed

FLAGS = flags.FLAGS

try:
  register_installed()
except ValueError as error:
  sys.exit(f"error: {error}")

flags.DEFINE_string(
  "workdir",
  None,
  "Folder of this run. An interrupted run with the same flags goes on where it "
  "stopped. Default: runs/EXPERIMENT-HASH, the hash being that of the flags.",
)
MAX_SEED = 2**31 - 1
flags.DEFINE_integer(
  "seed",
  0,
  "Seed of the training run.",
  lower_bound=0,
  upper_bound=MAX_SEED,
)
flags.DEFINE_integer(
  "eval_seed",
  0,
  "Seed of the evaluation tasks.",
  lower_bound=0,
  upper_bound=MAX_SEED,
)
flags.DEFINE_enum(
  "learner", "maml", sorted(learners.REGISTRY), "Meta-learning algorithm."
)
flags.DEFINE_integer("steps", 10_000, "Meta-training steps.", lower_bound=1)
flags.DEFINE_integer("meta_batch", 32, "Tasks per meta-step.", lower_bound=1)
flags.DEFINE_integer(
  "task_chunk",
  0,
  "Tasks treated at once on a device, which bounds the memory; must divide the "
  "tasks of a device. 0: chosen by the memory of one task.",
  lower_bound=0,
)
flags.DEFINE_integer(
  "inner_steps", 1, "Inner gradient steps in training.", lower_bound=0
)
flags.DEFINE_float(
  "inner_lr",
  0.01,
  "Step size of the inner optimizer, on the mean loss of the support set.",
  lower_bound=0.0,
)
flags.DEFINE_float(
  "outer_lr", 1e-3, "Step size of the outer optimizer.", lower_bound=0.0
)
flags.DEFINE_enum(
  "outer_schedule",
  "constant",
  ["constant", "cosine", "linear"],
  "Outer step size over the run: constant, or a cosine or line down to zero.",
)
flags.DEFINE_enum(
  "memory",
  "auto",
  get_args(Memory),
  "What the inner loop keeps for its backward pass: mixed wherever it is right "
  "for the loss, else remat (auto); the parameters between "
  "steps and the inner gradients, differentiated forward over reverse "
  "(mixed); everything (plain); the parameters between steps (remat), or "
  "between blocks of steps (nested).",
)
flags.DEFINE_integer(
  "eval_tasks", 600, "Tasks of the test evaluation.", lower_bound=2
)
flags.DEFINE_integer("log_every", 100, "Steps between lines.", lower_bound=1)
flags.DEFINE_integer(
  "eval_every", 1000, "Steps between validations.", lower_bound=1
)
flags.DEFINE_integer(
  "checkpoint_every", 1000, "Steps between checkpoints.", lower_bound=1
)
flags.DEFINE_string(
  "compile_cache",
  None,
  "Folder of compiled programs, so that what was compiled once starts at once; "
  "may be deleted at any time. Empty: none. Default: "
  "$JAX_COMPILATION_CACHE_DIR, or metajax in the user's folder of caches.",
)
flags.DEFINE_bool(
  "must_save",
  True,
  "Stop where a checkpoint cannot be written, on a full disk, say; otherwise "
  "warn, and go on.",
)
flags.DEFINE_float(
  "stall_seconds",
  300.0,
  "Warn where no step has ended for so long, which are of about a second or "
  "less as a rule; 0: never.",
  lower_bound=0.0,
  upper_bound=1e6,
)
for _name in ("inner_lr", "outer_lr", "stall_seconds"):
  flags.register_validator(_name, math.isfinite, "must be a finite number")
flags.DEFINE_string(
  "profile",
  None,
  "Folder for a trace of the whole run; see scripts/profile.sh.",
)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


def define_data_dir(more: str = "") -> None:
  """Adds the flag of scripts that need Omniglot, or what `more` says."""
  flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of Omniglot's images_background.zip and images_evaluation.zip"
    f"{more}. Default: $METAJAX_DATA_DIR.",
  )


def refuse(*names: str) -> None:
  """Raises a `ValueError` if a flag is given that a script has no use for."""
  for name in names:
    if FLAGS[name].present:
      raise ValueError(f"--{name} has no effect here: leave it out.")
