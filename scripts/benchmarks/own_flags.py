"""Flags of the benchmarks. Those of experiments may have the same names."""

import functools
import sys

from absl import flags

FLAGS = flags.FlagValues()
DEFINE_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
DEFINE_enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)
DEFINE_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
DEFINE_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
DEFINE_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)
DEFINE_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
DEFINE_multi_enum = functools.partial(
  flags.DEFINE_multi_enum, flag_values=FLAGS
)
DEFINE_multi_integer = functools.partial(
  flags.DEFINE_multi_integer, flag_values=FLAGS
)


def parse(argv: list[str]) -> list[str]:
  """Parses flags, or prints the help."""
  if any(word.lstrip("-") in ("h", "help", "helpfull") for word in argv[1:]):
    print(sys.modules["__main__"].__doc__, FLAGS.get_help(), sep="\n")
    sys.exit(0)
  try:
    return FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"error: {error}. Run with --help for all flags.")
