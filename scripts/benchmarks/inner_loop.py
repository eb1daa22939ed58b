"""Memory and time of a meta-gradient for each memory option of inner loops."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metajax import inner_loop
from metajax.learners import imaml
from metajax.losses import cross_entropy
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.transformer import Transformer
from metajax.types import Array, Batch, Episode, Model
from scripts.benchmarks import own_flags
from scripts.benchmarks.measuring import machine, timed
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_multi_enum(
  "inner_loop_of",
  ["mlp", "conv4", "transformer"],
  ["mlp", "conv4", "transformer"],
  "Models (suite inner_loop).",
)
own_flags.DEFINE_multi_integer("blocks", [8], "Of the transformer.", 1)
own_flags.DEFINE_multi_integer(
  "transformer_steps", [4], "Its inner steps (suite inner_loop).", 1
)
own_flags.DEFINE_multi_integer(
  "mlp_steps", [10, 100, 1000], "The MLP's inner steps.", 1
)
own_flags.DEFINE_integer("sequence", 256, "Tokens the transformer reads.", 2)
own_flags.DEFINE_multi_integer("width", [64], "Of the transformer.", 4)

VOCABULARY = 256
# The memory option of the inner loop, and whether the model's blocks are
# rematted.
TRANSFORMER_WAYS = {
  "remat": ("remat", False),
  "remat, blocks": ("remat", True),
  "mixed": ("mixed", False),
  "mixed, blocks": ("mixed", True),
}
WAYS = {m: (m, False) for m in ("plain", "remat", "mixed", "nested")}


class Problem(NamedTuple):
  """A task, and a model with and without rematted blocks."""

  name: str
  blocks: int
  width: int
  model: dict[bool, Model]
  task: Episode
  optimizer: optax.GradientTransformation


def measure() -> Iterator[dict]:
  models = FLAGS.inner_loop_of
  if "mlp" in models:
    for steps in FLAGS.mlp_steps:
      yield from _compare(_mlp(), steps, WAYS)
      yield _result(_mlp(), steps, "imaml", *_implicit(_mlp(), steps), None)
  if "conv4" in models:
    yield from _compare(_conv(), 5, WAYS)
  if "transformer" in models:
    for blocks, width, steps in itertools.product(
      FLAGS.blocks, FLAGS.width, FLAGS.transformer_steps
    ):
      yield from _compare(_transformer(blocks, width), steps, TRANSFORMER_WAYS)


def _compare(problem: Problem, steps: int, ways: dict) -> Iterator[dict]:
  """Measures each way, and the error of its gradient against the first way."""
  plain = None
  for way, (memory, remat) in ways.items():
    compiled, arguments = _compile(problem, steps, memory, remat)
    grads, _ = ravel_pytree(compiled(*arguments))
    plain = grads if plain is None else plain
    error = jnp.linalg.norm(grads - plain) / jnp.linalg.norm(plain)
    yield _result(problem, steps, way, compiled, arguments, float(error))


def _result(
  problem: Problem,
  steps: int,
  way: str,
  compiled: Any,
  arguments: tuple,
  error: float | None,
) -> dict:
  seconds = [timed(lambda: compiled(*arguments)) for _ in range(FLAGS.repeats)]
  return {
    "model": problem.name,
    "blocks": problem.blocks,
    "width": problem.width,
    "inner_steps": steps,
    "memory": way,
    "seconds": float(np.median(seconds)),
    "seconds_min": min(seconds),
    "seconds_max": max(seconds),
    "peak_temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    "gradient_error": error,
    **machine(1),
  }


def _implicit(problem: Problem, steps: int) -> tuple[Any, tuple]:
  """Compiles iMAML's meta-gradient. Its inner loop stores nothing.

  iMAML has another inner loss, with a proximal term. Its gradient therefore has
  no error against the other ways.
  """
  learner = imaml(problem.model[False], cross_entropy, problem.optimizer, steps)
  episodes = jax.tree.map(lambda x: x[None], problem.task)
  rng = jax.random.key(0)
  inputs = problem.task.support.inputs
  arguments = jax.jit(learner.init)(rng, inputs), episodes, rng
  compiled = jax.jit(learner.meta_grad).lower(*arguments).compile()
  timed(lambda: compiled(*arguments))  # To warm up, as in `_compare`.
  return compiled, arguments


def _compile(
  problem: Problem, steps: int, memory: inner_loop.Memory, remat: bool
) -> tuple[Any, tuple]:
  """Compiles the gradient of the query loss by the initial parameters."""
  model = problem.model[remat]

  def loss(params, batch):
    logits = model.apply(params, batch.inputs)
    targets = batch.targets
    return cross_entropy(logits.reshape(targets.size, -1), targets.ravel())

  def outer(params, task):
    adapted = inner_loop.minimize(
      lambda phi, step: loss(phi, task.support),
      params,
      problem.optimizer,
      steps,
      memory=memory,
    ).params
    return loss(adapted, task.query)

  inputs = problem.task.support.inputs
  arguments = jax.jit(model.init)(jax.random.key(0), inputs), problem.task
  return jax.jit(jax.grad(outer)).lower(*arguments).compile(), arguments


def _mlp() -> Problem:
  inputs = jax.random.normal(jax.random.key(1), (2, 64, 32))
  task = _halves(inputs, jnp.arange(64) % 5)
  model = MLP(5, (64, 64))
  return Problem("mlp", 2, 64, {False: model}, task, optax.sgd(0.01))


def _conv() -> Problem:
  images = jax.random.uniform(jax.random.key(1), (2, 25, 28, 28, 1))
  task = _halves(images, jnp.arange(25) % 5)
  return Problem("conv4", 4, 64, {False: conv4(5)}, task, optax.sgd(0.01))


def _halves(inputs: Array, targets: Array) -> Episode:
  return Episode(*(Batch(x, targets) for x in inputs))


def _transformer(blocks: int, width: int) -> Problem:
  shape = 2, 4, FLAGS.sequence + 1
  tokens = jax.random.randint(jax.random.key(1), shape, 0, VOCABULARY)
  models: dict[bool, Model] = {
    remat: Transformer(VOCABULARY, width, blocks, remat=remat)
    for remat in (False, True)
  }
  task = Episode(*(Batch(x[:, :-1], x[:, 1:]) for x in tokens))
  # Without eps_root Adam has no derivative where a gradient is zero.
  adam = optax.adam(1e-3, eps_root=1e-8)
  return Problem("transformer", blocks, width, models, task, adam)
