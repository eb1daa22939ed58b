r"""Compares the meta-step of `benchmark.py` with the same step in PyTorch.

  python scripts/compare_peers.py --query_shots=15 --tasks=32 --json
  python scripts/compare_peers.py --pooled --image_size=32 --channels=3 \
      --filters=32 --inner_steps=5 --tasks=4 --query_shots=15

Learners are maml, fomaml, anil, prototypical, ridge, and supervised (training
on all classes at once, in batches of --batch_size). Eager PyTorch is a Python
loop over tasks and inner steps, as in learn2learn and higher, which no longer
install. `torch.func` computes all tasks at once. --torch_compile compiles this
program, or the network if there is no inner loop. PyTorch's programs use the
same tasks in every step, while metajax draws a new batch in each step.

The programs take turns, `--repeats` times, in one process, on all cores or on
the first GPU. A ratio compares two calls of one turn. Before the measurement,
the script compares the gradients of the same tasks at the same parameters in
float64. In float32, rounding decides on which side of a kink an activation is,
and the gradient of one task can jump by a tenth. The script needs torch.
"""

import json
import os
import statistics
import sys
from pathlib import Path

# Leaves memory of the GPU for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.learners import FACTORISING  # noqa: E402
from metajax.training import task_mesh, use_cpu_cores  # noqa: E402
from metajax.training.mesh import usable_cores  # noqa: E402
from scripts.benchmarks import maml, own_flags, pretraining  # noqa: E402
from scripts.benchmarks.measuring import machine, timed  # noqa: E402
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_bool("json", False, "A line of JSON after the table.")
own_flags.DEFINE_bool(
  "torch_compile",
  False,
  "Compare torch.compile too, which takes minutes to compile an inner loop.",
)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  try:
    import torch

    from scripts.benchmarks import pytorch
  except ModuleNotFoundError as error:
    sys.exit(
      f"error: {error.name} is not installed: pip install -e '.[peers]'."
    )
  if FLAGS["model"].value != "conv4":
    sys.exit("error: --model: must be conv4 here, leave it out.")
  if FLAGS.learner not in pytorch.LEARNERS:
    sys.exit(
      f"error: --learner={FLAGS.learner}: must be one of "
      f"{', '.join(pytorch.LEARNERS)} here."
    )
  use_cpu_cores(spare_threads=FLAGS.learner in FACTORISING)
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu:
    torch.set_num_threads(usable_cores())
  elif not torch.cuda.is_available():
    sys.exit("error: PyTorch sees no GPU, and JAX does: JAX_PLATFORMS=cpu.")
  device = torch.device("cpu" if on_cpu else "cuda")

  supervised = FLAGS.learner == "supervised"
  devices = None if on_cpu else jax.devices()[:1]
  batch = FLAGS.batch_size if supervised else FLAGS.tasks
  try:
    if supervised:
      take = pretraining.build(devices)
      with jax.enable_x64(True):
        data, expected, params = pretraining.gradient()
    else:
      built = maml.build(devices=devices)
      take = built.take
      with jax.enable_x64(True):
        data, expected, params = gradient(built)
  except ValueError as error:
    sys.exit(f"error: {error}")
  setting = pytorch.Setting(
    learner=FLAGS.learner,
    ways=maml.CLASSES if supervised else FLAGS.ways,
    inner_steps=FLAGS.inner_steps,
    inner_rate=maml.INNER_RATE,
    image_size=FLAGS.image_size,
    channels=FLAGS.channels,
    filters=FLAGS.filters,
    pooled=FLAGS.pooled,
  )
  programs, errors = {"metajax": take}, {}
  for name, peer in pytorch.peers(setting, FLAGS.torch_compile).items():
    model = pytorch.Conv4(setting, plain=peer.plain).double()
    model.load_state_dict(converted(params))
    model = model.to(device)
    tasks = tensors(data, device)
    peer.build(model, setting)(tasks)
    errors[name] = gradient_error(model, expected)
    tasks = tuple(x.float() if x.is_floating_point() else x for x in tasks)
    model = model.float()
    programs[name] = pytorch.meta_steps(
      peer.build(model, setting), model, tasks
    )

  steps = {}
  for name, take in programs.items():
    timed(lambda take=take: take(1))  # To warm up.
    seconds = timed(lambda take=take: take(1))
    steps[name] = max(1, round(FLAGS.seconds / seconds))
  seconds = {name: [] for name in programs}
  for _ in range(FLAGS.repeats):
    for name, take in programs.items():
      call = timed(lambda take=take, n=steps[name]: take(n))
      seconds[name].append(call / steps[name])
  show(seconds, errors)
  if FLAGS.json:
    line = {
      **maml.setting(),
      "programs": {
        name: {
          "seconds_per_meta_step": statistics.median(times),
          "seconds": times,
          "ratios": ratios(seconds, name),
          "gradient_error": errors.get(name),
        }
        for name, times in seconds.items()
      },
      **machine(task_mesh(batch, devices).size),
      "torch": torch.__version__,
      "torch_device": str(device),
      "torch_threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


def gradient(built):
  """Draws tasks. Returns tasks, metajax's gradient and the parameters."""
  learner, keys = built.learner_of(FLAGS.inner_steps), jax.random.key(3)
  episodes = jax.vmap(built.tasks)(jax.random.split(keys, FLAGS.tasks))
  params = learner.init(jax.random.key(4), episodes.support.inputs[0])
  episodes, params = jax.tree.map(
    lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    (episodes, params),
  )

  def step(total, episode):  # A task at a time, for memory.
    one = jax.tree.map(lambda x: x[None], episode)
    grads, _ = learner.meta_grad(params, one, keys)
    return jax.tree.map(jnp.add, total, grads), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  total, _ = jax.jit(lambda e: jax.lax.scan(step, zeros, e))(episodes)
  grads = jax.tree.map(lambda x: x / FLAGS.tasks, total)
  return episodes, grads, params


def tensors(data, device):
  """Converts a batch, or episodes, to tensors for `pytorch`."""
  import torch

  def convert(batch):
    images = mirrored(np.array(batch.inputs), (-3, -2))
    images = np.moveaxis(images, -1, -3)
    labels = np.array(batch.targets).astype(np.int64)
    return [torch.tensor(np.ascontiguousarray(x)) for x in (images, labels)]

  if FLAGS.learner == "supervised":
    both = [x[None] for x in convert(data)]
  else:
    both = convert(data.support) + convert(data.query)
  return tuple(x.to(device) for x in both)


def mirrored(x, axes):
  """Mirrors an array if the networks have strides.

  The windows of the two networks are then mirror images. With pooling they are
  the same.
  """
  return x if FLAGS.pooled else np.flip(x, axes)


def converted(params):
  """Converts parameters of metajax's conv4 to PyTorch's names and tensors."""
  import torch

  params = jax.device_get(params)
  arrays = {k: v for k, v in params.items() if k.startswith("log_")}
  layers = params.get("embedding", params)["params"]
  step = 4 if FLAGS.pooled else 3  # Layers of a block.
  for i in range(4):
    kernel = mirrored(layers[f"Conv_{i}"]["kernel"], (0, 1))
    arrays[f"blocks.{step * i}.weight"] = kernel.transpose(3, 2, 0, 1)
    norm = layers[f"BatchNorm_{i}"]
    arrays[f"blocks.{step * i + 1}.weight"] = norm["scale"]
    arrays[f"blocks.{step * i + 1}.bias"] = norm["bias"]
  if "Dense_0" in layers:
    kernel = layers["Dense_0"]["kernel"]
    if FLAGS.pooled:  # Channels first.
      side = int((len(kernel) // FLAGS.filters) ** 0.5)
      kernel = kernel.reshape(side, side, FLAGS.filters, -1)
      kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
    arrays["head.weight"] = kernel.T
    arrays["head.bias"] = layers["Dense_0"]["bias"]
  return {k: torch.tensor(np.ascontiguousarray(v)) for k, v in arrays.items()}


def gradient_error(model, expected) -> float:
  """Returns `||g - h|| / ||h||` for PyTorch's gradient g and metajax's h."""
  expected = {k: v.numpy() for k, v in converted(expected).items()}
  differences, sizes = 0.0, 0.0
  for name, param in model.named_parameters():
    difference = param.grad.cpu().numpy() - expected[name]
    differences += float(np.square(difference).sum())
    sizes += float(np.square(expected[name]).sum())
  return (differences / sizes) ** 0.5


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
  """Returns a program's time divided by metajax's, for each turn."""
  turns = zip(seconds[name], seconds["metajax"], strict=True)
  return [its / ours for its, ours in turns]


def show(seconds: dict[str, list[float]], errors: dict[str, float]) -> None:
  print(f"{'':20} seconds a step  over metajax's  (least - most)  gradient")
  for name, times in seconds.items():
    over = ratios(seconds, name)
    line = f"{name:20} {statistics.median(times):14.4f}"
    if name in errors:
      line += (
        f"  {statistics.median(over):14.2f}  ({min(over):5.2f} - "
        f"{max(over):5.2f}) {errors[name]:9.1e}"
      )
    print(line, flush=True)


if __name__ == "__main__":
  main(own_flags.parse(sys.argv))
