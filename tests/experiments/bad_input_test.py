"""Flags, data and folders that cannot be: one line that says what can.

A process of its own for every bad command would spend seconds on imports. Here
one process imports what the scripts import, and runs each command in a fork.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest

from metajax.learners import REGISTRY
from tests.slow import slow_but

ROOT = Path(__file__).resolve().parents[2]
SINUSOID, OMNIGLOT = "maml_sinusoid", "few_shot"
TIMEOUT = 300

# Reads commands, a line of JSON each, and answers each with its exit code.
SERVER = """
import json, os, runpy, sys, traceback
import PIL.Image
import metajax.runs.plots, metajax.runs.training
import metajax.learners, metajax.models.conv, metajax.tasks.omniglot
for line in sys.stdin:
  command = json.loads(line)
  child = os.fork()
  if child == 0:
    for number, path in enumerate([os.devnull] + command["outputs"]):
      os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.environ.update(command["environment"])
    sys.argv = [None, *command["arguments"]]
    code = 0
    try:
      runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
      code = leaving.code
    except BaseException:
      traceback.print_exc()
      code = 1
    sys.stdout.flush()
    os._exit(code)  # To take the interpreter down would last 0.5 s.
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
  """How a process ended."""

  code: int
  stdout: str
  stderr: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """`(experiment, arguments, **environment) -> Ended`."""
  folder = tmp_path_factory.mktemp("outputs")
  outputs = [folder / "stdout", folder / "stderr"]
  environment = {k: v for k, v in os.environ.items() if k != "METAJAX_DATA_DIR"}
  environment["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
  server = subprocess.Popen(
    [sys.executable, "-c", SERVER],
    cwd=ROOT,
    env=environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def run(experiment, arguments, **environment):
    for path in outputs:
      path.write_text("")
    command = {
      "module": f"experiments.{experiment}",
      "arguments": arguments,
      "environment": environment,
      "outputs": [str(path) for path in outputs],
    }
    server.stdin.write(json.dumps(command) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    return Ended(code, *(path.read_text() for path in outputs))

  yield run
  server.stdin.close()
  server.stdout.close()
  assert server.wait(TIMEOUT) == 0


def _assert_refused(ended, message):
  """One line, which matches from the first letter to the last."""
  # It is told where loading takes longer than two seconds.
  said = ended.stderr.removeprefix("loading data\n")
  assert re.fullmatch(f"error: {message}\n", said), said
  assert ended.code == 2
  assert ended.stdout == ""


@pytest.fixture
def workdir(tmp_path):
  """A folder that is not to be made."""
  yield tmp_path / "workdir"
  assert not (tmp_path / "workdir").exists()


AT_LEAST = {
  0: "is not a non-negative (integer|number)",
  1: "is not a positive integer",
  2: "is not integer >= 2",
}
# The least value of each flag.
INTEGERS = {
  "seed": 0,
  "eval_seed": 0,
  "steps": 1,
  "meta_batch": 1,
  "task_chunk": 0,
  "inner_steps": 0,
  "eval_tasks": 2,
  "log_every": 1,
  "eval_every": 1,
  "checkpoint_every": 1,
  "inner_batch": 0,
  "cg_steps": 0,
  "num_context": 1,
  "replay_step": 0,
  "num_seeds": 1,
  "num_processes": 1,
  "process_id": 0,
}
ONLY = {
  SINUSOID: {
    "shots": 1,
    "eval_inner_steps": 0,
    "query_shots": 1,
    "eval_shots": 1,
  },
  OMNIGLOT: {
    "shots": 1,
    "eval_inner_steps": 0,
    "query_shots": 0,
    "eval_query_shots": 0,
    "ways": 2,
    "train_ways": 0,
    "train_shots": 0,
    "filters": 1,
    "image_size": 0,
    "stream_workers": 0,
    "cutout": 0,
    "validation_tasks": 2,
  },
}
ONLY_FLOATS = {
  SINUSOID: {},
  OMNIGLOT: {
    "drop_rate": r"is not a number in the range \[0.0, 0.99\]",
    "late_drop_rate": r"is not a number in the range \[0.0, 0.99\]",
    "slope": r"is not a number in the range \[0.0, 1.0\]",
    "color_jitter": r"is not a number in the range \[0.0, 1.0\]",
  },
}
# What the message says of -0.1.
FLOATS = {
  "inner_lr": AT_LEAST[0],
  "outer_lr": AT_LEAST[0],
  "multi_step_part": r"is not a number in the range \[0.0, 1.0\]",
  "first_order_part": r"is not a number in the range \[0.0, 1.0\]",
  "proximal_strength": "is not number >= 1e-06",
  "damping": AT_LEAST[0],
  "svm_cost": "is not number >= 1e-06",
  "stall_seconds": r"is not a number in the range \[0.0, 1000000.0\]",
}
CHOICES = {
  "learner": f"<{'|'.join(sorted(REGISTRY))}>",
  "outer_schedule": "<constant|cosine|linear>",
  "memory": "<auto|mixed|plain|remat|nested>",
  "inner_optimizer": "<sgd|adam>",
  "dtype": "<float32|bfloat16>",
  "outer_optimizer": "<adam|sgd|momentum>",
}
PRESETS = [
  *["5w1s", "5w5s", "20w1s", "20w5s", "5w1s_mlp", "5w5s_mlp"],
  *["reptile", "maml_plus_plus"],
  *(
    f"{data}_{row}_5w{shots}s"
    for data in ("cifar_fs", "fc100")
    for row in ("maml", "boil", "prototypical", "ridge", "ridge_wide", "svm")
    + ("meta_baseline",)
    for shots in (1, 5)
  ),
]
ONLY_CHOICES = {
  SINUSOID: {"preset": "<paper>"},
  OMNIGLOT: {
    "conv_lowering": "<auto|blocks|patches|xla>",
    "data": "<omniglot|cifar_fs|fc100|mini_imagenet|folder>",
    "eval_data": "<omniglot|cifar_fs|fc100|mini_imagenet|folder>",
    "downsampling": "<auto|stride|max_pool>",
    "split": "<random|official>",
    "model": "<conv4|mlp|resnet12>",
    "widths": "<640|512>",
    "normalization": "<batch|group|layer|none|running>",
    "rotations": "<0|1|2|4>",
    "pictures": "<few|all>",
    "preset": f"<{'|'.join(PRESETS)}>",
  },
}
SWITCHES = [
  "carry_optimizer",
  "debug",
  "learned_rates",
  "step_normalization",
  "must_save",
  "skip_non_finite",
  "sweep_together",
]


def _bad_flags():
  """Yields (experiment, flag, value, what the message says of it).

  What both scripts share is tried on one of them.
  """
  for experiment, shared in ((SINUSOID, True), (OMNIGLOT, False)):
    integers = (INTEGERS if shared else {}) | ONLY[experiment]
    for flag, least in integers.items():
      message = f"{least - 1} {AT_LEAST[least]}"
      if flag.endswith("seed"):
        message = r"-1 is not an integer in the range \[0, 2147483647\]"
      yield experiment, flag, str(least - 1), message
      yield experiment, flag, "1.5", r"invalid literal for int\(\) .*'1.5'"
    floats = (FLOATS if shared else {}) | ONLY_FLOATS[experiment]
    for flag, bound in floats.items():
      yield experiment, flag, "-0.1", f"-0.1 {bound}"
      yield experiment, flag, "fast", "could not convert .* to float: 'fast'"
    choices = (CHOICES if shared else {}) | ONLY_CHOICES[experiment]
    for flag, allowed in choices.items():
      allowed = re.escape(allowed)
      yield experiment, flag, "best", f"value should be one of {allowed}"
    for flag in (
      SWITCHES
      if shared
      else ["first_order", "standardize", "augment", "pooled", "stream"]
    ):
      yield experiment, flag, "perhaps", ".*Non-boolean argument.*"


@pytest.mark.parametrize(
  "experiment, flag, value, message",
  [pytest.param(*case, id="-".join(case[:3])) for case in _bad_flags()],
)
def test_flag_out_of_range_is_named_with_its_range(
  experiment, flag, value, message, run, workdir
):
  ended = run(experiment, [f"--workdir={workdir}", f"--{flag}={value}"])
  _assert_refused(
    ended,
    rf"flag --{flag}={re.escape(value)}: {message}\. "
    r"Run with --help for all flags\.",
  )


@pytest.mark.parametrize("experiment", [SINUSOID, OMNIGLOT])
def test_every_flag_is_tried_above(experiment, run):
  ended = run(experiment, ["--help"])
  assert ended.stderr == ""
  listed = set(re.findall(r"^  --(?:\[no\])?(\w+)", ended.stdout, re.MULTILINE))
  tried = {flag for name, flag, *_ in _bad_flags() if name == experiment}
  of_both = {flag for _, flag, *_ in _bad_flags()}
  assert listed - of_both <= {
    "workdir",
    "data_dir",
    "eval_data_dir",
    "init_from",
    "joined_blocks",
    "compile_cache",
    "profile",
    "coordinator",
    "sweep",
    "logger",
  }
  assert tried <= listed


@pytest.mark.parametrize("experiment", [SINUSOID, OMNIGLOT])
@pytest.mark.parametrize(
  "argument, message",
  [
    (
      "--stpes=5",
      r"Unknown command line flag 'stpes'\. Did you mean: steps .*",
    ),
    ("--ways", ".*ways.*"),
    ("more", "unexpected argument 'more': flags are --name=value."),
    ("-", "unexpected argument '-': flags are --name=value."),
  ],
)
def test_unknown_argument_is_named(experiment, argument, message, run, workdir):
  ended = run(experiment, [f"--workdir={workdir}", argument])
  _assert_refused(ended, message)


@pytest.mark.parametrize("flag", ["seed", "eval_seed"])
def test_seed_beyond_32_bits_is_named(flag, run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", f"--{flag}={2**31}"])
  _assert_refused(ended, rf"flag --{flag}={2**31}: .*2147483647.*")


@pytest.mark.parametrize("flag", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_step_size_that_is_no_number_is_named(flag, value, run, workdir):
  if value == "inf" and "range" in FLOATS[flag]:
    pytest.skip("is out of its range, see above")
  ended = run(SINUSOID, [f"--workdir={workdir}", f"--{flag}={value}"])
  _assert_refused(ended, rf"flag --{flag}={value}: must be a finite number\..*")


def _drawings(folder, archive, characters):
  folder.mkdir(exist_ok=True)
  with zipfile.ZipFile(folder / archive, "w") as file:
    for number in range(characters):
      file.writestr(f"{archive[:-4]}/Greek/{number:03}/0001_01.png", b"")


def _missing(folder):
  return rf"--data_dir={folder}: no such folder\. For Omniglot, .*"


def _empty(folder):
  folder.mkdir()
  return rf"--data_dir={folder}: has neither Omniglot's archives nor folders .*"


def _of_cifar(folder):
  (folder / "cifar-100-binary").mkdir(parents=True)
  return rf"--data_dir={folder}: has CIFAR-100; give --data=cifar_fs or .*"


def _half(folder):
  folder.mkdir()
  _drawings(folder, "images_evaluation.zip", 10)
  return rf"--data_dir={folder}: images_background\.zip is not there; .*"


def _truncated(folder):
  for name in ("images_background.zip", "images_evaluation.zip"):
    _drawings(folder, name, 10)
  path = folder / "images_background.zip"
  os.truncate(path, path.stat().st_size // 2)
  return rf"{path}: damaged \(.+\); fetch it again: .*"


def _incomplete(folder):
  for name in ("images_background.zip", "images_evaluation.zip"):
    _drawings(folder, name, 10)
  path = folder / "images_background.zip"
  return rf"{path}: 10 characters, must be 964; fetch it again: .*"


def _unreadable(folder):
  """A loop of links, which not even root can open."""
  folder.symlink_to(folder)
  return rf".*{folder}.*"


@pytest.mark.parametrize(
  "make",
  [_missing, _empty, _of_cifar, _half, _truncated, _incomplete, _unreadable],
)
def test_data_folder_that_is_none_is_named(make, run, workdir, tmp_path):
  folder = tmp_path / "data"
  message = make(folder)
  ended = run(OMNIGLOT, [f"--workdir={workdir}", f"--data_dir={folder}"])
  _assert_refused(ended, message)


def test_without_data_the_command_that_fetches_it_is_told(run, workdir):
  ended = run(OMNIGLOT, [f"--workdir={workdir}"])
  _assert_refused(ended, ".*`python scripts/download_omniglot.py .*")


@pytest.mark.slow
@pytest.mark.parametrize(
  "flags, message",
  [
    (["--data=cifar_fs"], "no data: .*`python scripts/download_cifar100.py .*"),
    (
      ["--data=fc100", "--data_dir=EMPTY"],
      "--data_dir=.*: neither cifar-100-binary nor cifar-100-python is there.*",
    ),
    (["--data=folder"], "--data=folder: needs --data_dir, the folder of .*"),
    (
      ["--data=mini_imagenet", "--data_dir=EMPTY"],
      "--data_dir=.*: no classes for the split 'train'; give folders .*",
    ),
    (
      ["--data_dir=IMAGES", "--eval_data=folder", "--eval_data_dir=EMPTY"],
      "--eval_data_dir=.*: no classes for the split 'train'; give folders .*",
    ),
    (
      ["--data_dir=IMAGES", "--eval_data=folder", "--eval_data_dir=/nope"],
      "--eval_data_dir=/nope: no such folder; give that of the images.",
    ),
    (
      ["--data=mini_imagenet", "--data_dir=IMAGES"],
      r"--data_dir=.*: \(26, 6, 8\) classes for training, validation and test, "
      r"must be \(64, 16, 20\) in miniImageNet; --data=folder takes any\.",
    ),
    (
      ["--data_dir=IMAGES", "--split=official"],
      "--split has no effect here: leave it out.",
    ),
    (["--standardize"], "--standardize has no effect here: leave it out."),
    (
      ["--data_dir=IMAGES", "--eval_data=folder", "--eval_data_dir=FEW"],
      "--eval_data_dir=.*: --ways=5: must be at most 3, .* test split has .*",
    ),
    (
      ["--data_dir=IMAGES", "--eval_data=fc100"],
      "--data_dir=.*: neither cifar-100-binary nor cifar-100-python is there.*",
    ),
    (
      ["--data=cifar_fs", "--eval_data=fc100"],
      "--data=cifar_fs: cifar_fs trains on classes that fc100 tests on, .*",
    ),
    (
      ["--model=mlp", "--downsampling=stride"],
      "--downsampling has no effect here: leave it out.",
    ),
    (
      ["--model=resnet12", "--filters=32"],
      "--filters has no effect here: leave it out.",
    ),
    (["--widths=512"], "--widths has no effect here: leave it out."),
    (
      ["--model=resnet12", "--learner=cavia"],
      "--model=resnet12: takes no context, .*",
    ),
    (["--augment"], "--augment has no effect here: leave it out."),
    (
      ["--data_dir=IMAGES", "--color_jitter=0.4"],
      "--color_jitter: needs --augment, of which it is a part.",
    ),
    (
      ["--data_dir=IMAGES", "--augment", "--cutout=84"],
      "--cutout=84: must be less than the 4 pixels of a side of the images.",
    ),
    (
      ["--stream"],
      "--stream: for --data=folder and mini_imagenet, not omniglot, which .*",
    ),
    (
      ["--stream_workers=2"],
      "--stream_workers has no effect with --data=omniglot: leave it out.",
    ),
    (
      ["--data_dir=IMAGES", "--nostream", "--stream_workers=2"],
      "--stream_workers has no effect with --nostream: leave it out.",
    ),
    (
      ["--data_dir=IMAGES", "--shots=3"],
      "--data_dir=.*: --shots=3 and --query_shots=3: together at most 2, .*",
    ),
    (
      ["--data_dir=IMAGES", "--eval_query_shots=9"],
      ".*: --shots=1 and --eval_query_shots=9: together .* validation split .*",
    ),
    (
      ["--data_dir=IMAGES", "--learner=ridge", "--train_ways=30"],
      ".*: --train_ways=30: must be at most 26, .* train split .*",
    ),
    (
      ["--data_dir=IMAGES", "--model=resnet12"],
      r"inputs .*: smaller than the window .*; use .* \(--image_size\) .*",
    ),
  ],
)
def test_data_by_name_that_cannot_be_are_named(
  flags, message, run, workdir, tmp_path
):
  for name, count in (("images", 40), ("few", 15)):
    for i in range(count):
      (tmp_path / name / f"{i:02}").mkdir(parents=True)
      for j in range(2):
        image = PIL.Image.new("L", (2, 2), i)
        image.save(tmp_path / name / f"{i:02}" / f"{j}.png")
  (tmp_path / "empty").mkdir()
  for name in ("empty", "images", "few"):
    flags = [x.replace(name.upper(), f"{tmp_path / name}") for x in flags]
  ended = run(OMNIGLOT, [f"--workdir={workdir}", "--image_size=4", *flags])
  _assert_refused(ended, message)


def test_sinusoid_has_no_first_order_but_a_learner(run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", "--first_order"])
  _assert_refused(ended, "Unknown command line flag 'first_order'.*")


@pytest.mark.parametrize(
  "flag, value, owner",
  [
    ("inner_batch", 2, "reptile"),
    ("carry_optimizer", "true", "reptile"),
    ("learned_rates", "false", "maml_plus_plus"),
    ("cg_steps", 2, "imaml"),
    ("damping", 1, "imaml"),
    ("num_context", 2, "cavia"),
  ],
)
def test_options_of_another_learner_are_refused(
  flag, value, owner, run, workdir
):
  ended = run(SINUSOID, [f"--workdir={workdir}", f"--{flag}={value}"])
  _assert_refused(
    ended, f"--{flag} is for --learner={owner}, not maml: leave it out."
  )


def test_inner_loop_that_must_diverge_is_refused(run, workdir):
  ended = run(
    SINUSOID, [f"--workdir={workdir}", "--learner=imaml", "--inner_lr=1"]
  )
  _assert_refused(
    ended,
    "--inner_lr=1.0: times --proximal_strength=2.0 must be below 2, or the "
    "inner loop diverges; give a smaller one of them.",
  )


def test_learner_of_classes_is_refused_where_there_are_none(run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", "--learner=prototypical"])
  _assert_refused(ended, "--learner=prototypical tells classes apart, .*")


def test_steps_without_parameters_of_their_own_are_refused(run, workdir):
  flags = ["--learner=maml_plus_plus", "--eval_inner_steps=3"]
  ended = run(OMNIGLOT, [f"--workdir={workdir}", *flags])
  _assert_refused(
    ended, "--eval_inner_steps=3: must be at most --inner_steps=1, since .*"
  )


def test_a_default_number_of_steps_is_one_that_the_learner_has(run, workdir):
  flags = ["--learner=maml_plus_plus", "--data_dir=nowhere"]
  ended = run(OMNIGLOT, [f"--workdir={workdir}", *flags])
  _assert_refused(ended, "--data_dir=nowhere.*")  # Not the steps.


def test_an_argument_of_the_library_is_told_as_the_flag(run, workdir):
  flags = ["--learner=maml_plus_plus", "--inner_steps=0"]
  ended = run(SINUSOID, [f"--workdir={workdir}", *flags])
  _assert_refused(ended, r"--inner_steps=0: must be 1 or more\.")


def test_network_of_so_many_classes_is_not_trained_on_others(run, workdir):
  ended = run(OMNIGLOT, [f"--workdir={workdir}", "--train_ways=20"])
  _assert_refused(
    ended, "--train_ways=20: must be --ways=5 for --learner=maml, whose .*"
  )


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--coordinator=here"], "--coordinator=here: must be HOST:PORT, or auto."),
    (
      ["--coordinator=localhost:1", "--num_processes=2"],
      "--num_processes and --process_id: needed with --coordinator=.*",
    ),
    (["--num_processes=2"], "--num_processes and --process_id: needed .*"),
    (
      ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
      "--process_id=2: must be less than --num_processes=2.",
    ),
  ],
)
def test_processes_that_cannot_be_are_refused(flags, message, run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", *flags])
  _assert_refused(ended, message)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--sweep=filters=3,4"], "--sweep: this script has no flag 'filters'; .*"),
    (["--sweep=inner_lr=0.1,x"], "--sweep: --inner_lr=x: could not convert .*"),
    (["--sweep=data_dir=a,b"], "--sweep: this script has no flag .*"),
    (["--sweep=workdir=a,b"], "--sweep: --workdir says where or how .*"),
    (["--sweep="], "--sweep: is empty: .*"),
    (
      ["--sweep=seed=0..1", "--seed=3"],
      "--sweep: --seed is given beside the sweep, too: .*",
    ),
    (
      ["--sweep=seed=0..1", "--replay_step=3"],
      "--replay_step: is for one run, not for --sweep: leave it out.",
    ),
  ],
)
def test_sweeps_that_cannot_be_are_refused(flags, message, run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", *flags])
  _assert_refused(ended, message)


def test_no_coordinator_to_be_found_is_told(run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", "--coordinator=auto"])
  _assert_refused(ended, "--coordinator=auto: no SLURM, .* says here .*")


@pytest.mark.slow
def test_a_platform_that_is_not_there_is_named(workdir):
  ended = subprocess.run(
    [
      *[sys.executable, "-m", f"experiments.{SINUSOID}"],
      f"--workdir={workdir}",
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "rocm"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 2
  assert re.fullmatch("error: JAX_PLATFORMS=rocm: .*\n", ended.stderr)


def test_a_folder_of_a_trace_is_tried_at_once(run, workdir):
  ended = run(SINUSOID, [f"--workdir={workdir}", "--profile=/proc/nope"])
  _assert_refused(ended, "--profile=/proc/nope: cannot be written to; .*")


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--filters=8,16", r"--filters=\(8, 16\): must be 4 numbers, one for .*"),
    (
      "--train_shots=1,2,3",
      ".*must be a number, or the lowest and the highe.*",
    ),
    ("--joined_blocks=5", r".*is not an integer in the range \[1, 4\].*"),
    ("--init_from=/nope", "--init_from=/nope: has no learner.json and .*"),
  ],
)
def test_numbers_and_folders_that_do_not_fit_are_named(
  argument, message, run, workdir
):
  ended = run(OMNIGLOT, [f"--workdir={workdir}", argument])
  _assert_refused(ended, message)


@pytest.mark.parametrize(
  "data, flags, message",
  [
    ("fc100", ["--data=cifar_fs"], "fc100 trains on classes that cifar_fs .*"),
    ("cifar_fs", ["--eval_data=fc100"], "cifar_fs trains on classes that .*"),
    ("omniglot", [], "--split=official trains on characters that .*"),
    # The same split: only the learner is missing.
    ("cifar_fs", ["--data=cifar_fs"], "has no learner.json and .*"),
    ("omniglot", ["--split=official"], "has no learner.json and .*"),
  ],
)
def test_a_network_that_knows_classes_of_the_test_is_refused(
  data, flags, message, run, workdir, tmp_path
):
  start = tmp_path / "start"
  start.mkdir()
  config = {"flags": {"split": "official"}}
  (start / "config.json").write_text(json.dumps(config))
  results = {"protocol": {"data": data}}
  (start / "results.json").write_text(json.dumps(results))
  arguments = [f"--workdir={workdir}", f"--init_from={start}", *flags]
  ended = run(OMNIGLOT, arguments)
  _assert_refused(ended, f"--init_from={start}: {message}")


@pytest.mark.parametrize("flag", ["filters", "conv_lowering"])
def test_flags_of_another_network_are_refused(flag, run, workdir):
  value = {"filters": "7", "conv_lowering": "patches"}[flag]
  ended = run(
    OMNIGLOT, [f"--workdir={workdir}", "--model=mlp", f"--{flag}={value}"]
  )
  _assert_refused(ended, f"--{flag} has no effect here: leave it out.")


UNUSED_FLAGS = [
  ("rer_continual", "--steps=5"),
  ("federated_omniglot", "--learner=anil"),
  ("distill_omniglot", "--memory=remat"),
  ("omniglot_challenge", "--eval_tasks=7"),
  ("context_linear", "--inner_steps=2"),
  ("context_classify", "--inner_lr=1.0"),
  ("context_regression", "--memory=remat"),
  ("context_images", "--inner_steps=2"),
  ("tabular", "--inner_steps=2"),
]


@pytest.mark.parametrize(
  "case",
  slow_but([("federated_omniglot", "--learner=anil")], UNUSED_FLAGS),
  ids="".join,
)
def test_flags_without_use_are_neither_shown_nor_taken(case, run, workdir):
  experiment, argument = case
  flag = argument.split("=")[0]
  shown = run(experiment, ["--help"]).stdout
  assert re.search(r"^  --\w+=<", shown, re.MULTILINE)
  assert f"  {flag}=" not in shown
  ended = run(experiment, [f"--workdir={workdir}", argument])
  _assert_refused(ended, f"{flag} has no effect here: leave it out.")


# A script, flags, the one of them that has no effect, and with what.
NO_EFFECT = [
  ("distill_dataset", "--classes=5", "classes", "with --data=digits"),
  ("distill_dataset", "--data_dir=/nope", "data_dir", "with --data=digits"),
  ("context_images", "--data_dir=/nope", "data_dir", "with --data=digits"),
  ("reweight", "--data_dir=/nope", "data_dir", "with --data=digits"),
  ("reweight", "--ratio=3", "ratio", "with --corruption=flip"),
  (
    *("reweight", "--corruption=imbalance --flipped=0.1"),
    *("flipped", "with --corruption=imbalance"),
  ),
  ("rer_omniglot", "--encoder=pixels --filters=8", "filters", "with --enc.*"),
  ("context_linear", "--inner_lr=0.3", "inner_lr", "without the row meta_sgd"),
  (
    *("context_linear", "--preset=oswald --rows=attention --memory=remat"),
    *("memory", "without the row meta_sgd"),
  ),
  ("rer_mdps", "--references_only --units=7", "units", "with --references.*"),
  ("rer_mdps", "--norer --batch=7", "batch", "with --norer"),
  ("rer_mdps", "--noppo --ppo_lr=0.1", "ppo_lr", "with --noppo"),
  ("rer_mdps", "--latent=3", "latent", "without --varibad"),
  (
    *("rer_mdps", "--importance_exponent=0.5", "importance_exponent"),
    "with --priority_exponent=0",
  ),
  ("rer_ablations", "--noppo --ppo_lr=0.1", "ppo_lr", "with --noppo"),
]


@pytest.mark.parametrize(
  "case",
  slow_but(NO_EFFECT[:1] + NO_EFFECT[4:5] + NO_EFFECT[7:8], NO_EFFECT),
  ids=" ".join,
)
def test_flags_without_use_beside_others_are_refused(case, run, workdir):
  experiment, flags, flag, given = case
  if experiment.startswith("rer_"):
    for package in ("flashbax", "gymnax"):
      pytest.importorskip(package)
  ended = run(experiment, [f"--workdir={workdir}", *flags.split()])
  _assert_refused(ended, f"--{flag} has no effect {given}: leave it out.")


@pytest.mark.slow
@pytest.mark.parametrize(
  "experiment, argument, message",
  [
    (
      *("distill_omniglot", "--student_filters=16,9"),
      "flag --student_filters=.*: must be multiples of 8, the groups of .*",
    ),
    ("aggregate_omniglot", "--ema_decay=1", ".*: must be below 1. .*"),
    ("federated_omniglot", "--target=2", ".*range .0.0, 1.0.*"),
    (
      *("gradient_estimators", "--outer=0"),
      r"--outer=0\.0: the exact gradient is 0\.0 there, and the results are .*",
    ),
    (
      *("tabular", "--features=33"),
      r"--features=33: must be 1 to 32\.",
    ),
    (
      *("rer_omniglot", "--capacity=19"),
      "--capacity=19: must be at least --meta_batch=20, the tasks of a step.",
    ),
    (
      *("distill_dataset", "--real_batch=121"),
      "--real_batch=121: must be at most 120, the real images of a class.",
    ),
    (
      *("rer_mdps", "--burn_in=100"),
      "--burn_in=100: must be from 0 to 99, less than .*",
    ),
  ],
)
def test_what_fails_in_a_later_training_is_refused_at_once(
  experiment, argument, message, run, workdir
):
  if experiment.startswith("rer_"):
    for package in ("flashbax", "gymnax"):
      pytest.importorskip(package)
  ended = run(experiment, [f"--workdir={workdir}", argument])
  _assert_refused(ended, message)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--learner=maml"], "flag --learner=maml: value should be one of <alpaca"),
    (["--tasks=cubic"], "flag --tasks=cubic: value should be one of <rbf"),
    (["--eval_shots=0"], "flag --eval_shots=0: 0 is not a positive integer"),
    (["--num_bars=2"], "flag --num_bars=2: 2 is not integer >= 3"),
    (["--num_knots=1"], "flag --num_knots=1: 1 is not integer >= 2"),
    (["--learner=cnp", "--layers=2"], "--layers=2: cnp has a fixed number of"),
    (["--num_bars=9"], "--num_bars is for --learner=prior_fitted, not tnp_d"),
    (["--objective=elbo"], "--objective is for --learner=anp, not tnp_d"),
    (["--width=30"], "--width=30, heads=4: heads must divide the width"),
    (["--learner=canp", "--width=30"], "--width=30: must be a multiple of 8"),
    (
      ["--learner=convcnp", "--tasks=linear"],
      "--learner=convcnp: reads inputs from -2.5 to 2.5 only",
    ),
  ],
)
def test_learners_in_context_that_cannot_be_are_named(
  flags, message, run, workdir
):
  ended = run("context_regression", [f"--workdir={workdir}", *flags])
  _assert_refused(ended, f"{message}.*")


@pytest.mark.slow
@pytest.mark.parametrize(
  "flags, message",
  [
    (["--data=photographs"], "flag --data=photographs: value should be one of"),
    (["--learner=convcnp"], "--learner=convcnp: reads inputs of one number"),
    (
      ["--eval_shots=33"],
      "--eval_shots=33: must be at most 32, half of the 64",
    ),
  ],
)
def test_images_that_cannot_be_completed_are_named(
  flags, message, run, workdir
):
  ended = run("context_images", [f"--workdir={workdir}", *flags])
  _assert_refused(ended, f"{message}.*")


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--learner=maml"], "flag --learner=maml: value should be one of <.*mann"),
    (["--protocol=both"], "flag --protocol=both: value should be one of <pres"),
    (["--width=-1"], "flag --width=-1: -1 is not a non-negative integer"),
    (
      ["--learner=ttt", "--width=30"],
      "--width=30, heads=4: heads must divide the width",
    ),
    (["--train_ways=5"], "--train_ways has no effect here"),
    (["--encoder=none", "--filters=8"], "--filters has no effect here"),
  ],
)
def test_readers_that_cannot_be_built_are_named(flags, message, run, workdir):
  ended = run("context_classify", [f"--workdir={workdir}", *flags])
  _assert_refused(ended, f"{message}.*")


def test_a_step_that_the_run_has_not_is_refused(run, tmp_path):
  few = [f"--workdir={tmp_path / 'w'}", "--steps=4", "--replay_step=4"]
  ended = run(SINUSOID, few)
  last = ended.stderr.splitlines()[-1]
  assert last == (
    "error: --replay_step=4: must be less than --steps=4: steps are counted "
    "from 0."
  )
  assert ended.code == 2


@pytest.mark.slow
def test_sizes_beyond_any_machine_are_an_error_in_a_line(run, tmp_path):
  data = tmp_path / "images"
  for name in range(24):
    (data / f"{name}").mkdir(parents=True)
    for i in range(2):
      PIL.Image.new("L", (2, 2), 10 * name).save(data / f"{name}" / f"{i}.png")
  ended = run(
    OMNIGLOT,
    [
      *[f"--workdir={tmp_path / 'w'}", f"--data_dir={data}"],
      *["--image_size=8", "--ways=2", f"--filters={2**31}"],
    ],
  )
  assert ended.code == 2
  assert re.match("error: .*too (large|little)", ended.stderr.splitlines()[-1])
  assert "Traceback" not in ended.stderr


def test_cache_that_cannot_be_is_named(run, workdir, tmp_path):
  path = tmp_path / "file" / "cache"
  path.parent.touch()
  ended = run(SINUSOID, [f"--workdir={workdir}", f"--compile_cache={path}"])
  _assert_refused(
    ended,
    f"--compile_cache={path}: cannot be written to. Give another folder, or "
    r"--compile_cache= to have none\.",
  )


@pytest.mark.parametrize("chunk", [5, 8])
def test_chunk_is_at_most_the_tasks_of_a_device(chunk, run, workdir):
  ended = run(
    SINUSOID,
    [f"--workdir={workdir}", "--meta_batch=4", f"--task_chunk={chunk}"],
  )
  _assert_refused(
    ended,
    rf"--task_chunk={chunk}: must be 1 to [124], the tasks of a device\.",
  )


def _member(folder, **flags):
  folder.mkdir()
  usual = {"experiment": OMNIGLOT, "model": "conv4", "ways": 5, "inner_lr": 2.0}
  flags = usual | flags
  flags |= {"normalization": "batch"}
  (folder / "config.json").write_text(json.dumps({"flags": flags}))


@pytest.mark.parametrize(
  "second, message",
  [
    (None, "is no run of experiments.few_shot: train one by .*"),
    ({"experiment": SINUSOID}, "is no run of experiments.few_shot: .*"),
    ({"ways": 20}, "is a run with --ways=20, not 5: give another run, or .*"),
    ({"filters": 8}, "is a run with --filters=8, not 64: give another .*"),
    ({"filters": 64, "num_seeds": 2}, "is a run with --num_seeds=2, not 1: .*"),
    (
      {"filters": 64, "data_dir": "cifar_fs-1a2b3c4d"},
      "is a run with --data_dir=cifar_fs-1a2b3c4d, not None: give another .*",
    ),
    (
      {"filters": 64, "downsampling": "max_pool"},
      "is a run with --downsampling=max_pool, not auto: give another run, .*",
    ),
    (
      {"filters": 64, "joined_blocks": 2},
      "is a run with --joined_blocks=2, not 1: give another run, or other .*",
    ),
    (
      {"filters": 64, "split": "official", "image_size": 28},
      "is a run with --split=official, not random: give another run, or .*",
    ),
    (
      {"filters": 64, "learner": "boil"},
      "is a run with --learner=boil, not maml: give another run, or other .*",
    ),
    (
      {"filters": 64, "image_size": 20},
      "is a run with --image_size=20, not 0: give another run, or other .*",
    ),
    (
      {"filters": 64, "inner_lr": 0.4},
      "is a run with --inner_lr=0.4, not 2.0: give another run, or other .*",
    ),
  ],
)
def test_member_that_does_not_fit_is_named(
  second, message, run, workdir, tmp_path
):
  members = [tmp_path / name for name in ("first", "second")]
  _member(members[0], filters=64, learner="fomaml")
  if second is not None:
    _member(members[1], **second)
  folders = ",".join(map(str, members))
  ended = run(
    "aggregate_omniglot",
    [f"--workdir={workdir}", f"--member_workdirs={folders}"],
  )
  _assert_refused(ended, f"--member_workdirs: {members[1]} {message}")


def test_student_in_the_workdir_of_a_teacher_is_refused(run, tmp_path):
  teachers = [tmp_path / name for name in ("first", "second")]
  for folder in teachers:
    _member(folder, filters=64)
  before = (teachers[1] / "config.json").read_bytes()
  folders = ",".join(map(str, teachers))
  ended = run(
    "distill_learners",
    # The same folder by another name.
    [f"--workdir={tmp_path}/first/../second", f"--teacher_workdirs={folders}"],
  )
  _assert_refused(
    ended,
    r"--workdir=.* is that of a run in --teacher_workdirs: choose another\.",
  )
  assert os.listdir(teachers[1]) == ["config.json"]
  assert (teachers[1] / "config.json").read_bytes() == before


@pytest.mark.slow
def test_more_synthetic_images_than_real_ones_are_refused(run, workdir):
  ended = run("distill_dataset", [f"--workdir={workdir}", "--per_class=1000"])
  _assert_refused(ended, "--per_class=1000: must be at most 120, .*")


@pytest.mark.slow
def test_windows_that_do_not_fill_a_training_are_refused(run, workdir):
  ended = run(
    "learned_optimizer",
    [f"--workdir={workdir}", "--inner_steps=50", "--window=20"],
  )
  _assert_refused(ended, "--inner_steps=50: must be a multiple of --window=20.")


@pytest.mark.slow
@pytest.mark.parametrize(
  "flags, message",
  [
    (["--classes=11"], "--classes=11: must be at most 10 with --data=digits."),
    (["--data=omniglot", "--clean=15"], "--clean=15: must be below 15, .*"),
    (["--data=cifar100"], "no data: .*`python scripts/download_cifar100.py .*"),
  ],
)
def test_images_that_cannot_be_corrupted_are_named(
  flags, message, run, workdir
):
  ended = run("reweight", [f"--workdir={workdir}", *flags])
  _assert_refused(ended, f"{message}.*")


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--preset=oswald", "--width=8"], "--width has no effect here: .*"),
    (["--rows=attention"], "--rows has no effect here: .*"),
    (["--preset=oswald", "--rows=gd"], "--rows=gd: must be of attention, .*"),
    (["--heads=3"], "--width=64, --heads=3: heads must divide the width."),
  ],
)
def test_flags_of_linear_regression_that_cannot_be_are_named(
  flags, message, run, workdir
):
  ended = run("context_linear", [f"--workdir={workdir}", *flags])
  _assert_refused(ended, message)


def test_one_member_is_refused(run, workdir):
  ended = run(
    "aggregate_omniglot", [f"--workdir={workdir}", "--member_workdirs=one"]
  )
  _assert_refused(ended, ".*needs two folders or more.*")


@pytest.mark.parametrize(
  "path, said",
  [
    ("/proc/nope/run", "/proc/nope: No such file or directory"),
    ("x" * 300, "x{300}.*: File name too long"),
  ],
  ids=["proc", "long"],
)
def test_workdir_that_cannot_be_made_is_refused(path, said, run):
  ended = run("gradient_estimators", [f"--workdir={path}"])
  _assert_refused(ended, rf"{said}: give another path\.")


# Whether tests run as root or not, nothing can be made below a file.
@pytest.mark.parametrize("name", ["file", "folder"])
def test_workdir_of_something_else_is_refused_and_kept(name, run, tmp_path):
  content = tmp_path / ("file" if name == "file" else "folder/notes.txt")
  content.parent.mkdir(exist_ok=True)
  content.write_text("mine")
  ended = run(SINUSOID, [f"--workdir={tmp_path / name}"])
  _assert_refused(
    ended,
    f"--workdir={tmp_path / name} exists and is no run of metajax: choose a "
    r"new or an empty folder\.",
  )
  assert content.read_text() == "mine"
  assert len(list(tmp_path.rglob("*"))) == (1 if name == "file" else 2)


def test_workdir_below_a_file_is_refused(run, tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  ended = run(SINUSOID, [f"--workdir={path / 'runs' / 'first'}"])
  _assert_refused(ended, f".*{path / 'runs' / 'first'}.*")
  assert path.read_text() == "mine"


def test_workdir_is_looked_at_before_anything_that_takes_long(run, tmp_path):
  """Such as these indices, which would take half an hour."""
  workdir = tmp_path / "file"
  workdir.write_text("mine")
  ended = run("rer_bandits", [f"--workdir={workdir}", "--pulls=20000"])
  _assert_refused(ended, f"--workdir={workdir} exists and is no run .*")


@pytest.mark.slow
@pytest.mark.parametrize(
  "content", ["", "{}", "null", '{"flags": [1]}'], ids=repr
)
def test_unreadable_config_is_named_and_kept(content, run, tmp_path):
  tmp_path /= "inner_lr=0.1,seed=0"  # As a sweep names it.
  tmp_path.mkdir()
  path = tmp_path / "config.json"
  path.write_text(content)
  ended = run(SINUSOID, [f"--workdir={tmp_path}"])
  _assert_refused(
    ended, rf"{path} is unreadable \(.+\); choose another --workdir\."
  )
  assert path.read_text() == content
  assert os.listdir(tmp_path) == ["config.json"]


def test_workdir_of_another_experiment_is_refused(run, tmp_path):
  path = tmp_path / "config.json"
  path.write_text('{"flags": {"experiment": "reptile_omniglot"}}')
  ended = run(SINUSOID, [f"--workdir={tmp_path}"])
  _assert_refused(
    ended,
    rf"--workdir={tmp_path} holds a run of reptile_omniglot, not of "
    rf"{SINUSOID}: choose another --workdir\.",
  )
  assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "script, shards, message",
  [
    ("rer_omniglot", 3, "must divide --meta_batch over --replays=2."),
    ("rer_bandits", 3, "must divide --meta_batch=64."),
  ],
)
def test_shards_that_do_not_fit_are_named(
  script, shards, message, run, workdir
):
  ended = run(script, [f"--workdir={workdir}", f"--shards={shards}"])
  _assert_refused(ended, re.escape(f"--shards={shards}: {message}"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--varibad", "--latent=0"], "flag --latent=0: 0 is not a positive .*"),
    (
      ["--varibad", "--belief_batch=5"],
      "--belief_batch=5: must divide --meta_batch=64 into so many parts .*",
    ),
  ],
)
def test_flags_of_beliefs_that_do_not_fit_are_named(
  arguments, message, run, workdir
):
  arguments = ["--preset=gridworld", *arguments]
  ended = run("rer_mdps", [f"--workdir={workdir}", *arguments])
  _assert_refused(ended, message)


@pytest.mark.slow
def test_a_ratio_of_replay_that_is_rounded_is_told(run, workdir):
  for package in ("flashbax", "gymnax"):
    pytest.importorskip(package)
  # 64 new sequences, 64 to an update. The burn-in ends the script.
  flags = ["--replay_ratio=1.4", "--burn_in=100"]
  ended = run("rer_mdps", [f"--workdir={workdir}", *flags])
  assert ended.stderr.splitlines()[0] == (
    "--replay_ratio=1.4: 1 updates of 64 of the 64 sequences of a step are a "
    "ratio of 1"
  )


@pytest.mark.slow
def test_shards_of_the_ablations_divide_the_capacity_that_is_used(
  run, tmp_path
):
  for package in ("flashbax", "gymnax"):
    pytest.importorskip(package)
  # 3 divides 2 x 6 x 4 sequences, and not the 4096 of --capacity.
  flags = ["--shards=3", "--meta_batch=6", "--batch=6", "--kept=2", "--noppo"]
  ended = run(
    "rer_ablations", [f"--workdir={tmp_path / 'w'}", *flags, "--rows=x"]
  )
  _assert_refused(ended, "--rows=x: must be of base, .*")


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, flag",
  [
    (["--algorithm=oracle", "--inner_steps=2"], "inner_steps"),
    (["--algorithm=pretrained", "--surrogate=dice"], "surrogate"),
    (["--kl_penalty=1e-3"], "kl_penalty"),
    (["--outer=ppo", "--kl_target=0.1"], "kl_target"),
    (["--outer=adam", "--max_kl=0.1"], "max_kl"),
  ],
)
def test_flags_of_policies_that_do_nothing_are_named(
  arguments, flag, run, workdir
):
  ended = run("maml_navigation", [f"--workdir={workdir}", *arguments])
  _assert_refused(ended, f"--{flag} has no effect here: leave it out.")


@pytest.mark.slow
@pytest.mark.parametrize(
  "argument, message",
  [
    *[
      (f"--{flag}=0", rf"flag --{flag}=0: .*positive integer.*")
      for flag in (
        *("horizon", "hidden", "latent", "collected", "episodes", "updates"),
        *("batch", "capacity"),
      )
    ],
    ("--train_tasks=1", r"flag --train_tasks=1: .*2.*"),
    ("--validation_tasks=1", r"flag --validation_tasks=1: .*2.*"),
    ("--context=-1", r"flag --context=-1: .*non-negative.*"),
    ("--temperature=-1", r"flag --temperature=-1: .*non-negative.*"),
    ("--kl_weight=-1", r"flag --kl_weight=-1: .*non-negative.*"),
    ("--kl_weight=nan", r"flag --kl_weight=nan: must be a finite number\. .*"),
    ("--discount=1", r"--discount=1\.0: must be at least 0 and below 1\."),
    ("--discount=2", r"flag --discount=2: .*"),
    ("--target_rate=0", r"flag --target_rate=0: .*"),
    ("--deterministic=no?", r"flag --deterministic=no\?: .*"),
    (
      "--collected=101",
      r"--collected=101: must be at most --train_tasks=100, as .*",
    ),
    ("--capacity=299", r"--capacity=299: must be 300 or more, the steps .*"),
    ("--inner_lr=0.1", r"--inner_lr has no effect here: leave it out\."),
  ],
)
def test_bad_number_of_pearl_is_named(argument, message, run, workdir):
  ended = run("pearl_navigation", [f"--workdir={workdir}", argument])
  _assert_refused(ended, message)


@pytest.mark.slow
@pytest.mark.parametrize(
  "argument, message",
  [
    ("--horizon=0", r"flag --horizon=0: .*positive integer.*"),
    ("--episodes=0", r"flag --episodes=0: .*positive integer.*"),
    ("--validation_tasks=1", r"flag --validation_tasks=1: .*2.*"),
    ("--meta_batch=6", r"--meta_batch=6: must be a multiple of \d+, .*"),
    ("--cell=transformer --units=6", r"--units=6: must be a multiple of 4 .*"),
    ("--outer_lr=0.1", r"--outer_lr has no effect here: leave it out\."),
    ("--noppo", r"--ppo has no effect here: leave it out\."),
  ],
)
def test_bad_number_of_rl2_navigation_is_named(argument, message, run, workdir):
  ended = run("rl2_navigation", [f"--workdir={workdir}", *argument.split()])
  _assert_refused(ended, message)


@pytest.mark.slow
@pytest.mark.parametrize(
  "argument, message",
  [
    ("--task=dog", r"flag --task=dog: .*cheetah_direction\|.*"),
    ("--horizon=0", r"flag --horizon=0: .*positive integer.*"),
    (
      "--task=ant_velocity",
      r"brax: not installed, .* Run pip install 'metajax\[brax\]'\.",
    ),
  ],
)
def test_locomotion_that_cannot_be_is_named(argument, message, run, workdir):
  if "ant" in argument and importlib.util.find_spec("brax") is not None:
    pytest.skip("brax is installed")
  ended = run("maml_locomotion", [f"--workdir={workdir}", argument])
  _assert_refused(ended, message)


def _own_floats():
  """Yields (experiment, flag) for the floats that these scripts define."""
  for experiment, names in {
    "aggregate_sinusoid": "l2 to_mean",
    "distill_learners": "alpha temperature",
    "federated_omniglot": "target proximal sgd_lr",
    "gradient_estimators": "sigma outer",
    "maml_navigation": "later_lr max_kl",
    "rer_bandits": "ppo_lr replay_ratio discount",
  }.items():
    yield from ((experiment, name) for name in names.split())


@pytest.mark.parametrize("case", [*_own_floats()], ids="-".join)
def test_no_flag_of_any_script_takes_nan(case, run, workdir):
  """The bounds of absl let it pass, and every comparison with it is false."""
  experiment, flag = case
  ended = run(experiment, [f"--workdir={workdir}", f"--{flag}=nan"])
  _assert_refused(
    ended,
    rf"flag --{flag}=nan: must be a finite number\. Run with --help for all "
    r"flags\.",
  )


@pytest.mark.parametrize(
  "experiment, flag",
  [("reweight", "batch"), ("maml_navigation", "hidden"), (SINUSOID, "steps")],
)
def test_an_integer_beyond_32_bits_is_refused(experiment, flag, run, workdir):
  ended = run(experiment, [f"--workdir={workdir}", f"--{flag}={2**31}"])
  _assert_refused(
    ended,
    rf"flag --{flag}=\[?{2**31}\]?: must be at most {2**31 - 1}\. Run .*",
  )


@pytest.mark.slow
def test_more_indices_than_xla_counts_are_told_in_a_line(run, tmp_path):
  few = ["--steps=1", "--trainings=2", f"--batch={10**9}"]
  ended = run("reweight", [f"--workdir={tmp_path / 'w'}", *few])
  assert ended.code == 2
  last = ended.stderr.splitlines()[-1]
  assert re.match("error: .*too (large|little)", last), last
  assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
  "value, bad, message",
  [
    ("64,x", "x", "invalid literal .*"),
    ("64,0", "0", "0 is not a positive integer"),
    ("", "", "invalid literal .*"),
  ],
)
def test_a_list_of_integers_is_checked_one_by_one(
  value, bad, message, run, workdir
):
  arguments = [f"--workdir={workdir}", f"--hidden={value}"]
  ended = run("maml_navigation", arguments)
  _assert_refused(
    ended, rf"flag --hidden={bad}: {message}\. Run with --help .*"
  )


@pytest.mark.parametrize(
  "arguments, steps", [(["10,15"], 15), (["10", "15"], 15), (["10,20,15"], 15)]
)
def test_a_list_of_integers_may_have_commas(arguments, steps, run, workdir):
  unroll = [f"--unroll={argument}" for argument in arguments]
  ended = run("gradient_estimators", [f"--workdir={workdir}", *unroll])
  _assert_refused(
    ended, f"--unroll={steps}: must be a multiple of --window=10."
  )


@pytest.mark.slow
def test_too_little_memory_is_told_with_the_flags_that_there_are(run, tmp_path):
  pytest.importorskip("gymnax")
  sizes = [f"--arms={10**9}", "--references_only"]
  ended = run("rer_bandits", [f"--workdir={tmp_path / 'w'}", *sizes])
  assert ended.code == 2
  assert re.fullmatch(
    "error: the device has too little memory: give smaller sizes. .*\n",
    ended.stderr.splitlines(keepends=True)[-1],
  )
