"""A descent of the experiments that was stopped ends with the same bits."""

import jax
import numpy as np
import optax
import pytest

from experiments.shared.descents import descend
from metajax import bilevel


@pytest.mark.slow
def test_a_stopped_descent_goes_on_at_its_checkpoint(tmp_path):
  begin, step = bilevel.influence_balancing()
  estimator = bilevel.persistent_evolution(
    begin, bilevel.of_steps(step, 2), 6, sigma=0.3, pairs=2
  )
  descender = bilevel.descent(estimator, optax.adam(0.01), workers=2, horizon=6)
  start_key, rng = jax.random.split(jax.random.key(0))
  start = descender.init(0.5, start_key)
  calls, saves = [], []

  def train(name, stop_at=None):
    def score(outer):
      if len(calls) == stop_at:
        raise KeyboardInterrupt
      calls.append(float(outer))
      return abs(calls[-1] - 0.49)  # The best is not the last one.

    def save():
      saves.append(len(calls))

    return descend(descender, start, rng, 20, score, tmp_path / name, save)

  whole, _ = train("whole")
  uninterrupted = calls.copy()
  assert len(calls) == 10 and saves == list(range(1, 11))
  calls.clear()
  with pytest.raises(KeyboardInterrupt):
    train("stopped", stop_at=4)
  resumed, _ = train("stopped")
  # What was scored and saved is not scored again.
  assert calls == uninterrupted
  assert float(resumed) == float(whole)
  assert float(whole) == min(uninterrupted, key=lambda x: abs(x - 0.49))
  # A run that is over only returns its choice.
  again, _ = train("stopped", stop_at=len(calls))
  assert float(again) == float(whole)


@pytest.mark.slow
def test_a_descent_without_a_finite_score_is_an_error(tmp_path):
  begin, step = bilevel.influence_balancing()
  estimator = bilevel.truncated_backpropagation(begin, step, 6)
  descender = bilevel.descent(estimator, optax.sgd(0.01))
  start = descender.init(0.5, jax.random.key(0))
  with pytest.raises(ValueError, match="bad diverges: give a smaller --outer"):
    descend(
      descender,
      start,
      jax.random.key(1),
      2,
      lambda outer: np.nan,
      tmp_path / "bad",
      lambda: None,
    )
