"""Measures one whole step of supervised training: drawing, gradient, Adam."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.losses import cross_entropy
from metajax.training import loss_of, supervised_trainer, task_mesh
from metajax.types import Array, Batch, Metrics, Params
from scripts.benchmarks import maml, own_flags
from scripts.benchmarks.own_flags import FLAGS

own_flags.DEFINE_integer(
  "batch_size", 64, "Images of a step of --learner=supervised.", lower_bound=1
)


def build(devices: list | None = None) -> Callable[[int], Metrics]:
  """Compiles training on all classes. Returns `steps -> metrics`."""
  model = maml.network(maml.CLASSES, FLAGS.conv_lowering)
  images = maml.images()
  labels = np.repeat(np.arange(len(images)), images.shape[1])
  inputs = images.reshape(-1, *images.shape[2:]).astype(np.float32) / 255
  mesh = task_mesh(FLAGS.batch_size, devices)
  trainer = supervised_trainer(
    lambda rng: model.init(rng, jnp.asarray(inputs[:1])),
    loss_of(model, cross_entropy),
    optax.adam(1e-3),
    Batch(jnp.asarray(inputs), jnp.asarray(labels)),
    batch_size=FLAGS.batch_size,
    rng=jax.random.key(1),
    mesh=mesh,
  )
  state = trainer.init(jax.random.key(2))
  train, _ = trainer.compile(state)

  def take(steps):
    nonlocal state
    state, metrics = train(state, steps)
    return metrics

  return take


def gradient() -> tuple[Batch, Params, Params]:
  """Returns a batch, its gradient and the parameters, in float64."""
  model = maml.network(maml.CLASSES, FLAGS.conv_lowering)
  size = FLAGS.image_size
  rng = np.random.default_rng(1)
  inputs = rng.random((FLAGS.batch_size, size, size, FLAGS.channels))
  labels = rng.integers(0, maml.CLASSES, FLAGS.batch_size)

  def loss(params: Params) -> Array:
    return cross_entropy(model.apply(params, jnp.asarray(inputs)), labels)

  params = model.init(jax.random.key(4), jnp.asarray(inputs[:1]))
  params = jax.tree.map(lambda x: x.astype(float), params)
  return Batch(inputs, labels), jax.jit(jax.grad(loss))(params), params
