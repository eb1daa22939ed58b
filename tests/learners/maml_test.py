"""MAML: its meta-gradient against differences, by hand and in closed form."""

import functools
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from metajax.learners import REGISTRY, maml
from metajax.losses import cross_entropy, mean_squared_error
from metajax.types import Batch, Episode

RNG = jax.random.key(0)
TASKS, SUPPORT, QUERY, FEATURES, HIDDEN = 3, 6, 7, 2, 4


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# A network f(x) = sum_j v_j tanh(u_j . [x, 1]) + c, small and smooth.
def _network_init(rng, inputs):
  del inputs
  u = jax.random.normal(rng, (HIDDEN, FEATURES + 1))
  return {"c": jnp.zeros(()), "u": u, "v": jnp.linspace(-1.0, 1.5, HIDDEN)}


def _network_apply(params, inputs):
  extended = jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)
  hidden = jnp.tanh(extended @ params["u"].T)
  return (hidden @ params["v"] + params["c"])[:, None]


NETWORK = SimpleNamespace(init=_network_init, apply=_network_apply)
LINEAR = SimpleNamespace(
  init=lambda rng, inputs: jax.random.normal(rng, (inputs.shape[1], 1)),
  apply=lambda weights, inputs: inputs @ weights,
)


def _episodes(seed=0):
  """Tasks [TASKS, n, ...] of noise: nothing about them is special."""
  draw = np.random.default_rng(seed).normal

  def batch(n):
    x, y = draw(size=(TASKS, n, FEATURES)), draw(size=(TASKS, n, 1))
    return Batch(jnp.asarray(x), jnp.asarray(y))

  return Episode(batch(SUPPORT), batch(QUERY))


def _tasks(episodes):
  """Yields X, y, X_query, y_query of each task, in numpy."""
  (x, y, _), (x_query, y_query, _) = jax.tree.map(np.asarray, episodes)
  yield from zip(x, y[..., 0], x_query, y_query[..., 0], strict=True)


# --- The network, its loss, its optimizers and MAML again, without jax. ---


def _derivatives(theta, x, y):
  """Loss, gradient and Hessian of mean (f - y)^2 at theta = (c, u, v).

  With z = [x, 1], h_j = tanh(u_j . z) and s_j = 1 - h_j^2::

    df/dc = 1,  df/du_j = v_j s_j z,  df/dv_j = h_j
    d2f/du_j du_j = -2 v_j h_j s_j z z^T,  d2f/du_j dv_j = s_j z

  and all other second derivatives of f are zero. With r = f - y,
  gradient = mean 2 r df and Hessian = mean 2 (df df^T + r d2f).
  """
  width = FEATURES + 1
  u, v = theta[1 : 1 + HIDDEN * width].reshape(HIDDEN, width), theta[-HIDDEN:]
  loss, gradient = 0.0, np.zeros_like(theta)
  hessian = np.zeros((theta.size, theta.size))
  for x_i, y_i in zip(x, y, strict=True):
    z = np.append(x_i, 1.0)
    h = np.tanh(u @ z)
    s = 1 - h**2
    r = theta[0] + v @ h - y_i
    df = np.concatenate([[1.0], np.outer(v * s, z).ravel(), h])
    d2f = np.zeros_like(hessian)
    for j in range(HIDDEN):
      at_u = slice(1 + j * width, 1 + (j + 1) * width)
      at_v = theta.size - HIDDEN + j
      d2f[at_u, at_u] = -2 * v[j] * h[j] * s[j] * np.outer(z, z)
      d2f[at_u, at_v] = d2f[at_v, at_u] = s[j] * z
    loss += r**2
    gradient += 2 * r * df
    hessian += 2 * (np.outer(df, df) + r * d2f)
  return loss / len(y), gradient / len(y), hessian / len(y)


# An optimizer is `(state, k, g, H, J) -> (delta, d delta / d theta, state)`,
# where J = d phi_k / d theta, so that d g / d theta = H J by the chain rule.
# The state holds its own derivatives beside it.


def _sgd(state, k, g, hessian, jacobian, rate=0.3):
  del k
  return -rate * g, -rate * hessian @ jacobian, state


def _scheduled_sgd(state, k, g, hessian, jacobian):
  return _sgd(state, k, g, hessian, jacobian, rate=0.3 / (1 + k))


def _momentum(state, k, g, hessian, jacobian):
  del k
  m, dm = state or (0.0, 0.0)
  m, dm = g + 0.9 * m, hessian @ jacobian + 0.9 * dm
  return -0.1 * m, -0.1 * dm, (m, dm)


EPS, EPS_ROOT = 1e-3, 1e-4


def _adam(state, k, g, hessian, jacobian):
  """delta = -rate m / (sqrt(v + eps_root) + eps), m and v without bias."""
  m, dm, v, dv = state or (0.0, 0.0, 0.0, 0.0)
  dg = hessian @ jacobian
  m, dm = 0.9 * m + 0.1 * g, 0.9 * dm + 0.1 * dg
  v = 0.99 * v + 0.01 * g**2
  dv = 0.99 * dv + 0.01 * 2 * g[:, None] * dg
  m_scale, v_scale = 1 - 0.9 ** (k + 1), 1 - 0.99 ** (k + 1)
  root = np.sqrt(v / v_scale + EPS_ROOT)
  below = root + EPS
  delta = m / m_scale / below
  d_below = dv / v_scale / (2 * root[:, None])
  d_delta = (dm / m_scale - delta[:, None] * d_below) / below[:, None]
  return -0.1 * delta, -0.1 * d_delta, (m, dm, v, dv)


def _clipped_sgd(state, k, g, hessian, jacobian):
  """delta = -rate c g / |g| if |g| > c; its Jacobian projects out g."""
  norm = np.linalg.norm(g)
  if norm <= 0.5:
    return _sgd(state, k, g, hessian, jacobian)
  unit = g / norm
  d_unit = (np.eye(g.size) - np.outer(unit, unit)) / norm
  return -0.15 * unit, -0.15 * d_unit @ hessian @ jacobian, state


# The same optimizers in optax.
OPTIMIZERS = {
  "sgd": (_sgd, lambda: optax.sgd(0.3)),
  "momentum": (_momentum, lambda: optax.sgd(0.1, momentum=0.9)),
  "adam": (
    _adam,
    lambda: optax.adam(0.1, 0.9, 0.99, eps=EPS, eps_root=EPS_ROOT),
  ),
  "clipped_sgd": (
    _clipped_sgd,
    lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3)),
  ),
  "scheduled_sgd": (
    _scheduled_sgd,
    lambda: optax.inject_hyperparams(optax.sgd)(lambda k: 0.3 / (1 + k)),
  ),
}


def _maml_by_hand(theta, episodes, optimizer, num_steps):
  """Returns the mean query loss, its gradient and FOMAML's, in numpy.

  d phi_{k+1} / d theta = d phi_k / d theta + d delta_k / d theta, from the
  identity on; the gradient is (d phi_K / d theta)^T grad L_query(phi_K).
  """
  losses, gradients, first_order = [], [], []
  for x, y, x_query, y_query in _tasks(episodes):
    phi, jacobian, state = theta.copy(), np.eye(theta.size), None
    for k in range(num_steps):
      _, g, hessian = _derivatives(phi, x, y)
      delta, d_delta, state = optimizer(state, k, g, hessian, jacobian)
      phi, jacobian = phi + delta, jacobian + d_delta
    loss, g, _ = _derivatives(phi, x_query, y_query)
    losses.append(loss)
    gradients.append(jacobian.T @ g)
    first_order.append(g)
  return tuple(np.mean(x, axis=0) for x in (losses, gradients, first_order))


# --- The tests. ---


@functools.cache
def _meta_gradient(name, num_steps, first_order=False):
  """Returns theta, the episodes and theta -> (loss, gradient), compiled."""
  learner = maml(
    NETWORK, mean_squared_error, OPTIMIZERS[name][1](), num_steps, first_order
  )
  episodes = _episodes()
  params = learner.init(RNG, episodes.support.inputs[0])
  theta, unravel = ravel_pytree(params)

  @jax.jit
  def meta_grad(theta):
    grads, metrics = learner.meta_grad(unravel(theta), episodes, RNG)
    return metrics["loss"], ravel_pytree(grads)[0]

  return np.asarray(theta), episodes, meta_grad


def _central_differences(loss, theta, h=1e-5):
  """Error h^2 loss''' / 6 plus rounding 1e-16 / h: both about 1e-10."""
  return np.array(
    [
      (loss(theta + step) - loss(theta - step)) / (2 * h)
      for step in h * np.eye(theta.size)
    ]
  )


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_meta_gradient_equals_finite_differences(name, num_steps):
  """Trap 1."""
  theta, _, meta_grad = _meta_gradient(name, num_steps)
  _, gradient = meta_grad(theta)
  differences = _central_differences(lambda t: meta_grad(t)[0], theta)
  np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_steps", [1, 5])
# Clipping has no derivative where all gradients are zero, which none are here.
@pytest.mark.filterwarnings("ignore:The inner optimizer has deriv")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_meta_gradient_equals_numpy(name, num_steps):
  """Any optax optimizer: here those whose Jacobian is written down above."""
  theta, episodes, meta_grad = _meta_gradient(name, num_steps)
  loss, gradient = meta_grad(theta)
  expected = _maml_by_hand(theta, episodes, OPTIMIZERS[name][0], num_steps)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-10)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-8, atol=1e-10)
  # And it is not FOMAML's (trap 1). Optimizers that bound their steps have
  # small derivatives, but 1e-3 is still 1e5 times the tolerance above.
  margin = 1e-3 if name in ("adam", "clipped_sgd") else 0.1
  difference = np.linalg.norm(gradient - expected[2])
  assert difference > margin * np.linalg.norm(gradient)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_first_order_meta_gradient_equals_numpy(name):
  theta, episodes, meta_grad = _meta_gradient(name, 5, True)
  loss, gradient = meta_grad(theta)
  expected = _maml_by_hand(theta, episodes, OPTIMIZERS[name][0], 5)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-10)
  np.testing.assert_allclose(gradient, expected[2], rtol=1e-8, atol=1e-10)


def test_first_order_is_the_query_gradient_at_the_adapted_parameters():
  learner = maml(NETWORK, mean_squared_error, optax.sgd(0.3), 3, True)
  episodes = _episodes(1)
  params = learner.init(RNG, episodes.support.inputs[0])

  def query_gradient(episode):
    phi = learner.adapt(params, episode.support, RNG)
    x, y, _ = episode.query
    return jax.grad(lambda p: jnp.mean((learner.predict(p, x) - y) ** 2))(phi)

  expected = jax.tree.map(
    lambda g: g.mean(axis=0), jax.jit(jax.vmap(query_gradient))(episodes)
  )
  grads, _ = jax.jit(learner.meta_grad)(params, episodes, RNG)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
    grads,
    expected,
  )


def _linear_regression(theta, episodes, rate, num_steps):
  """Returns phi_K of each task, and MAML's and FOMAML's gradient.

  L(w) = mean (X w - y)^2 has gradient 2/n X^T X (w - w*), w* = X^+ y, so with
  A = I - rate 2/n X^T X,  phi_K = w* + A^K (theta - w*),  d phi_K / d theta
  = A^K, which is symmetric.
  """
  adapted, second, first = [], [], []
  for x, y, x_query, y_query in _tasks(episodes):
    contraction = np.eye(FEATURES) - rate * 2 / SUPPORT * x.T @ x
    power = np.linalg.matrix_power(contraction, num_steps)
    optimum = np.linalg.pinv(x) @ y
    phi = optimum + power @ (theta - optimum)
    g = 2 / QUERY * x_query.T @ (x_query @ phi - y_query)
    adapted.append(phi)
    first.append(g)
    second.append(power.T @ g)
  return np.array(adapted), np.mean(second, axis=0), np.mean(first, axis=0)


def _linear_maml(num_steps, name="maml", **arguments):
  learner = REGISTRY[name](
    LINEAR, mean_squared_error, optax.sgd(0.2), num_steps, **arguments
  )
  episodes = _episodes(2)
  return learner, learner.init(RNG, episodes.support.inputs[0]), episodes


@pytest.mark.parametrize("name", ["maml", "fomaml"])
@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_linear_regression_in_closed_form(num_steps, name):
  learner, theta, episodes = _linear_maml(num_steps, name)
  adapted, second, first = _linear_regression(
    theta[:, 0], episodes, 0.2, num_steps
  )
  adapt = jax.vmap(learner.adapt, in_axes=(None, 0, None))
  np.testing.assert_allclose(
    adapt(theta, episodes.support, RNG)[..., 0], adapted, rtol=1e-10
  )
  grads, _ = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  expected = first if name == "fomaml" else second
  np.testing.assert_allclose(grads[:, 0], expected, rtol=1e-10)


def test_steps_in_evaluation_differ_from_those_in_training():
  learner, theta, episodes = _linear_maml(1, num_eval_steps=4)
  _, second, _ = _linear_regression(theta[:, 0], episodes, 0.2, 1)
  adapted, _, _ = _linear_regression(theta[:, 0], episodes, 0.2, 4)
  grads, _ = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  np.testing.assert_allclose(grads[:, 0], second, rtol=1e-10)
  adapt = jax.vmap(learner.adapt, in_axes=(None, 0, None))
  np.testing.assert_allclose(
    adapt(theta, episodes.support, RNG)[..., 0], adapted, rtol=1e-10
  )


@pytest.mark.parametrize("num_steps", [0, 2])
def test_no_steps_in_evaluation_leave_the_parameters_alone(num_steps):
  learner, theta, episodes = _linear_maml(num_steps, num_eval_steps=0)
  support = jax.tree.map(lambda x: x[0], episodes.support)
  np.testing.assert_array_equal(learner.adapt(theta, support, RNG), theta)


@pytest.mark.parametrize(
  "arguments, name",
  [
    ({"num_steps": -1}, "num_steps=-1"),
    ({"num_steps": 1, "num_eval_steps": -2}, "num_eval_steps=-2"),
  ],
)
def test_negative_steps_are_refused(arguments, name):
  with pytest.raises(ValueError, match=f"^{name}"):
    _linear_maml(**arguments)


def test_reported_metrics_are_those_of_the_query_after_adaptation():
  errors = {"absolute": lambda p, t: jnp.mean(jnp.abs(p - t))}
  learner, theta, episodes = _linear_maml(4, metrics=errors, num_eval_steps=1)
  adapted, _, _ = _linear_regression(theta[:, 0], episodes, 0.2, 4)
  residuals = np.array(
    [
      x_query @ phi - y_query
      for phi, (_, _, x_query, y_query) in zip(
        adapted, _tasks(episodes), strict=True
      )
    ]
  )
  _, metrics = jax.jit(learner.meta_grad)(theta, episodes, RNG)
  assert set(metrics) == {"loss", "absolute"}
  np.testing.assert_allclose(metrics["loss"], np.mean(residuals**2))
  np.testing.assert_allclose(metrics["absolute"], np.mean(np.abs(residuals)))


def test_memory_argument_reaches_the_inner_loop():
  # The backward pass of a step keeps activations, SUPPORT * HIDDEN numbers at
  # least; remat's keeps the parameters, 17 numbers.
  episodes = _episodes()
  params = NETWORK.init(RNG, episodes.support.inputs[0])

  def temporary_bytes(memory):
    learner = maml(
      NETWORK, mean_squared_error, optax.sgd(0.1), 40, memory=memory
    )
    lowered = jax.jit(learner.meta_grad).lower(params, episodes, RNG)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes("remat") < temporary_bytes("plain") / 2


def test_step_size_0_4_of_the_original_code_is_2_on_a_mean_loss_in_5_way():
  """The original sums over classes what is a mean over shots (trap 2).

  From W = 0 all probabilities are 1/N and a step of the mean cross-entropy is
  W = rate mean_i x_i (e_{y_i} - 1/N)^T: the original's 0.4 takes rate = 2.
  """
  ways, shots = 5, 3
  x = np.random.default_rng(3).normal(size=(ways * shots, 4))
  support = Batch(jnp.asarray(x), jnp.arange(ways * shots) % ways)

  def original_loss(logits, labels):
    log_likelihood = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
    return -log_likelihood.reshape(shots, ways).mean(axis=0).sum()

  def adapted(loss_fn, rate, num_steps):
    learner = maml(LINEAR, loss_fn, optax.sgd(rate), num_steps)
    return jax.jit(learner.adapt)(jnp.zeros((4, ways)), support, RNG)

  one_step = 2.0 / (ways * shots) * x.T @ (np.eye(ways)[support.targets] - 0.2)
  np.testing.assert_allclose(adapted(cross_entropy, 2.0, 1), one_step)
  np.testing.assert_allclose(adapted(original_loss, 0.4, 1), one_step)
  np.testing.assert_allclose(
    adapted(original_loss, 0.4, 3), adapted(cross_entropy, 2.0, 3), rtol=1e-10
  )


@pytest.mark.parametrize("eps_root", [0.0, 1e-8])
def test_adam_at_a_zero_inner_gradient_needs_eps_root(eps_root):
  """Trap 3: the derivative of sqrt at zero.

  The support is fitted exactly, g = 0. The first update is
  -rate g / (sqrt(g^2 + eps_root) + eps), whose derivative at g = 0 is
  -rate / (sqrt(eps_root) + eps), and d g / d theta = 2/n X^T X.
  """
  rate, eps = 1e-3, 1e-4
  _, theta, episodes = _linear_maml(1)
  support = episodes.support._replace(targets=episodes.support.inputs @ theta)
  episodes = episodes._replace(support=support)
  learner = maml(
    LINEAR,
    mean_squared_error,
    optax.adam(rate, eps=eps, eps_root=eps_root),
    num_steps=1,
  )
  meta_grad = jax.jit(learner.meta_grad)
  if eps_root == 0:
    with pytest.warns(UserWarning, match="build it with eps_root=1e-8"):
      grads, metrics = meta_grad(theta, episodes, RNG)
    assert jnp.isfinite(metrics["loss"])
    assert jnp.all(jnp.isnan(grads))
    return
  grads, metrics = meta_grad(theta, episodes, RNG)
  assert jnp.isfinite(metrics["loss"])
  expected = []
  for x, _, x_query, y_query in _tasks(episodes):
    g = 2 / QUERY * x_query.T @ (x_query @ theta[:, 0] - y_query)
    slope = rate / (np.sqrt(eps_root) + eps)
    expected.append((np.eye(FEATURES) - slope * 2 / SUPPORT * x.T @ x) @ g)
  # X theta is computed twice and may differ in the last bit, hence 1e-8.
  np.testing.assert_allclose(grads[:, 0], np.mean(expected, axis=0), rtol=1e-8)


def _nnx_model():
  """An nnx module as a pair of pure functions, by split and merge."""

  def build(rngs):
    return nnx.Sequential(
      nnx.Linear(FEATURES, HIDDEN, param_dtype=float, rngs=rngs),
      jnp.tanh,
      nnx.Linear(HIDDEN, 1, param_dtype=float, rngs=rngs),
    )

  graph = nnx.graphdef(build(nnx.Rngs(0)))

  def init(rng, inputs):
    del inputs
    return nnx.state(build(nnx.Rngs(rng)))

  def apply(params, inputs):
    return nnx.merge(graph, params)(inputs)

  return SimpleNamespace(init=init, apply=apply)


@pytest.mark.slow
def test_linen_nnx_and_plain_models_have_the_same_meta_gradient():
  episodes = _episodes()
  inputs = episodes.support.inputs[0]

  def meta_gradient(model, params):
    learner = maml(model, mean_squared_error, optax.sgd(0.3, momentum=0.5), 2)
    return jax.jit(learner.meta_grad)(params, episodes, RNG)[0]

  plain = NETWORK.init(RNG, inputs)
  expected = meta_gradient(NETWORK, plain)

  def as_layers(tree):
    """Both libraries have kernels [in, out] and biases [out]."""
    hidden = {"kernel": tree["u"][:, :-1].T, "bias": tree["u"][:, -1]}
    head = {"kernel": tree["v"][:, None], "bias": tree["c"][None]}
    return hidden, head

  hidden, head = as_layers(plain)
  linen = nn.Sequential([nn.Dense(HIDDEN), jnp.tanh, nn.Dense(1)])
  linen_params = {"params": {"layers_0": hidden, "layers_2": head}}
  grads = meta_gradient(linen, linen_params)["params"]
  chex.assert_trees_all_close(
    (grads["layers_0"], grads["layers_2"]), as_layers(expected), rtol=1e-10
  )

  model = _nnx_model()
  state = model.init(RNG, inputs)
  for name, layer in ((0, hidden), (2, head)):
    for part, values in layer.items():
      state["layers"][name][part][...] = values
  grads = meta_gradient(model, state)["layers"]
  for name, layer in zip((0, 2), as_layers(expected), strict=True):
    for part, values in layer.items():
      found = grads[name][part][...]
      np.testing.assert_allclose(found, values, rtol=1e-10)


def _query_loss(rates, theta, episodes):
  """The query loss as a function of one learned step size per step."""
  optimizer = optax.sgd(lambda k: rates[k])
  learner = maml(LINEAR, mean_squared_error, optimizer, len(rates))
  _, metrics = learner.meta_grad(theta, episodes, RNG)
  return metrics["loss"]


def test_gradient_of_a_learned_step_size_in_closed_form():
  # d/d rate L_query(theta - rate g) = - g . grad L_query(theta - rate g).
  _, theta, episodes = _linear_maml(1)
  expected = []
  for x, y, x_query, y_query in _tasks(episodes):
    g = 2 / SUPPORT * x.T @ (x @ theta[:, 0] - y)
    phi = theta[:, 0] - 0.3 * g
    expected.append(-g @ (2 / QUERY * x_query.T @ (x_query @ phi - y_query)))
  gradient = jax.jit(jax.grad(_query_loss))(jnp.array([0.3]), theta, episodes)
  np.testing.assert_allclose(gradient, [np.mean(expected)], rtol=1e-10)


def test_gradients_of_learned_step_sizes_equal_finite_differences():
  _, theta, episodes = _linear_maml(1)
  rates = np.array([0.3, 0.1, 0.2])
  loss = functools.partial(_query_loss, theta=theta, episodes=episodes)
  loss_and_gradient = jax.jit(jax.value_and_grad(loss))
  differences = _central_differences(lambda r: loss_and_gradient(r)[0], rates)
  _, gradient = loss_and_gradient(rates)
  np.testing.assert_allclose(gradient, differences, rtol=1e-6)
