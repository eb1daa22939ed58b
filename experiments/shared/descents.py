"""Trains outer parameters with checkpoints, and keeps the best of a few."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from metajax.bilevel import Descender, Descent
from metajax.training import TrainState, checkpoint
from metajax.types import Params, PRNGKey

TIMES = 10  # Choices in a training.


def descend(
  descender: Descender,
  start: Descent,
  rng: PRNGKey,
  num_steps: int,
  score: Callable[[Params], float],
  folder: Path,
  saved: Callable[[], object],
) -> tuple[Params, float]:
  """Trains outer parameters, or goes on at the last checkpoint of the folder.

  It scores them at `TIMES` equal parts of the training, and writes a checkpoint
  after each. A run that goes on ends with the same bits.

  Args:
    descender: trains them.
    start: the beginning, as from `descender.init`.
    rng: the key of all steps.
    num_steps: the number of steps.
    score: `(outer) -> loss`, of validation seeds.
    folder: has the checkpoints. Its name is that of the training.
    saved: is called after each checkpoint.

  Returns:
    The outer parameters with the lowest score, and seconds of CPU time.

  Raises:
    ValueError: if no score is finite.
  """
  run = jax.jit(descender.run, static_argnums=2)
  # The parameters of a checkpoint are the chosen ones.
  state = TrainState(start.step, start.outer, start)
  notes = {"best": np.inf, "cpu_seconds": 0.0}
  checkpoints = checkpoint.open_checkpoints(folder)
  if restored := checkpoint.restore(checkpoints, state):
    state, notes = restored
  parts = np.linspace(0, num_steps, min(TIMES, num_steps) + 1, dtype=int)
  for done in parts[parts > int(state.step)]:
    began = time.process_time()
    now, losses = run(state.opt_state, rng, int(done - state.step))
    found, chosen = float(score(now.outer)), state.meta_params
    print(
      f"{folder.name}, {done} steps: loss {losses.mean():.4f}, validation "
      f"{found:.4f}",
      file=sys.stderr,
    )
    if found < notes["best"]:
      notes["best"], chosen = found, now.outer
    notes["cpu_seconds"] += time.process_time() - began
    state = TrainState(now.step, chosen, now)
    checkpoint.save(checkpoints, state, notes)
    saved()
  if not np.isfinite(notes["best"]):
    raise ValueError(
      f"{folder.name} diverges: give a smaller --outer_lr or --sigma."
    )
  return state.meta_params, notes["cpu_seconds"]
