"""Memory, operations and time of hypergradients, by method and inner steps."""

from collections.abc import Iterator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.interpreters import partial_eval

from metajax import bilevel, inner_loop
from metajax.losses import cross_entropy
from metajax.models.mlp import MLP
from metajax.types import Array, Params
from scripts.benchmarks import own_flags
from scripts.benchmarks.growth import operations_of_products
from scripts.benchmarks.measuring import machine, timed
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_multi_integer(
  "bilevel_steps", [10, 100, 1000], "Inner steps (suite bilevel).", 1
)
own_flags.DEFINE_integer("last", 10, "Steps that `truncated` keeps.", 1)
own_flags.DEFINE_integer(
  "linear_steps", 20, "Steps of conjugate gradients and of the series.", 1
)

EXAMPLES, FEATURES, HIDDEN, CLASSES = 64, 16, 16, 5
RATE = 0.1


def measure() -> Iterator[dict]:
  """Measures each method; errors are relative to `unrolled, plain`."""
  params = MLP(CLASSES, (HIDDEN,)).init(jax.random.key(0), _inputs(0)[:1])
  outer = jax.tree.map(lambda x: jnp.float32(-3.0), params)
  for steps in FLAGS.bilevel_steps:
    exact, programs = None, {}
    for name, solver in solvers(steps).items():
      gradient = bilevel.hypergradient(solver, _outer_loss)

      def grads_of(state, outer, gradient=gradient):
        return gradient(state, outer).grads

      arguments = solver.init(params, outer), outer
      compiled = jax.jit(grads_of).lower(*arguments).compile()
      grads, _ = ravel_pytree(compiled(*arguments))  # It warms up, too.
      exact = grads if exact is None else exact
      traced, out = jax.make_jaxpr(grads_of, return_shape=True)(*arguments)
      used = [True] * len(jax.tree.leaves(out))
      program, _ = partial_eval.dce_jaxpr(traced.jaxpr, used)
      operations = operations_of_products(
        program, iterations=FLAGS.linear_steps
      )
      programs[name] = (
        lambda c=compiled, a=arguments: c(*a),
        {
          "peak_temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
          "mflops": operations / 1e6,
          "gradient_error": float(
            jnp.linalg.norm(grads - exact) / jnp.linalg.norm(exact)
          ),
        },
      )
    seconds = {name: [] for name in programs}
    for _ in range(FLAGS.repeats):  # Programs take turns.
      for name, (take, _) in programs.items():
        seconds[name].append(timed(take))
    for name, (_, found) in programs.items():
      times = np.array(seconds[name])
      yield {
        "method": name,
        "inner_steps": steps,
        **found,
        "seconds": float(np.median(times)),
        "over_unrolled": float(np.median(times / seconds["unrolled, plain"])),
        **machine(1),
      }


def solvers(steps: int) -> dict[str, bilevel.Solver]:
  """Returns all methods, with the exact gradient of the steps first."""
  sgd = optax.sgd(RATE)
  memories = sorted(set(get_args(inner_loop.Memory)) - {"auto", "plain"})
  found = {
    f"unrolled, {memory}": bilevel.unrolled(
      inner_loss, sgd, steps, memory=memory
    )
    for memory in ("plain", *memories)
  }
  last, terms = FLAGS.last, FLAGS.linear_steps
  found["forward"] = bilevel.forward(inner_loss, sgd, steps)
  for name, kept in ((f"truncated, last {last}", last), ("one step", 1)):
    if kept <= steps:
      found[name] = bilevel.truncated(inner_loss, sgd, steps, kept)
  linear = {
    f"implicit, {terms} steps of CG": bilevel.conjugate_gradients(
      terms, tolerance=0
    ),
    f"implicit, {terms} terms": bilevel.neumann(terms, RATE),
    "implicit, direct": bilevel.direct(),
  }
  for name, solve in linear.items():
    found[name] = bilevel.implicit(inner_loss, sgd, steps, solve)
  return found


def inner_loss(params: Params, outer: Params, step: Array) -> Array:
  """Training with a penalty of each array; `outer` has their logarithms."""
  del step
  squares = jax.tree.map(
    lambda raw, x: jnp.exp(raw) * jnp.square(x).sum(), outer, params
  )
  return _loss(params, 0) + sum(jax.tree.leaves(squares))


def _outer_loss(params: Params, outer: Params) -> Array:
  del outer
  return _loss(params, 1)


def _loss(params: Params, seed: int) -> Array:
  inputs = _inputs(seed)
  targets = jnp.argmax(inputs[:, :CLASSES], 1)
  logits = MLP(CLASSES, (HIDDEN,)).apply(params, inputs)
  return cross_entropy(logits, targets)


def _inputs(seed: int) -> Array:
  return jax.random.normal(jax.random.key(seed), (EXAMPLES, FEATURES))
