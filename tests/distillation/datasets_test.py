"""Objectives of data distillation against numpy float64 and differences."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.distillation import (
  SyntheticSet,
  distribution_matching,
  gradient_matching,
  kernel_inducing,
  linear_kernel,
  relu_tangent_kernel,
  synthetic_set,
  unrolled,
)
from metajax.distillation.datasets import gradient_distance
from metajax.types import Batch, State

CLASSES, WIDTH, HIDDEN = 3, 4, 5
DRAW = np.random.default_rng(0)
SYNTHETIC = SyntheticSet(
  DRAW.normal(size=(6, WIDTH)),
  DRAW.dirichlet(np.ones(CLASSES), 6),
  np.log(0.3),
)
LABELS = np.arange(9) % CLASSES
REAL = Batch(DRAW.normal(size=(9, WIDTH)), LABELS)
ONE_HOT = np.eye(CLASSES)[LABELS]
KEYS = [jax.random.key(seed) for seed in range(2)]


class Tanh:
  """A smooth network of two layers."""

  def init(rng, inputs):
    width = inputs.shape[-1]
    draw = jax.random.normal(rng, (width + CLASSES, HIDDEN))
    return {"w": draw[:width], "v": draw[width:].T}

  def apply(params, inputs):
    return jnp.tanh(inputs @ params["w"]) @ params["v"]


LINEAR = {
  "w": DRAW.normal(size=(WIDTH, CLASSES)),
  "b": DRAW.normal(size=CLASSES),
}


class Linear:
  """Softmax regression that always starts at the same weights."""

  def init(rng, inputs):
    del rng, inputs
    return jax.tree.map(jnp.asarray, LINEAR)

  def apply(params, inputs):
    return inputs @ params["w"] + params["b"]


class Features:
  """A random layer, an embedding."""

  def init(rng, inputs):
    return jax.random.normal(rng, (inputs.shape[-1], HIDDEN))

  def apply(params, inputs):
    return jnp.tanh(inputs @ params)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _arrays(tree):
  return jax.tree.map(jnp.asarray, tree)


def _numpy(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _differences(fn, synthetic, step=1e-5):
  """Central finite differences in every number of the synthetic set."""
  grads = []
  for i, field in enumerate(synthetic):
    grad = np.zeros(np.shape(field))
    for index in np.ndindex(grad.shape):
      ends = []
      for sign in (1, -1):
        moved = np.array(field, np.float64)
        moved[index] += sign * step
        ends.append(fn(synthetic._replace(**{synthetic._fields[i]: moved})))
      grad[index] = (ends[0] - ends[1]) / (2 * step)
    grads.append(grad)
  return SyntheticSet(*grads)


def _assert_gradient(found, fn, synthetic=SYNTHETIC):
  expected = _differences(fn, synthetic)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def _log_softmax(logits):
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _error(logits, targets):
  """The gradient of the mean cross-entropy; targets need not sum to 1."""
  p = np.exp(_log_softmax(logits))
  return (p * targets.sum(-1, keepdims=True) - targets) / len(logits)


def _trained_loss(synthetic, params, num_steps):
  """`unrolled` by hand: backpropagation, SGD and the loss on real data."""
  w, v = params["w"], params["v"]
  rate = np.exp(synthetic.log_step_size)
  for _ in range(num_steps):
    hidden = np.tanh(synthetic.inputs @ w)
    error = _error(hidden @ v, synthetic.targets)
    back = (error @ v.T) * (1 - hidden**2)
    v = v - rate * hidden.T @ error
    w = w - rate * synthetic.inputs.T @ back
  logits = np.tanh(REAL.inputs @ w) @ v
  return -(ONE_HOT * _log_softmax(logits)).sum(-1).mean()


@pytest.mark.slow
def test_unrolled_is_the_loss_after_training_and_so_is_its_gradient(float64):
  objective = jax.jit(jax.value_and_grad(unrolled(Tanh, 7)))
  for key in KEYS:
    params = _numpy(Tanh.init(key, REAL.inputs))
    value, grads = objective(_arrays(SYNTHETIC), _arrays(REAL), key)

    def by_hand(synthetic, params=params):
      return _trained_loss(synthetic, params, 7)

    np.testing.assert_allclose(value, by_hand(SYNTHETIC), rtol=1e-12)
    _assert_gradient(grads, by_hand)
    assert all(np.abs(g).max() > 1e-3 for g in grads)


def test_memory_of_unrolled_grows_as_the_root_of_the_steps():
  """A state is 64 x 64 floats, more than all activations of a step."""

  class Wide:
    def init(rng, inputs):
      del rng, inputs
      return jnp.eye(64)

    def apply(params, inputs):
      return jnp.tanh(inputs @ params)[:, :CLASSES]

  draw = jnp.asarray(DRAW.normal(size=(CLASSES, 64)), jnp.float32)
  arguments = synthetic_set(draw, CLASSES), Batch(draw, jnp.arange(CLASSES))

  def temporary_bytes(num_steps, **memory):
    grad = jax.jit(jax.grad(unrolled(Wide, num_steps, **memory)))
    compiled = grad.lower(*arguments, KEYS[0]).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # "nested", as without a choice.
  few, many = temporary_bytes(25, memory="nested"), temporary_bytes(100)
  assert many < 2 * few
  assert temporary_bytes(100, memory="remat") > 3 * many


def _linear_gradient(inputs, targets, params):
  error = _error(inputs @ params["w"] + params["b"], targets)
  return {"w": inputs.T @ error, "b": error.sum(0)}


def _linear_path(num_steps):
  """Softmax regression after 0 to `num_steps` steps on the synthetic set."""
  path, rate = [LINEAR], np.exp(SYNTHETIC.log_step_size)
  for _ in range(num_steps):
    grads = _linear_gradient(SYNTHETIC.inputs, SYNTHETIC.targets, path[-1])
    path.append({k: path[-1][k] - rate * grads[k] for k in LINEAR})
  return path


def _matching(synthetic, params):
  """`gradient_matching` by hand at given weights; biases do not count."""
  total = 0.0
  for c in range(CLASSES):
    own = synthetic.inputs[c::CLASSES], synthetic.targets[c::CLASSES]
    goal = REAL.inputs[c::CLASSES], ONE_HOT[c::CLASSES]
    a, b = (_linear_gradient(*half, params)["w"] for half in (own, goal))
    for unit in range(CLASSES):
      x, y = a[:, unit], b[:, unit]
      total += 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  return total


def test_matching_at_the_start_is_the_closed_form(float64):
  objective = jax.jit(gradient_matching(Linear, max_steps=0))
  found = objective(_arrays(SYNTHETIC), _arrays(REAL), KEYS[0])
  np.testing.assert_allclose(found, _matching(SYNTHETIC, LINEAR), rtol=1e-12)


def test_matching_is_at_a_network_trained_for_a_uniform_number_of_steps(
  float64,
):
  """Value and gradient, which does not pass through the training."""
  draws, path = 400, _linear_path(3)
  objective = jax.value_and_grad(gradient_matching(Linear, max_steps=3))
  values, grads = jax.jit(jax.vmap(objective, (None, None, 0)))(
    _arrays(SYNTHETIC), _arrays(REAL), jax.random.split(KEYS[0], draws)
  )
  expected = np.array([_matching(SYNTHETIC, params) for params in path])
  assert np.diff(np.sort(expected)).min() > 1e-3
  steps = np.abs(np.asarray(values)[:, None] - expected).argmin(1)
  np.testing.assert_allclose(values, expected[steps], rtol=1e-12)
  # Each count is that of independent trials, within 4.5 sigma.
  counts = np.bincount(steps, minlength=4)
  assert np.abs(counts - draws / 4).max() < 4.5 * np.sqrt(draws * 3 / 16)
  for k, params in enumerate(path):
    first = int(np.argmax(steps == k))
    of_first = jax.tree.map(lambda g, i=first: g[i], grads)
    _assert_gradient(of_first, lambda s, p=params: _matching(s, p))
    assert of_first.log_step_size == 0
    assert np.abs(of_first.inputs).max() > 1e-3


def test_matching_is_zero_where_the_set_is_the_real_batch(float64):
  objective = jax.jit(gradient_matching(Tanh, max_steps=3))
  real = _arrays(REAL)
  same = SyntheticSet(real.inputs, jnp.asarray(ONE_HOT), jnp.log(0.3))
  order = np.array([6, 7, 8, 0, 1, 2, 3, 4, 5])  # Classes stay where they are.
  turned = np.array([1, 2, 0, 4, 5, 3, 7, 8, 6])
  for key in KEYS:
    np.testing.assert_allclose(objective(same, real, key), 0, atol=1e-12)
    inside = same._replace(inputs=same.inputs[order])
    np.testing.assert_allclose(objective(inside, real, key), 0, atol=1e-12)
    across = same._replace(inputs=same.inputs[turned])
    assert objective(across, real, key) > 0.1


@pytest.mark.parametrize(
  "a, b, distance",
  [
    # A unit is a column: (1, 0) and (0, 1) are 1 apart, (0, 1) and (0, 2) 0.
    ([[1, 0], [0, 1]], [[0, 0], [1, 2]], 1),
    ([[1, 0], [0, 1]], [[-1, 0], [0, -3]], 4),
    ([[1, 3], [0, 3]], [[1, 2], [1, 0]], 2 - np.sqrt(2)),
    ([[3, 0], [4, 0]], [[4, 1], [3, 1]], 1 / 25),
    ([[1, 2, 3]], [[-1, 1, -1]], 4),
  ],
)
def test_distance_of_worked_examples(a, b, distance):
  a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))
  np.testing.assert_allclose(gradient_distance(a, b), distance, atol=1e-6)
  np.testing.assert_allclose(gradient_distance(b, a), distance, atol=1e-6)


def test_distance_adds_layers_and_leaves_out_arrays_of_one_axis():
  draw = [DRAW.normal(size=(2, 3, 3, 2, 4)), DRAW.normal(size=(2, 5, 3))]
  expected = 0.0
  for layer in draw:
    a, b = layer.reshape(2, -1, layer.shape[-1])
    cosines = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
    expected += (1 - cosines).sum()
  a, b = (
    {
      "conv": jnp.asarray(draw[0][i], jnp.float32),
      "dense": (
        jnp.asarray(draw[1][i], jnp.float32),
        jnp.ones(3) * (1 - 2 * i),
      ),
      "scale": jnp.float32(1 - 2 * i),
    }
    for i in range(2)
  )
  np.testing.assert_allclose(gradient_distance(a, b), expected, rtol=1e-6)
  assert gradient_distance(a["scale"], b["scale"]) == 0
  np.testing.assert_allclose(gradient_distance(a, a), 0, atol=1e-6)


@pytest.mark.parametrize("scales", [(1e-6, 1.0), (1e3, 1e-6), (7.0, 1e5)])
def test_distance_does_not_depend_on_the_scale(scales):
  a, b = jnp.asarray(DRAW.normal(size=(2, 5, 3)), jnp.float32)
  expected = gradient_distance(a, b)
  assert expected > 0.1
  found = gradient_distance(scales[0] * a, scales[1] * b)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_unit_without_gradient_has_no_distance_and_a_finite_gradient():
  a, b = jnp.asarray(DRAW.normal(size=(2, 5, 3)), jnp.float32)
  of_both = jax.jit(jax.value_and_grad(gradient_distance, (0, 1)))
  kept, expected = of_both(a[:, ::2], b[:, ::2])
  for own, other in ((a.at[:, 1].set(0), b), (a, b.at[:, 1].set(0))):
    value, grads = of_both(own, other)
    np.testing.assert_allclose(value, kept, rtol=1e-6)
    for grad, of_kept in zip(grads, expected, strict=True):
      np.testing.assert_array_equal(grad[:, 1], np.zeros(5))
      np.testing.assert_allclose(grad[:, ::2], of_kept, rtol=1e-5, atol=1e-6)


def _mean_distance(synthetic, w):
  """`distribution_matching` by hand at given weights."""
  own, goal = (np.tanh(x @ w) for x in (synthetic.inputs, REAL.inputs))
  return sum(
    ((own[c::CLASSES].mean(0) - goal[c::CLASSES].mean(0)) ** 2).sum()
    for c in range(CLASSES)
  )


def test_distribution_matching_is_the_distance_of_class_means(float64):
  objective = jax.jit(jax.value_and_grad(distribution_matching(Features)))
  for key in KEYS:
    w = _numpy(Features.init(key, REAL.inputs))
    value, grads = objective(_arrays(SYNTHETIC), _arrays(REAL), key)
    np.testing.assert_allclose(value, _mean_distance(SYNTHETIC, w), rtol=1e-12)
    _assert_gradient(grads, lambda s, w=w: _mean_distance(s, w))
    assert np.abs(grads.inputs).max() > 1e-3


def test_distribution_matching_sees_classes_and_not_the_order_inside(float64):
  objective = jax.jit(distribution_matching(Features))
  real = _arrays(REAL)
  same = SyntheticSet(real.inputs, jnp.asarray(ONE_HOT), jnp.log(0.3))
  assert objective(same, real, KEYS[0]) == 0
  inside = same._replace(
    inputs=same.inputs[np.array([6, 4, 2, 0, 1, 8, 3, 7, 5])]
  )
  np.testing.assert_allclose(objective(inside, real, KEYS[0]), 0, atol=1e-12)
  across = same._replace(inputs=same.inputs[::-1])
  assert objective(across, real, KEYS[0]) > 0.1


def _tangent(x, y, num_layers):
  """The tangent kernel by the equations; of one set with itself if y is x."""
  norms = [np.sqrt((z**2).mean(-1)) for z in (x, y)]
  scale = np.outer(*norms)
  cosine = x @ y.T / x.shape[-1] / scale
  tangent = cosine
  for _ in range(num_layers):
    if x is y:
      np.fill_diagonal(cosine, 1.0)
    angle = np.arccos(cosine)
    cosine = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    tangent = cosine + tangent * (np.pi - angle) / np.pi
  return scale * tangent


def _regression_loss(synthetic, num_layers, ridge):
  """`kernel_inducing` by hand; the linear kernel has no hidden layer."""
  inputs = np.asarray(synthetic.inputs)
  gram = _tangent(inputs, inputs, num_layers)
  gram = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
  cross = _tangent(REAL.inputs, inputs, num_layers)
  outputs = cross @ np.linalg.solve(gram, synthetic.targets - 1 / CLASSES)
  goal = ONE_HOT - 1 / CLASSES
  return 0.5 * np.mean(np.sum((outputs - goal) ** 2, -1))


@pytest.mark.parametrize("num_layers, ridge", [(0, None), (2, 1e-2)])
def test_kernel_inducing_is_the_error_of_the_regression(
  num_layers, ridge, float64
):
  """With a ridge of a thousandth unless it is given."""
  kernel = relu_tangent_kernel(num_layers) if num_layers else linear_kernel
  given = {"ridge": ridge} if ridge else {}
  objective = jax.jit(jax.value_and_grad(kernel_inducing(kernel, **given)))
  value, grads = objective(_arrays(SYNTHETIC), _arrays(REAL), KEYS[0])

  def by_hand(synthetic):
    return _regression_loss(synthetic, num_layers, ridge or 1e-3)

  np.testing.assert_allclose(value, by_hand(SYNTHETIC), rtol=1e-7)
  _assert_gradient(grads, by_hand)
  assert np.abs(grads.inputs).max() > 1e-3


def test_as_many_synthetic_examples_as_axes_carry_a_linear_problem(float64):
  """Six examples of four axes, targets on the plane on which the labels lie."""
  # The real inputs are such that the centred one-hot labels are linear in them.
  plane = DRAW.normal(size=(WIDTH, CLASSES))
  plane -= plane.mean(1, keepdims=True)
  solve = np.linalg.pinv(plane)
  noise = DRAW.normal(size=(9, WIDTH)) @ (np.eye(WIDTH) - plane @ solve)
  real = Batch((ONE_HOT - 1 / CLASSES) @ solve + noise, LABELS)
  exact = SyntheticSet(
    SYNTHETIC.inputs, SYNTHETIC.inputs @ plane + 1 / CLASSES, np.log(0.3)
  )
  objective = jax.jit(kernel_inducing(linear_kernel, ridge=1e-9))
  assert objective(_arrays(exact), _arrays(real), KEYS[0]) < 1e-14
  assert objective(_arrays(SYNTHETIC), _arrays(real), KEYS[0]) > 1e-2


def test_best_synthetic_targets_are_the_least_squares_solution(float64):
  """Free of the ridge, as the predictions take any linear form.

  The loss is quadratic in the targets, so that one Newton step is the descent.
  """
  real, objective = _arrays(REAL), kernel_inducing(linear_kernel, ridge=1e-2)

  def loss(targets):
    synthetic = _arrays(SYNTHETIC)._replace(targets=targets.reshape(6, CLASSES))
    return objective(synthetic, real, KEYS[0])

  # The slope is linear in the targets.
  points = jnp.concatenate([jnp.zeros((1, 18)), jnp.eye(18)])
  slopes = np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(points))
  curvature = slopes[1:] - slopes[0]
  best = np.linalg.lstsq(curvature, -slopes[0], rcond=1e-9)[0]
  found = loss(jnp.asarray(best))
  goal = ONE_HOT - 1 / CLASSES
  fit = REAL.inputs @ np.linalg.lstsq(REAL.inputs, goal, rcond=None)[0]
  expected = 0.5 * ((fit - goal) ** 2).sum(-1).mean()
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  assert loss(jnp.asarray(SYNTHETIC.targets.ravel())) > 2 * expected


def test_set_starts_with_classes_in_turn_and_the_step_size():
  inputs = DRAW.normal(size=(6, 2, 2)).astype(np.float32)
  found = synthetic_set(inputs, 3, step_size=0.02)
  np.testing.assert_array_equal(found.inputs, inputs)
  np.testing.assert_array_equal(found.targets, np.tile(np.eye(3), (2, 1)))
  np.testing.assert_allclose(found.log_step_size, np.log(0.02), rtol=1e-6)
  assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}


def test_bad_arguments_are_named():
  for size in (0, 4):
    with pytest.raises(ValueError, match=f"^inputs: {size} examples, .* of 3"):
      synthetic_set(np.zeros((size, 2)), 3)
  for step_size in (0.0, -0.1, float("nan")):
    with pytest.raises(ValueError, match=r"^step_size=.*must be above 0"):
      synthetic_set(np.zeros((3, 2)), 3, step_size)
  with pytest.raises(ValueError, match="^num_steps=-1: must be 0 or more"):
    unrolled(Tanh, -1)
  with pytest.raises(ValueError, match="^max_steps=-1: must be 0 or more"):
    gradient_matching(Tanh, -1)
  for ridge in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match=f"^ridge={ridge}: must be above 0"):
      kernel_inducing(linear_kernel, ridge)


@pytest.mark.parametrize("make", [gradient_matching, distribution_matching])
def test_classes_out_of_turn_are_refused_or_make_nan(make):
  """Examples of other classes were matched without a word."""
  objective = make(Tanh, 0) if make is gradient_matching else make(Features)
  real = _arrays(REAL)
  turned = real._replace(targets=real.targets[::-1])
  with pytest.raises(ValueError, match="^real.targets: must be 0 to 2 in turn"):
    objective(_arrays(SYNTHETIC), turned, KEYS[0])
  assert jnp.isnan(jax.jit(objective)(_arrays(SYNTHETIC), turned, KEYS[0]))


@pytest.mark.parametrize("make", [gradient_matching, distribution_matching])
def test_batches_that_are_not_of_classes_in_turn_are_refused(make):
  objective = make(Tanh, 0) if make is gradient_matching else make(Features)
  masked = _arrays(REAL)._replace(mask=np.arange(9) < 6)
  with pytest.raises(ValueError, match="^real.mask: all examples must be real"):
    objective(_arrays(SYNTHETIC), masked, KEYS[0])
  short = jax.tree.map(lambda x: x[:7], _arrays(REAL))
  with pytest.raises(ValueError, match="^real.targets: 7 given, .* of 3 class"):
    objective(_arrays(SYNTHETIC), short, KEYS[0])


@pytest.mark.parametrize(
  "objective", [unrolled(Tanh, 1), kernel_inducing(linear_kernel)]
)
def test_padding_of_a_real_batch_has_no_effect(objective, float64):
  """It counted as examples, whose labels are of no class."""
  objective = jax.jit(jax.value_and_grad(objective))
  real, synthetic = _arrays(REAL), _arrays(SYNTHETIC)
  padded = Batch(
    jnp.pad(real.inputs, ((0, 2), (0, 0)), constant_values=9.0),
    jnp.pad(real.targets, (0, 2), constant_values=-1),
    jnp.arange(11) < 9,
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
    objective(synthetic, padded, KEYS[0]),
    objective(synthetic, real, KEYS[0]),
  )


@pytest.mark.parametrize("label", [-1, CLASSES])
@pytest.mark.parametrize(
  "objective", [unrolled(Tanh, 0), kernel_inducing(linear_kernel)]
)
def test_labels_that_are_no_classes_make_nan(objective, label):
  """A label of -1 was taken for the last class, or for no class."""
  real = _arrays(REAL)
  wrong = real._replace(targets=real.targets.at[0].set(label))
  assert jnp.isnan(objective(_arrays(SYNTHETIC), wrong, KEYS[0]))


def test_distribution_matching_refuses_running_statistics():
  embedding = SimpleNamespace(
    init=lambda rng, inputs: State(jnp.zeros(2)),
    apply=lambda params, inputs: inputs,
  )
  objective = distribution_matching(embedding)
  with pytest.raises(
    ValueError, match="^model: keeps .* which distribution_matching does not"
  ):
    objective(SYNTHETIC, REAL, jax.random.key(0))
