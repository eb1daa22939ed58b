r"""Measures speed and memory of metajax on this machine.

  python scripts/benchmark.py --ways=5 --shots=1 --query_shots=15 --tasks=32 \
      --inner_steps=1 --json
  python scripts/benchmark.py --suite=aggregation --json
  python scripts/benchmark.py --suite=inner_loop --json
  python scripts/benchmark.py --suite=bilevel --json
  python scripts/benchmark.py --suite=growth --pooled --image_size=16 --json
  python scripts/benchmark.py --suite=context --json
  python scripts/benchmark.py --suite=replay --json
  python scripts/benchmark.py --suite=policies --json
  python scripts/benchmark.py --suite=scaling --json
  python scripts/benchmark.py --suite=streaming --image_size=84 --json
  python scripts/benchmark.py --suite=all --json --out=DIR

The suite maml measures one whole meta-step: sampling, gradient, Adam. Images
are random numbers of Omniglot's shape. The seconds are the median over
`--repeats` calls of the compiled training loop after one call to warm up. XLA
counts the floating point operations and the bytes in the compiled meta-gradient
of one task. The same run measures two peak rates: that of a float32 matrix
product (2048 cubed on CPUs, else 8192, in JAX's default precision, which is
lower on accelerators) and that of a copy (256 MB, else 2 GB). The roofline is
the least time that both rates allow, for the operations and for the bytes. A
program can be faster, if its data stay in a cache or if it fuses more
operations with many tasks.

The suite aggregation measures the average of many models. It compares the bytes
per second, read and written, with those of a plain copy of the same array.

The suite inner_loop measures the meta-gradient of one task for each way to
store the inner loop for the backward pass. The models are an MLP, conv4, and a
causal transformer with an inner Adam. Errors are relative to the first way in
the list. (After many steps of a ReLU network in float32, rounding decides on
which side of a kink an activation is. In float64 all ways agree.) For
comparison the suite measures iMAML, which stores nothing.
scripts/plot_inner_loop.py draws the lines of JSON.

The suite bilevel measures the hypergradient of the penalties of an MLP's four
arrays by each method. Operations are those of products. They leave out the
eigenvalues that the direct solver computes. Errors are relative to the exact
derivative of the inner steps. The programs take turns, and `over_unrolled`
compares two calls of one turn.

The suite growth measures the meta-step of the flags with larger sizes. It takes
one size at a time (ways, shots, query_shots, image_size, inner_steps, filters)
as given, doubled, and four times as large. It reports the exponents with which
time, temporaries and the operations of products grow.

The suite context measures the meta-gradient of a transformer that reads one
task, for contexts of 32 to 4,096 points, and attention alone, that of metajax
and JAX's own, in float32 and in float64. It reports the exponents, too. With
--counts_only it runs nothing and reports operations of products and
temporaries, which do not depend on the load of the machine.

The suite replay measures one step of recurrent experience replay on bandits,
acting and learning. The buffer's share of the time is measured by a program
that does only the same insertions, draws and new priorities.

The suite policies measures an outer step of MAML for policies by TRPO, on 2-D
navigation or in brax: the steps of the environment before and after one inner
step, by the seconds of the whole outer step, and by those of the episodes alone
on one device.

The suite scaling measures the meta-step on 1, 2, 4, ... devices, with the same
number of tasks in total (strong) and with the same number on each device
(weak). Devices made of a CPU share its cores. More devices than cores show only
the cost of dividing the work. At the end the suite estimates the time that
accelerators need to exchange their bytes.

The suite streaming measures the meta-step of the flags on a folder of random
images, once with all of them in memory, and once for each number of processes
that read them from the disk. It needs the extra grain.

The suite all runs the suites aggregation, bilevel, inner_loop, replay and
scaling, and the suite maml with many settings. Each setting has its own
process.

A flag that has no effect in the suite is refused.
"""

import json
import sys
from pathlib import Path

from absl import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.learners import FACTORISING  # noqa: E402
from metajax.training import use_cpu_cores  # noqa: E402
from scripts.benchmarks import (  # noqa: E402
  aggregation,
  bilevel,
  context,
  everything,
  growth,
  inner_loop,
  maml,
  own_flags,
  policies,
  replay,
  scaling,
  streaming,
)
from scripts.benchmarks.measuring import UNTIMED  # noqa: E402
from scripts.benchmarks.own_flags import FLAGS

SUITES = {
  "maml": maml.measure,
  "aggregation": aggregation.measure,
  "bilevel": bilevel.measure,
  "context": context.measure,
  "growth": growth.measure,
  "inner_loop": inner_loop.measure,
  "policies": policies.measure,
  "replay": replay.measure,
  "scaling": scaling.measure,
  "streaming": streaming.measure,
  "all": everything.measure,
}
# Suites that measure the meta-step of the flags of the suite maml.
OF_META_STEPS = ("maml", "growth", "scaling", "streaming")
own_flags.DEFINE_enum("suite", "maml", list(SUITES), "What to measure.")
own_flags.DEFINE_bool(
  "json",
  False,
  "Only JSON on standard output, a line each result; the tables go to stderr.",
)


def main(argv: list[str]) -> None:
  del argv
  # JAX logs missing backends at level INFO.
  logging.set_verbosity(logging.WARNING)
  # The other suites choose their devices themselves.
  if FLAGS.suite in ("maml", "growth", "policies", "replay", "streaming"):
    # The baselines of policies factorise matrices, too.
    factorising = FLAGS.suite == "policies" or FLAGS.learner in FACTORISING
    use_cpu_cores(spare_threads=factorising)
  try:
    refuse_others()
    for result in SUITES[FLAGS.suite]():
      show(result)
  except ValueError as error:
    sys.exit(f"error: {error}")
  except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: pip install -e '.[rl]'.")


def suites_of(flag: str) -> list[str]:
  """Returns the suites in which a flag has an effect."""
  module = FLAGS.find_module_defining_flag(flag)
  if flag == "seconds":
    return [suite for suite in SUITES if suite not in UNTIMED]
  if module == maml.__name__:
    return [*OF_META_STEPS]
  own = [k for k, measure in SUITES.items() if measure.__module__ == module]
  return own or [*SUITES]


def refuse_others() -> None:
  """Refuses flags that have no effect in the suite.

  Raises:
    ValueError: if one is given.
  """
  for name in FLAGS:
    suites = suites_of(name)
    if FLAGS[name].present and FLAGS.suite not in suites:
      raise ValueError(
        f"--{name}: goes with --suite={' or '.join(suites)}, not "
        f"{FLAGS.suite}: leave it out."
      )
  of_conv4 = ("filters", "pooled", "conv_lowering")
  for name in of_conv4 if FLAGS.model == "mlp" else ():
    if FLAGS[name].present:
      raise ValueError(f"--{name}: goes with --model=conv4, not mlp.")


def show(result: dict) -> None:
  for name, value in result.items():
    shown = f"{value:.6g}" if isinstance(value, float) else value
    print(f"{name:28} {shown}", file=sys.stderr if FLAGS.json else sys.stdout)
  print(json.dumps(result) if FLAGS.json else "", flush=True)


if __name__ == "__main__":
  main(own_flags.parse(sys.argv))
