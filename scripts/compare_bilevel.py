r"""Compares hypergradients with those of TorchOpt and of plain PyTorch.

  python scripts/compare_bilevel.py --json

The problems are the small examples of Betty and TorchOpt: a penalty of each
feature in logistic regression, through 100 steps of SGD, and one step of
learning to reweight examples. First the script compares the gradients in
float64. Then it measures seconds in float32. The programs take turns,
`--repeats` times, in one process. A ratio compares two calls of one turn. It
needs torch and torchopt, of the extra peers.
"""

import functools
import json
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metajax import bilevel  # noqa: E402
from scripts.benchmarks import own_flags  # noqa: E402
from scripts.benchmarks.measuring import machine, timed  # noqa: E402
from scripts.benchmarks.own_flags import FLAGS  # noqa: E402

own_flags.DEFINE_bool("json", False, "A line of JSON after the table.")
own_flags.DEFINE_integer("inner_steps", 100, "Steps of SGD.", 1)
EXAMPLES, FEATURES, RATE = 500, 20, 0.1


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  if FLAGS["seconds"].present:
    sys.exit(
      "error: --seconds has no effect here, where a call is one gradient. "
      "Leave it out, or give more --repeats."
    )
  try:
    import torch
    import torchopt

    from scripts.benchmarks import pytorch_bilevel
  except ModuleNotFoundError as error:
    sys.exit(
      f"error: {error.name} is not installed: pip install -e '.[peers]'."
    )
  torch.set_num_threads(1)
  with jax.enable_x64(True):
    errors = compare(torch, pytorch_bilevel, np.float64)
    errors = {name: float(error) for name, (error, *_) in errors.items()}
  programs = compare(torch, pytorch_bilevel, np.float32)
  seconds = {name: ([], []) for name in programs}
  for _ in range(FLAGS.repeats):
    for name, (_, ours, peers) in programs.items():
      seconds[name][0].append(timed(ours))
      seconds[name][1].append(timed(peers))
  lines = {}
  print(f"{'':24}    error  seconds  over metajax's  (least - most)")
  for name, (ours, peers) in seconds.items():
    over = [p / o for o, p in zip(ours, peers, strict=True)]
    ratio, median = statistics.median(over), statistics.median(peers)
    print(
      f"{name:24} {errors[name]:8.1e} {median:8.5f} {ratio:15.1f}  "
      f"({min(over):.1f} - {max(over):.1f})"
    )
    lines[name] = {
      "gradient_error": errors[name],
      "seconds": median,
      "metajax_seconds": statistics.median(ours),
      "over_metajax": ratio,
    }
  if FLAGS.json:
    versions = {"torch": torch.__version__, "torchopt": torchopt.__version__}
    print(json.dumps({"programs": lines, **versions, **machine(1)}))


def compare(torch, peers, dtype) -> dict:
  """Returns `{program: (gradient error, our program, its program)}`."""
  train, valid, start = data(dtype)

  def tensors(arrays):
    return tuple(map(torch.from_numpy, arrays))

  problems = {
    **peers.penalties(tensors(train), tensors(valid), RATE, FLAGS.inner_steps),
    **peers.reweighting(
      tensors(train), tensors(valid), torch.from_numpy(start), RATE
    ),
  }
  found = {}
  for name, its in problems.items():
    kind = name.split(",")[0]
    outer = np.zeros(EXAMPLES) if kind == "reweighting" else np.ones(FEATURES)
    outer = outer.astype(dtype)
    ours = jax.jit(metajax_gradient(kind, train, valid, start))
    tensor = torch.from_numpy(outer).requires_grad_()
    expected, reached = its(tensor).detach().numpy(), ours(outer)
    error = np.linalg.norm(reached - expected) / np.linalg.norm(expected)
    found[name] = (
      error,
      functools.partial(ours, jnp.asarray(outer)),
      lambda its=its, tensor=tensor: its(tensor).detach().numpy(),
    )
  return found


def metajax_gradient(kind: str, train, valid, start):
  """Returns `outer -> gradient` of a problem of `pytorch_bilevel`."""

  def losses(w, data):
    logits = data[0] @ w
    return optax.sigmoid_binary_cross_entropy(logits, data[1])

  def inner_loss(w, outer, step):
    del step
    if kind == "reweighting":
      return outer @ losses(w, train)
    return losses(w, train).mean() + outer @ w**2 / 2

  sgd = optax.sgd(RATE)
  if kind == "implicit":
    solver = bilevel.implicit(inner_loss, sgd, FLAGS.inner_steps)
  else:
    steps = 1 if kind == "reweighting" else FLAGS.inner_steps
    solver = bilevel.unrolled(inner_loss, sgd, steps)
  gradient = bilevel.hypergradient(
    solver, lambda w, outer: losses(w, valid).mean()
  )
  first = start if kind == "reweighting" else np.zeros_like(start)
  return lambda outer: gradient(solver.init(first, outer), outer).grads


def data(dtype) -> tuple:
  """Draws Betty's data: labels of a noisy linear function of 20 features."""
  draw = np.random.default_rng(0).normal
  x = draw(size=(2, EXAMPLES, FEATURES)).astype(dtype)
  y = x @ draw(size=FEATURES) + 0.1 * draw(size=(2, EXAMPLES)) > 0
  train, valid = zip(x, y.astype(dtype), strict=True)
  return train, valid, draw(size=FEATURES).astype(dtype)


if __name__ == "__main__":
  main(own_flags.parse(sys.argv))
