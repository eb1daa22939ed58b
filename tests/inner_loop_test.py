"""The inner loop against Python loops, closed forms and its memory's bounds."""

import functools
import itertools
import re
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import inner_loop

OPTIMIZERS = {
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
  "adam": optax.adam(0.1, eps_root=1e-8),
  "chain": optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.2)),
  "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(
    lambda count: 0.2 / (1 + count)
  ),
  "weight_decay": optax.adamw(0.1, weight_decay=0.2, eps_root=1e-8),
}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _problem(width=3, examples=5):
  """A smooth two-layer regression; step k sees the examples shifted by k."""
  draw = np.random.default_rng(0).normal
  inputs = jnp.asarray(draw(size=(examples, width)))
  targets = jnp.asarray(draw(size=(examples, 1)))
  params = {
    "w": jnp.asarray(draw(size=(width, width))),
    "v": jnp.asarray(draw(size=(width, 1))),
  }

  def loss_fn(params, step):
    hidden = jnp.tanh((inputs + 0.1 * step) @ params["w"])
    return jnp.mean((hidden @ params["v"] - targets) ** 2)

  return loss_fn, params


def _python_loop(loss_fn, params, optimizer, num_steps):
  """What minimize does, a step at a time, outside of any scan."""
  state, losses = optimizer.init(params), []

  @jax.jit
  def step(params, state, k):
    loss, grads = jax.value_and_grad(loss_fn)(params, k)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  for k in range(num_steps):
    params, state, loss = step(params, state, k)
    losses.append(loss)
  return params, np.array(losses)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trajectory_equals_a_python_loop(name, float64):
  loss_fn, params = _problem()
  optimizer = OPTIMIZERS[name]
  expected = _python_loop(loss_fn, params, optimizer, 6)
  found = jax.jit(lambda p: inner_loop.minimize(loss_fn, p, optimizer, 6))(
    params
  )
  chex.assert_trees_all_close(found[:2], expected, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 7])
def test_quadratic_in_closed_form(num_steps, float64):
  # L = a x^2 / 2: x_k = (1 - rate a)^k x_0, L_k = a x_k^2 / 2.
  a, rate, start = 3.0, 0.1, 2.0
  found = inner_loop.minimize(
    lambda x, step: a * x**2 / 2, start, optax.sgd(rate), num_steps
  )
  trajectory = start * (1 - rate * a) ** np.arange(num_steps + 1)
  np.testing.assert_allclose(found.params, trajectory[-1], rtol=1e-12)
  np.testing.assert_allclose(
    found.losses, a * trajectory[:-1] ** 2 / 2, rtol=1e-12
  )


def test_optimizers_that_ask_for_the_loss_receive_it(float64):
  # Polyak's step size L / |g|^2 is 1/2 on L = x^2 / 2: x halves at each step.
  found = inner_loop.minimize(
    lambda x, step: x**2 / 2, 8.0, optax.polyak_sgd(max_learning_rate=10.0), 5
  )
  np.testing.assert_allclose(found.params, 8.0 / 2**5, rtol=1e-12)


@pytest.mark.parametrize("x64", [False, True])
def test_step_index_reaches_the_loss_as_int32(x64):
  # L_k = w_k x has gradient w_k whatever x: x_K = x_0 - rate sum_k w_k.
  weights = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)
  dtypes = []

  def loss_fn(x, step):
    dtypes.append(step.dtype)
    return jnp.asarray(weights)[step] * x

  with jax.enable_x64(x64):
    start = jnp.float32(1.0)
    found = inner_loop.minimize(loss_fn, start, optax.sgd(0.5), 4)
    np.testing.assert_allclose(found.params, 1 - 0.5 * 1111)
    before = 1 - 0.5 * np.array([0, 1, 11, 111])
    np.testing.assert_allclose(found.losses, weights * before)
  assert set(dtypes) == {jnp.dtype(jnp.int32)}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("memory", ["mixed", "plain", "remat"])
def test_jit_and_vmap_change_nothing(first_order, memory, float64):
  loss_fn, params = _problem()

  def adapt(scale):
    scaled = jax.tree.map(lambda p: scale * p, params)
    return inner_loop.minimize(
      loss_fn,
      scaled,
      OPTIMIZERS["momentum"],
      3,
      first_order=first_order,
      memory=memory,
    )[:2]

  scales = [0.5, 1.0, 2.0]
  with jax.disable_jit():
    plain = [adapt(scale) for scale in scales]
  expected = jax.tree.map(lambda *x: jnp.stack(x), *plain)
  jitted = [jax.jit(adapt)(scale) for scale in scales]
  chex.assert_trees_all_close(jitted, plain, rtol=1e-10)
  found = jax.jit(jax.vmap(adapt))(jnp.array(scales))
  chex.assert_trees_all_close(found, expected, rtol=1e-10)


def _outer_loss(params, loss_fn, num_steps, **arguments):
  optimizer = OPTIMIZERS["momentum"]
  phi, losses, *_ = inner_loop.minimize(
    loss_fn, params, optimizer, num_steps, **arguments
  )
  return loss_fn(phi, 0) + losses.mean()


# 11 steps: one, three blocks of three, and one that is left.
@pytest.mark.slow
@pytest.mark.parametrize(
  "memory, num_steps",
  [("remat", 9), ("mixed", 9), ("nested", 1), ("nested", 2)] + [("nested", 11)],
)
def test_memory_changes_neither_value_nor_gradient(memory, num_steps, float64):
  loss_fn, params = _problem()
  plain, other = (
    jax.jit(
      jax.value_and_grad(
        functools.partial(
          _outer_loss, loss_fn=loss_fn, num_steps=num_steps, memory=memory
        )
      )
    )(params)
    for memory in ("plain", memory)
  )
  chex.assert_trees_all_close(plain, other, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 11])
def test_nested_losses_are_those_of_every_step_in_turn(num_steps, float64):
  loss_fn, params = _problem()
  optimizer = OPTIMIZERS["momentum"]
  found = inner_loop.minimize(
    loss_fn, params, optimizer, num_steps, memory="nested"
  )
  expected = _python_loop(loss_fn, params, optimizer, num_steps)
  chex.assert_trees_all_close(found[:2], expected, rtol=1e-10)


def _temporary_bytes(fn, *arguments):
  compiled = jax.jit(fn).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_remat_keeps_no_activation_of_a_single_step():
  """While the outer loss, another 6 layers of 512 x 32 floats, is computed.

  One layer less than all, since where XLA puts the rest differs by version.
  """
  inputs, params = jnp.ones((512, 32)), jnp.eye(32)

  def loss_fn(params, step):
    del step
    hidden = inputs
    for _ in range(6):
      hidden = jnp.tanh(hidden @ params)
    return jnp.mean(hidden**2)

  plain, remat = (
    _temporary_bytes(
      jax.grad(
        functools.partial(
          _outer_loss, loss_fn=loss_fn, num_steps=1, memory=memory
        )
      ),
      params,
    )
    for memory in ("plain", "remat")
  )
  assert remat <= plain - 5 * 512 * 32 * 4


def test_remat_keeps_parameters_only_between_steps():
  # 32 steps keep at least one hidden layer each, 256 x 8 floats = 8 kB; remat
  # keeps parameters and momentum, 2 (8 x 8 + 8) floats = 0.6 kB.
  loss_fn, params = _problem(width=8, examples=256)
  plain, remat = (
    _temporary_bytes(
      jax.grad(
        functools.partial(
          _outer_loss, loss_fn=loss_fn, num_steps=32, memory=memory
        )
      ),
      params,
    )
    for memory in ("plain", "remat")
  )
  assert plain > 32 * 8192
  assert remat < plain / 4


@pytest.mark.slow
def test_nested_memory_grows_as_the_root_of_the_steps():
  """4 times the steps, 2 times the states, which are 64 x 64 floats."""
  loss_fn, params = _problem(width=64, examples=1)
  bytes_of = {
    (memory, steps): _temporary_bytes(
      jax.grad(
        functools.partial(
          _outer_loss, loss_fn=loss_fn, num_steps=steps, memory=memory
        )
      ),
      params,
    )
    for memory, steps in itertools.product(["remat", "nested"], [26, 101])
  }
  state = 64 * 64 * 4
  assert bytes_of["remat", 101] - bytes_of["remat", 26] > 70 * state
  growth = bytes_of["nested", 101] - bytes_of["nested", 26]
  # From 5 to 10 parameters in a block, and as many pairs of parameters and
  # momentum between blocks.
  assert growth < 16 * state
  assert bytes_of["nested", 101] < 2 * bytes_of["nested", 26]


def test_adaptation_and_first_order_keep_nothing_of_the_steps():
  """Evaluation costs no second-order memory (trap 10)."""
  loss_fn, params = _problem(width=8, examples=256)
  layer = 256 * 8 * 4

  def growth(fn):
    """Bytes that 32 more steps take."""
    few, many = (
      _temporary_bytes(functools.partial(fn, num_steps=n), params)
      for n in (8, 40)
    )
    return many - few

  def adapt(params, num_steps):
    return inner_loop.minimize(
      loss_fn, params, OPTIMIZERS["momentum"], num_steps
    ).params

  def outer_gradient(params, num_steps, **arguments):
    return jax.grad(_outer_loss)(params, loss_fn, num_steps, **arguments)

  second_order = functools.partial(outer_gradient, memory="plain")
  first_order = functools.partial(outer_gradient, first_order=True)
  assert growth(second_order) > 32 * layer
  # A loss per step is 4 bytes; not even one layer's activations more.
  assert growth(adapt) < layer
  assert growth(first_order) < layer


@pytest.mark.parametrize("memory", ["mixed", "plain", "remat"])
def test_first_order_is_exact_in_value_and_the_identity_in_derivative(memory):
  loss_fn, params = _problem()

  def adapt(params, first_order):
    return inner_loop.minimize(
      loss_fn,
      params,
      OPTIMIZERS["adam"],
      4,
      first_order=first_order,
      memory=memory,
    ).params

  straight_through = functools.partial(adapt, first_order=True)
  # a + (p - p) = a to the last bit.
  chex.assert_trees_all_equal(
    jax.jit(straight_through)(params),
    jax.jit(functools.partial(adapt, first_order=False))(params),
  )
  jacobian = jax.jit(jax.jacrev(straight_through))(params)
  for name, p in params.items():
    for other in params:
      block = np.asarray(jacobian[name][other]).reshape(p.size, -1)
      expected = np.eye(p.size) if name == other else np.zeros_like(block)
      np.testing.assert_array_equal(block, expected)


def test_first_order_treats_the_inner_gradients_as_constants():
  # Two steps on x^2 / 2 end at (1 - rate)^2 x_0, whose derivative by the rate
  # is -2 (1 - rate) x_0; that of x_0 - rate (g_0 + g_1) is -(g_0 + g_1).
  def adapted(rate, first_order):
    return inner_loop.minimize(
      lambda x, step: x**2 / 2,
      jnp.float32(3.0),
      optax.sgd(rate),
      2,
      first_order=first_order,
    ).params

  assert jax.grad(adapted)(0.25, False) == -2 * 0.75 * 3.0
  assert jax.grad(adapted)(0.25, True) == -(3.0 + 0.75 * 3.0)


def test_first_order_takes_no_gradient_of_what_the_loss_closes_over():
  def adapted(weight):
    return inner_loop.minimize(
      lambda x, step: weight * x**2 / 2,
      jnp.float32(3.0),
      optax.sgd(0.25),
      2,
      first_order=True,
    ).params

  assert jax.grad(adapted)(1.0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("memory", get_args(inner_loop.Memory))
@pytest.mark.parametrize("num_steps", [1, 6])
def test_what_is_observed_is_that_of_shorter_loops(num_steps, memory, float64):
  """After each step, with its derivative, in all ways of the memory."""
  loss_fn, params = _problem()

  def observed(params):
    loop = inner_loop.minimize(
      loss_fn,
      params,
      OPTIMIZERS["momentum"],
      num_steps,
      memory=memory,
      observe=lambda phi, k: {"loss": loss_fn(phi, k), "step": k},
    )
    return loop.observed

  def losses(params):
    found = observed(params)
    return found["loss"], found

  jacobian, found = jax.jit(jax.jacrev(losses, has_aux=True))(params)
  np.testing.assert_array_equal(found["step"], np.arange(num_steps))
  value, slope = _loss_after(num_steps)
  np.testing.assert_allclose(found["loss"][-1], value, rtol=1e-12)
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x[-1], jacobian), slope, rtol=1e-9, atol=1e-12
  )
  value, _ = _loss_after(1)
  np.testing.assert_allclose(found["loss"][0], value, rtol=1e-12)


@functools.cache
def _loss_after(num_steps):
  """The loss that belongs to the last step, after it, and its derivative."""
  loss_fn, params = _problem()

  def loss(params):
    phi = inner_loop.minimize(
      loss_fn, params, OPTIMIZERS["momentum"], num_steps
    ).params
    return loss_fn(phi, jnp.int32(num_steps - 1))

  return jax.jit(jax.value_and_grad(loss))(params)


def test_derivatives_of_second_order(float64):
  # On L = x^3 / 3 one step is x - r x^2; its second derivatives by x and r are
  # -2 r, and -2 x mixed.
  def adapted(x, rate):
    return inner_loop.minimize(
      lambda x, step: x**3 / 3, x, optax.sgd(rate), 1
    ).params

  hessian = jax.jit(jax.hessian(adapted, argnums=(0, 1)))(2.0, 0.1)
  np.testing.assert_allclose(hessian, [[-0.2, -4.0], [-4.0, 0.0]], atol=1e-12)


def test_impossible_arguments_are_named():
  minimize = functools.partial(
    inner_loop.minimize, lambda x, step: x**2, 1.0, optax.sgd(0.1)
  )
  with pytest.raises(ValueError, match=r"^num_steps=-1"):
    minimize(-1)
  with pytest.raises(ValueError, match=r"^memory='none'"):
    minimize(1, memory="none")
  # Integers were taken for constants, so that no step changed anything.
  with pytest.raises(ValueError, match=r"^params: int32 given, must have a fl"):
    inner_loop.minimize(lambda x, step: 1.0 * x, 1, optax.sgd(0.1), 1)
  # Descent went up in the imaginary part.
  with pytest.raises(ValueError, match=r"^params: a leaf is complex64; must"):
    inner_loop.minimize(
      lambda x, step: jnp.abs(x - 2j) ** 2, 1j, optax.sgd(0.1), 1
    )
  for optimizer in (0.1, optax.sgd):
    with pytest.raises(ValueError, match=r"^optimizer=.*must be an optimizer"):
      inner_loop.minimize(lambda x, step: x, 1.0, optimizer, 1)


def test_state_is_carried_and_gets_no_gradient(float64):
  """A running sum of the parameters, which the loss reads as a constant."""

  def adapted(start, kept):
    def loss(x, step, kept):
      return 0.5 * x**2 + kept * x, kept + x

    loop = inner_loop.minimize(loss, start, optax.sgd(0.1), 3, state=kept)
    return loop.params, loop.state

  x, kept = 2.0, 0.5
  for _ in range(3):
    x, kept = x - 0.1 * (x + kept), kept + x
  np.testing.assert_allclose(jax.jit(adapted)(2.0, 0.5), (x, kept), rtol=1e-12)
  for of in range(2):
    slopes = jax.jit(jax.grad(lambda *a, of=of: adapted(*a)[of], (0, 1)))
    # The parameters shrink by 0.9 a step; nothing passes through the state.
    expected = (0.9**3, 0.0) if of == 0 else (0.0, 0.0)
    np.testing.assert_allclose(slopes(2.0, 0.5), expected, atol=1e-12)


def test_an_optimizer_goes_on_where_it_stopped(float64):
  loss_fn, params = _problem()
  optimizer = optax.adam(0.1)

  def run(params, steps, first, **arguments):
    return inner_loop.minimize(
      lambda p, k: loss_fn(p, k + first), params, optimizer, steps, **arguments
    )

  whole = run(params, 5, 0)
  half = run(params, 2, 0)
  rest = run(half.params, 3, 2, opt_state=half.opt_state)
  chex.assert_trees_all_close(rest.params, whole.params, rtol=1e-12)


@pytest.mark.parametrize("memory", get_args(inner_loop.Memory))
def test_params_may_be_floats_and_hold_what_is_no_weight(memory):
  """Of L = n x^2 + sum(v^2), x shrinks by 1 - 2 r n and v by 1 - 2 r."""
  params = {
    "x": 2.0,
    "n": np.int32(3),
    "key": jax.random.key(0),
    "none": None,
    "v": np.ones(2, np.float16),
  }

  def loss_fn(params, step):
    rest = jnp.sum(jnp.square(params["v"].astype(jnp.float32)))
    return params["x"] ** 2 * params["n"] + rest

  def adapted(x):
    return inner_loop.minimize(
      loss_fn,
      {**params, "x": x},
      optax.sgd(0.125),
      3,
      memory=memory,
      observe=lambda params, step: params["n"],
    )

  found = jax.jit(adapted)(params["x"])
  assert found.params["x"] == 2 * 0.25**3
  assert found.params["v"].dtype == jnp.float16
  np.testing.assert_array_equal(found.params["v"], np.full(2, 0.75**3))
  assert found.params["n"] == 3 and found.params["n"].dtype == jnp.int32
  assert found.params["none"] is None
  assert found.params["key"] == params["key"]
  np.testing.assert_array_equal(found.observed, [3, 3, 3])
  assert jax.grad(lambda x: adapted(x).params["x"])(2.0) == 0.25**3


@pytest.mark.parametrize("memory", ["auto", "plain"])
def test_loss_may_be_of_low_precision(memory):
  found = inner_loop.minimize(
    lambda x, step: (x**2).astype(jnp.bfloat16),
    jnp.float32(2.0),
    optax.sgd(0.125),
    2,
    memory=memory,
  )
  assert found.losses.dtype == jnp.bfloat16
  assert found.params == 2 * 0.75**2


@pytest.mark.parametrize("memory", ["auto", "plain"])
@pytest.mark.parametrize(
  "loss, shape", [(lambda x, k: x, "(2,)"), (lambda x, k: (x[0], x), "((), ")]
)
def test_a_loss_that_is_no_scalar_is_refused(memory, loss, shape):
  named = re.escape(f"loss_fn: returned the shape {shape}")
  with pytest.raises(ValueError, match=f"^{named}"):
    inner_loop.minimize(loss, jnp.ones(2), optax.sgd(0.1), 2, memory=memory)


def _scan_lengths(fn, *args):
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]


@pytest.mark.parametrize("num_steps, among", [(1, []), (2, [1]), (5, [4])])
def test_the_first_step_is_apart_only_among_tasks(num_steps, among):
  """Elsewhere it would be compiled twice, for nothing."""
  targets = jnp.arange(6.0).reshape(2, 3)

  def adapt(target):
    def loss(phi, step):
      return ((phi - target) ** 2).sum() * (1 + step)

    found = inner_loop.minimize(loss, jnp.ones(3), optax.sgd(0.1), num_steps)
    return found.params, found.losses

  by_name = jax.vmap(adapt, axis_name=inner_loop.TASK_AXIS)
  assert _scan_lengths(by_name, targets) == among
  alone = [] if num_steps == 1 else [num_steps]
  assert _scan_lengths(adapt, targets[0]) == alone
  assert _scan_lengths(jax.vmap(adapt), targets) == alone
  for i, target in enumerate(targets):
    chex.assert_trees_all_close(
      jax.tree.map(lambda x, i=i: x[i], by_name(targets)),
      adapt(target),
      rtol=1e-6,
    )
