"""The same numbers under `jax.set_mesh` with explicit axes as without."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.evaluation import evaluator
from metajax.learners import REGISTRY
from metajax.losses import mean_squared_error
from metajax.tasks import sinusoid
from metajax.training import (
  cohort_trainer,
  meta_trainer,
  supervised_trainer,
  task_mesh,
)
from tests.processes import run_python

KEY, TASKS = jax.random.key(0), sinusoid(3, 4)
LEARNERS = ("maml", "reptile", "imaml")


class Net:
  """A hidden layer, in JAX's default floats."""

  def init(self, rng, inputs):
    w = jax.random.normal(rng, (inputs.shape[-1], 8))
    return {"w": w, "v": w.T / 8}

  def apply(self, params, inputs):
    return jnp.tanh(inputs @ params["w"]) @ params["v"]


def _learner(name):
  return REGISTRY[name](Net(), mean_squared_error, optax.sgd(0.01), 1)


def _train(trainer):
  state = trainer.init(KEY)
  state, metrics = trainer.compile(state)[0](state, 2)
  return {
    "params": jax.flatten_util.ravel_pytree(jax.device_get(state.meta_params))[
      0
    ],
    **metrics,
  }


def _meta_training(mesh=None):
  return _train(
    meta_trainer(
      _learner("maml"),
      optax.adam(0.01),
      TASKS,
      meta_batch=8,
      task_chunk=1,
      rng=jax.random.key(1),
      mesh=mesh,
    )
  )


def _supervised():
  data = jnp.arange(6.0)
  return _train(
    supervised_trainer(
      lambda rng: jnp.zeros(()),
      lambda w, x, rng: (((w - x) ** 2).mean(), {}),
      optax.sgd(0.1),
      data,
      batch_size=4,
      rng=jax.random.key(1),
    )
  )


def _cohorts():
  def init(rng):
    return jax.random.normal(rng, (2,))

  def train(rng, params, mean, count):
    return params + mean + 1.0, {"loss": params.sum()}

  return _train(
    cohort_trainer(
      lambda rng: jax.random.normal(rng, (2,)), train, 8, 4, rng=KEY
    )
  )


def _evaluation(mesh=None):
  learner = _learner("maml")
  score = evaluator(
    learner,
    TASKS,
    {"error": mean_squared_error},
    jax.random.key(5),
    num_tasks=9,
    task_chunk=2,
    mesh=mesh,
  )
  return score(learner.init(KEY, jnp.zeros((3, 1))))


def _meta_grads(name, mesh=None, axis=None):
  """By hand, the tasks spread over an explicit axis."""
  learner = _learner(name)
  episodes = jax.jit(jax.vmap(TASKS))(jax.random.split(KEY, 8))
  params = learner.init(KEY, episodes.support.inputs[0])
  if mesh is not None:
    episodes = jax.device_put(episodes, NamedSharding(mesh, P(axis)))
    params = jax.device_put(params, NamedSharding(mesh, P()))
  grads, metrics = jax.jit(learner.meta_grad)(params, episodes, KEY)
  grads = jax.device_get(grads)
  return {"grads": jax.flatten_util.ravel_pytree(grads)[0], **metrics}


TRAINING = {
  "meta_trainer": _meta_training,
  "supervised_trainer": _supervised,
  "cohort_trainer": _cohorts,
  "evaluator": _evaluation,
}
WORK = {
  **TRAINING,
  **{name: functools.partial(_meta_grads, name) for name in LEARNERS},
}


def _main(path):
  """What the subprocess does, with 4 devices; writes its arrays to a file."""
  arrays = {}

  def keep(where, name, found):
    for key, value in found.items():
      arrays[f"{where}/{name}/{key}"] = np.asarray(value)

  for name, work in WORK.items():
    keep("none", name, work())
  for axis in ("tasks", "data"):
    mesh = jax.make_mesh((4,), (axis,), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
      for name in TRAINING:
        keep(axis, name, WORK[name]())
      if axis == "tasks":
        keep("given", "meta_trainer", _meta_training(mesh))
        keep("given", "evaluator", _evaluation(mesh))
        # Of fewer devices than those of the mesh that is set.
        two = task_mesh(2, jax.devices())
        keep("two", "meta_trainer", _meta_training(two))
      else:
        for name in LEARNERS:
          keep(axis, name, _meta_grads(name, mesh, axis))
  np.savez(path, **arrays)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  path = tmp_path_factory.mktemp("meshes") / "arrays.npz"
  run_python(__file__, path, devices=4, x64=True)
  with np.load(path) as arrays:
    return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_numbers_do_not_depend_on_the_mesh_that_is_set(name, found):
  keys = [k for k in found if f"/{name}/" in k and not k.startswith("none")]
  assert len(keys) >= len([k for k in found if k.startswith(f"none/{name}/")])
  for key in keys:
    where, _, metric = key.split("/")
    expected = found[f"none/{name}/{metric}"]
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(
      found[key], expected, rtol=0, atol=1e-9 * scale, err_msg=where
    )


if __name__ == "__main__":
  _main(Path(sys.argv[1]))
