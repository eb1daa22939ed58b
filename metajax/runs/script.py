"""Runs a training script: presets, the compilation cache, errors in a line."""

import contextlib
import faulthandler
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from metajax.learners import FACTORISING, OPTIONS
from metajax.results import refuse_foreign
from metajax.runs import help as help_page
from metajax.runs import processes, sweep, together
from metajax.runs.flags import FLAGS, MAX_INTEGER, refuse, refuse_extremes
from metajax.training import use_cpu_cores
from metajax.training.checkpoint import SaveError
from metajax.training.loop import Interrupted, NonFinite

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = "interrupted; run the same command to go on."
# Flags by the arguments of the library that have another name.
ARGUMENTS = {
  "client_chunk": "task_chunk",
  "clients_per_round": "meta_batch",
  "entropy": "ppo_entropy",
  "gae": "ppo_gae",
  "horizon": "inner_steps",
  "max_features": "features",
  "n": "n_step",
  "num_arms": "arms",
  "num_episodes": "episodes",
  "num_eval_steps": "eval_inner_steps",
  "num_examples": "examples",
  "num_pulls": "pulls",
  "num_rotations": "rotations",
  "num_steps": "inner_steps",
  "num_tasks": "train_tasks",
  "ratio": "replay_ratio",
  "shots": "presentations",
  "value": "ppo_value",
  "value_gae": "ppo_value_gae",
}
# What the user can do about an error of a path.
REMEDIES = {
  (PermissionError,): "get the permission",
  (IsADirectoryError, NotADirectoryError, FileExistsError): (
    "move away what is there"
  ),
}
Presets = Mapping[str, Mapping[str, Any]]


def run(
  main: Callable[[], None],
  presets: Presets | None = None,
  defaults: Mapping[str, Any] | None = None,
  *,
  needs: Sequence[str] = (),
  unused: Sequence[str] = (),
  spare_threads: bool = False,
) -> None:
  """Runs a script: parses flags, applies the preset, reports errors in a line.

  Before `main`, each core of the CPU becomes a device, and the processes of a
  run find each other. Modules must therefore compute nothing at import.

  Args:
    main: the script, which reads `FLAGS`.
    presets: flag values by preset name. Explicit flags override them.
    defaults: this script's default values of flags. Presets override them.
    needs: packages of the extra `rl` that the script needs.
    unused: flags of every script that have no effect in this one. Its help does
      not show them, and the script refuses them.
    spare_threads: see `training.use_cpu_cores`. Learners of --learner that
      factorise matrices have spare threads anyway.
  """
  for name, value in (defaults or {}).items():
    FLAGS.set_default(name, value)
  script = sys.argv[0]  # absl's name for the main module.
  # Flags of modules that experiments share are also the script's own flags.
  for module, shared in FLAGS.flags_by_module_dict().items():
    if module.startswith(("experiments.", "metajax.runs.")):
      for flag in shared:
        FLAGS.register_key_flag_for_module(script, flag)
  if presets:
    flags.DEFINE_enum(
      "preset",
      None,
      list(presets),
      "A published protocol; explicit flags override it.",
      module_name=script,
    )
  refuse_extremes(FLAGS.get_key_flags_for_module(script))
  signal.signal(signal.SIGTERM, _terminate)

  def parse(argv: list[str]) -> list[str]:
    if any(word.lstrip("-") in ("h", "help", "helpfull") for word in argv[1:]):
      print(_help(script, unused))
      sys.exit(0)
    try:
      rest = FLAGS(argv)[1:]
    except flags.Error as error:
      fail(f"{error}. Run with --help for all flags.")
    if rest:
      fail(f"unexpected argument {rest[0]!r}: flags are --name=value.")
    if presets and FLAGS.preset:
      for name, value in presets[FLAGS.preset].items():
        if not FLAGS[name].present:
          FLAGS[name].value = value
    return argv

  def guarded(argv: list[str]) -> None:
    del argv
    # orbax logs every file that it writes at level INFO.
    logging.set_verbosity(logging.WARNING)
    try:
      refuse(*unused)
      _find(needs)
      if FLAGS.sweep is not None:
        # Each run is a process of its own. The accelerators are for the runs.
        jax.config.update("jax_platforms", "cpu")
        own = FLAGS.get_key_flags_for_module(script)
        sweep.run([flag.name for flag in own])
        return
      if FLAGS.workdir:  # Before anything that takes long.
        refuse_foreign(Path(FLAGS.workdir))
      learner = FLAGS.learner if "learner" in FLAGS else None
      use_cpu_cores(spare_threads=spare_threads or learner in FACTORISING)
      processes.join()
      _find_devices()
      if jax.distributed.is_initialized():
        # If another process dies, JAX ends this one. JAX's message is enough.
        faulthandler.disable()
      _use_compile_cache()
      with _profile():
        together.run(main) if FLAGS.together else main()
    except Interrupted as stop:
      written = "a checkpoint is" if stop.saved else "no checkpoint could be"
      fail(
        f"stopped by {stop}; {written} written, run the same command to go on.",
        128 + stop.signum,
      )
    except sweep.Ended as end:
      fail(str(end), end.code)
    except NonFinite as error:
      advice = ""
      if "replay_step" in FLAGS and FLAGS.num_seeds == 1:
        advice = (
          f"--replay_step={error.step} shows its tasks (of "
          f"--seed={FLAGS.seed}), --skip_non_finite goes on without such steps."
        )
      written = "is" if error.saved else "could not be"
      fail(
        f"{error}; a checkpoint of the state before {written} written. {advice}"
      )
    except SaveError as error:
      fail(f"{error}. Make room, and run the same command to go on.")
    except KeyboardInterrupt:
      print(f"error: {INTERRUPTED}", file=sys.stderr, flush=True)
      # The usual end would show the tracebacks of threads that write files.
      os._exit(130)
    # The library raises these for bad values and bad data. The user can act on
    # the message, so the traceback is not needed.
    except (ValueError, OSError) as error:
      if FLAGS.debug:
        raise
      fail(_said(error))
    # JAX raises one of these for sizes that no machine has room for.
    except (OverflowError, MemoryError, NotImplementedError) as error:
      fault = isinstance(error, NotImplementedError) and (
        "size exceeding" not in str(error)
      )
      if FLAGS.debug or fault:
        raise
      fail(
        f"a number that was given is too large ({error}): give smaller sizes; "
        "--debug shows where."
      )
    except jax.errors.JaxRuntimeError as error:
      if FLAGS.debug:
        raise
      if f"more than {MAX_INTEGER}" in str(error):  # XLA counts no further.
        fail(f"a number that was given is too large ({_first_line(error)}).")
      if "RESOURCE_EXHAUSTED" not in str(error):
        if not jax.distributed.is_initialized():
          raise
        fail(
          "another process of this run has ended; start all of them again, and "
          f"it goes on from the last checkpoint. ({_first_line(error)})"
        )
      less = {
        "task_chunk": "a smaller --task_chunk",
        "memory": "--memory=remat",
      }
      fixes = [less[name] for name in less if name not in unused]
      fail(
        "the device has too little memory: give "
        f"{' or '.join([*fixes, 'smaller sizes'])}. "
        f"({_first_line(error)})"
      )

  app.run(guarded, flags_parser=parse)


def _first_line(error: Exception) -> str:
  return str(error).splitlines()[0]


def fail(message: str, code: int = 2) -> None:
  """Ends the process with one line on standard error."""
  print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    # `sys.exit` would wait for the other processes, which wait for this one.
    os._exit(code)
  sys.exit(code)


def _flag(found: re.Match[str]) -> str:
  """Returns the flag for the beginning `name=` of a `name=value`."""
  own = {flag.name for flag in FLAGS.get_key_flags_for_module(sys.argv[0])}
  for name in (found[1], ARGUMENTS.get(found[1])):
    if name in own:
      return f"--{name}="
  return found[0]


def _said(error: Exception) -> str:
  """Returns the message of an error, in the words of the command line.

  A `name=value` of the library becomes the flag of that name, and an error of a
  path has its remedy.
  """
  if isinstance(error, OSError) and error.filename is not None:
    # The second name is the one that a file could not be given.
    path = error.filename2 or error.filename
    for kinds, remedy in REMEDIES.items():
      if isinstance(error, kinds):
        return f"{path}: {error.strerror}: {remedy}, or give another path."
    return f"{path}: {error.strerror}: give another path."
  # A word of its own. Folders of a sweep are named "seed=0", too.
  return re.sub(r"(?<![^\s(])(\w+)=(?=\w|\()", _flag, str(error))


def _help(script: str, unused: Sequence[str]) -> str:
  own = {flag.name: flag for flag in FLAGS.get_key_flags_for_module(script)}
  known = {name: own[name] for name in own if name not in unused}
  options = {
    learner: [option.name for option in options]
    for learner, options in OPTIONS.items()
  }
  about = sys.modules["__main__"].__doc__ or ""
  return help_page.page(about, known, options)


def _find(packages: Sequence[str]) -> None:
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  if missing:
    raise ValueError(
      f"{' and '.join(missing)}: not installed. Run scripts/environment.sh rl, "
      "or pip install 'metajax[rl]'."
    )


def _find_devices() -> None:
  try:
    jax.devices()
  # JAX asserts that the platform named in JAX_PLATFORMS is there.
  except (RuntimeError, AssertionError) as error:
    raise ValueError(
      f"JAX_PLATFORMS={jax.config.values['jax_platforms']}: JAX finds no such "
      "device here; unset it to take what there is, or install its packages "
      f"(scripts/environment.sh cuda). {error}"
    ) from error


def _profile() -> contextlib.AbstractContextManager:
  if not FLAGS.profile:
    return contextlib.nullcontext()
  try:  # The profiler would fail only after the run.
    Path(FLAGS.profile).mkdir(parents=True, exist_ok=True)
    writable = os.access(FLAGS.profile, os.W_OK)
  except OSError:
    writable = False
  if not writable:
    raise ValueError(
      f"--profile={FLAGS.profile}: cannot be written to; give another folder."
    )
  return jax.profiler.trace(FLAGS.profile, create_perfetto_trace=True)


def _use_compile_cache() -> None:
  given, folder = FLAGS.compile_cache, FLAGS.compile_cache
  if given is None:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (
      jax.config.values["jax_compilation_cache_dir"] or Path(caches) / "metajax"
    )
  if not folder:
    jax.config.update("jax_enable_compilation_cache", False)
    return
  try:
    Path(folder).mkdir(parents=True, exist_ok=True)
    writable = os.access(folder, os.W_OK)
  except OSError:
    writable = False
  if writable:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  elif given:
    raise ValueError(
      f"--compile_cache={given}: cannot be written to. Give another folder, or "
      "--compile_cache= to have none."
    )


def _terminate(signum: int, frame: Any) -> None:
  del signum, frame
  # At once. An exception would be ignored where it comes within a callback of
  # JAX, and the usual end can crash beside a thread that compiles.
  with contextlib.suppress(RuntimeError):  # Python was writing there.
    sys.stdout.flush()
  for worker in multiprocessing.active_children():  # Those that read images.
    worker.terminate()
  os.write(2, b"error: terminated; run the same command to go on.\n")
  os._exit(TERMINATED)
