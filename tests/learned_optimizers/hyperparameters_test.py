"""Learned hyper-parameters, against the optimizers of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import learned_optimizers

PARAMS = {"w": np.array([[0.5, -1.0, 2.0]]), "b": np.array([0.3, 0.0])}
draw = np.random.default_rng(0).normal
GRADS = {"w": draw(size=(6, 1, 3)), "b": draw(size=(6, 2))}
GRADS["b"][:, 1] = 0.0


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def assert_alike(*pairs):
  """Pairs of optimizers have the same updates, in one compiled program."""

  def updates_of(optimizer):
    def step(state, grads):
      updates, state = optimizer.update(grads, state, PARAMS)
      return state, updates

    return jax.lax.scan(step, optimizer.init(PARAMS), GRADS)[1]

  compiled = jax.jit(lambda: [list(map(updates_of, x)) for x in pairs])
  for found, expected in compiled():
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12),
      found,
      expected,
    )


def start(learned):
  return learned.init(jax.random.key(0))


def test_all_start_as_those_of_optax():
  pairs = []
  for each in "leaf", "element":
    for momentum in 0.0, 0.8:
      learned = learned_optimizers.learned_sgd(
        PARAMS, 0.1, momentum=momentum, each=each
      )
      theta = start(learned)
      shape = (1, 1, 3) if each == "element" else (1,)
      assert theta["log_step_size"]["w"].shape == shape
      plain = optax.sgd(0.1, momentum=momentum or None)
      pairs.append((learned.optimizer(theta), plain))
    learned = learned_optimizers.learned_adam(
      PARAMS, 0.1, b1=0.7, b2=0.8, each=each
    )
    plain = optax.adam(0.1, b1=0.7, b2=0.8, eps_root=1e-16)
    pairs.append((learned.optimizer(start(learned)), plain))
  assert_alike(*pairs)


def test_leaves_have_step_sizes_and_momenta_of_their_own():
  learned = learned_optimizers.learned_sgd(PARAMS, 0.1, momentum=0.5)
  theta = start(learned)
  theta["log_step_size"]["b"] = jnp.log(jnp.full(1, 0.3))
  theta["logit_momentum"]["b"] = jnp.log(0.9 / 0.1)
  plain = optax.partition(
    {"w": optax.sgd(0.1, momentum=0.5), "b": optax.sgd(0.3, momentum=0.9)},
    {"w": "w", "b": "b"},
  )
  assert_alike((learned.optimizer(theta), plain))


def test_schedule_is_geometric_between_its_times_and_constant_after_them():
  learned = learned_optimizers.learned_adam(PARAMS, 0.2, times=(0, 3))
  theta = start(learned)
  ends = jnp.log(jnp.array([0.2, 0.05]))
  theta["log_step_size"] = {"w": ends, "b": ends}

  def schedule(step):  # That of optax computes in float32.
    return 0.2 * 0.25 ** (jnp.minimum(step, 3).astype(float) / 3)

  plain = optax.adam(schedule, eps_root=1e-16)
  assert_alike((learned.optimizer(theta), plain))


@pytest.mark.parametrize(
  "given, message",
  [
    ({"step_size": 0}, "step_size=0: must be above 0"),
    ({"each": "tensor"}, "each='tensor': must be one of"),
    ({"times": (3, 3)}, r"times=\(3, 3\): must be steps from 0 that"),
    ({"times": ()}, r"times=\(\): must be steps"),
    ({"times": (-1, 3)}, "must be steps from 0"),
    ({"params": np.ones(2, complex)}, "is complex128; must be real"),
  ],
)
def test_bad_arguments_are_named(given, message):
  arguments = {"params": PARAMS, "step_size": 0.1, **given}
  for build in learned_optimizers.learned_sgd, learned_optimizers.learned_adam:
    with pytest.raises(ValueError, match=message):
      build(**arguments)


def test_decays_out_of_range_are_named():
  with pytest.raises(ValueError, match="momentum=1.0: must be"):
    learned_optimizers.learned_sgd(PARAMS, 0.1, momentum=1.0)
  for name in "b1", "b2":
    with pytest.raises(ValueError, match=f"{name}=0: must be above 0 and"):
      learned_optimizers.learned_adam(PARAMS, 0.1, **{name: 0})
  with pytest.raises(ValueError, match="eps_root=0: must be above 0"):
    learned_optimizers.learned_adam(PARAMS, 0.1, eps_root=0)


BUILDERS = [learned_optimizers.learned_sgd, learned_optimizers.learned_adam]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
  "params", [np.zeros(3, int), {"n": np.int32(1)}, {}, np.ones(2, bool)]
)
def test_parameters_without_a_number_to_train_are_named(build, params):
  with pytest.raises(ValueError, match="^params: no floating point number"):
    build(params, 0.1)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
  "times", [(0, 1.5), (0, float("nan")), 3, (), (0, 0), (-1, 2), (2, 1)]
)
def test_times_that_are_no_increasing_steps_are_named(build, times):
  with pytest.raises(ValueError, match="^times=.* must be steps from 0 that"):
    build(PARAMS, 0.1, times=times)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
  "params, message",
  [
    ({"w": np.ones((4, 3)), "b": np.ones(2)}, r"params\['w'\] has shape"),
    ({"w": PARAMS["w"]}, "params: PyTreeDef"),
  ],
)
def test_parameters_of_another_network_are_not_broadcast(
  build, params, message
):
  learned = build(PARAMS, 0.1, each="element")
  with pytest.raises(ValueError, match="^" + message):
    learned.optimizer(start(learned)).init(params)


def test_adam_whose_decay_is_almost_one_is_finite():
  """In float32 it rounds to 1. The first step is that of any decay."""
  with jax.enable_x64(False):
    params = {"w": jnp.zeros(2)}
    grads = {"w": jnp.array([3.0, -0.5])}
    learned = learned_optimizers.learned_adam(params, 0.1)

    def update(logit):
      theta = start(learned) | {
        "logit_b1": {"w": logit},
        "logit_b2": {"w": logit},
      }
      optimizer = learned.optimizer(theta)
      return optimizer.update(grads, optimizer.init(params))[0]["w"]

    for logit in (jnp.float32(20.0), jnp.float32(40.0)):
      found, slope = jax.jvp(update, (logit,), (jnp.ones_like(logit),))
      np.testing.assert_allclose(found, [-0.1, 0.1], rtol=1e-5)
      np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adam_of_half_precision_has_the_steps_of_float32(dtype):
  # In float16, the square of the first is 0, and that of the second infinite.
  grads = {"w": jnp.array([1e-4, 300.0], dtype)}
  steps = []
  for x in (grads, {"w": grads["w"].astype(jnp.float32)}):
    learned = learned_optimizers.learned_adam(x, 0.1)
    optimizer = learned.optimizer(start(learned))
    state = optimizer.init(x)
    for _ in range(2):
      updates, state = optimizer.update(x, state)
    steps.append(updates["w"].astype(jnp.float32))
  np.testing.assert_allclose(*steps, rtol=1e-2)
