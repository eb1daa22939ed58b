"""The Q-discrepancy against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.recurrent import recurrent
from metajax.players.recurrent import encode
from metajax.replay import Objective, q_discrepancy, q_player
from metajax.tasks.bandits import bandits
from metajax.tasks.trials import play

# Sequences start at 0, 3, 6 and 7.
ARMS, PULLS, LENGTH, PERIOD, BURN_IN = 3, 12, 5, 3, 2
LATER = [3, 6, 7]
NETWORK = recurrent(ARMS, units=8, head="dueling")


@functools.cache
def _params(seed):
  return NETWORK.init(jax.random.key(seed), jnp.zeros(1 + ARMS + 2))


@functools.cache
def _trial():
  player = q_player(NETWORK, _params(0), ARMS, 0.5)
  return jax.jit(lambda key: play(player, bandits(ARMS, PULLS), key))(
    jax.random.key(5)
  )


def _discrepancy(params, **changes):
  objective = Objective(ARMS, PULLS)._replace(**changes)
  return jax.jit(
    lambda p, trial: q_discrepancy(NETWORK, p, trial, objective, LENGTH, PERIOD)
  )(params, _trial())


@jax.jit
def _read(params, state, step):
  hidden, state = NETWORK.read(params, state, encode(step, ARMS))
  return NETWORK.head(params, hidden), state


def _values(params, state, start, end):
  values = []
  for t in range(start, end):
    step = jax.tree.map(lambda x: x[t], _trial().steps)  # noqa: B023
    q, state = _read(params, state, step)
    values.append(np.asarray(q))
  return np.stack(values)


@pytest.mark.slow
def test_states_of_the_same_parameters_are_no_other():
  for burn_in in (0, BURN_IN):
    first, last = _discrepancy(_params(0), burn_in=burn_in)
    assert first < 1e-5
    assert last < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("burn_in", [0, BURN_IN])
@pytest.mark.parametrize("zero_state", [False, True])
def test_discrepancy_equals_a_plain_loop(burn_in, zero_state):
  params = _params(1)  # Others than those that played.
  whole = _values(params, NETWORK.start(), 0, PULLS + 1)
  first, last = [], []
  for start in LATER:
    stored = jax.tree.map(lambda x: x[start], _trial().memories)  # noqa: B023
    state = NETWORK.start() if zero_state else stored
    values = _values(params, state, start, start + LENGTH + 1)
    true = whole[start : start + LENGTH + 1]
    distances = np.sqrt(((values - true) ** 2).sum(-1)) / np.abs(values).max()
    first.append(distances[burn_in])
    last.append(distances[LENGTH])
  found = _discrepancy(params, burn_in=burn_in, zero_state=zero_state)
  assert np.mean(first) > 1e-3
  np.testing.assert_allclose(found, [np.mean(first), np.mean(last)], rtol=1e-4)


@pytest.mark.slow
def test_sequence_that_is_the_whole_trial_is_refused():
  with pytest.raises(ValueError, match="length=12: is the whole trial"):
    q_discrepancy(
      NETWORK, _params(0), _trial(), Objective(ARMS, PULLS), PULLS, PULLS
    )
