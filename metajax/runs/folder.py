"""The folder of a run: makes it, reopens it, or refuses it."""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from metajax.results import open_workdir
from metajax.runs.flags import FLAGS
from metajax.training.logging import tell
from metajax.training.processes import main_alone

# Flags that do not define a run. The configuration omits them.
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
  "sweep",
  "sweep_together",
  "together",
  "stream",
  "stream_workers",
)


# Flags that may change after a run has ended. The run is then evaluated again.
EVALUATION = (
  "eval_tasks",
  "eval_seed",
  "eval_shots",
  "eval_query_shots",
  "eval_inner_steps",
  "eval_data",
  "eval_data_dir",
  "pictures",
)


def start(
  experiment: str,
  data: str | None = None,
  *,
  eval_data: str | None = None,
  goes_on: bool = False,
  evaluation: Sequence[str] = (),
) -> Path:
  """Makes or reopens the folder of the run that the flags describe.

  Args:
    experiment: the name of the experiment.
    data: identifies the data in the configuration, instead of --data_dir.
    eval_data: identifies the evaluation data, instead of --eval_data_dir.
    goes_on: if True, a run that has ended may be trained further, if its
      schedule allows that, or evaluated with other `EVALUATION` flags.
    evaluation: flags of this experiment with other values of which a run that
      has ended may be evaluated.

  Returns:
    The folder.

  Raises:
    ValueError: if the folder holds another run.
  """
  key_flags = [flag for flag in _key_flags() if flag.name not in NOT_CONFIG]
  config = {flag.name: flag.value for flag in key_flags}
  told = {"data_dir": data, "eval_data_dir": eval_data}
  told = {name: value for name, value in told.items() if value is not None}
  config |= told
  # The hash is of the values that are not defaults. A flag that is added later
  # then does not change the folder of a run that does not use it.
  given = {
    flag.name: flag.value for flag in key_flags if flag.value != flag.default
  }
  given |= told
  digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
  default = Path("runs") / f"{experiment}-{digest.hexdigest()[:8]}"
  workdir = Path(FLAGS.workdir or default)
  config["experiment"] = experiment
  # An old run may lack a newer flag. It then has the default of that flag.
  defaults = {flag.name: flag.default for flag in key_flags}

  def may_change(name: str, old: Any, new: Any) -> bool:
    if name in evaluation or (goes_on and name in EVALUATION):
      return _has_ended(workdir)
    return goes_on and name == "steps" and new > old and _goes_on(workdir, old)

  main_alone(lambda: open_workdir(workdir, config, defaults, may_change))
  tell(f"{experiment}: run in {workdir}")
  return workdir


def _has_ended(workdir: Path) -> bool:
  """Returns whether the training has ended.

  If a later evaluation did not end, the results are in `earlier/` alone. The
  evaluation may have other flags all the same.
  """
  if (workdir / "results.json").exists():
    return True
  earlier = list((workdir / "earlier").glob("results_*.json"))
  if not earlier:
    return False
  try:
    last = max(earlier, key=lambda path: int(path.stem.rpartition("_")[2]))
    return json.loads(last.read_text())["steps"] == FLAGS.steps
  except (OSError, ValueError, KeyError, TypeError):
    return False


def command() -> str:
  """Returns the command of this run, with each non-default flag on a line."""
  main = sys.modules["__main__"].__spec__
  lines = ["python " + (f"-m {main.name}" if main else sys.argv[0])]
  for flag in _key_flags():
    if flag.value != flag.default:
      lines += map(shlex.quote, flag.serialize().splitlines())
  return " \\\n  ".join(lines)


def _key_flags() -> list[flags.Flag]:
  return FLAGS.get_key_flags_for_module(sys.argv[0])


def _goes_on(workdir: Path, steps: int) -> bool:
  """Returns True, or raises a `ValueError` if a training cannot be extended."""
  # The import defines flags. Only scripts whose runs go on may have them.
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
