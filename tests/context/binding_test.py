"""Networks that read in order learn to bind new classes to labels.

The classes of a task are two points drawn from a normal in 8 dimensions, whose
examples have noise of deviation 0.2. Labels are assigned at random, so that the
network must read them. There is no encoder: the examples are the features.
"""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax.context import build_reader
from metajax.learners import learn_by_reading, with_encoder
from metajax.losses import accuracy_by_presentation, cross_entropy
from metajax.types import Batch, Episode

WAYS, SHOTS, FEATURES, TASKS = 2, 4, 8, 32
NONE = types.SimpleNamespace(init=lambda rng, x: {}, apply=lambda params, x: x)
# Sizes, Adam's step size, and the number of its steps.
READERS = {
  "snail": ({"channels": 16, "attention": ((16, 16), (16, 16))}, 2e-3, 150),
  "transformer": ({"width": 32, "layers": 2}, 2e-3, 300),
  "mann": ({"units": 64, "slots": 16, "width": 16, "reads": 2}, 4e-3, 600),
  "lstm": ({"units": 64}, 4e-3, 600),
  "gru": ({"units": 64}, 4e-3, 600),
}


def _task(rng):
  keys = jax.random.split(rng, 4)
  classes = jax.random.normal(keys[0], (WAYS, FEATURES))
  order = jnp.repeat(jnp.arange(WAYS), SHOTS)
  labels = jax.random.permutation(keys[1], order)

  def examples(key, labels):
    noise = 0.2 * jax.random.normal(key, (len(labels), FEATURES))
    return Batch(classes[labels] + noise, labels)

  return Episode(examples(keys[2], labels), examples(keys[3], jnp.arange(WAYS)))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_second_presentations_are_told_apart(name):
  sizes, rate, steps = READERS[name]
  reader = build_reader(name, length=WAYS * SHOTS + 1, **sizes)
  learner = learn_by_reading(NONE, reader, cross_entropy, num_outputs=WAYS)
  optimizer = optax.adam(rate)
  whole = with_encoder(NONE, reader, WAYS)

  def step(carry, rng):
    params, state = carry
    task_key, grad_key = jax.random.split(rng)
    tasks = jax.vmap(_task)(jax.random.split(task_key, TASKS))
    grads, _ = learner.meta_grad(params, tasks, grad_key)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  def accuracies(params, rng):
    sequence = _task(rng).support
    nothing = whole.start(params, sequence.inputs)
    logits, _ = whole.read(params, nothing, sequence)
    return accuracy_by_presentation(logits, sequence.targets)[:SHOTS]

  @jax.jit
  def trained(rng):
    init_key, train_key, test_key = jax.random.split(rng, 3)
    params = learner.init(init_key, _task(rng).support.inputs)
    carry = params, optimizer.init(params)
    keys = jax.random.split(train_key, steps)
    (params, _), _ = jax.lax.scan(step, carry, keys)
    keys = jax.random.split(test_key, 500)
    return jax.vmap(accuracies, (None, 0))(params, keys).mean(0)

  found = trained(jax.random.key(0))
  # Without binding, counts of the labels so far alone tell about two thirds.
  assert found[1] > 0.9, found
