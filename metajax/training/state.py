"""Shared parts of all trainers: the state, the update, the compiled loop."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax import optimizers, variables
from metajax.numerics import check_counts, check_key, wide
from metajax.training.mesh import under
from metajax.types import Array, Metrics, Params, PRNGKey

Train = Callable[["TrainState", int], tuple["TrainState", Metrics]]
MetaGradient = Callable[[Params], tuple[Params, Metrics]]
Step = Callable[..., tuple["TrainState", Metrics]]
Totals = tuple[Metrics, Metrics]  # See `_add`.


class StoppedEarly(UserWarning):
  """A call of `train` took fewer steps, because one is not finite."""


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
      and returns the mean of their metrics, which is NaN if no step counts (see
      `mean_over_steps`). It donates the given state. It stops before a step
      that is not finite, and then returns a state with fewer steps, and warns
      (`StoppedEarly`) unless the metrics are NaN, of a single step. The program
      is compiled ahead of time, and the number of steps is one of its
      arguments. A run is therefore traced only once. `executable` is the
      compiled program, which reports its memory and its FLOPs.
  """

  init: Callable[[PRNGKey], TrainState]
  compile: Callable[[TrainState], tuple[Train, jax.stages.Compiled]]


def trainer_on(
  mesh: Mesh,
  init: Callable[[PRNGKey], TrainState],
  compile: Callable[[TrainState], tuple[Train, jax.stages.Compiled]],
) -> Trainer:
  """Builds a trainer over a mesh, even if the caller has set another mesh."""

  def compile_on(state: TrainState) -> tuple[Train, jax.stages.Compiled]:
    train, executable = compile(state)

    def train_once(state: TrainState, num_steps: int) -> Any:
      if any(map(_is_deleted, jax.tree.leaves(state)[:1])):
        raise ValueError(
          "state: `train` was given it before, and reuses its memory; give the "
          "state that `train` returned, or keep a copy by "
          "jax.tree.map(jnp.copy, state)."
        )
      check_counts(num_steps=num_steps)
      # The metrics of a single step that is not finite are NaN, and need no
      # warning. So one that is does not wait for the device.
      end = None if num_steps == 1 else int(state.step) + num_steps
      new, metrics = train(state, num_steps)
      if end is not None and int(new.step) < end:
        warnings.warn(
          f"train: stopped before step {int(new.step)}, {end - int(new.step)} "
          "steps early, because its loss, gradient or update is not finite. "
          "The returned state is that before it, and the metrics are of the "
          "steps taken. docs/faq.md says what to look at.",
          StoppedEarly,
          stacklevel=2,
        )
      return new, metrics

    return under(mesh, train_once), executable

  def init_of_key(rng: PRNGKey) -> TrainState:
    check_key(rng)
    return init(rng)

  return Trainer(under(mesh, init_of_key), under(mesh, compile_on))


def _is_deleted(x: Any) -> bool:
  known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
  return known and x.is_deleted()


def first_state(
  optimizer: optax.GradientTransformation, meta_params: Params
) -> TrainState:
  """Returns the state before the first step.

  Raises:
    ValueError: for meta-parameters with a random key.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(meta_params):
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
      raise ValueError(
        f"meta_params: {jax.tree_util.keystr(path)} is a random key, and keys "
        "of several tasks have no mean: let the model draw by the `rng` of its "
        "`train`."
      )
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

  The optimizer sees only weights. The new `State` nodes are those of `grads`
  (see `types.State`).

  If the gradient, the loss, the new parameters or the new optimizer state are
  not finite, the result is the given state. Its step does not advance, which
  tells `mean_over_steps` to stop. (A number of the optimizer state may be
  infinite if its initial value is, such as the best value so far.)

  Args:
    optimizer: any optax optimizer.
    state: the present state.
    grads: the gradient.
    loss: the loss of the gradient. None: there is no loss.
    at: `(meta_params) -> (grads, metrics)` of the same step, for optimizers
      that evaluate other meta-parameters, such as line searches.

  Raises:
    ValueError: if a step changes the structure of the optimizer's state.
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

  A custom rule is needed because a learner's meta-gradient need not be the
  derivative of its loss. JAX's derivative of `pmean` would be wrong here, too.
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
  """Returns the meta-parameters to evaluate, including `State` nodes.

  They are `state.meta_params` for most optimizers. Some optimizers train at
  other parameters than they evaluate, see `optimizers.evaluation_params`. With
  several seeds, all arrays have the leading axis of seeds.
  """
  weights = variables.weights(state.meta_params)
  found = optimizers.evaluation_params(state.opt_state, weights)
  return variables.combine(found, state.meta_params)


def choose(condition: Array, new: Any, old: Any) -> Any:
  """Returns one of two trees, in the dtypes of the old one."""
  return jax.tree.map(
    lambda x, y: jnp.where(condition, jnp.asarray(x, y.dtype), y), new, old
  )


def gradient_norm(grads: Params) -> Array:
  """Returns the Euclidean norm of the weights' gradients, float32 or wider.

  `State` nodes hold new state and not a gradient, so they do not count.
  """
  return optax.tree.norm(jax.tree.map(wide, variables.weights(grads)))


def all_finite(tree: Any) -> Array:
  """Returns a bool scalar: whether all numbers of a tree are finite."""
  leaves = [_is_finite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.all(jnp.asarray(leaves))


def _stays_finite(new: Any, old: Any) -> Array:
  """Returns whether all finite numbers of `old` are finite in `new`, too."""
  pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
  kept = [
    # Without the barrier, XLA would compute the update a second time here.
    jnp.all(_is_finite(jax.lax.optimization_barrier(x)) | ~_is_finite(y))
    for x, y in pairs
    if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)
  ]
  return jnp.all(jnp.asarray(kept))


def _is_finite(x: Any) -> Array:
  x = jnp.asarray(x)
  # Keys and integers are always finite.
  inexact = jnp.issubdtype(x.dtype, jnp.inexact)
  return jnp.isfinite(x) if inexact else jnp.bool_(True)


def mean_over_steps(
  step: Step, *arguments: Any
) -> Callable[[TrainState], tuple[Train, jax.stages.Compiled]]:
  """Builds a trainer's `compile` from one of its steps.

  Args:
    step: `(state, *arguments) -> (state, metrics)`, where metrics are scalars.
      The loop ends after a step that does not change `state.step`; the metrics
      of that step do not count. A step whose metric "skipped" is 1 does not
      count in the other metrics. It must return 0 for them. If no step counts,
      because the first was not finite or all were skipped, the means are NaN
      (and "nan" in `metrics.jsonl`).
    *arguments: the arguments of the program besides the state, such as keys and
      data.
  """
  step = traced_once(step)

  def train_steps(state, num_steps, *arguments):
    end = state.step + num_steps

    def goes_on(carry):
      state, _, stuck = carry
      return (state.step < end) & ~stuck

    def body(carry):
      state, total, _ = carry
      return counted(step, state, total, *arguments)

    zeros = no_metrics(step, state, *arguments)
    before = state.step
    state, total, _ = jax.lax.while_loop(
      goes_on, body, (state, zeros, jnp.bool(False))
    )
    return state, mean_metrics(total, state.step - before)

  def compile(state):
    jitted = jax.jit(train_steps, donate_argnums=0)
    executable = jitted.lower(state, jnp.int32(0), *arguments).compile()

    def train(state, num_steps):
      check_counts(num_steps=num_steps)
      return executable(state, jnp.int32(num_steps), *arguments)

    return train, executable

  return compile


def no_metrics(step: Step, state: TrainState, *arguments: Any) -> Totals:
  """Returns the totals of the metrics of a step before the first one."""
  shapes = jax.eval_shape(step, state, *arguments)[1]
  zeros = jax.tree.map(lambda s: wide(jnp.zeros(s.shape, s.dtype)), shapes)
  return zeros, zeros


def counted(
  step: Step, state: TrainState, total: Totals, *arguments: Any
) -> tuple[TrainState, Totals, Array]:
  """Takes a step; returns the state, the totals, and whether it is stuck."""
  new, metrics = step(state, *arguments)
  stuck = new.step == state.step
  return new, choose(stuck, total, _add(total, metrics)), stuck


def mean_metrics(total: Totals, taken: Array) -> Metrics:
  """Returns the means over the steps that were taken."""
  sums = dict(total[0])
  skipped = sums.pop("skipped", None)
  if skipped is None:
    return _divide(sums, taken)
  means = _divide(sums, taken - skipped)
  return {**means, **_divide({"skipped": skipped}, taken)}


def traced_once(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Lets JAX trace a function only once, if a program calls it several times.

  The calls are inlined, so the compiled program does not change. One trace of
  MAML with conv4 takes about a second.

  Args:
    fn: the function.
    **options: options of `jax.jit`, such as `static_argnames`.
  """
  return jax.jit(fn, inline=True, **options)


def _add(total: Totals, metrics: Metrics) -> Totals:
  """Adds metrics to `(sums, excess)` by Kahan's compensated summation.

  `excess` is the rounding error of the sums. Without it, the float32 sum of a
  million terms 2.3 would be 2% too small.
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
  # 0 / 0 = NaN says that there is no mean.
  return {k: x / count for k, x in total.items()}
