"""Readers that play: the state is what they would read anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.context import build_reader, reading_network
from metajax.models.recurrent import unroll
from metajax.players.recurrent import encode, first_params
from metajax.replay.players import action_values
from metajax.tasks.bandits import bandits
from metajax.tasks.trials import Player, play

WINDOW, FEATURES, UNITS, ACTIONS = 4, 3, 8, 2
SIZES = {
  "transformer": {"width": 8, "layers": 2, "heads": 2},
  "snail": {"channels": 4, "attention": ((4, 4), (4, 4)), "length": WINDOW + 1},
}


def _network(name, head="linear", **sizes):
  reader = build_reader(name, **SIZES[name] | sizes)
  network = reading_network(
    reader, ACTIONS, window=WINDOW, units=UNITS, head=head
  )
  params = network.init(jax.random.key(0), jnp.zeros((1, FEATURES)))
  return reader(UNITS), network, _noisy(params)


def _noisy(params):
  """Adds noise, because heads begin with zeros."""
  draw = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + draw.normal(0, 0.3, x.shape).astype(x.dtype), params
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_state_equals_reading_anew_and_is_reset_with_the_task(name):
  reader, network, params = _network(name)
  inputs = jax.random.normal(jax.random.key(1), (2, WINDOW, 1, FEATURES))
  # The second task begins after the first, in the same state.
  first = jnp.zeros((2 * WINDOW, 1), bool).at[jnp.array([0, WINDOW])].set(True)
  state = jax.tree.map(lambda x: x[None], network.start())

  @jax.jit
  def both(params):
    steps = inputs.reshape(2 * WINDOW, 1, FEATURES)
    played, _ = unroll(network, params, state, steps, first)

    def anew(x):
      nothing = reader.start(params["reader"], x)
      labels = jnp.zeros((WINDOW, UNITS))
      return reader.read(params["reader"], nothing, x, labels)[0]

    return played.reshape(2, WINDOW, UNITS), jax.vmap(anew)(inputs[:, :, 0])

  played, read = both(params)
  assert jnp.abs(read[:, 0] - read[:, -1]).max() > 1e-3
  np.testing.assert_allclose(played, read, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_steps_beyond_the_window_are_forgotten(name):
  # In one layer, what is kept of a step depends on this step alone.
  alone = {"transformer": {"layers": 1}, "snail": {"attention": ((4, 4),)}}
  _, network, params = _network(name, **alone[name])
  inputs = jax.random.normal(jax.random.key(1), (2 * WINDOW, 1, FEATURES))
  first = jnp.zeros((2 * WINDOW, 1), bool).at[0].set(True)
  state = jax.tree.map(lambda x: x[None], network.start())

  @jax.jit
  def play(inputs):
    return unroll(network, params, state, inputs, first)

  hidden, memory = play(inputs)
  changed, _ = play(inputs.at[0].add(1.0))
  assert memory.mask.shape == (1, WINDOW) and memory.mask.all()
  apart = jnp.abs(hidden - changed).max((1, 2))
  assert (apart[: WINDOW + 1] > 1e-5).all(), apart
  np.testing.assert_array_equal(apart[WINDOW + 1 :], 0)


def test_a_reader_without_a_memory_of_examples_is_refused():
  with pytest.raises(ValueError, match="no mask"):
    reading_network(build_reader("lstm", units=4), ACTIONS, window=2)
  with pytest.raises(ValueError, match="one entry for each example"):
    reading_network(
      build_reader("interleaved", width=8, layers=1, heads=1, length=3),
      ACTIONS,
      window=2,
    )
  with pytest.raises(ValueError, match="window=0"):
    reading_network(build_reader("snail"), ACTIONS, window=0)


@pytest.mark.slow
def test_head_is_that_of_recurrent_networks():
  _, network, params = _network("transformer", "actor_critic")
  logits, value = network.head(params, jnp.zeros((5, UNITS)))
  assert logits.shape == (5, ACTIONS) and value.shape == (5,)
  with pytest.raises(ValueError, match="head="):
    _network("transformer", "none")


@pytest.mark.slow
def test_values_in_a_bandit_are_those_of_the_whole_trial_read_anew():
  name, pulls, arms = "transformer", 10, 3
  tasks = bandits(arms, pulls)
  reader = build_reader(name, **SIZES[name] | {"length": pulls + 1})
  network = reading_network(reader, arms, window=pulls + 1, units=UNITS)
  params = _noisy(first_params(network, tasks, jax.random.key(0)))

  def act(memory, step, rng):
    """Acts at random, and keeps the values of the network."""
    values, state = action_values(network, params, memory[0], step, arms)
    return jax.random.randint(rng, (), 0, arms), (state, values)

  @jax.jit
  def both(rng):
    player = Player(lambda: (network.start(), jnp.zeros(arms)), act)
    trial = play(player, tasks, rng)
    x, labels = encode(trial.steps, arms), jnp.zeros((pulls + 1, UNITS))
    anew = reader(UNITS)
    nothing = anew.start(params["reader"], x)
    hidden, _ = anew.read(params["reader"], nothing, x, labels)
    return trial.memories[1][1:], network.head(params, hidden)[:-1]

  played, read = both(jax.random.key(1))
  assert np.ptp(read, axis=0).min() > 1e-2
  np.testing.assert_allclose(played, read, rtol=0, atol=1e-5)
