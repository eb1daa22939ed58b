"""A learned optimizer as the inner and the outer one of the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import learned_optimizers
from metajax.learners import maml
from metajax.losses import mean_squared_error
from metajax.training import meta_trainer, task_mesh
from metajax.types import Batch, Episode


class Line:
  """A model of one parameter, a slope."""

  def init(self, rng, inputs):
    del rng
    return jnp.zeros(inputs.shape[-1:])

  def apply(self, params, inputs):
    return inputs * params


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_trains_inside_and_outside_as_any_optimizer(name):
  """MAML on lines by the trainer, against a loop over its steps and tasks."""
  learned = getattr(learned_optimizers, f"{name}_optimizer")()
  optimizer = learned.optimizer(learned.init(jax.random.key(0)))

  def tasks(rng):
    x = jax.random.normal(rng, (2, 3, 1))
    y = x * jax.random.normal(jax.random.fold_in(rng, 1))
    return Episode(Batch(x[0], y[0]), Batch(x[1], y[1]))

  learner = maml(Line(), mean_squared_error, optimizer, 2)
  key = jax.random.key(3)
  trainer = meta_trainer(
    learner, optimizer, tasks, rng=key, meta_batch=2, mesh=task_mesh(1)
  )
  first = trainer.init(jax.random.key(4))
  run, _ = trainer.compile(first)

  def inner(slope, batch):
    return jnp.square(batch.inputs * slope - batch.targets).mean()

  def outer(slope, episode):
    state = optimizer.init(slope)
    for _ in range(2):
      grads = jax.grad(inner)(slope, episode.support)
      updates, state = optimizer.update(grads, state, slope)
      slope = slope + updates
    return inner(slope, episode.query)

  slope_of = jax.jit(jax.grad(outer))
  params = first.meta_params
  state = optimizer.init(params)
  for s in range(3):
    keys = [jax.random.fold_in(jax.random.fold_in(key, s), i) for i in (0, 1)]
    grads = sum(slope_of(params, tasks(k)) for k in keys) / 2
    updates, state = optimizer.update(grads, state, params)
    params = params + updates
  found = run(trainer.init(jax.random.key(4)), 3)[0].meta_params
  np.testing.assert_allclose(found, params, rtol=1e-4)
  assert np.abs(found).max() > 1e-5
