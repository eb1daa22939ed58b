"""Records of a run: metrics.jsonl, TensorBoard event files, the terminal."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import tensorboardX
from absl import logging
from tqdm import tqdm

from metajax.files import replaced
from metajax.training.legal_json import legal_json
from metajax.training.processes import is_main

# Takes the numbers of a step: `(step, scalars)`. That of another service is a
# line, such as `lambda step, scalars: run.log(dict(scalars), step=step)`.
Logger = Callable[[int, Mapping[str, float]], None]


class Records(NamedTuple):
  """Where the numbers of a run go.

  Attributes:
    write: one line of numbers, for files and other loggers.
    progress: called often, keeps a terminal's bar alive.
  """

  write: Logger
  progress: Logger


@contextlib.contextmanager
def records(
  workdir: Path,
  first_step: int,
  num_steps: int,
  loggers: Sequence[Logger] = (),
  *,
  must_write: bool = True,
) -> Iterator[Records]:
  """Logs to `metrics.jsonl`, to `tensorboard/` and to standard error.

  Of several processes the first one alone does.

  Whatever the files hold of steps after `first_step` (a run that went on after
  its last checkpoint and was killed) is dropped, so that every step stands in
  them once.

  Args:
    workdir: the run's folder.
    first_step: the step that the run starts or resumes from.
    num_steps: the step that it ends with.
    loggers: where the numbers go, too.
    must_write: whether a line that cannot be written is an OSError, rather than
      a warning. A line of `metrics.jsonl` is tried again with the next one.
  """
  if not is_main():
    yield Records(lambda *_: None, lambda *_: None)
    return
  forgiven: tuple[type[Exception], ...] = () if must_write else (OSError,)
  with (
    jsonl(workdir / "metrics.jsonl", first_step, forgiven) as to_file,
    tensorboard(workdir / "tensorboard", first_step) as to_board,
    _terminal(first_step, num_steps) as (to_terminal, progress),
  ):

    def write(step: int, scalars: Mapping[str, float]) -> None:
      for log in (to_file, to_board, *loggers, to_terminal):
        try:
          log(step, scalars)
        except forgiven as error:
          logging.warning("step %d could not be recorded: %s.", step, error)

    yield Records(write, progress)


@contextlib.contextmanager
def jsonl(
  path: Path, first_step: int = 0, forgiven: tuple[type[Exception], ...] = ()
) -> Iterator[Logger]:
  """Logs lines of JSON; those after `first_step` that are there are dropped.

  Errors that are `forgiven` do not matter at the end.
  """
  file = _open_jsonl(path, first_step)

  def write(step: int, scalars: Mapping[str, float]) -> None:
    file.write(legal_json({"step": step, **scalars}) + "\n")
    file.flush()

  try:
    yield write
  finally:
    with contextlib.suppress(*forgiven):
      file.close()


@contextlib.contextmanager
def tensorboard(folder: Path, first_step: int = 0) -> Iterator[Logger]:
  """Logs for TensorBoard, which drops what it has of later steps."""
  # Its thread writes every second, for a run may be killed. (With 0 it spins.)
  with tensorboardX.SummaryWriter(
    str(folder), purge_step=first_step + 1, flush_secs=1
  ) as board:

    def write(step: int, scalars: Mapping[str, float]) -> None:
      for name, value in scalars.items():
        board.add_scalar(name, value, step)

    yield write


@contextlib.contextmanager
def _terminal(
  first_step: int, num_steps: int
) -> Iterator[tuple[Logger, Logger]]:
  """Shows a bar with the newest numbers on a terminal, lines elsewhere."""
  live = sys.stderr.isatty()
  with tqdm(
    total=num_steps,
    initial=first_step,
    disable=not live,
    unit="step",
    dynamic_ncols=True,
  ) as bar:

    def write(step: int, scalars: Mapping[str, float]) -> None:
      # The bar itself shows the newest alone.
      if not live or any(name.startswith("validation/") for name in scalars):
        _say(f"step {step}/{num_steps}  {pretty(scalars)}")

    def progress(step: int, scalars: Mapping[str, float]) -> None:
      bar.set_postfix_str(pretty(scalars), refresh=False)
      bar.update(step - bar.n)

    yield write, progress


def tell(line: str) -> None:
  """Says on standard error what a quiet moment is for."""
  if is_main():
    _say(line)


@contextlib.contextmanager
def waiting(line: str, seconds: float = 2.0) -> Iterator[None]:
  """Tells what goes on within, if it lasts longer than so many seconds."""
  timer = threading.Timer(seconds, tell, [line])
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _say(line: str) -> None:
  if sys.stderr.isatty():
    tqdm.write(line, file=sys.stderr)  # Above a bar, if there is one.
    return
  # In one piece, for what a signal's handler says to come before or after.
  sys.stderr.write(f"{line}\n")
  sys.stderr.flush()


def read_jsonl(path: Path) -> list[dict]:
  """Returns the lines of a metrics file. Leaves out damaged ones.

  A process that was killed leaves a last line that is cut short.
  """
  lines = []
  for line in path.read_text(errors="replace").splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      found = json.loads(line)
      if isinstance(found, dict) and isinstance(found.get("step"), int):
        lines.append(found)
  return lines


def _open_jsonl(path: Path, first_step: int) -> TextIO:
  if path.exists():
    kept = [line for line in read_jsonl(path) if line["step"] <= first_step]
    with replaced(path) as file:
      file.write_text("".join(legal_json(line) + "\n" for line in kept))
  return path.open("a")


def pretty(scalars: Mapping[str, float]) -> str:
  """Formats the numbers of a step for a line on the terminal."""
  return "  ".join(f"{name}={value:.4g}" for name, value in scalars.items())
