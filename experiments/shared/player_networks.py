"""The network of a player, recurrent or of attention, from the flags."""

from typing import Any, get_args

from absl import flags

from metajax.context import build_reader, reading_network
from metajax.models.recurrent import Cell, Head, Recurrent, recurrent
from metajax.policies import num_outputs
from metajax.runs.flags import FLAGS
from metajax.tasks.trials import Trials

flags.DEFINE_integer(
  "units",
  64,
  "Number of units of each layer of the player's network; with "
  "--cell=transformer a multiple of 4.",
  lower_bound=1,
)
flags.DEFINE_enum(
  "cell",
  "gru",
  [*get_args(Cell), "snail", "transformer"],
  "Recurrent cell; or snail or transformer, which attend to all steps of a "
  "trial. Their state grows with the trial, and --capacity states are stored.",
)
HEADS = 4


def network(
  tasks: Trials, head: Head = "dueling", outputs: int | None = None
) -> Recurrent:
  """Returns a network for the given tasks.

  Args:
    tasks: the tasks.
    head: see `metajax.models.recurrent.recurrent`.
    outputs: number of outputs. None: what a policy of the actions needs.
  """
  units, actions = FLAGS.units, outputs or num_outputs(tasks.actions)
  if FLAGS.cell in get_args(Cell):
    return recurrent(actions, units=units, cell=FLAGS.cell, head=head)
  length = tasks.num_steps + 1
  sizes: dict[str, Any] = {"width": units, "layers": 2, "heads": HEADS}
  if FLAGS.cell == "snail":
    # As its authors have it for bandits, with as many units everywhere.
    attention = ((units, units),) * 2
    sizes = {"channels": units, "attention": attention, "length": length}
  elif units % HEADS:
    raise ValueError(
      f"--units={units}: must be a multiple of {HEADS} with --cell=transformer."
    )
  reader = build_reader(FLAGS.cell, **sizes)
  return reading_network(reader, actions, window=length, units=units, head=head)
