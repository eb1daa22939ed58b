"""Runs all suites, with a process for each setting."""

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import UNTIMED
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_string(
  "out",
  None,
  "Folder of the suite all; what it has already is not measured again.",
)
own_flags.DEFINE_string(
  "match",
  "",
  "Of the suite all: only settings that have this regular expression in their "
  "names, which are those of the files in --out.",
)
own_flags.DEFINE_float(
  "limit", 300.0, "Seconds for one setting of the suite all.", lower_bound=1.0
)

PROTOCOLS = ((5, 1), (5, 5), (20, 1), (20, 5))
MODELS, LEARNERS, QUERIES = ("conv4", "mlp"), ("maml", "fomaml"), (1, 15)
OTHER_NUM_TASKS = (4, 256, 1024, 4096)
BILEVEL_STEPS = (10, 100, 1000)


def settings() -> Iterator[dict[str, object]]:
  """Yields settings of the benchmark's flags. Small settings come first."""
  usual = {"suite": "maml", "tasks": 32, "inner_steps": 1}
  for (ways, shots), model, learner, query in itertools.product(
    PROTOCOLS, MODELS, LEARNERS, QUERIES
  ):
    yield usual | {
      "ways": ways,
      "shots": shots,
      "model": model,
      "learner": learner,
      "query_shots": query,
    }
  for tasks, model in itertools.product(OTHER_NUM_TASKS, MODELS):
    yield usual | {
      "ways": 5,
      "shots": 1,
      "model": model,
      "learner": "maml",
      "query_shots": 1,
      "tasks": tasks,
    }
  # The other lowering of the first setting, for most devices.
  yield usual | {"query_shots": 1, "conv_lowering": "xla"}
  yield {"suite": "scaling", "query_shots": 1}
  for suite in ("inner_loop", "replay", "aggregation"):
    yield {"suite": suite}
  for steps in BILEVEL_STEPS:
    yield {"suite": "bilevel", "bilevel_steps": steps}


def measure() -> Iterator[dict]:
  """Runs every setting in its own process, so that its memory is its own."""
  if not FLAGS.out:
    raise ValueError("--out: needed with --suite=all, a folder for results.")
  from tqdm import tqdm  # Only this suite needs it.

  try:
    wanted = re.compile(FLAGS.match)
  except re.error as error:
    raise ValueError(
      f"--match={FLAGS.match}: no regular expression ({error})."
    ) from error
  by_name = {
    ",".join(f"{k}={v}" for k, v in setting.items()): setting
    for setting in settings()
  }
  chosen = {k: v for k, v in by_name.items() if wanted.search(k)}
  if not chosen:
    raise ValueError(
      f"--match={FLAGS.match}: no setting is called so; they are: "
      f"{' '.join(by_name)}."
    )
  folder = Path(FLAGS.out)
  folder.mkdir(parents=True, exist_ok=True)
  for name, setting in tqdm(chosen.items(), unit="setting", disable=None):
    path = folder / f"{name}.jsonl"
    if path.exists():
      continue
    lines = list(_run(setting))
    failed = any("error" in line for line in lines)
    # A failed setting is written under another name. The next run repeats it.
    kept = path.with_suffix(".failed") if failed else path
    kept.write_text("".join(json.dumps(x) + "\n" for x in lines))
    yield from lines


def _run(setting: dict[str, object]) -> Iterator[dict]:
  command = [sys.executable, "scripts/benchmark.py", "--json"]
  command += [f"--{name}={value}" for name, value in setting.items()]
  command.append(f"--repeats={FLAGS.repeats}")
  if setting["suite"] not in UNTIMED:
    command.append(f"--seconds={FLAGS.seconds}")
  root = Path(__file__).resolve().parents[2]
  about = {"setting": setting, "date": time.strftime("%Y-%m-%d")}
  try:
    done = subprocess.run(
      command,
      cwd=root,
      capture_output=True,
      text=True,
      timeout=FLAGS.limit,
      check=False,
    )
    output, error = done.stdout, None
    if done.returncode:
      error = (done.stderr.strip().splitlines() or ["no result"])[-1]
  except subprocess.TimeoutExpired as expired:
    output = (expired.stdout or b"").decode()
    error = f"longer than {FLAGS.limit:g} s"
  for line in output.splitlines():
    if line.startswith("{"):
      yield {**about, **json.loads(line)}
  if error is not None:
    yield {**about, "error": error}
