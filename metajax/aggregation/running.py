"""Averages of a model along its own training, as pure states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
  """

  step: Array
  average: Params


class AveragingState(NamedTuple):
  """State of an optimizer that averages the parameters it makes."""

  inner: optax.OptState
  average: AverageState


def averaging(
  optimizer: optax.GradientTransformation, average: RunningAverage
) -> optax.GradientTransformation:
  """Keeps a running average of the parameters in an optimizer's state.

  So that any training loop averages without knowing of it; the average of a
  state is `average.value(state.average)`.

  Args:
    optimizer: whose updates are passed on as they are.
    average: `ema(...)` or `swa(...)`.

  Returns:
    An optimizer with an `AveragingState`, whose `update` needs the parameters.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def init(params: Params) -> AveragingState:
    return AveragingState(optimizer.init(params), average.init(params))

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
    return updates, AveragingState(inner, average.update(new, state.average))

  return optax.GradientTransformationExtraArgs(init, update)


def ema(decay: float, *, debias: bool = True) -> RunningAverage:
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
  if not 0 <= decay < 1:
    raise ValueError(f"decay={decay}: must be at least 0 and below 1.")

  def update(params: Params, state: AverageState) -> AverageState:
    step = state.step + 1
    # Debiased by a rate that falls from 1 to 1 - d: the same average, without
    # the zero start and without its rounding.
    rate = (1 - decay) / (1 - decay**step) if debias else 1 - decay
    average = jax.tree.map(
      lambda a, p: a + (rate * (p - a)).astype(a.dtype), state.average, params
    )
    return AverageState(step, average)

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
    A `RunningAverage`; its value before `start` is the newest model.

  Raises:
    ValueError: if `start` is negative or `period` not positive.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, 2018, algorithm 1.
  """
  if start < 0 or period < 1:
    raise ValueError(
      f"start={start}, period={period}: must be at least 0 and at least 1."
    )

  def update(params: Params, state: AverageState) -> AverageState:
    since = state.step - start
    count = jnp.maximum(since, 0) // period  # Models in the average.
    counts = (since >= 0) & (since % period == 0)
    rate = jnp.where(since < 0, 1.0, jnp.where(counts, 1 / (count + 1), 0.0))
    average = jax.tree.map(
      lambda a, p: a + (rate * (p - a)).astype(a.dtype), state.average, params
    )
    return AverageState(state.step + 1, average)

  return RunningAverage(_start, update, _average)


def _start(params: Params) -> AverageState:
  return AverageState(jnp.int32(0), params)


def _average(state: AverageState) -> Params:
  return state.average
