"""Where sequences are cut, what is in them, and what a player reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.players.recurrent import encode
from metajax.replay import cut
from metajax.replay.sequences import sequence_starts
from metajax.tasks.trials import Step, Trial


@st.composite
def _sizes(draw):
  num_steps = draw(st.integers(1, 60))
  length = draw(st.integers(1, num_steps))
  return num_steps, length, draw(st.integers(1, length))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(_sizes())
def test_sequences_cover_every_action_and_stay_inside_the_trial(sizes):
  num_steps, length, period = sizes
  starts = sequence_starts(*sizes)
  covered = {s + i for s in starts for i in range(length)}
  assert covered == set(range(num_steps))
  assert starts[0] == 0
  assert starts[-1] + length == num_steps
  gaps = np.diff(starts)
  # No sequence twice, and only the last one may come early.
  assert np.all(gaps > 0)
  assert np.all(gaps[:-1] == period)
  assert np.all(gaps[-1:] <= period)


@pytest.mark.parametrize(
  "sizes, expected",
  [
    ((6, 6, 6), (0,)),
    ((6, 6, 1), (0,)),
    ((7, 3, 2), (0, 2, 4)),
    ((8, 3, 2), (0, 2, 4, 5)),
    ((6, 3, 3), (0, 3)),
    ((3, 1, 1), (0, 1, 2)),
  ],
)
def test_starts_by_hand(sizes, expected):
  assert sequence_starts(*sizes) == expected


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((6, 7, 1), "length=7: must be from 1 to 6"),
    ((6, 0, 1), "length=0: must be from 1 to 6"),
    ((6, 4, 5), "period=5: must be from 1 to 4"),
    ((6, 4, 0), "period=0: must be from 1 to 4"),
  ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    sequence_starts(*sizes)


def _trial(num_steps):
  """Every number of it tells its place."""
  place = np.arange(num_steps + 1)
  steps = Step(
    observation=jnp.asarray(place[:, None] + [0.0, 0.5], jnp.float32),
    action=jnp.asarray(place + 100, jnp.int32),
    reward=jnp.asarray(place + 200, jnp.float32),
    ended=jnp.asarray(place % 3 == 2),
    first=jnp.asarray(place == 0),
  )
  memories = (
    jnp.asarray(place + 300, jnp.float32),
    jnp.asarray(place[:, None] * np.ones(4) - 400, jnp.float32),
  )
  return Trial(steps, memories)


@pytest.mark.parametrize(
  "length, period, starts", [(3, 2, [0, 2, 4, 5]), (8, 4, [0])]
)
def test_cut_gives_the_steps_of_each_part_and_the_state_before_it(
  length, period, starts
):
  trial = _trial(8)
  found = jax.jit(cut, static_argnums=(1, 2))(trial, length, period)
  np.testing.assert_array_equal(found.start, starts)
  assert found.start.dtype == jnp.int32
  for i, start in enumerate(starts):
    for name, field in trial.steps._asdict().items():
      part = getattr(found.steps, name)[i]
      np.testing.assert_array_equal(part, field[start : start + length + 1])
      assert part.dtype == field.dtype
    for state, memory in zip(found.state, trial.memories, strict=True):
      np.testing.assert_array_equal(state[i], memory[start])


def test_player_reads_the_observation_and_what_its_action_brought():
  step = Step(
    observation=jnp.array([[7.0, 8.0]]),
    action=jnp.int32(2),
    reward=jnp.float32(-1.5),
    ended=jnp.bool_(True),
    first=jnp.bool_(False),
  )
  found = jax.jit(encode, static_argnums=1)(step, 4)
  np.testing.assert_array_equal(found, [7, 8, 0, 0, 1, 0, -1.5, 1])


def test_at_a_first_step_the_past_is_zero_whatever_is_in_it():
  """It hangs on the flag of the step itself, not on those around it."""
  first = np.array([[True, False, False], [False, False, True]])
  rng = np.random.default_rng(0)
  steps = Step(
    observation=jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32),
    action=jnp.asarray(rng.integers(0, 3, (2, 3)), jnp.int32),
    reward=jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
    ended=jnp.ones((2, 3), bool),
    first=jnp.asarray(first),
  )
  found = np.asarray(jax.jit(encode, static_argnums=1)(steps, 3))
  assert found.shape == (2, 3, 2 + 3 + 1 + 1)
  np.testing.assert_array_equal(found[..., :2], steps.observation)
  np.testing.assert_array_equal(found[first][:, 2:], 0)
  later = found[~first]
  np.testing.assert_array_equal(
    later[:, 2:5], np.eye(3)[np.asarray(steps.action)[~first]]
  )
  np.testing.assert_array_equal(later[:, 5], steps.reward[~first])
  np.testing.assert_array_equal(later[:, 6], 1)
