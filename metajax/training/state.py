"""What every trainer shares: its state, the update, the compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import variables
from metajax.types import Array, Metrics, Params, PRNGKey

Train = Callable[["TrainState", int], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
  """Everything that changes in meta-training.

  Attributes:
    step: int32 scalar, the number of meta-steps taken.
    meta_params: the meta-parameters.
    opt_state: the state of the outer optimizer.
  """

  step: Array
  meta_params: Params
  opt_state: optax.OptState


class Trainer(NamedTuple):
  """Pure functions that start and continue meta-training.

  Attributes:
    init: `(rng) -> TrainState`, replicated over the mesh.
    compile: `(state) -> (train, executable)`, for states like the given one.
      `train(state, num_steps) -> (state, metrics)` takes `num_steps` meta-steps
      and returns the mean of their metrics; it donates the given state. Before
      a step that is not finite it stops: the state then is of fewer steps. The
      number of steps is an argument of the program, and the program is compiled
      ahead of time, so a run is traced once, whatever it does. `executable` is
      the program itself, which tells its memory and its FLOPs.
  """

  init: Callable[[PRNGKey], TrainState]
  compile: Callable[[TrainState], tuple[Train, jax.stages.Compiled]]


def first_state(
  optimizer: optax.GradientTransformation, meta_params: Params
) -> TrainState:
  """Returns the state before the first step."""
  opt_state = optimizer.init(variables.weights(meta_params))
  return TrainState(jnp.int32(0), meta_params, opt_state)


def next_state(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  grads: Params,
  loss: Array | float,
  *,
  skip: bool = False,
) -> TrainState:
  """Returns the state after a step of the outer optimizer.

  The optimizer sees weights only; the `State` nodes of the new parameters are
  those of the gradient (see `types.State`).

  Where the gradient or the loss is not finite, it is the given state: its step
  does not advance, by which `mean_over_steps` knows that it must stop. With
  `skip` the step does, and nothing else.
  """
  before = variables.weights(state.meta_params)
  updates, opt_state = optimizer.update(
    variables.weights(grads), state.opt_state, before
  )
  meta_params = variables.combine(
    optax.apply_updates(before, updates),
    variables.states(grads),
    state.meta_params,
  )
  finite = all_finite((grads, loss))
  meta_params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (meta_params, opt_state),
    (state.meta_params, state.opt_state),
  )
  advance = jnp.where(finite | skip, 1, 0)
  return TrainState(state.step + advance, meta_params, opt_state)


def all_finite(tree: Any) -> Array:
  """Whether no number of a tree is infinite or NaN, as a bool scalar."""
  leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.all(jnp.asarray(leaves))


def mean_over_steps(
  step: Callable[..., tuple[TrainState, Metrics]], *arguments: Any
) -> Callable[[TrainState], tuple[Train, jax.stages.Compiled]]:
  """Builds a trainer's `compile` from one of its steps.

  Args:
    step: `(state, *arguments) -> (state, metrics)`, the metrics scalars. The
      loop ends after one that leaves `state.step` as it was; its metrics do not
      count. Those of a step whose metric "skipped" is 1 must be 0, and do not
      count either.
    arguments: what the program is given beside the state: keys, data.
  """
  step = traced_once(step)

  def train_steps(state, num_steps, *arguments):
    end = state.step + num_steps

    def goes_on(carry):
      state, _, stuck = carry
      return (state.step < end) & ~stuck

    def body(carry):
      state, total, _ = carry
      new, metrics = step(state, *arguments)
      stuck = new.step == state.step
      total = jax.tree.map(
        lambda t, m: jnp.where(stuck, t, t + m), total, metrics
      )
      return new, total, stuck

    shapes = jax.eval_shape(step, state, *arguments)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    before = state.step
    state, total, _ = jax.lax.while_loop(
      goes_on, body, (state, zeros, jnp.bool(False))
    )
    taken = state.step - before
    skipped = total.pop("skipped", None)
    if skipped is None:
      return state, _divide(total, taken)
    means = _divide(total, taken - skipped)
    return state, {**means, **_divide({"skipped": skipped}, taken)}

  def compile(state):
    jitted = jax.jit(train_steps, donate_argnums=0)
    executable = jitted.lower(state, jnp.int32(0), *arguments).compile()

    def train(state, num_steps):
      return executable(state, jnp.int32(num_steps), *arguments)

    return train, executable

  return compile


def traced_once(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Keeps what JAX traces of a function that a program calls more than once.

  The program is the same: the calls are inlined. For MAML of conv4 a trace
  takes about a second.
  """
  return jax.jit(fn, inline=True)


def _divide(total: Metrics, count: Array) -> Metrics:
  return {k: x / count for k, x in total.items()}
