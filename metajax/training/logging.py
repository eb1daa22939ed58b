"""Records of a run: metrics.jsonl, TensorBoard event files, the terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

import tensorboardX
from absl import logging
from tqdm import tqdm

from metajax.training.legal_json import legal_json
from metajax.training.processes import is_main


class Logger(NamedTuple):
  """Where the numbers of a run go.

  Attributes:
    write: `(step, scalars)`, one line of numbers.
    progress: `(step, scalars)`, called often, keeps a terminal's bar alive.
    close: `()`.
  """

  write: Callable[[int, dict[str, float]], None]
  progress: Callable[[int, dict[str, float]], None]
  close: Callable[[], None]


def run_logger(
  workdir: Path, first_step: int, num_steps: int, *, must_write: bool = True
) -> Logger:
  """Logs to `metrics.jsonl`, to `tensorboard/` and to standard error.

  Of several processes the first one alone does.

  Whatever the files hold of steps after `first_step` (a run that went on after
  its last checkpoint and was killed) is dropped, so that every step stands in
  them once.

  Args:
    workdir: the run's folder.
    first_step: the step that the run starts or resumes from.
    num_steps: the step that it ends with.
    must_write: whether a line that cannot be written to `metrics.jsonl` is an
      OSError, rather than a warning. It is tried again with the next one.
  """
  if not is_main():
    return Logger(lambda *_: None, lambda *_: None, lambda: None)
  jsonl = _open_jsonl(workdir / "metrics.jsonl", first_step)
  forgiven = () if must_write else (OSError,)
  # Its thread writes every second, for a run may be killed. (With 0 it spins.)
  board = tensorboardX.SummaryWriter(
    str(workdir / "tensorboard"), purge_step=first_step + 1, flush_secs=1
  )
  live = sys.stderr.isatty()
  bar = tqdm(
    total=num_steps,
    initial=first_step,
    disable=not live,
    unit="step",
    dynamic_ncols=True,
  )

  def write(step: int, scalars: dict[str, float]) -> None:
    try:
      jsonl.write(legal_json({"step": step, **scalars}) + "\n")
      jsonl.flush()
    except forgiven as error:
      logging.warning("step %d could not be recorded: %s.", step, error)
    for name, value in scalars.items():
      board.add_scalar(name, value, step)
    line = f"step {step}/{num_steps}  {_pretty(scalars)}"
    if not live:
      # In one piece, for what a signal's handler says to come before or after.
      sys.stderr.write(f"{line}\n")
    elif any(name.startswith("validation/") for name in scalars):
      bar.write(line, file=sys.stderr)  # The bar itself shows the newest alone.

  def progress(step: int, scalars: dict[str, float]) -> None:
    bar.set_postfix_str(_pretty(scalars), refresh=False)
    bar.update(step - bar.n)

  def close() -> None:
    bar.close()
    board.close()
    with contextlib.suppress(*forgiven):
      jsonl.close()

  return Logger(write, progress, close)


def tell(line: str) -> None:
  """Says on standard error what a quiet moment is for."""
  if is_main():
    print(line, file=sys.stderr, flush=True)


def read_jsonl(path: Path) -> list[dict]:
  """Returns the whole lines of a metrics file, less a last one cut short."""
  lines = []
  for line in path.read_text().splitlines():
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines


def _open_jsonl(path: Path, first_step: int) -> TextIO:
  if path.exists():
    kept = [line for line in read_jsonl(path) if line["step"] <= first_step]
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(legal_json(line) + "\n" for line in kept))
    os.replace(replacement, path)
  return path.open("a")


def _pretty(scalars: dict[str, float]) -> str:
  return "  ".join(f"{name}={value:.4g}" for name, value in scalars.items())
