"""The MAML meta-step of `benchmark.py` beside the same in PyTorch.

  python scripts/compare_peers.py --query_shots=15 --tasks=32 --json

Eager PyTorch is a Python loop over tasks and inner steps, as in learn2learn and
higher, which no longer install; `torch.func` treats all tasks at once. Both are
given their tasks, where metajax draws a new batch in each step. The programs
take turns, `--repeats` times, in one process, on all cores or on the first GPU;
a ratio is that of two calls of one turn. Before that the gradients of the same
tasks at the same parameters are compared, in float64: in float32 rounding
decides on which side of a kink an activation is, and the gradient of one task
can jump by a tenth. Needs torch.
"""

import json
import os
import statistics
import sys
from pathlib import Path

# PyTorch is to have memory of the GPU, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax.training import use_cpu_cores  # noqa: E402
from metajax.training.mesh import usable_cores  # noqa: E402
from scripts.benchmarks import maml  # noqa: E402
from scripts.benchmarks.measuring import machine, timed  # noqa: E402

FLAGS = flags.FLAGS

flags.DEFINE_bool("json", False, "A line of JSON after the table.")


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
  for name, only in (("model", "conv4"), ("learner", "maml")):
    if FLAGS[name].value != only:
      sys.exit(f"error: --{name}: must be {only} here, leave it out.")
  use_cpu_cores()
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu:
    torch.set_num_threads(usable_cores())
  elif not torch.cuda.is_available():
    sys.exit("error: PyTorch sees no GPU, and JAX does: JAX_PLATFORMS=cpu.")
  device = torch.device("cpu" if on_cpu else "cuda")

  try:
    built = maml.build(devices=None if on_cpu else jax.devices()[:1])
  except ValueError as error:
    sys.exit(f"error: {error}")
  with jax.enable_x64(True):
    episodes, expected, params = gradient(built)
  programs, errors = {"metajax": built.take}, {}
  for name, (peer, plain) in pytorch.PEERS.items():
    model = pytorch.Conv4(FLAGS.ways, plain=plain).double()
    model.load_state_dict(converted(params))
    model = model.to(device)
    tasks = tensors(episodes, device)
    inner = (FLAGS.inner_steps, maml.INNER_RATE)
    peer(model, tasks, *inner)
    errors[name] = gradient_error(model, expected)
    tasks = tuple(x.float() if x.is_floating_point() else x for x in tasks)
    programs[name] = pytorch.meta_steps(peer, model.float(), tasks, *inner)

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
      **machine(built.mesh.size),
      "torch": torch.__version__,
      "torch_device": str(device),
      "torch_threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


def gradient(built):
  """Draws tasks and parameters; returns both, metajax's gradient between."""
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
  return episodes, jax.tree.map(lambda x: x / FLAGS.tasks, total), params


def tensors(episodes, device):
  """Converts episodes to `pytorch.Tasks`, mirrored as `Conv4` there has it."""
  import torch

  def convert(batch):
    images = np.array(batch.inputs)[:, :, ::-1, ::-1].transpose(0, 1, 4, 2, 3)
    labels = np.array(batch.targets).astype(np.int64)
    return [torch.tensor(np.ascontiguousarray(x)) for x in (images, labels)]

  both = convert(episodes.support) + convert(episodes.query)
  return tuple(x.to(device) for x in both)


def converted(params):
  """Returns PyTorch's names and tensors for those of metajax's conv4."""
  import torch

  layers, arrays = jax.device_get(params)["params"], {}
  for i in range(4):
    kernel = layers[f"Conv_{i}"]["kernel"][::-1, ::-1]
    arrays[f"blocks.{3 * i}.weight"] = kernel.transpose(3, 2, 0, 1)
    arrays[f"blocks.{3 * i + 1}.weight"] = layers[f"BatchNorm_{i}"]["scale"]
    arrays[f"blocks.{3 * i + 1}.bias"] = layers[f"BatchNorm_{i}"]["bias"]
  arrays["head.weight"] = layers["Dense_0"]["kernel"].T
  arrays["head.bias"] = layers["Dense_0"]["bias"]
  return {k: torch.tensor(np.ascontiguousarray(v)) for k, v in arrays.items()}


def gradient_error(model, expected) -> float:
  """Returns `||g - h|| / ||h||` of PyTorch's gradient and metajax's."""
  expected = {k: v.numpy() for k, v in converted(expected).items()}
  differences, sizes = 0.0, 0.0
  for name, param in model.named_parameters():
    difference = param.grad.cpu().numpy() - expected[name]
    differences += float(np.square(difference).sum())
    sizes += float(np.square(expected[name]).sum())
  return (differences / sizes) ** 0.5


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
  """Returns a program's time over metajax's, for each turn."""
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
  app.run(main)
