"""Measures one whole meta-step: sampling, gradient, Adam."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.inner_loop import TASK_AXIS, Memory
from metajax.learners import ENCODED, REGISTRY
from metajax.losses import cross_entropy
from metajax.models.conv import ConvLowering, conv4
from metajax.models.mlp import MLP
from metajax.tasks.few_shot import few_shot_episodes
from metajax.training import choose_task_chunk, meta_trainer, task_mesh
from metajax.training.chunking import trace_one_task
from metajax.types import MetaLearner, Metrics, Model, TaskFamily
from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import (
  copy_rate,
  machine,
  matmul_peak,
  peak_bytes,
  seconds_per_step,
)
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_enum(
  "learner", "maml", [*sorted(REGISTRY), "supervised"], "Algorithm."
)
own_flags.DEFINE_enum("model", "conv4", ["conv4", "mlp"], "Network.")
own_flags.DEFINE_integer("ways", 5, "Classes per task.", lower_bound=2)
own_flags.DEFINE_integer("shots", 1, "Support images per class.", lower_bound=1)
own_flags.DEFINE_integer(
  "query_shots", 15, "Query images per class.", lower_bound=1
)
own_flags.DEFINE_integer("tasks", 32, "Tasks per meta-step.", lower_bound=1)
own_flags.DEFINE_integer("inner_steps", 1, "Inner steps.", lower_bound=0)
own_flags.DEFINE_integer(
  "task_chunk", 0, "Tasks treated at once; 0: chosen.", lower_bound=0
)
own_flags.DEFINE_enum(
  "memory",
  "mixed",
  get_args(Memory),
  "What the inner loop keeps: see metajax.inner_loop.minimize.",
)
own_flags.DEFINE_enum(
  "conv_lowering",
  "auto",
  get_args(ConvLowering),
  "How conv4 convolves: see metajax.models.conv.convolution.",
)

own_flags.DEFINE_integer("filters", 64, "Channels of conv4.", lower_bound=1)
own_flags.DEFINE_bool(
  "pooled",
  False,
  "Let conv4 have stride 1 and max-pooling, in place of stride 2.",
)
own_flags.DEFINE_integer(
  "image_size", 28, "Height and width of the images.", lower_bound=1
)
own_flags.DEFINE_integer("channels", 1, "Channels of an image.", lower_bound=1)

INNER_RATE = 0.4
CLASSES, PER_CLASS = 64, 20  # Random images. A class has more if necessary.


class Built(NamedTuple):
  """A compiled training loop and its parts.

  Attributes:
    learner_of: `(inner_steps, conv_lowering) -> MetaLearner`. The default of
      `conv_lowering` is that of the flags.
    tasks: the task family.
    mesh: the devices.
    task_chunk: tasks that a device computes at once.
    take: `steps -> metrics`, takes meta-steps.
    executable: the compiled program.
    compile_seconds: the seconds of the compilation.
  """

  learner_of: Callable[..., MetaLearner]
  tasks: TaskFamily
  mesh: jax.sharding.Mesh
  task_chunk: int
  take: Callable[[int], Metrics]
  executable: jax.stages.Compiled
  compile_seconds: float


def build(
  num_tasks: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  tasks: TaskFamily | None = None,
) -> Built:
  """Compiles the meta-step that the flags describe.

  Args:
    num_tasks: the number of tasks; None: --tasks.
    devices: the devices; None: all devices.
    tasks: the task family; None: tasks of random images.
  """
  if FLAGS.learner == "supervised":
    raise ValueError("--learner=supervised: compare_peers.py measures it.")
  num_tasks = FLAGS.tasks if num_tasks is None else num_tasks
  if tasks is None:
    tasks = few_shot_episodes(
      jnp.asarray(images()), FLAGS.ways, FLAGS.shots, FLAGS.query_shots
    )
  encoded = FLAGS.learner in ENCODED

  def learner_of(inner_steps, conv_lowering=FLAGS.conv_lowering):
    return REGISTRY[FLAGS.learner](
      network(None if encoded else FLAGS.ways, conv_lowering),
      cross_entropy,
      optax.sgd(INNER_RATE),
      inner_steps,
      memory=FLAGS.memory,
      **({"num_outputs": FLAGS.ways} if encoded else {}),
    )

  learner = learner_of(FLAGS.inner_steps)
  mesh = task_mesh(num_tasks, devices)
  task_chunk = FLAGS.task_chunk or choose_task_chunk(
    learner, tasks, num_tasks // mesh.size
  )
  trainer = meta_trainer(
    learner,
    optax.adam(1e-3),
    tasks,
    meta_batch=num_tasks,
    task_chunk=task_chunk,
    mesh=mesh,
    rng=jax.random.key(1),
  )
  state = trainer.init(jax.random.key(2))
  start = time.perf_counter()
  train, executable = trainer.compile(state)
  compile_seconds = time.perf_counter() - start

  def take(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  return Built(
    learner_of, tasks, mesh, task_chunk, take, executable, compile_seconds
  )


def images() -> np.ndarray:
  """Returns random images `[classes, examples, height, width, channels]`."""
  size = FLAGS.image_size
  per_class = max(PER_CLASS, FLAGS.shots + FLAGS.query_shots)
  shape = CLASSES, per_class, size, size, FLAGS.channels
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def network(num_outputs: int | None, conv_lowering: str) -> Model:
  """Returns the network of the flags, with the given `conv_lowering`."""
  if FLAGS.model == "mlp":
    return MLP(num_outputs, (256, 128, 64, 64), normalization="batch")
  return conv4(
    num_outputs,
    filters=FLAGS.filters,
    strided=not FLAGS.pooled,
    conv_lowering=conv_lowering,
  )


def measure() -> Iterator[dict]:
  """Times the meta-step that the flags describe."""
  built = build()
  seconds = seconds_per_step(built.take)
  median = float(np.median(seconds))
  peak_memory = peak_bytes()  # Read before the products and copies need more.
  peak = matmul_peak()
  cost = cost_of_task(built.learner_of, built.tasks, FLAGS.inner_steps)
  flops, traffic = (FLAGS.tasks * cost).tolist()
  copies = copy_rate()
  # Several devices share the work. The devices of a CPU share its cores.
  num_devices = built.mesh.size
  share = 1 if jax.default_backend() == "cpu" else num_devices
  memory = built.executable.memory_analysis()
  yield {
    **setting(),
    "seconds_per_meta_step": median,
    "seconds_min": float(seconds.min()),
    "seconds_max": float(seconds.max()),
    "tasks_per_second": FLAGS.tasks / median,
    "compile_seconds": built.compile_seconds,
    "gflops_per_meta_step": flops / 1e9,
    "matmul_peak_gflops": peak / 1e9,
    "fraction_of_peak": flops / median / (peak * share),
    "gigabytes_per_meta_step": traffic / 1e9,
    "copy_gigabytes_per_second": copies / 1e9,
    "fraction_of_roofline": max(flops / peak, traffic / copies)
    / share
    / median,
    "peak_device_bytes": peak_memory,
    "peak_temp_bytes": memory.temp_size_in_bytes,
    "task_chunk": built.task_chunk,
    **machine(num_devices),
  }


def setting() -> dict[str, object]:
  """Returns the measured setting, for the JSON line."""
  names = ("learner", "model", "image_size", "channels")
  if FLAGS.learner == "supervised":  # It has no tasks.
    names += ("batch_size",)
  else:
    names += ("ways", "shots", "query_shots", "tasks", "inner_steps", "memory")
  if FLAGS.model == "conv4":
    names += ("filters", "pooled", "conv_lowering")
  return {name: FLAGS[name].value for name in names}


def cost_of_task(learner_of, tasks, inner_steps: int) -> np.ndarray:
  """Returns operations and bytes of one task's meta-gradient, by XLA.

  The counted program computes convolutions as products of all patches. The
  timed program may need fewer operations ("blocks"). The count is the same for
  both, so that a fraction of the machine's rate compares the same work.

  XLA counts the body of a loop once, for any number of iterations. The first
  inner step of tasks that are computed at once is outside the loop. One and two
  steps are therefore counted in full, and each further step adds their
  difference.
  """
  if inner_steps > 2:
    one, two = (cost_of_task(learner_of, tasks, n) for n in (1, 2))
    return two + (inner_steps - 2) * (two - one)
  lowering = "xla" if FLAGS.conv_lowering == "xla" else "patches"
  learner = learner_of(inner_steps, lowering)

  def among_tasks(params, episodes, rng):
    def one(episode):
      alone = jax.tree.map(lambda x: x[None], episode)
      return learner.meta_grad(params, alone, rng)

    found = jax.vmap(one, axis_name=TASK_AXIS)(episodes)
    return jax.tree.map(lambda x: x[0], found)  # There is one.

  traced = trace_one_task(learner._replace(meta_grad=among_tasks), tasks)
  cost = traced.lower().compile().cost_analysis()
  return np.array([cost["flops"], cost["bytes accessed"]])
