"""The folder of a run, which is new, goes on, or is refused."""

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from metajax.results import open_workdir
from metajax.runs.flags import FLAGS
from metajax.training.logging import tell
from metajax.training.processes import main_alone

# Flags that say where a run is, not what it is.
NOT_CONFIG = (
  "workdir",
  "data_dir",
  "eval_data_dir",
  "debug",
  "preset",
  "compile_cache",
  "profile",
  "must_save",
  "stall_seconds",
  "skip_non_finite",
  "replay_step",
  "coordinator",
  "num_processes",
  "process_id",
  "logger",
)


# What may be another in a run that has ended: it is evaluated again.
EVALUATION = (
  "eval_tasks",
  "eval_seed",
  "eval_shots",
  "eval_query_shots",
  "eval_inner_steps",
  "eval_data",
  "eval_data_dir",
)


def start(
  experiment: str,
  data: str | None = None,
  *,
  eval_data: str | None = None,
  goes_on: bool = False,
) -> Path:
  """Makes or reopens the folder of the run that the flags describe.

  Args:
    experiment: its name.
    data: what tells the data apart from others in the place of --data_dir.
    eval_data: the same of --eval_data_dir.
    goes_on: one that has ended may be trained further, where its schedule
      allows that, or evaluated otherwise.
  """
  key_flags = [flag for flag in _key_flags() if flag.name not in NOT_CONFIG]
  config = {flag.name: flag.value for flag in key_flags}
  told = {"data_dir": data, "eval_data_dir": eval_data}
  told = {name: value for name, value in told.items() if value is not None}
  config |= told
  # By what is not the default, so that a flag that is added later, and not
  # given, leaves a run where it was.
  given = {
    flag.name: flag.value for flag in key_flags if flag.value != flag.default
  }
  given |= told
  digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
  default = Path("runs") / f"{experiment}-{digest.hexdigest()[:8]}"
  workdir = Path(FLAGS.workdir or default)
  config["experiment"] = experiment
  # What a run from before a flag existed does not say is the flag's default.
  defaults = {flag.name: flag.default for flag in key_flags}

  def may_change(name: str, old: Any, new: Any) -> bool:
    if not goes_on:
      return False
    if name in EVALUATION:
      return (workdir / "results.json").exists()
    return name == "steps" and new > old and _goes_on(workdir, old)

  main_alone(lambda: open_workdir(workdir, config, defaults, may_change))
  tell(f"{experiment}: run in {workdir}")
  return workdir


def command() -> str:
  """Returns the command of this run, a line each flag that is no default."""
  main = sys.modules["__main__"].__spec__
  lines = ["python " + (f"-m {main.name}" if main else sys.argv[0])]
  for flag in _key_flags():
    if flag.value != flag.default:
      lines += map(shlex.quote, flag.serialize().splitlines())
  return " \\\n  ".join(lines)


def _key_flags() -> list[flags.Flag]:
  return FLAGS.get_key_flags_for_module(sys.argv[0])


def _goes_on(workdir: Path, steps: int) -> bool:
  """Raises a `ValueError` where a training cannot be longer than it was."""
  # Scripts whose runs go on have its flags; others must not get them.
  from metajax.runs import learner_options

  reason = ""
  if FLAGS.outer_schedule != "constant":
    reason = f"--outer_schedule={FLAGS.outer_schedule} ends at step size 0"
  elif learner_options.own(FLAGS.learner, steps) != (
    learner_options.own(FLAGS.learner)
  ):
    reason = f"--learner={FLAGS.learner} changes at parts of the whole training"
  if reason:
    raise ValueError(
      f"--steps={FLAGS.steps}: the run in {workdir} is of {steps} steps, and "
      f"{reason}, so it cannot go on. A new --workdir trains anew."
    )
  return True
