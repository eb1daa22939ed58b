"""The MLP and the LSTM optimizer, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import learned_optimizers
from metajax.learned_optimizers import coordinates

draw = np.random.default_rng(0).normal
PARAMS = {"a": draw(size=(2, 3)), "b": draw(size=2)}
GRADS = [{"a": draw(size=(2, 3)), "b": draw(size=2)} for _ in range(4)]
GRADS[1]["a"][0, 0] = 0.0
GRADS[2]["a"][0, 1] = 1e-7  # Below exp(-p) of the LSTM.


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def theta_of(learned):
  theta = learned.init(jax.random.key(1))
  # Biases start at 0, with which a test would not see them.
  return jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * draw(size=x.shape), float), theta
  )


def updates_of(optimizer, all_grads=GRADS, params=PARAMS):
  """The updates `[steps, ...]`, with parameters that move."""

  def step(carry, grads):
    params, state = carry
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), updates

  stack = jax.tree.map(lambda *x: jnp.stack(x), *all_grads)
  carry = jax.tree.map(jnp.asarray, params), optimizer.init(params)
  return jax.jit(lambda: jax.lax.scan(step, carry, stack)[1])()


def relu(x):
  return np.maximum(x, 0)


@pytest.mark.slow
def test_mlp_is_a_loop_over_tensors_and_their_elements():
  decays, second_decay = (0.5, 0.9), 0.95
  learned = learned_optimizers.mlp_optimizer(
    hidden=(4,),
    decays=decays,
    second_decay=second_decay,
    step_size=0.1,
    magnitude_scale=0.5,
  )
  theta = theta_of(learned)
  found = updates_of(learned.optimizer(theta))
  net = jax.tree.map(np.asarray, theta["params"])
  for name, params in PARAMS.items():
    p = params.copy()
    m, v = [np.zeros_like(p), np.zeros_like(p)], np.zeros_like(p)
    for t, g in enumerate(grads[name] for grads in GRADS):
      m = [d * x + (1 - d) * g for d, x in zip(decays, m, strict=True)]
      v = second_decay * v + (1 - second_decay) * g**2
      root = np.sqrt(v)
      inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
      columns = [g, p, *m, root, *(x * inverse for x in m)]
      columns = [x / np.sqrt((x**2).mean()) for x in columns]
      scales = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)
      time = [np.tanh(t / scale - 1) for scale in scales]
      step = np.zeros_like(p)
      for i in np.ndindex(p.shape):
        x = np.array([*(column[i] for column in columns), *time])
        x = relu(x @ net["Dense_0"]["kernel"] + net["Dense_0"]["bias"])
        a, b = x @ net["Dense_1"]["kernel"] + net["Dense_1"]["bias"]
        step[i] = 0.1 * a * np.exp(0.5 * b)
      np.testing.assert_allclose(found[name][t], -step, rtol=1e-6)
      p = p - step


@pytest.mark.slow
def test_linear_mlp_can_be_adam_up_to_a_scale_of_each_tensor():
  """The corrections of Adam's bias are such a scale."""
  learned = learned_optimizers.mlp_optimizer(
    hidden=(), decays=(0.9,), second_decay=0.99, step_size=0.1
  )
  theta = jax.tree.map(jnp.zeros_like, theta_of(learned))
  kernel = theta["params"]["Dense_0"]["kernel"]
  theta["params"]["Dense_0"]["kernel"] = kernel.at[4, 0].set(1.0)

  def normalised(tree, state=None, params=None):
    size = lambda x: jnp.sqrt(jnp.square(x).mean())  # noqa: E731
    return jax.tree.map(lambda x: -0.1 * x / size(x), tree), state

  plain = optax.chain(
    optax.scale_by_adam(b1=0.9, b2=0.99, eps=0, eps_root=1e-16),
    optax.GradientTransformation(lambda params: (), normalised),
  )
  found, expected = updates_of(learned.optimizer(theta)), updates_of(plain)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected
  )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_mlp_does_not_see_the_scale_of_gradients(scale):
  learned = learned_optimizers.mlp_optimizer(hidden=(4,), step_size=0.1)
  optimizer = learned.optimizer(theta_of(learned))
  scaled = [jax.tree.map(lambda x: scale * x, grads) for grads in GRADS]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
    updates_of(optimizer, scaled),
    updates_of(optimizer),
  )


@pytest.mark.slow
def test_each_part_has_a_root_mean_square_of_one():
  x = np.concatenate([1e-3 * draw(size=(5, 2)), 1e3 * draw(size=(4, 2))])
  x[:5, 1] = 0.0
  found = coordinates.unit_rms(jnp.asarray(x), (5, 4))
  sizes = [np.sqrt((part**2).mean(0)) for part in (found[:5], found[5:])]
  np.testing.assert_allclose(sizes, [[1, 0], [1, 1]], rtol=1e-9)
  slopes = jax.jacobian(lambda x: coordinates.unit_rms(x, (5, 4)))(x)
  assert np.isfinite(slopes).all()


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.slow
def test_lstm_is_a_loop_over_elements():
  learned = learned_optimizers.lstm_optimizer(units=3, step_size=0.2)
  theta = theta_of(learned)
  found = updates_of(learned.optimizer(theta))
  net = jax.tree.map(np.asarray, theta["params"])

  def cell(weights, c, h, x):
    def gate(name):
      inward, outward = weights[f"i{name}"], weights[f"h{name}"]
      return x @ inward["kernel"] + h @ outward["kernel"] + outward["bias"]

    c = sigmoid(gate("f")) * c + sigmoid(gate("i")) * np.tanh(gate("g"))
    return c, sigmoid(gate("o")) * np.tanh(c)

  for name, params in PARAMS.items():
    for i in np.ndindex(params.shape):
      state = [(np.zeros(3), np.zeros(3)) for _ in range(2)]
      for t, grads in enumerate(GRADS):
        g = grads[name][i]
        x = np.array([-1, np.exp(10) * g])
        if abs(g) >= np.exp(-10):
          x = np.array([np.log(abs(g)) / 10, np.sign(g)])
        for layer in range(2):
          weights = net[f"LSTMCell_{layer}"]
          state[layer] = cell(weights, *state[layer], x)
          x = state[layer][1]
        a = x @ net["Dense_0"]["kernel"] + net["Dense_0"]["bias"]
        np.testing.assert_allclose(
          found[name][t][i], 0.2 * a[0], rtol=1e-9, atol=1e-12
        )


def test_log_and_sign_is_continuous_with_finite_slopes():
  edge = np.exp(-10.0)
  g = jnp.array([0.0, edge * (1 - 1e-9), edge * (1 + 1e-9), 1.0, -1.0])

  @jax.jit
  def with_slopes(g):
    return jax.jvp(learned_optimizers.log_and_sign, (g,), (jnp.ones(5),))

  found, slopes = with_slopes(g)
  expected = [[-1, 0], [-1, 1], [-1, 1], [0, 1], [0, -1]]
  np.testing.assert_allclose(found, expected, atol=1e-7)
  # d log|g| / p is 1 / (p g).
  expected = [
    [0, 1 / edge],
    [0, 1 / edge],
    [0.1 / edge, 0],
    [0.1, 0],
    [-0.1, 0],
  ]
  np.testing.assert_allclose(slopes, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "build, given, message",
  [
    ("mlp", {"hidden": (4, 0)}, "hidden=.*: must be 1 or more"),
    ("mlp", {"decays": (0.9, 1.0)}, "decays=.*: must be at least 0 and below"),
    ("mlp", {"second_decay": 1.0}, "second_decay=1.0: must be"),
    ("mlp", {"step_size": 0}, "step_size=0: must be above 0"),
    ("mlp", {"magnitude_scale": -1}, "magnitude_scale=-1: must be 0 or more"),
    ("lstm", {"units": 0}, "units=0: must be 1 or more"),
    ("lstm", {"layers": 0}, "layers=0: must be 1 or more"),
    ("lstm", {"step_size": 0}, "step_size=0: must be above 0"),
    ("lstm", {"log_range": 0}, "log_range=0: must be above 0"),
  ],
)
def test_bad_arguments_are_named(build, given, message):
  with pytest.raises(ValueError, match=message):
    getattr(learned_optimizers, f"{build}_optimizer")(**given)
