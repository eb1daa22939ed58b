"""Federated averaging against loops in numpy, and which examples it visits."""

import functools
import sys
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from metajax.losses import cross_entropy, mean_squared_error
from metajax.training import Clients, federated_trainer, task_mesh
from metajax.types import Batch, State
from tests.processes import run_python

RNG, INIT_KEY = jax.random.key(0), jax.random.key(1)
FEATURES, MAX_SIZE = 3, 7
SIZES = (3, 7, 5, 1)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


LINEAR = SimpleNamespace(
  init=lambda rng, inputs: jax.random.normal(rng, (inputs.shape[1], 1)),
  apply=lambda weights, inputs: inputs @ weights,
)

# A model whose gradient is minus the mean of its inputs, wherever it is: the
# examples that were visited can be read off the parameters.
COUNTER = SimpleNamespace(
  init=lambda rng, inputs: jnp.zeros(inputs.shape[1:]),
  apply=lambda params, inputs: inputs @ params,
)


def _minus_mean(predictions, targets):
  del targets
  return -jnp.mean(predictions)


def _regression(sizes=SIZES, max_size=MAX_SIZE, seed=0):
  """Clients of noise, with garbage after their examples."""
  draw = np.random.default_rng(seed).normal
  x = draw(size=(len(sizes), max_size, FEATURES))
  y = draw(size=(len(sizes), max_size, 1))
  for client, size in enumerate(sizes):
    x[client, size:] = 1e3 * draw(size=x[client, size:].shape)
    y[client, size:] = -1e4
  return Clients(Batch(jnp.asarray(x), jnp.asarray(y)), jnp.int32(sizes))


def _counted(sizes, max_size):
  """Each example is a unit vector of its own, the padding's included."""
  count = len(sizes) * max_size
  x = np.eye(count).reshape(len(sizes), max_size, count)
  y = np.zeros((len(sizes), max_size, 1))
  return Clients(Batch(jnp.asarray(x), jnp.asarray(y)), jnp.int32(sizes))


def _counting(clients, client_optimizer=None, **arguments):
  """Trains COUNTER, on a server that takes the clients' average."""
  arguments = {
    "clients_per_round": len(clients.sizes),
    "rng": RNG,
    **arguments,
  }
  return federated_trainer(
    COUNTER,
    _minus_mean,
    clients,
    client_optimizer or optax.sgd(1.0),
    optax.sgd(1.0),
    **arguments,
  )


def _start(trainer):
  """Returns the initial state and `train`, compiled once for all rounds."""
  state = trainer.init(INIT_KEY)
  return state, trainer.compile(state)[0]


def _visits(trainer, clients, rounds=1):
  """Returns, by round, how far each example moved the average."""
  (state, train), found = _start(trainer), []
  for _ in range(rounds):
    before = np.array(state.meta_params)  # A copy: the state is donated.
    state, _ = train(state, 1)
    found.append(np.asarray(state.meta_params) - before)
  return np.reshape(found, (rounds, *clients.data.inputs.shape[:2]))


# --- Against other computations. ---


@pytest.mark.slow
def test_fedsgd_is_one_step_on_the_pooled_examples():
  """One full-batch step of every client, on classes: integer targets."""
  draw, classes = np.random.default_rng(0), 3
  y = draw.integers(0, classes, size=(len(SIZES), MAX_SIZE))
  x = np.asarray(_regression().data.inputs)
  clients = Clients(Batch(jnp.asarray(x), jnp.asarray(y)), jnp.int32(SIZES))
  trainer = federated_trainer(
    LINEAR,
    cross_entropy,
    clients,
    optax.sgd(0.5),
    optax.sgd(1.0),
    clients_per_round=len(SIZES),
    rng=RNG,
    mesh=task_mesh(1),
  )
  start = trainer.init(INIT_KEY)
  assert start.step == 0
  np.testing.assert_allclose(
    start.meta_params, LINEAR.init(INIT_KEY, clients.data.inputs[0])
  )
  weights = draw.normal(size=(FEATURES, classes))
  start = start._replace(meta_params=jnp.array(weights))
  state, metrics = trainer.compile(start)[0](start, 1)
  real = np.arange(MAX_SIZE) < np.array(SIZES)[:, None]
  x, labels = x[real], np.eye(classes)[y[real]]
  p = scipy.special.softmax(x @ weights, axis=1)
  expected = weights - 0.5 * x.T @ (p - labels) / len(x)
  np.testing.assert_allclose(state.meta_params, expected, rtol=1e-10)
  loss = -np.mean(np.log(p[labels == 1]))
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
  assert set(metrics) == {"loss"}
  assert state.step == 1


def _sgd(rate, momentum=0.0):
  velocity = 0.0

  def step(gradient):
    nonlocal velocity
    velocity = gradient + momentum * velocity
    return -rate * velocity

  return step


def _adam(rate):
  m = v = t = 0.0

  def step(gradient):
    nonlocal m, v, t
    t += 1
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return -rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

  return step


def _by_hand(w, clients, client, server, rounds, epochs, proximal):
  """Full batches; `client` and `server` make new optimizers in numpy."""
  x, y = map(np.asarray, clients.data[:2])
  sizes = np.asarray(clients.sizes)
  step, losses = server(), []
  for _ in range(rounds):
    total, average = 0.0, np.zeros_like(w)
    for x_k, y_k, n in zip(x, y, sizes, strict=True):
      local, local_step = w.copy(), client()
      total += n * np.mean((x_k[:n] @ w - y_k[:n]) ** 2)
      for _ in range(epochs):
        gradient = 2 / n * x_k[:n].T @ (x_k[:n] @ local - y_k[:n])
        local = local + local_step(gradient + proximal * (local - w))
      average += n * local / sizes.sum()
    losses.append(total / sizes.sum())
    w = w + step(w - average)
  return w, losses


@pytest.mark.slow
@pytest.mark.parametrize(
  "momentum, server, proximal, sizes",
  [
    (0.0, ("sgd", 1.0), 2.0, SIZES),  # FedProx
    (0.0, ("adam", 0.3), 0.0, SIZES),  # FedAdam
    # The client's momentum starts anew in every round, the server's does not.
    # So uneven, the examples of a step are computed 5 at once.
    (0.9, ("sgd", 0.5, 0.9), 0.5, (40, 1, 2, 1, 3, 1, 1, 2)),
  ],
  ids=str,
)
def test_rounds_equal_loops_in_numpy(momentum, server, proximal, sizes):
  clients, rounds, epochs = _regression(sizes, max(sizes)), 3, 4
  by_hand = {"sgd": _sgd, "adam": _adam}
  in_optax = {
    "sgd": lambda rate, momentum=None: optax.sgd(rate, momentum),
    "adam": optax.adam,
  }
  trainer = federated_trainer(
    LINEAR,
    mean_squared_error,
    clients,
    optax.sgd(0.1, momentum),
    in_optax[server[0]](*server[1:]),
    clients_per_round=len(sizes),
    rng=RNG,
    local_epochs=epochs,
    proximal=proximal,
  )
  state, train = _start(trainer)
  expected, losses = _by_hand(
    np.array(state.meta_params),
    clients,
    functools.partial(_sgd, 0.1, momentum),
    functools.partial(by_hand[server[0]], *server[1:]),
    rounds,
    epochs,
    proximal,
  )
  state, metrics = train(state, rounds)
  np.testing.assert_allclose(state.meta_params, expected, rtol=1e-9)
  # Of the clients before they train, by size; then the mean over rounds.
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-9)
  assert state.step == rounds


@pytest.mark.slow
def test_line_searches_see_the_examples_of_their_step():
  """Of all blocks, with gradients: L-BFGS against itself in a Python loop."""
  clients = _regression((24, 2, 2, 2, 2, 2), 24)  # 6 examples at once.
  optimizer, epochs = optax.lbfgs(0.5), 2
  trainer = federated_trainer(
    LINEAR,
    mean_squared_error,
    clients,
    optimizer,
    optax.sgd(1.0),
    clients_per_round=6,
    rng=RNG,
    local_epochs=epochs,
    mesh=task_mesh(1),
  )
  state, train = _start(trainer)
  start, average = np.array(state.meta_params), 0.0

  @functools.partial(jax.jit, static_argnums=3)
  def fit(x, y, w, epochs):
    def loss(w):
      return mean_squared_error(x @ w, y)

    opt_state = optimizer.init(w)
    for _ in range(epochs):
      value, grad = jax.value_and_grad(loss)(w)
      updates, opt_state = optimizer.update(
        grad, opt_state, w, value=value, grad=grad, value_fn=loss
      )
      w = w + updates
    return w

  for x, y, n in zip(*clients.data[:2], clients.sizes, strict=True):
    average += int(n) / 34 * fit(x[:n], y[:n], jnp.array(start), epochs)
  state, _ = train(state, 1)
  np.testing.assert_allclose(state.meta_params, average, rtol=1e-8)


@pytest.mark.slow
def test_clients_end_to_end_of_trees_are_those_that_are_padded():
  """In any order in the arrays, of numpy, and with state that nobody moves."""
  padded = _regression(sizes=(3, 6, 2, 5), max_size=6)
  own = [
    [np.asarray(part[k, :n]) for part in padded.data[:2]]
    for k, n in enumerate(np.asarray(padded.sizes))
  ]
  x, y = (
    np.concatenate([own[k][part] for k in (2, 0, 3, 1)]) for part in (0, 1)
  )
  model = SimpleNamespace(
    init=lambda rng, inputs: {
      "weights": LINEAR.init(rng, inputs["x"]),
      "statistics": State({"count": jnp.int32(3), "mean": jnp.ones(2)}),
    },
    apply=lambda params, inputs: (inputs["x"] @ params["weights"],),
  )
  flat = Clients(Batch({"x": x}, (y,)), np.array([3, 6, 2, 5]), [2, 10, 0, 5])
  found = []
  for of_trees, clients, loss_fn in (
    (LINEAR, padded, mean_squared_error),
    (model, flat, lambda p, t: mean_squared_error(p[0], t[0])),
  ):
    trainer = federated_trainer(
      of_trees,
      loss_fn,
      clients,
      optax.sgd(0.1, momentum=0.9),
      optax.adam(0.1),
      clients_per_round=2,
      rng=RNG,
      batch_size=2,
      local_epochs=2,
      proximal=0.1,
    )
    state, train = _start(trainer)
    found.append(train(state, 3))
  (expected, _), (state, _) = found
  chex.assert_trees_all_close(found[0][1], found[1][1], rtol=1e-12)
  np.testing.assert_allclose(
    state.meta_params["weights"], expected.meta_params, rtol=1e-12
  )
  kept = state.meta_params["statistics"].value
  assert kept["count"] == 3
  np.testing.assert_array_equal(kept["mean"], [1, 1])


# --- What it costs. ---


def _computed(sizes, **arguments):
  """Returns how many examples a round computes, padding included."""
  counts = []

  def apply(params, inputs):
    jax.debug.callback(lambda: counts.append(len(inputs)))
    return LINEAR.apply(params, inputs)

  trainer = federated_trainer(
    SimpleNamespace(init=LINEAR.init, apply=apply),
    mean_squared_error,
    _regression(sizes, max(sizes)),
    optax.sgd(0.1),
    optax.sgd(1.0),
    clients_per_round=len(sizes),
    rng=RNG,
    mesh=task_mesh(1),
    **arguments,
  )
  state, train = _start(trainer)
  train(state, 1)
  jax.effects_barrier()
  return sum(counts)


UNEVEN = (4,) * 4 + (200,) + (4,) * 5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, None])
def test_a_round_costs_what_its_examples_do(batch_size):
  """Not what clients times the largest would: 2,000 examples a pass."""
  epochs = 3
  computed = _computed(UNEVEN, batch_size=batch_size, local_epochs=epochs)
  # One more pass is for the loss before.
  exact = (epochs + 1) * sum(UNEVEN)
  assert exact <= computed <= (exact if batch_size else 2 * exact)


@pytest.mark.slow
def test_chunks_are_of_clients_alike_in_size():
  # What a chunk does together is counted once.
  computed = 3 * _computed((4, 40) * 3, batch_size=4, client_chunk=3)
  assert computed == 2 * 3 * (4 + 40)


# --- Which examples are visited, and in which order. ---


def test_an_epoch_visits_every_example_once_and_never_the_padding():
  sizes, epochs = np.array([6, 5, 4, 2]), 6
  clients = _counted(sizes, max_size=6)
  trainer = _counting(clients, batch_size=2, local_epochs=epochs)
  visits = _visits(trainer, clients)[0] * sizes.sum() / sizes[:, None]
  real = np.arange(6) < sizes[:, None]
  assert (visits[~real] == 0).all()
  # In batches of 2 an example has half of a step, each time.
  even = sizes % 2 == 0
  np.testing.assert_allclose(visits[even], epochs / 2 * real[even], rtol=1e-6)
  # The last of 5 is alone, in a step of its own: another one in each epoch.
  odd = visits[1, :5]
  np.testing.assert_allclose(odd.sum(), epochs * 3, rtol=1e-6)
  np.testing.assert_allclose(2 * odd, np.round(2 * odd), rtol=1e-6)
  assert epochs / 2 <= odd.min() + 1e-6
  assert odd.max() < epochs


def test_order_is_drawn_uniformly_for_each_client_and_round():
  """Of 3 examples by 2 the last is alone: each of them alike."""
  rounds, num_clients = 60, 10
  clients = _counted((3,) * num_clients, max_size=3)
  trainer = _counting(clients, batch_size=2)
  visits = num_clients * _visits(trainer, clients, rounds)
  np.testing.assert_allclose(
    np.sort(visits, axis=-1),
    np.broadcast_to([0.5, 0.5, 1], visits.shape),
    atol=1e-4,
  )
  alone = visits.argmax(axis=-1)
  assert len(np.unique(alone, axis=0)) > rounds / 2
  assert len(np.unique(alone, axis=1).T) == num_clients
  # 4 standard errors of a binomial count.
  counts, n = np.bincount(alone.ravel()), alone.size
  bound = 4 * np.sqrt(n * 1 / 3 * 2 / 3)
  assert (np.abs(counts - n / 3) < bound).all()


@pytest.mark.slow
def test_smaller_clients_take_fewer_steps():
  """With momentum a client would go on moving without any gradient."""
  sizes, epochs, batch_size = (7, 4, 2, 1), 3, 2
  # All examples of client k are k-th unit vectors: one constant gradient.
  x = np.broadcast_to(np.eye(4)[:, None], (4, 7, 4))
  clients = Clients(
    Batch(jnp.asarray(x), jnp.zeros((4, 7, 1))), jnp.int32(sizes)
  )
  trainer = _counting(
    clients,
    optax.sgd(0.1, momentum=0.9),
    batch_size=batch_size,
    local_epochs=epochs,
  )
  state, train = _start(trainer)
  state, _ = train(state, 1)
  expected = []
  for n in sizes:
    step, moved = _sgd(0.1, 0.9), 0.0
    for _ in range(epochs * -(-n // batch_size)):
      moved += step(-1.0)
    expected.append(n / sum(sizes) * moved)
  np.testing.assert_allclose(state.meta_params, expected, rtol=1e-6)


def _chosen(trainer, clients, rounds):
  """Returns a mask `[rounds, clients]`, and the weights they had."""
  visits = _visits(trainer, clients, rounds)[:, :, 0]
  return visits > 1e-3, visits * np.asarray(clients.sizes)


@pytest.mark.slow
def test_clients_are_drawn_without_replacement_and_anew_in_each_round():
  count, drawn, rounds = 8, 3, 60
  sizes = np.arange(1, count + 1)
  clients = _counted(sizes, max_size=count)
  trainer = _counting(clients, clients_per_round=drawn)
  chosen, weights = _chosen(trainer, clients, rounds)
  assert (chosen.sum(axis=1) == drawn).all()
  # A client moves its examples by 1 / n, at the weight n / sum of the drawn.
  expected = chosen * sizes / (chosen @ sizes)[:, None]
  np.testing.assert_allclose(weights, expected, atol=1e-5)
  assert len(np.unique(chosen, axis=0)) > rounds / 3
  # Each client's count is binomial, of p = 3 / 8: 4 standard errors.
  p = drawn / count
  bound = 4 * np.sqrt(rounds * p * (1 - p))
  assert (np.abs(chosen.sum(axis=0) - rounds * p) < bound).all()
  other = _counting(clients, clients_per_round=drawn, rng=jax.random.key(5))
  assert (_chosen(other, clients, 10)[0] != chosen[:10]).any()


# --- Rounds, keys, chunks and devices. ---


def _trainer(mesh, client_chunk=1):
  """Minibatches and a draw of 8 of 11 clients: everything at random."""
  clients = _regression(np.arange(11) % 7 + 1)
  return federated_trainer(
    LINEAR,
    mean_squared_error,
    clients,
    optax.sgd(0.05, momentum=0.5),
    optax.adam(0.1),
    clients_per_round=8,
    rng=RNG,
    local_epochs=2,
    batch_size=3,
    proximal=0.1,
    client_chunk=client_chunk,
    mesh=mesh,
  )


def _rounds(trainer, train, *calls):
  """Returns the parameters after some calls of `train`, and the mean loss."""
  state, losses = trainer.init(INIT_KEY), []
  for rounds in calls:
    state, metrics = train(state, rounds)
    losses.append(np.float64(metrics["loss"]))
  assert state.step == sum(calls)
  return {
    "params": np.array(state.meta_params),
    "loss": np.average(losses, weights=calls),
  }


@functools.cache
def _on_one_device():
  """Returns trainer and `train`, compiled once, and what 5 rounds find."""
  trainer = _trainer(task_mesh(1))
  train = _start(trainer)[1]
  return trainer, train, _rounds(trainer, train, 5)


@pytest.mark.slow
def test_two_rounds_and_three_are_five():
  trainer, train, expected = _on_one_device()
  found = _rounds(trainer, train, 2, 3)
  np.testing.assert_array_equal(found["params"], expected["params"])
  np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-12)


def test_same_state_same_result():
  trainer, train, expected = _on_one_device()
  chex.assert_trees_all_equal(_rounds(trainer, train, 5), expected)


def test_clients_at_once_change_no_numbers():
  trainer = _trainer(task_mesh(1), client_chunk=4)
  found = _rounds(trainer, _start(trainer)[1], 5)
  chex.assert_trees_all_close(found, _on_one_device()[2], rtol=1e-10)


# Devices and clients at once on each; all of the devices are the default.
SPREADS = {"4": (4, 2), "all 8": (None, 1)}


def _spread_main(path):
  """In a process with 8 devices: writes what they find to `path`."""
  arrays = {}
  for name, (devices, client_chunk) in SPREADS.items():
    mesh = devices and task_mesh(8, jax.devices()[:devices])
    trainer = _trainer(mesh, client_chunk)
    found = _rounds(trainer, _start(trainer)[1], 5)
    arrays |= {f"{name}/{key}": value for key, value in found.items()}
  np.savez(path, **arrays)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
  path = tmp_path_factory.mktemp("spread") / "arrays.npz"
  run_python(__file__, path, devices=8, x64=True)
  with np.load(path) as arrays:
    return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREADS)
def test_clients_spread_over_devices_learn_what_one_device_does(name, spread):
  for key, expected in _on_one_device()[2].items():
    assert expected.dtype == np.float64
    # Shares of the clients come as float32 where they are integers.
    np.testing.assert_allclose(spread[f"{name}/{key}"], expected, rtol=1e-6)


# --- What is refused. ---


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"clients_per_round": 0}, "clients_per_round=0: must be 1 to 4"),
    ({"clients_per_round": 5}, "clients_per_round=5: must be 1 to 4"),
    ({"local_epochs": 0}, "local_epochs=0: must be 1 or more"),
    ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
    ({"batch_size": -1}, "batch_size=-1: must be 1 or more"),
    ({"proximal": -0.1}, "proximal=-0.1: must be 0 or more"),
    ({"client_chunk": 0}, "client_chunk=0: must be 1 or more"),
    (
      {"client_chunk": 3},
      "clients_per_round=4: must be a multiple of 1 devices times "
      "client_chunk=3",
    ),
    ({"sizes": (3, 7, 5)}, r"clients.sizes of shape \(3,\): must be \(4,\)"),
    ({"sizes": (3, 0, 5, 1)}, "clients.sizes: client 1 has 0, must be 1 to 7"),
    ({"sizes": (3, 7, 8, 1)}, "clients.sizes: client 2 has 8, must be 1 to 7"),
    (
      {"offsets": (0, 3, 10, 28)},
      "clients.sizes: client 3 has 1, must be 1 to 0",
    ),
    ({"offsets": (0, -1, 10, 15)}, "clients.sizes: client 1 has 7, must be 1"),
    ({"offsets": (0, 3, 10)}, r"clients.sizes of shape \(4,\): must be \(3,\)"),
    ({"mask": True}, "clients.data: a mask was given, must be None"),
  ],
)
def test_numbers_out_of_range_are_named(arguments, message):
  arguments = {
    "clients_per_round": 4,
    "rng": RNG,
    "mesh": task_mesh(1),
    **arguments,
  }
  sizes = jnp.int32(arguments.pop("sizes", SIZES))
  clients = _regression()._replace(sizes=sizes)
  if "offsets" in arguments:
    data = Batch(*(x.reshape(28, -1) for x in clients.data[:2]))
    clients = Clients(data, sizes, jnp.int32(arguments.pop("offsets")))
  if arguments.pop("mask", False):
    data = clients.data._replace(mask=jnp.ones((4, MAX_SIZE), bool))
    clients = clients._replace(data=data)
  with pytest.raises(ValueError, match=f"^{message}"):
    federated_trainer(
      LINEAR,
      mean_squared_error,
      clients,
      optax.sgd(0.1),
      optax.sgd(1.0),
      **arguments,
    )


if __name__ == "__main__":
  _spread_main(sys.argv[1])
