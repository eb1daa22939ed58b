"""Averages of a model along its own training, as pure states."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metajax.numerics import check_number, wide
from metajax.types import Array, Params


class RunningAverage(NamedTuple):
  """A running average as a pair of pure functions and a reader.

  Attributes:
    init: `(params) -> state`.
    update: `(params, state) -> state`, once a training step.
    value: `(state) -> params`, the average so far.
  """

  init: Callable[[Params], "AverageState"]
  update: Callable[[Params, "AverageState"], "AverageState"]
  value: Callable[["AverageState"], Params]


class AverageState(NamedTuple):
  """State of a running average.

  Attributes:
    step: int32 scalar, the number of updates.
    average: a tree like the parameters.
    rest: a tree of float32 at least, what rounding took from the average: the
      sum of the two is right to twice the digits. Without it an average would
      stand still as soon as its steps are smaller than its rounding: in
      bfloat16 after some hundred models, in float32 at decays near 1.
  """

  step: Array
  average: Params
  rest: Params = ()


class AveragingState(NamedTuple):
  """State of an optimizer that averages the parameters it makes.

  Attributes:
    inner: the state of the optimizer itself.
    averages: the states of the averages by name.
  """

  inner: optax.OptState
  averages: dict[str, AverageState]


def averaging(
  optimizer: optax.GradientTransformation,
  averages: Mapping[str, RunningAverage],
) -> optax.GradientTransformationExtraArgs:
  """Keeps running averages of the parameters in an optimizer's state.

  So that any training loop averages without knowing of it. Of a state, the
  average called `name` is `averages[name].value(state.averages[name])`.

  Args:
    optimizer: whose updates are passed on as they are.
    averages: such as `{"ema": ema(0.999), "swa": swa(start=1000)}`.

  Returns:
    An optimizer with an `AveragingState`.

  Raises:
    ValueError: from `update`, if it is not given the parameters.
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
  """Exponential moving average.

  ::

    a_t = d a_{t-1} + (1 - d) theta_t
    value = a_t / (1 - d^t)  from a_0 = 0 with `debias`, else a_t from theta_0

  Args:
    decay: d, in [0, 1).
    debias: starts from zero and divides by the weights' sum (Adam's way), so
      that the first model counts no more than any other.

  Returns:
    A `RunningAverage`; its value before the first update is the initial model.

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
      # By a rate that falls from 1 to 1 - d: the same average, without the zero
      # start and without its rounding. Near d = 1, 1 - d^t cancels; this does
      # not.
      rate = jnp.where(
        step == 1, 1.0, rate / -jnp.expm1(step * jnp.log1p(-rate))
      )
    return _towards(params, state, rate)

  return RunningAverage(_start, update, _average)


def swa(start: int = 0, period: int = 1) -> RunningAverage:
  """Stochastic weight averaging: the mean of every `period`-th model.

  ::

    a <- (a n + theta_t) / (n + 1)   at t = start, start + period, ...

  Use it with a constant or a cyclical step size whose cycle is `period` steps
  (`optax.join_schedules` of cosines, say): the models at the ends of the cycles
  are averaged. Statistics of a normalisation layer that keeps some must be
  computed anew for the average.

  Args:
    start: the update, counted from 0, that brings the first model.
    period: c, updates between two models that count.

  Returns:
    A `RunningAverage`; its value before `start` is the newest model, so that it
    can be evaluated at any time. (PyTorch's `AveragedModel` remains the initial
    model until its first update.)

  Raises:
    ValueError: if `start` is negative or `period` not positive.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, 2018, algorithm 1.
  """
  check_number("start", start, at_least=0)
  check_number("period", period, at_least=1)

  def update(params: Params, state: AverageState) -> AverageState:
    since = state.step - start
    count = jnp.maximum(since, 0) // period  # Models in the average.
    counts = (since >= 0) & (since % period == 0)
    rate = jnp.where(since < 0, 1.0, jnp.where(counts, 1 / (count + 1), 0.0))
    return _towards(params, state, rate)

  return RunningAverage(_start, update, _average)


def recent(count: int, period: int) -> RunningAverage:
  """Keeps the newest of every `period`-th model, to be combined later.

  Args:
    count: how many are kept.
    period: updates between two of them.

  Returns:
    A `RunningAverage` that does not average: its value is a stack of the models
    `[count, ...]`, oldest first, where the initial one stands for those that
    have not been yet.

  Raises:
    ValueError: if a number is not positive.
  """
  check_number("count", count, at_least=1)
  check_number("period", period, at_least=1)

  def init(params: Params) -> AverageState:
    copies = jax.tree.map(
      lambda p: jnp.broadcast_to(p, (count, *jnp.shape(p))), params
    )
    return AverageState(jnp.int32(0), copies)

  def update(params: Params, state: AverageState) -> AverageState:
    step = state.step + 1
    due = step % period == 0
    place = (step // period - 1) % count  # Of the oldest, where it is due.

    def push(ring: Array, p: Array) -> Array:
      # Writes one model, if only the one that is there.
      new = jnp.where(due, jnp.asarray(p, ring.dtype), ring[place])
      return jax.lax.dynamic_update_index_in_dim(ring, new, place, 0)

    return AverageState(step, jax.tree.map(push, state.average, params))

  def value(state: AverageState) -> Params:
    oldest = (state.step // period) % count
    return jax.tree.map(lambda ring: jnp.roll(ring, -oldest, 0), state.average)

  return RunningAverage(init, update, value)


def _start(params: Params) -> AverageState:
  # A copy: whoever donates the parameters and this state gives no array twice.
  average = jax.tree.map(jnp.array, params)
  rest = jax.tree.map(lambda p: jnp.zeros_like(wide(p)), average)
  return AverageState(jnp.int32(0), average, rest)


def _average(state: AverageState) -> Params:
  return state.average


def _towards(
  params: Params, state: AverageState, rate: ArrayLike
) -> AverageState:
  """Moves `average + rest` by `rate` times the way to the parameters."""

  def move(average: Array, rest: Array, p: Array) -> tuple[Array, Array]:
    if not jnp.issubdtype(average.dtype, jnp.inexact):
      return jnp.asarray(p), rest  # Counts: the newest.
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
  """Rounds to `dtype`; XLA may leave out a cast there and back."""
  kind = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
