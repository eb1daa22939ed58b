"""What a learner of one's own returns is checked where it is traced."""

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax.learners import gradient_of_mean
from metajax.models.mlp import MLP
from metajax.tasks import sinusoid
from metajax.training import meta_trainer
from metajax.types import MetaLearner, State

MODEL = MLP(1, (2,))


def _query_loss(params, episode):
  predictions = MODEL.apply(params, episode.query.inputs)
  return ((predictions - episode.query.targets) ** 2).mean()


def _train(meta_grad, task_chunk=None, init=MODEL.init):
  learner = MetaLearner(init, lambda p, *_: p, MODEL.apply, meta_grad)
  trainer = meta_trainer(
    learner,
    optax.sgd(0.1),
    sinusoid(shots=2),
    meta_batch=2,
    rng=jax.random.key(0),
    task_chunk=task_chunk,
  )
  trainer.compile(trainer.init(jax.random.key(1)))


@pytest.mark.parametrize(
  "change, named",
  [
    (lambda loss, params: loss, "returned array, must be"),
    (
      lambda loss, params: (loss[None], {}),
      r"a loss of the shape \(1,\), must",
    ),
    (lambda loss, params: (loss, loss), "metrics are a .*, must be a dict"),
    (
      lambda loss, params: (loss, {}, {"loss": loss}),
      r"the third result, .*\n?.* has the shape missing at ",
    ),
  ],
)
@pytest.mark.parametrize("task_chunk", [None, 2])
def test_a_meta_loss_of_another_form_is_refused(change, named, task_chunk):
  def meta_loss(params, episode, rng):
    return change(_query_loss(params, episode), params)

  with pytest.raises(ValueError, match=f"^meta_loss: {named}"):
    _train(gradient_of_mean(meta_loss), task_chunk)


@pytest.mark.parametrize(
  "change, named",
  [
    (lambda loss, grads: grads, "returned dict, must be"),
    (lambda loss, grads: (loss, grads), "the gradient has the shape missing"),
    (lambda loss, grads: (grads, loss), "metrics are a .*, must be a dict"),
    (
      lambda loss, grads: (jax.tree.map(lambda x: x[None], grads), {}),
      r"the gradient has the shape \(1, .*, must be \(.*\), as in",
    ),
  ],
)
@pytest.mark.parametrize("task_chunk", [None, 2])
def test_a_meta_gradient_of_another_form_is_refused(change, named, task_chunk):
  def meta_grad(params, episodes, rng):
    def mean(params):
      return jax.vmap(_query_loss, (None, 0))(params, episodes).mean()

    loss, grads = jax.value_and_grad(mean)(params)
    return change(loss, grads)

  with pytest.raises(ValueError, match=f"^learner.meta_grad: {named}"):
    _train(meta_grad, task_chunk)


def test_state_and_integers_are_no_gradient():
  """Meta-parameters with both train, whatever their place in the gradient."""

  def init(rng, inputs):
    return {
      "net": MODEL.init(rng, inputs),
      "mean": State(jnp.zeros(1)),
      "count": jnp.int32(0),
    }

  def meta_loss(params, episode, rng):
    new = {**params, "mean": State(episode.support.inputs.mean(0))}
    return _query_loss(params["net"], episode), {}, new

  _train(gradient_of_mean(meta_loss), 2, init)


def test_a_single_task_is_told_from_a_chunk():
  meta_grad = gradient_of_mean(lambda p, e, rng: (_query_loss(p, e), {}))
  episode = sinusoid(shots=2, query_shots=3)(jax.random.key(0))
  params = MODEL.init(jax.random.key(1), episode.support.inputs)
  with pytest.raises(ValueError, match=r"^episodes: first axes \[\(2,\), \(3,"):
    meta_grad(params, episode, jax.random.key(2))
