"""What building a learner does and does not do, and numbers that are traced."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners import (
  REGISTRY,
  embedding,
  imaml,
  maml,
  ridge,
  taught,
)
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode
from tests.slow import slow_but

ROOT = Path(__file__).resolve().parents[2]
RNG = jax.random.key(0)
TASKS, FEATURES = 2, 3


def test_building_learners_touches_no_device():
  """`use_cpu_cores` may come after it, and it raises once JAX has devices."""
  script = """
import optax
from metajax import learners, losses, training
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from jax._src import xla_bridge
for name, build in learners.REGISTRY.items():
  for model in (MLP(5), conv4(5)):
    build(model, losses.cross_entropy, optax.adam(0.1), 2)
    assert not xla_bridge._backends, name
learners.maml_plus_plus(
  MLP(5), losses.cross_entropy, optax.sgd(0.1), 2, multi_step_loss=9
)
for head in (learners.nearest_mean(5), learners.ridge(5), learners.logistic(5)):
  learners.embedding(MLP(None), head, losses.cross_entropy)
assert not xla_bridge._backends
training.use_cpu_cores()
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


LINEAR = SimpleNamespace(
  init=lambda rng, inputs: jax.random.normal(rng, (FEATURES, 1)),
  apply=lambda weights, inputs: inputs @ weights,
)


def _episodes():
  draw = np.random.default_rng(0).normal

  def batch(n):
    x, y = draw(size=(TASKS, n, FEATURES)), draw(size=(TASKS, n, 1))
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))

  return Episode(batch(5), batch(4))


def _of_inner_rate(rate):
  return maml(LINEAR, mean_squared_error, optax.sgd(rate), 2)


def _of_strength(strength):
  return imaml(LINEAR, mean_squared_error, optax.sgd(0.1), 3, strength=strength)


def _of_damping(damping):
  return imaml(LINEAR, mean_squared_error, optax.sgd(0.1), 3, damping=damping)


def _of_ridge(strength):
  return embedding(LINEAR, ridge(1, strength), mean_squared_error)


def _of_alpha(alpha):
  teacher = _of_inner_rate(0.2)
  return taught(
    _of_inner_rate(0.1),
    teacher,
    LINEAR.init(jax.random.key(1), None),
    mean_squared_error,
    alpha=alpha,
  )


NUMBERS = {
  "inner_rate": (_of_inner_rate, (0.05, 0.2)),
  "strength": (_of_strength, (0.5, 2.0)),
  "damping": (_of_damping, (0.0, 1.0)),
  "ridge": (_of_ridge, (0.1, 3.0)),
  "alpha": (_of_alpha, (0.1, 0.9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["strength"], NUMBERS))
def test_hyper_parameters_are_swept_and_learned(name):
  """By vmap, each as alone; and by a gradient, which differences confirm."""
  build, values = NUMBERS[name]
  with jax.enable_x64(True):
    episodes = jax.tree.map(lambda x: x.astype(jnp.float64), _episodes())
    params = jnp.asarray(np.random.default_rng(1).normal(size=(FEATURES, 1)))

    @jax.jit
    def of(number):
      return build(number).meta_grad(params, episodes, RNG)[0]

    swept = jax.vmap(of)(jnp.array(values))
    for number, found in zip(values, swept, strict=True):
      alone = build(number).meta_grad(params, episodes, RNG)[0]
      np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-9)
    assert np.abs(swept[0] - swept[1]).max() > 1e-4

    def total(number):
      return of(number).sum()

    low, high = (float(total(values[1] + h)) for h in (-1e-5, 1e-5))
    np.testing.assert_allclose(
      jax.jit(jax.jacrev(total))(values[1]), (high - low) / 2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
  ("build", "value", "message"),
  [
    (_of_strength, 0.0, "strength=0.0: must be above 0"),
    (_of_strength, float("nan"), "strength=nan: must be above 0"),
    (_of_ridge, -1.0, "strength=-1.0: must be above 0"),
    (_of_alpha, 1.5, "alpha=1.5: must be 0 to 1"),
  ],
)
def test_known_numbers_are_checked(build, value, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    build(value)


def test_modules_without_pure_functions_are_refused():
  class Module:
    def __call__(self, x):
      return x

  with pytest.raises(ValueError, match="^model: a Module is no init"):
    REGISTRY["maml"](Module(), cross_entropy, optax.sgd(0.1), 1)


@pytest.mark.slow
def test_mlps_take_a_mask():
  """A mask is passed on to models that take one, and to no other."""
  seen = []

  def apply(params, inputs, mask=None):
    seen.append(mask)
    return inputs @ params

  model = SimpleNamespace(init=LINEAR.init, apply=apply)
  x, mask = jnp.ones((4, FEATURES)), jnp.array([True, True, False, True])
  batch = Batch(x, x[:, :1], mask)
  for network in (model, LINEAR, MLP(1, (4,), normalization="batch")):
    learner = maml(network, mean_squared_error, optax.sgd(0.1), 1)
    params = learner.init(RNG, x)
    task_params = learner.adapt(params, batch, RNG)
    assert np.isfinite(learner.predict(task_params, x, mask=mask)).all()
  assert all(m is not None for m in seen) and seen
