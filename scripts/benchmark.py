"""Speed and memory of metajax on this machine.

  python scripts/benchmark.py --ways=5 --shots=1 --query_shots=15 --tasks=32 \
      --inner_steps=1 --json
  python scripts/benchmark.py --suite=aggregation --json

The suite maml is one meta-step, whole: sampling, gradient, Adam. Images are
random numbers of Omniglot's shape. The seconds are the median over `--repeats`
calls of the compiled training loop after one call to warm up. The floating
point operations are those that XLA counts in the compiled meta-gradient, and
the peak is the rate of a 2048-cubed float32 matrix product measured in the same
run.

The suite aggregation is the average of many models, whose bytes per second are
compared with those of a plain copy of the same array, reads and writes counted.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.aggregation import weighted_average  # noqa: E402
from metajax.learners import REGISTRY  # noqa: E402
from metajax.losses import cross_entropy  # noqa: E402
from metajax.models.conv import conv4  # noqa: E402
from metajax.models.mlp import MLP  # noqa: E402
from metajax.results import environment  # noqa: E402
from metajax.tasks.few_shot import few_shot_episodes  # noqa: E402
from metajax.training import (  # noqa: E402
  choose_task_chunk,
  meta_trainer,
  task_mesh,
  use_cpu_cores,
)
from metajax.training.chunking import compile_one_task  # noqa: E402

FLAGS = flags.FLAGS

flags.DEFINE_enum("suite", "maml", ["maml", "aggregation"], "What to measure.")
flags.DEFINE_integer(
  "members", 64, "Models to average (suite aggregation).", lower_bound=1
)
flags.DEFINE_integer(
  "parameters",
  10_000_000,
  "Parameters of a model (suite aggregation).",
  lower_bound=1,
)
flags.DEFINE_enum("learner", "maml", sorted(REGISTRY), "Algorithm.")
flags.DEFINE_enum("model", "conv4", ["conv4", "mlp"], "Network.")
flags.DEFINE_integer("ways", 5, "Classes per task.", lower_bound=2)
flags.DEFINE_integer("shots", 1, "Support images per class.", lower_bound=1)
flags.DEFINE_integer(
  "query_shots", 15, "Query images per class.", lower_bound=1
)
flags.DEFINE_integer("tasks", 32, "Tasks per meta-step.", lower_bound=1)
flags.DEFINE_integer("inner_steps", 1, "Inner steps.", lower_bound=0)
flags.DEFINE_integer(
  "task_chunk", 0, "Tasks treated at once; 0: chosen.", lower_bound=0
)
flags.DEFINE_integer("repeats", 7, "Timed calls.", lower_bound=1)
flags.DEFINE_float(
  "seconds", 2.0, "About how long a timed call lasts.", lower_bound=0.0
)
flags.DEFINE_bool("json", False, "End with one line of JSON.")


def matmul_peak(size: int = 2048, repeats: int = 7) -> float:
  """Returns the best measured rate of a float32 matrix product, in FLOP/s."""
  a, b = jax.random.normal(jax.random.key(0), (2, size, size))
  product = jax.jit(lambda a, b: a @ b)
  seconds = [_timed(lambda: product(a, b)) for _ in range(repeats + 1)][1:]
  return 2 * size**3 / min(seconds)


def measure_aggregation() -> dict:
  """Times the average of a stack of models against a copy of the stack."""
  shape = FLAGS.members, FLAGS.parameters
  stack = jnp.ones(shape)
  weights = jnp.arange(1.0, FLAGS.members + 1)
  average = jax.jit(weighted_average)
  # Into memory that is there already, as the average's small result is.
  copy = jax.jit(lambda x, _: x + 1, donate_argnums=1, keep_unused=True)
  target = jnp.zeros(shape)

  def copied():
    nonlocal target
    target = copy(stack, target)
    return target

  calls = {"average": lambda: average(stack, weights), "copy": copied}
  for call in calls.values():
    _timed(call)
  # In turns, for both to see the same machine.
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(FLAGS.repeats):
    for name, call in calls.items():
      seconds[name].append(_timed(call))
  medians = {name: float(np.median(values)) for name, values in seconds.items()}
  rates = {
    "average": (stack.nbytes + stack[0].nbytes) / medians["average"],
    "copy": 2 * stack.nbytes / medians["copy"],
  }
  return {
    "members": FLAGS.members,
    "parameters": FLAGS.parameters,
    "seconds_average": medians["average"],
    "seconds_copy": medians["copy"],
    "gigabytes_per_second_average": rates["average"] / 1e9,
    "gigabytes_per_second_copy": rates["copy"] / 1e9,
    "fraction_of_copy": rates["average"] / rates["copy"],
    **_machine(1),
  }


def measure_maml() -> dict:
  """Times the meta-step that the flags describe."""
  images = np.random.default_rng(0).integers(
    0, 256, (200, 20, 28, 28, 1), dtype=np.uint8
  )
  tasks = few_shot_episodes(
    jnp.asarray(images), FLAGS.ways, FLAGS.shots, FLAGS.query_shots
  )
  if FLAGS.model == "conv4":
    model = conv4(FLAGS.ways)
  else:
    model = MLP(FLAGS.ways, (256, 128, 64, 64), normalization="batch")

  def learner_of(inner_steps):
    return REGISTRY[FLAGS.learner](
      model, cross_entropy, optax.sgd(0.4), inner_steps
    )

  learner = learner_of(FLAGS.inner_steps)
  mesh = task_mesh(FLAGS.tasks)
  task_chunk = FLAGS.task_chunk or choose_task_chunk(
    learner, tasks, FLAGS.tasks // mesh.size
  )
  trainer = meta_trainer(
    learner,
    optax.adam(1e-3),
    tasks,
    meta_batch=FLAGS.tasks,
    task_chunk=task_chunk,
    mesh=mesh,
    rng=jax.random.key(1),
  )
  state = trainer.init(jax.random.key(2))
  start = time.perf_counter()
  train, executable = trainer.compile(state)
  compile_seconds = time.perf_counter() - start

  def call(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  peak = matmul_peak()
  call(1)
  steps = max(1, round(FLAGS.seconds / _timed(lambda: call(1))))
  seconds = np.array(
    [_timed(lambda: call(steps)) / steps for _ in range(FLAGS.repeats)]
  )
  median = float(np.median(seconds))
  flops = flops_per_task(learner_of, tasks, FLAGS.inner_steps) * FLAGS.tasks
  # Several devices share the work; a CPU's devices share its cores.
  devices = 1 if jax.default_backend() == "cpu" else mesh.size
  return {
    "learner": FLAGS.learner,
    "model": FLAGS.model,
    "ways": FLAGS.ways,
    "shots": FLAGS.shots,
    "query_shots": FLAGS.query_shots,
    "tasks": FLAGS.tasks,
    "inner_steps": FLAGS.inner_steps,
    "seconds_per_meta_step": median,
    "seconds_min": float(seconds.min()),
    "seconds_max": float(seconds.max()),
    "tasks_per_second": FLAGS.tasks / median,
    "compile_seconds": compile_seconds,
    "gflops_per_meta_step": flops / 1e9,
    "matmul_peak_gflops": peak / 1e9,
    "fraction_of_peak": flops / median / (peak * devices),
    "peak_temp_bytes": executable.memory_analysis().temp_size_in_bytes,
    "task_chunk": task_chunk,
    **_machine(mesh.size),
  }


def flops_per_task(learner_of, tasks, inner_steps: int) -> float:
  """Returns the operations of one task's meta-gradient, as XLA counts them.

  XLA counts the body of a loop once, however often it runs. The first inner
  step stands outside the loop, so one and two steps are counted in full, and
  their difference is what every further step adds.
  """
  if inner_steps > 2:
    one, two = (flops_per_task(learner_of, tasks, n) for n in (1, 2))
    return two + (inner_steps - 2) * (two - one)
  compiled = compile_one_task(learner_of(inner_steps), tasks)
  return compiled.cost_analysis()["flops"]


def _machine(devices: int) -> dict:
  return {
    "device": f"{jax.devices()[0].device_kind} x{devices}",
    "host": environment()["host"],
    "jax": jax.__version__,
  }


def _timed(fn) -> float:
  start = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - start


def main(argv: list[str]) -> None:
  del argv
  # JAX tells at INFO which backends it has not found.
  logging.set_verbosity(logging.WARNING)
  if FLAGS.suite == "maml":
    use_cpu_cores()
  suites = {"maml": measure_maml, "aggregation": measure_aggregation}
  try:
    result = suites[FLAGS.suite]()
  except ValueError as error:
    sys.exit(f"error: {error}")
  for name, value in result.items():
    print(
      f"{name:24} {value:.6g}"
      if isinstance(value, float)
      else f"{name:24} {value}"
    )
  if FLAGS.json:
    print(json.dumps(result))


if __name__ == "__main__":
  app.run(main)
