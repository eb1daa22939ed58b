"""Students' losses, and teachers as constant predictions."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.distillation import (
  hint,
  knowledge_distillation,
  mutual_learning,
)
from metajax.distillation.teaching import (
  alone,
  ensemble,
  hinted,
  predict_all,
  side_by_side,
  taught,
  taught_by_peers,
)
from metajax.models.adapters import from_linen
from metajax.models.mlp import MLP
from metajax.training import supervised_trainer
from metajax.types import Batch

RNG = jax.random.key(0)
MODEL = MLP(3, (8,))
DRAW = np.random.default_rng(0)
INPUTS = jnp.asarray(DRAW.normal(size=(60, 4)), jnp.float32)
LABELS = jnp.asarray(DRAW.integers(0, 3, 60))
STACK = jax.vmap(MODEL.init, (0, None))(jax.random.split(RNG, 4), INPUTS)


def _member(index):
  return jax.tree.map(lambda x: x[index], STACK)


TEACHER = functools.partial(MODEL.apply, _member(0))
BATCH = {"inputs": INPUTS, "labels": LABELS, "teacher": TEACHER(INPUTS)}


def _value_and_grad(loss_fn):
  def pair(*arguments):
    loss, metrics, _ = loss_fn(*arguments)
    return loss, metrics

  return jax.value_and_grad(pair, has_aux=True)


@pytest.mark.slow
def test_student_alone_descends_the_cross_entropy():
  loss, metrics, _ = alone(MODEL)(_member(1), BATCH, RNG)
  logits = MODEL.apply(_member(1), INPUTS)
  expected = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
  accuracy = np.mean(np.argmax(logits, -1) == LABELS)
  np.testing.assert_allclose(metrics["accuracy"], accuracy)


def test_teacher_computed_before_or_on_the_fly_is_the_same():
  student = _member(1)
  before, metrics, _ = taught(MODEL)(student, BATCH, RNG)
  on_the_fly, *_ = taught(MODEL, TEACHER)(student, BATCH, RNG)
  expected = knowledge_distillation(
    MODEL.apply(student, INPUTS), TEACHER(INPUTS), LABELS
  )
  np.testing.assert_allclose(before, expected, rtol=1e-6)
  np.testing.assert_allclose(on_the_fly, expected, rtol=1e-6)
  _, of_teacher, _ = taught(MODEL)(_member(0), BATCH, RNG)
  assert of_teacher["agreement"] == 1
  assert metrics["agreement"] < 1


@pytest.mark.slow
def test_ensemble_teaches_the_mean_of_its_probabilities():
  logits = np.stack([MODEL.apply(_member(m), INPUTS) for m in range(4)])
  exp = np.exp(logits.astype(float))
  expected = (exp / exp.sum(-1, keepdims=True)).mean(0)
  found = jax.nn.softmax(ensemble(MODEL, STACK)(INPUTS))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_all_predictions_are_those_of_the_teacher():
  found = predict_all(TEACHER, INPUTS, batch_size=16)
  np.testing.assert_allclose(found, TEACHER(INPUTS), rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="teacher's outputs are not finite"):
    predict_all(lambda x: TEACHER(x) / 0, INPUTS)


@pytest.mark.slow
def test_members_of_an_ensemble_are_arguments_not_constants():
  """So a second ensemble of the same shapes takes no new program."""
  traces = []

  def apply(params, inputs):
    traces.append(inputs.shape)
    return MODEL.apply(params, inputs)

  model = SimpleNamespace(init=None, apply=apply)
  teacher = ensemble(model, STACK)
  other = jax.tree_util.Partial(
    teacher.func, jax.tree.map(lambda x: -x, STACK), None
  )
  found = predict_all(teacher, INPUTS)
  count = len(traces)
  assert not np.allclose(predict_all(other, INPUTS), found)
  assert len(traces) == count
  np.testing.assert_allclose(found, ensemble(MODEL, STACK)(INPUTS), rtol=1e-5)


@pytest.mark.slow
def test_teachers_may_mask_classes_but_not_all():
  masked = predict_all(lambda x: TEACHER(x).at[:, 1].set(-jnp.inf), INPUTS)
  assert (masked[:, 1] == -jnp.inf).all()
  (loss, _), grads = _value_and_grad(taught(MODEL))(
    _member(1), BATCH | {"teacher": masked}, RNG
  )
  assert np.isfinite(loss)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  with pytest.raises(ValueError, match="only -inf is allowed"):
    predict_all(lambda x: TEACHER(x) - jnp.inf, INPUTS)


def test_peers_lose_what_mutual_learning_says():
  loss, *_ = jax.jit(taught_by_peers(MODEL))(STACK, BATCH, RNG)
  logits = jax.vmap(MODEL.apply, (0, None))(STACK, INPUTS)
  expected = jax.jit(mutual_learning)(logits, LABELS).sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_hint_is_added_to_what_is_told():
  regressor = jnp.asarray(DRAW.normal(size=(4, 5)), jnp.float32)
  goal = jnp.asarray(DRAW.normal(size=(60, 5)), jnp.float32)
  # What the student sees are its inputs, times its first weights' mean.
  params = {"student": _member(1), "regressor": regressor}

  def features(params, inputs):
    return inputs * jax.tree.leaves(params)[0].mean()

  loss, metrics, _ = hinted(MODEL, features, weight=0.3)(
    params, BATCH | {"hint": goal}, RNG
  )
  told, *_ = taught(MODEL)(_member(1), BATCH, RNG)
  seen = features(_member(1), INPUTS) @ regressor
  expected = hint(seen, goal)
  np.testing.assert_allclose(metrics["hint"], expected, rtol=1e-5)
  np.testing.assert_allclose(loss, told + 0.3 * expected, rtol=1e-5)


@pytest.mark.parametrize("own", [["teachers"], "teacher"])
def test_names_that_are_not_in_the_batch_are_refused(own):
  """All students would learn from one teacher without a word."""
  with pytest.raises(ValueError, match="^own: 't.*' is not in the batch"):
    side_by_side(taught(MODEL), own=own)(STACK, BATCH, RNG)


@pytest.mark.slow
def test_students_side_by_side_learn_as_each_would_alone():
  """Each with a teacher of its own, or all with one."""
  goals = jnp.stack([MODEL.apply(_member(m), INPUTS) for m in range(4)], 1)
  goals = goals[:, ::-1]
  loss_fn = taught(MODEL)
  learn_alone = jax.jit(_value_and_grad(loss_fn))
  for teacher, own in ((goals, ["teacher"]), (BATCH["teacher"], [])):
    batch = BATCH | {"teacher": teacher}
    (loss, metrics), grads = jax.jit(
      _value_and_grad(side_by_side(loss_fn, own=own))
    )(STACK, batch, RNG)
    total, accuracies = 0.0, []
    for m in range(4):
      one = batch | {"teacher": teacher[:, m] if own else teacher}
      (alone_loss, alone_metrics), alone_grads = learn_alone(
        _member(m), one, RNG
      )
      total += alone_loss
      accuracies.append(alone_metrics["accuracy"])
      for found, expected in zip(
        *map(jax.tree.leaves, (grads, alone_grads)), strict=True
      ):
        np.testing.assert_allclose(found[m], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(accuracies))


@pytest.mark.slow
def test_student_learns_to_predict_as_the_teacher():
  """From the teacher alone: the labels are noise, and count for nothing."""
  trainer = supervised_trainer(
    lambda rng: MODEL.init(rng, INPUTS),
    taught(MODEL, temperature=2.0, alpha=1.0),
    optax.adam(0.02),
    BATCH,
    batch_size=20,
    rng=RNG,
  )
  state = trainer.init(jax.random.key(9))
  before = _agreement(state.meta_params)
  state, _ = trainer.compile(state)[0](state, 800)
  assert _agreement(state.meta_params) > max(before, 0.95)


@pytest.mark.slow
@pytest.mark.parametrize("students", [None, 2])
def test_a_teachers_arrays_are_arguments_of_the_program(students):
  """As constants, members would be copied into the text of every program."""
  member = MLP(3, (200, 200))
  stack = jax.vmap(lambda key: member.init(key, INPUTS))(
    jax.random.split(jax.random.key(3), 4)
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(stack))
  loss_fn, init = taught(MODEL, ensemble(member, stack)), MODEL.init
  if students:
    loss_fn = side_by_side(loss_fn)
    init = jax.vmap(init, (0, None))
  keys = jax.random.split(RNG, students or 1)
  trainer = supervised_trainer(
    lambda rng: init(keys if students else rng, INPUTS),
    loss_fn,
    optax.sgd(0.1),
    BATCH,
    batch_size=4,
    rng=RNG,
  )
  executable = trainer.compile(trainer.init(RNG))[1]
  assert executable.memory_analysis().argument_size_in_bytes > size
  assert len(executable.as_text()) < size


def _agreement(params):
  logits = MODEL.apply(params, INPUTS)
  return float(jnp.mean(logits.argmax(-1) == TEACHER(INPUTS).argmax(-1)))


class Normalized(nn.Module):
  """A student with running statistics and dropout."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(4)(x.reshape(len(x), -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(MODEL.num_outputs)(x)


@pytest.mark.slow
@pytest.mark.parametrize("build", [alone, taught])
def test_students_pass_in_training(build):
  """Their statistics take the batch in, by a half here; dropout has a key."""
  model = from_linen(Normalized())
  params = model.init(RNG, INPUTS)
  loss, _, new = build(Normalized())(params, BATCH, RNG)
  old = params["batch_stats"].value["BatchNorm_0"]["mean"]
  kernel = params["params"]["Dense_0"]["kernel"]
  hidden = INPUTS.reshape(len(INPUTS), -1) @ kernel
  np.testing.assert_allclose(
    new["batch_stats"].value["BatchNorm_0"]["mean"],
    (old + hidden.mean(0)) / 2,
    rtol=1e-4,
    atol=1e-6,
  )
  other, *_ = build(Normalized())(params, BATCH, jax.random.key(7))
  assert loss != other


@pytest.mark.parametrize(
  "loss_fn, name",
  [
    (alone(MODEL), "labels"),
    (taught(MODEL), "teacher"),
    (taught(MODEL, TEACHER), "labels"),
    (taught_by_peers(MODEL), "labels"),
    (hinted(MODEL, lambda params, x: x), "hint"),
  ],
)
def test_what_a_batch_lacks_is_named(loss_fn, name):
  batch = {k: v for k, v in BATCH.items() if k != name}
  with pytest.raises(ValueError, match=f"^batch: has no '{name}', must be a"):
    loss_fn(_member(0), batch, RNG)
  with pytest.raises(ValueError, match="^batch: list given, must be a dict"):
    loss_fn(_member(0), [INPUTS, LABELS], RNG)
  with pytest.raises(ValueError, match="^batch: has a mask"):
    masked = Batch(INPUTS, LABELS, jnp.ones(len(LABELS), bool))
    loss_fn(_member(0), masked, RNG)


@pytest.mark.parametrize(
  "loss_fn, params",
  [
    (alone(MODEL), _member(0)),
    (taught(MODEL, TEACHER), _member(1)),
    (taught_by_peers(MODEL), STACK),
    (side_by_side(alone(MODEL)), STACK),
  ],
)
def test_a_batch_is_a_dictionary_of_inputs_and_labels(loss_fn, params):
  named = {"inputs": INPUTS, "labels": LABELS}
  found = loss_fn(params, Batch(INPUTS, LABELS), RNG)
  jax.tree.map(
    np.testing.assert_array_equal, found[:2], loss_fn(params, named, RNG)[:2]
  )
