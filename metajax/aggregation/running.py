"""Running averages of a model's parameters during training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metajax.numerics import check_counts, check_number, wide
from metajax.types import Array, Params


class RunningAverage(NamedTuple):
  """A running average as three pure functions.

  Attributes:
    init: `(params) -> state`.
    update: `(params, state) -> state`. Call it once a training step.
    value: `(state) -> params`, the current average.
  """

  init: Callable[[Params], "AverageState"]
  update: Callable[[Params, "AverageState"], "AverageState"]
  value: Callable[["AverageState"], Params]


class AverageState(NamedTuple):
  """The state of a running average.

  Attributes:
    step: int32 scalar, the number of updates.
    average: a tree like the parameters.
    rest: a tree of arrays in float32 at least, the rounding error of `average`.
      The sum of the two has about twice the digits. Without `rest`, an average
      would stop changing as soon as its steps are smaller than its rounding.
      This happens in bfloat16 after some hundred models, and in float32 at
      decays near 1.
  """

  step: Array
  average: Params
  rest: Params = ()


class AveragingState(NamedTuple):
  """The state of an optimizer with running averages of the parameters.

  Attributes:
    inner: the state of the wrapped optimizer.
    averages: the states of the averages by name.
  """

  inner: optax.OptState
  averages: dict[str, AverageState]


def averaging(
  optimizer: optax.GradientTransformation,
  averages: Mapping[str, RunningAverage],
) -> optax.GradientTransformationExtraArgs:
  """Adds running averages of the parameters to an optimizer's state.

  Any training loop can average in this way, without a change of the loop. Read
  the average `name` by `averages[name].value(state.averages[name])`.

  Trainers of metajax give an optimizer weights alone. An average of a model
  with `State` nodes has None in their place, which `variables.combine(average,
  meta_params)` fills.

  Args:
    optimizer: the optimizer to wrap. Its updates do not change.
    averages: such as `{"ema": ema(0.999), "swa": swa(start=1000)}`.

  Returns:
    An optimizer with an `AveragingState`.

  Raises:
    ValueError: from `update`, if it is called without the parameters.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def init(params: Params) -> AveragingState:
    states = {name: a.init(params) for name, a in averages.items()}
    return AveragingState(optimizer.init(params), states)

  def update(
    updates: Params,
    state: AveragingState,
    params: Params | None = None,
    **extra: Any,
  ) -> tuple[Params, AveragingState]:
    if params is None:
      raise ValueError("params: averaging needs them.")
    updates, inner = optimizer.update(updates, state.inner, params, **extra)
    new = optax.apply_updates(params, updates)
    states = {
      name: a.update(new, state.averages[name]) for name, a in averages.items()
    }
    return updates, AveragingState(inner, states)

  return optax.GradientTransformationExtraArgs(init, update)


def ema(decay: ArrayLike, *, debias: bool = True) -> RunningAverage:
  """Averages the parameters exponentially (EMA).

  ::

    a_t = d a_{t-1} + (1 - d) theta_t
    value = a_t / (1 - d^t)  with `debias`, where a_0 = 0
    value = a_t              without `debias`, where a_0 = theta_0

  Args:
    decay: d, in [0, 1).
    debias: whether to start from zero and to divide by the sum of the weights,
      as Adam does. The initial model theta_0 then has no weight.

  Returns:
    A `RunningAverage`. Its value before the first update is the initial model.

  Raises:
    ValueError: if `decay` is out of range.

  References:
    Polyak and Juditsky, `Acceleration of Stochastic Approximation by Averaging
    <https://doi.org/10.1137/0330046>`_, 1992.
    Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2015, section 3.
  """
  check_number("decay", decay, at_least=0, below=1)

  def update(params: Params, state: AverageState) -> AverageState:
    step, rate = state.step + 1, 1 - decay
    if debias:
      # The rate (1 - d) / (1 - d^t) falls from 1 to 1 - d. It gives the same
      # average without a division at the end. `expm1` and `log1p` compute
      # 1 - d^t without cancellation near d = 1.
      rate = jnp.where(
        step == 1, 1.0, rate / -jnp.expm1(step * jnp.log1p(-rate))
      )
    return _towards(params, state, rate)

  return RunningAverage(_start, update, _average)


def swa(start: int = 0, period: int = 1) -> RunningAverage:
  """Averages every `period`-th model (stochastic weight averaging, SWA).

  ::

    a <- (a n + theta_t) / (n + 1)   at t = start, start + period, ...

  where n models are in the average already. Use SWA with a constant step size,
  or with a cyclical one whose cycle is `period` steps (`optax.join_schedules`
  of cosines). SWA then averages the models at the ends of the cycles. If the
  model has running statistics, compute these anew for the average
  (`refresh_statistics`).

  Args:
    start: the index of the first averaged update, counted from 0.
    period: c, the number of updates from one averaged model to the next.

  Returns:
    A `RunningAverage`. Its value before `start` is the newest model, so that it
    can be evaluated at any time. (PyTorch's `AveragedModel` returns the initial
    model until its first update.)

  Raises:
    ValueError: if `start` is negative or `period` not positive.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, 2018, algorithm 1.
  """
  check_counts(start=start, at_least=0)
  check_counts(period=period)

  def update(params: Params, state: AverageState) -> AverageState:
    since = state.step - start
    count = jnp.maximum(since, 0) // period  # n, the models in the average.
    counts = (since >= 0) & (since % period == 0)
    rate = jnp.where(since < 0, 1.0, jnp.where(counts, 1 / (count + 1), 0.0))
    return _towards(params, state, rate)

  return RunningAverage(_start, update, _average)


def recent(count: int, period: int) -> RunningAverage:
  """Keeps every `period`-th model, the newest `count` of them.

  Args:
    count: number of models to keep.
    period: number of updates from one kept model to the next.

  Returns:
    A `RunningAverage` that does not average. Its value is a stack of models
    `[count, ...]`, the oldest first. As long as fewer than `count` models have
    been kept, the stack begins with copies of the initial model.

  Raises:
    ValueError: if `count` or `period` is not positive.
  """
  check_counts(count=count)
  check_counts(period=period)

  def init(params: Params) -> AverageState:
    copies = jax.tree.map(
      lambda p: jnp.broadcast_to(p, (count, *jnp.shape(p))), params
    )
    return AverageState(jnp.int32(0), copies)

  def update(params: Params, state: AverageState) -> AverageState:
    step = state.step + 1
    due = step % period == 0
    place = (step // period - 1) % count  # Of the oldest model, when due.

    def push(ring: Array, p: Array) -> Array:
      # Always writes one model. If no update is due, it is the present one.
      new = jnp.where(due, jnp.asarray(p, ring.dtype), ring[place])
      return jax.lax.dynamic_update_index_in_dim(ring, new, place, 0)

    return AverageState(step, jax.tree.map(push, state.average, params))

  def value(state: AverageState) -> Params:
    oldest = (state.step // period) % count
    return jax.tree.map(lambda ring: jnp.roll(ring, -oldest, 0), state.average)

  return RunningAverage(init, update, value)


def _start(params: Params) -> AverageState:
  # A copy, because a caller may donate both the parameters and this state, and
  # no array may be donated twice.
  average = jax.tree.map(jnp.array, params)

  def nothing(p: Array) -> Array:
    if jnp.issubdtype(p.dtype, jnp.inexact):
      return jnp.zeros_like(wide(p))
    return jnp.zeros(p.shape, jnp.float32)

  rest = jax.tree.map(nothing, average)
  return AverageState(jnp.int32(0), average, rest)


def _average(state: AverageState) -> Params:
  return state.average


def _towards(
  params: Params, state: AverageState, rate: ArrayLike
) -> AverageState:
  """Moves `average + rest` to the parameters by the fraction `rate`."""

  def move(average: Array, rest: Array, p: Array) -> tuple[Array, Array]:
    if not jnp.issubdtype(average.dtype, jnp.inexact):
      # Integers, such as counts, and random keys: the newest.
      return jnp.asarray(p), rest
    old = wide(average)
    change = rest + rate * ((wide(p) - old) - rest)
    new = jnp.where(rate == 1, wide(p), _rounded(old + change, average.dtype))
    rest = jnp.where(rate == 1, 0.0, change - (new - old))
    return new.astype(average.dtype), rest.astype(change.dtype)

  moved = jax.tree.map(move, state.average, state.rest, params)
  average, rest = jax.tree.transpose(
    jax.tree.structure(params), jax.tree.structure((0, 0)), moved
  )
  return AverageState(state.step + 1, average, rest)


def _rounded(x: Array, dtype: jnp.dtype) -> Array:
  """Rounds to `dtype`. XLA could remove a cast to it and back instead."""
  kind = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
