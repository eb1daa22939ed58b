"""Speed and memory of metajax on this machine.

  python scripts/benchmark.py --ways=5 --shots=1 --query_shots=15 --tasks=32 \
      --inner_steps=1 --json
  python scripts/benchmark.py --suite=aggregation --json
  python scripts/benchmark.py --suite=inner_loop --json
  python scripts/benchmark.py --suite=growth --pooled --image_size=16 --json
  python scripts/benchmark.py --suite=replay --json
  python scripts/benchmark.py --suite=scaling --json
  python scripts/benchmark.py --suite=all --json --out=DIR

The suite maml is one meta-step, whole: sampling, gradient, Adam. Images are
random numbers of Omniglot's shape. The seconds are the median over `--repeats`
calls of the compiled training loop after one call to warm up. The floating
point operations and the bytes are those that XLA counts in the compiled
meta-gradient of one task; the peaks, of a float32 matrix product (2048 cubed on
CPUs, else 8192, and in JAX's default precision, which is less on accelerators)
and of a copy (256 MB, else 2 GB), are measured in the same run. The roofline is
the least time of both, operations by the one rate and bytes by the other; a
program whose data stay in a cache, or that fuses more with many tasks, can be
faster.

The suite aggregation is the average of many models, whose bytes per second are
compared with those of a plain copy of the same array, reads and writes counted.

The suite inner_loop is the meta-gradient of one task, by what the inner loop
keeps for its backward pass: an MLP, conv4, and a causal transformer with an
inner Adam; errors are relative to the first way in the list. (After many steps
of a ReLU network in float32, rounding decides on which side of a kink one is;
in float64 all ways agree.) iMAML, which keeps nothing, stands beside them.
scripts/plot_inner_loop.py draws the lines of JSON.

The suite growth is the meta-step of the flags again and again, with one size
after the other (ways, shots, query_shots, image_size, inner_steps, filters) as
given, doubled, and four times as large; and the exponents with which time,
temporaries and the operations of products grow.

The suite replay is one step of recurrent experience replay on bandits, acting
and learning; its share of time in the buffer is that of a program that does
nothing but the same insertions, draws and new priorities.

The suite scaling is the meta-step on 1, 2, 4, ... devices: of the same tasks in
all (strong), and of as many on each (weak). Devices made of a CPU share its
cores; beyond those they show what being divided costs, no more. Estimates
for accelerators, of the bytes that devices exchange, come last.

The suite all is all of them, and the first for many settings, each in a process
of its own.
"""

import json
import sys
from pathlib import Path

from absl import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.training import use_cpu_cores  # noqa: E402
from scripts.benchmarks import (  # noqa: E402
  aggregation,
  everything,
  growth,
  inner_loop,
  maml,
  own_flags,
  replay,
  scaling,
)
from scripts.benchmarks.own_flags import FLAGS

SUITES = {
  "maml": maml.measure,
  "aggregation": aggregation.measure,
  "growth": growth.measure,
  "inner_loop": inner_loop.measure,
  "replay": replay.measure,
  "scaling": scaling.measure,
  "all": everything.measure,
}
own_flags.DEFINE_enum("suite", "maml", list(SUITES), "What to measure.")
own_flags.DEFINE_bool(
  "json",
  False,
  "Only JSON on standard output, a line each result; the tables go to stderr.",
)


def main(argv: list[str]) -> None:
  del argv
  # JAX tells at INFO which backends it has not found.
  logging.set_verbosity(logging.WARNING)
  # Others choose their devices.
  if FLAGS.suite in ("maml", "growth", "replay"):
    use_cpu_cores()
  try:
    for result in SUITES[FLAGS.suite]():
      show(result)
  except ValueError as error:
    sys.exit(f"error: {error}")
  except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: pip install -e '.[rl]'.")


def show(result: dict) -> None:
  for name, value in result.items():
    shown = f"{value:.6g}" if isinstance(value, float) else value
    print(f"{name:28} {shown}", file=sys.stderr if FLAGS.json else sys.stdout)
  print(json.dumps(result) if FLAGS.json else "", flush=True)


if __name__ == "__main__":
  main(own_flags.parse(sys.argv))
