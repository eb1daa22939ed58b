"""Replays one training step, to find the task that made it fail."""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from metajax.results import write_json
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.training import Trainer, checkpoint
from metajax.training.inspection import inspect_step
from metajax.types import MetaLearner, TaskFamily

flags.DEFINE_bool(
  "skip_non_finite",
  False,
  "Skip and count the steps whose loss or gradient is not finite, in place of "
  "stopping.",
)
flags.DEFINE_integer(
  "replay_step",
  None,
  "Show the tasks of this step of the run in --workdir, and train no further.",
  lower_bound=0,
)


def replay(
  workdir: Path, trainer: Trainer, learner: MetaLearner, tasks: TaskFamily
) -> None:
  """Shows the metrics of each task of step --replay_step and writes a file.

  The script restores the newest checkpoint at or before the step and trains
  from there to the step.

  Raises:
    ValueError: if the step is not in the run, if an earlier step is not finite,
      or if there are several seeds.
  """
  step = FLAGS.replay_step
  if step >= FLAGS.steps:
    raise ValueError(
      f"--replay_step={step}: must be less than --steps={FLAGS.steps}: steps "
      "are counted from 0."
    )
  if FLAGS.num_seeds > 1:
    raise ValueError("--replay_step: for --num_seeds=1 alone.")
  state = trainer.init(rng_keys.init_key())
  checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints")
  restored = checkpoint.restore(checkpoints, state, at_most=step)
  if restored:
    state = restored.state
  if state.step < step:
    print(f"training from step {state.step} to {step}", file=sys.stderr)
    train, _ = trainer.compile(state)
    state, _ = train(state, step - int(state.step))
  if state.step != step:
    raise ValueError(
      f"--replay_step={step}: step {state.step} is not finite and comes first; "
      "give it, or --skip_non_finite if the run had it."
    )
  found = inspect_step(
    learner,
    tasks,
    state,
    meta_batch=FLAGS.meta_batch,
    rng=rng_keys.task_key(),
  )
  names = sorted(found.metrics)
  print(f"step {state.step}\ntask" + "".join(f"{n:>16}" for n in names))
  for i in range(FLAGS.meta_batch):
    row = "".join(f"{found.metrics[name][i]:16.6g}" for name in names)
    broken = [path for path, finite in found.finite.items() if not finite[i]]
    every = len(broken) == len(found.finite)
    which = "all gradients" if every else ", ".join(broken)
    print(f"{i:4}{row}" + (f"  not finite: {which}" if broken else ""))
  path = workdir / f"replay_{state.step}.json"
  write_json(
    path,
    {
      "seed": FLAGS.seed,
      "step": int(state.step),
      # JSON has no NaN.
      "metrics": {
        k: [float(x) if np.isfinite(x) else str(x) for x in v]
        for k, v in found.metrics.items()
      },
      "finite": {k: v.tolist() for k, v in found.finite.items()},
    },
  )
  print(path)
