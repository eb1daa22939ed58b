"""What every trainer shares: its state, the update, the compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax import optimizers, variables
from metajax.numerics import wide
from metajax.training.mesh import under
from metajax.types import Array, Metrics, Params, PRNGKey

Train = Callable[["TrainState", int], tuple["TrainState", Metrics]]
MetaGradient = Callable[[Params], tuple[Params, Metrics]]


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


def trainer_on(
  mesh: Mesh,
  init: Callable[[PRNGKey], TrainState],
  compile: Callable[[TrainState], tuple[Train, jax.stages.Compiled]],
) -> Trainer:
  """Builds a trainer over a mesh, whatever mesh the caller has set."""

  def compile_on(state: TrainState) -> tuple[Train, jax.stages.Compiled]:
    train, executable = compile(state)
    return under(mesh, train), executable

  return Trainer(under(mesh, init), under(mesh, compile_on))


def first_state(
  optimizer: optax.GradientTransformation, meta_params: Params
) -> TrainState:
  """Returns the state before the first step."""
  opt_state = optimizers.init(optimizer, variables.weights(meta_params))
  return TrainState(jnp.int32(0), meta_params, opt_state)


def next_state(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  grads: Params,
  loss: Array | None,
  *,
  at: MetaGradient | None = None,
) -> TrainState:
  """Returns the state after a step of the outer optimizer.

  The optimizer sees weights only; the `State` nodes of the new parameters are
  those of the gradient (see `types.State`).

  Where the gradient, the loss, the new parameters or the optimizer's new state
  are not finite, it is the given state: its step does not advance, by which
  `mean_over_steps` knows that it must stop. (A number of the optimizer's state
  that is infinite from the beginning, such as the best value seen, may be so.)

  Args:
    optimizer: any of optax's.
    state: the state.
    grads: the gradient.
    loss: its loss; None: there is none.
    at: the same step's `(grads, metrics)` at other meta-parameters, for
      optimizers that ask, such as line searches.

  Raises:
    ValueError: for an optimizer whose state changes its structure.
  """
  before = variables.weights(state.meta_params)

  def elsewhere(weights: Params) -> tuple[Params, Array]:
    assert at is not None
    found, metrics = at(variables.combine(weights, state.meta_params))
    value = jnp.zeros(()) if loss is None else metrics["loss"]
    return variables.weights(found), value

  updates, opt_state = optimizers.update(
    optimizer,
    variables.weights(grads),
    state.opt_state,
    before,
    value=loss,
    value_fn=None if at is None else _with_gradient(elsewhere),
  )
  structures = {jax.tree.structure(x) for x in (opt_state, state.opt_state)}
  if len(structures) > 1:
    raise ValueError(
      "optimizer: a step changes the structure of its state, as that of "
      "`optax.monitor` does; leave out what does so."
    )
  new = TrainState(
    state.step + 1,
    variables.combine(
      optax.apply_updates(before, updates),
      variables.states(grads),
      state.meta_params,
    ),
    opt_state,
  )
  finite = (
    all_finite((grads, loss))
    & _stays_finite(new.meta_params, state.meta_params)
    & _stays_finite(new.opt_state, optimizers.init(optimizer, before))
  )
  return choose(finite, new, state)


def _with_gradient(
  at: Callable[[Params], tuple[Params, Array]],
) -> Callable[[Params], Array]:
  """Returns `params -> value`, whose derivative is the gradient of `at`.

  What a learner returns need not be the derivative of its loss, and that of
  `pmean` would be another.
  """

  @jax.custom_vjp
  def value(params):
    return at(params)[1]

  def forward(params):
    grads, found = at(params)
    return found, (grads, params)

  def backward(kept, cotangent):
    grads, params = kept
    return (
      jax.tree.map(lambda g, p: (cotangent * g).astype(p.dtype), grads, params),
    )

  value.defvjp(forward, backward)
  return value


def evaluation_params(state: TrainState) -> Params:
  """Returns the meta-parameters to evaluate, with those of `State` nodes.

  They are `state.meta_params`, but for optimizers that train at others: see
  `optimizers.evaluation_params`. Of several seeds they have the leading axis.
  """
  weights = variables.weights(state.meta_params)
  found = optimizers.evaluation_params(state.opt_state, weights)
  return variables.combine(found, state.meta_params)


def choose(condition: Array, new: Any, old: Any) -> Any:
  """Returns one of two trees, in the dtypes of the old one."""
  return jax.tree.map(
    lambda x, y: jnp.where(condition, jnp.asarray(x, y.dtype), y), new, old
  )


def all_finite(tree: Any) -> Array:
  """Whether no number of a tree is infinite or NaN, as a bool scalar."""
  leaves = [_is_finite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.all(jnp.asarray(leaves))


def _stays_finite(new: Any, old: Any) -> Array:
  """Whether all that was finite is so."""
  pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
  kept = [
    # Without the barrier, XLA computes the update once more for this.
    jnp.all(_is_finite(jax.lax.optimization_barrier(x)) | ~_is_finite(y))
    for x, y in pairs
    if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)
  ]
  return jnp.all(jnp.asarray(kept))


def _is_finite(x: Any) -> Array:
  x = jnp.asarray(x)
  # Keys and integers always are.
  inexact = jnp.issubdtype(x.dtype, jnp.inexact)
  return jnp.isfinite(x) if inexact else jnp.bool_(True)


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
      return new, choose(stuck, total, _add(total, metrics)), stuck

    shapes = jax.eval_shape(step, state, *arguments)[1]
    zeros = jax.tree.map(lambda s: wide(jnp.zeros(s.shape, s.dtype)), shapes)
    before = state.step
    state, (total, _), _ = jax.lax.while_loop(
      goes_on, body, (state, (zeros, zeros), jnp.bool(False))
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
      if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be 1 or more.")
      return executable(state, jnp.int32(num_steps), *arguments)

    return train, executable

  return compile


def traced_once(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Keeps what JAX traces of a function that a program calls more than once.

  The program is the same: the calls are inlined. For MAML of conv4 a trace
  takes about a second.

  Args:
    fn: the function.
    **options: of `jax.jit`, such as `static_argnames`.
  """
  return jax.jit(fn, inline=True, **options)


def _add(
  total: tuple[Metrics, Metrics], metrics: Metrics
) -> tuple[Metrics, Metrics]:
  """Adds metrics to `(sums, what the sums have too much)`, after Kahan.

  In float32 alone, 2.3 added a million times would be 2% too little.
  """
  sums, excess = total
  terms = jax.tree.map(lambda m, e: wide(m) - e, metrics, excess)
  new = jax.tree.map(jnp.add, sums, terms)
  excess = jax.tree.map(
    lambda n, s, t: jnp.where(jnp.isfinite(n), (n - s) - t, 0.0),
    new,
    sums,
    terms,
  )
  return new, excess


def _divide(total: Metrics, count: Array) -> Metrics:
  return {k: x / count for k, x in total.items()}
