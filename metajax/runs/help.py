"""The text of `--help`: the most used flags, then all others in groups."""

import textwrap
from collections.abc import Iterable

from absl import flags

WIDTH = 80
FIRST = 10
# Flags that only processes of a sweep use. The help omits them.
HIDDEN = ("together",)
# The help begins with the first `FIRST` of these flags that the script has.
MOST_USED = (
  "preset",
  "learner",
  "data",
  "data_dir",
  "workdir",
  "steps",
  "seed",
  "num_seeds",
  "ways",
  "shots",
  "pulls",
  "episodes",
  "inner_steps",
  "inner_lr",
  "outer_lr",
  "meta_batch",
  "eval_tasks",
)
GROUPS = {
  "data and tasks": (
    "data",
    "data_dir",
    "split",
    "image_size",
    "rotations",
    "standardize",
    "augment",
    "color_jitter",
    "cutout",
    "ways",
    "train_ways",
    "shots",
    "train_shots",
    "query_shots",
    "pulls",
    "arms",
    "episodes",
    "environment",
    "protocol",
  ),
  "network": (
    "model",
    "filters",
    "slope",
    "joined_blocks",
    "late_drop_rate",
    "widths",
    "drop_rate",
    "pooled",
    "downsampling",
    "normalization",
    "conv_lowering",
    "dtype",
    "units",
    "cell",
    "width",
  ),
  "learner": (
    "learner",
    "first_order",
    "inner_optimizer",
    "inner_steps",
    "inner_lr",
    "memory",
  ),
  "training": (
    "preset",
    "steps",
    "seed",
    "num_seeds",
    "sweep",
    "sweep_together",
    "meta_batch",
    "task_chunk",
    "outer_optimizer",
    "outer_lr",
    "outer_schedule",
    "init_from",
    "skip_non_finite",
    "replay_step",
    "must_save",
    "stall_seconds",
  ),
  "evaluation": (
    "eval_data",
    "eval_data_dir",
    "eval_tasks",
    "eval_seed",
    "eval_every",
    "eval_shots",
    "eval_query_shots",
    "eval_inner_steps",
    "validation_tasks",
    "pictures",
  ),
  "output": (
    "workdir",
    "log_every",
    "logger",
    "checkpoint_every",
    "compile_cache",
    "profile",
    "debug",
  ),
  "several processes": ("coordinator", "num_processes", "process_id"),
}


def page(
  about: str, known: dict[str, flags.Flag], learners: dict[str, list[str]]
) -> str:
  """Returns the text of `--help`.

  Args:
    about: the docstring of the script.
    known: the script's flags by name.
    learners: by learner, the names of the flags of this learner alone.
  """
  known = {k: flag for k, flag in known.items() if k not in HIDDEN}
  first = [name for name in MOST_USED if name in known][:FIRST]
  parts = [about.strip(), _section("most used", first, known)]
  groups: dict[str, Iterable[str]] = dict(GROUPS)
  for learner, names in learners.items():
    groups[f"--learner={learner} alone"] = names
  taken = {name for names in groups.values() for name in names}
  groups["this experiment"] = [n for n in sorted(known) if n not in taken]
  for title, members in groups.items():
    own = [name for name in members if name in known and name not in first]
    if own:
      parts.append(_section(title, own, known))
  return "\n\n".join(parts)


def _section(
  title: str, names: Iterable[str], known: dict[str, flags.Flag]
) -> str:
  return "\n".join([f"{title}:", *(_entry(known[name]) for name in names)])


def _entry(flag: flags.Flag) -> str:
  text = flag.help
  if flag.boolean:
    head = f"--[no]{flag.name}"
  else:
    values = getattr(flag.parser, "enum_values", None)
    kind = "|".join(values) if values else flag.flag_type().split(" ")[-1]
    head = f"--{flag.name}=<{kind}>"
    # absl puts this prefix before the help of an enum flag.
    text = text.removeprefix(f"<{kind}>: ")
    # absl appends this text to the help of a flag that may be repeated.
    text = text.replace(
      ";\n    repeat this option to specify a list of values",
      " May be repeated.",
    )
  default = flag.default_as_str
  shown = f" [{default.strip(chr(39))}]" if default is not None else ""
  text += shown if flag.default not in (None, "", []) else ""
  return textwrap.fill(
    f"{head}  {text}",
    WIDTH,
    initial_indent="  ",
    subsequent_indent="      ",
    break_on_hyphens=False,
    break_long_words=False,
  )
