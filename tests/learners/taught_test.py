"""Taught learners against mixtures of losses in numpy float64."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from metajax.aggregation import average_probabilities
from metajax.learners import (
  embedding,
  learned_ensemble,
  maml,
  nearest_mean,
  taught,
)
from metajax.losses import cross_entropy, mean_squared_error
from metajax.models.mlp import MLP
from metajax.types import Batch, Episode, MetaLearner

RNG = jax.random.key(0)
TASKS, WAYS, INPUTS = 2, 3, 4
LOSSES = {"classes": cross_entropy, "numbers": mean_squared_error}
STUDENT, TEACHER = MLP(WAYS, (5,)), MLP(WAYS, (7,))


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def _draw_episodes(draw, kind):
  def batch(n):
    x = draw.normal(size=(TASKS, n, INPUTS))
    labels = draw.permuted(np.tile(np.arange(n) % WAYS, (TASKS, 1)), axis=1)
    return Batch(x, labels if kind == "classes" else np.sin(x[..., :WAYS]))

  return Episode(batch(6), batch(8))


def _draw_params(model, seed, size=()):
  draw = np.random.default_rng(seed).normal
  shapes = jax.eval_shape(model.init, RNG, np.zeros((1, INPUTS)))
  return jax.tree.map(lambda s: draw(size=(*size, *s.shape)), shapes)


EPISODES = {
  kind: _draw_episodes(np.random.default_rng(0), kind) for kind in LOSSES
}
PARAMS, TEACHER_PARAMS = _draw_params(STUDENT, 1), _draw_params(TEACHER, 2)


@functools.cache
def _students(kind):
  """Returns a student of 2 steps, and its predictions, compiled."""
  learner = maml(STUDENT, LOSSES[kind], optax.sgd(0.1), 2)
  return learner, _answers(learner)


@functools.cache
def _teachers(kind):
  """Other learners, with nothing but `adapt` and `predict`."""
  learner = {
    "classes": embedding(TEACHER, nearest_mean(WAYS), cross_entropy),
    "numbers": maml(TEACHER, mean_squared_error, optax.sgd(0.1), 0),
  }[kind]._replace(init=None, meta_grad=None)
  return learner, _answers(learner)


def _answers(learner):
  """Of all tasks, `[tasks, n, outputs]`."""

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def answers(params, episode):
    adapted = learner.adapt(params, episode.support, RNG)
    return learner.predict(adapted, episode.query.inputs)

  return answers


def _divergence(student, teacher, temperature=1.0):
  """T^2 KL(teacher || student), of the mean over tasks and examples."""
  log_q, log_p = (
    scipy.special.log_softmax(np.asarray(x) / temperature, axis=-1)
    for x in (student, teacher)
  )
  return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def _half_square(student, teacher, temperature):
  del temperature
  return ((student - teacher) ** 2).mean() / 2


def _surprise(logits, labels):
  log_p = scipy.special.log_softmax(logits, axis=-1)
  return -np.take_along_axis(log_p, labels[..., None], axis=-1).mean()


def _square(predictions, targets):
  return ((predictions - targets) ** 2).mean()


# --- The gradient. ---


def _differences(loss, params, h=1e-6):
  """Central ones, entry by entry and array by array."""
  leaves, treedef = jax.tree.flatten(params)

  def nudged(i, k, step):
    moved = [leaf.copy() for leaf in leaves]
    moved[i].flat[k] += step
    return loss(jax.tree.unflatten(treedef, moved))

  return np.array(
    [
      (nudged(i, k, h) - nudged(i, k, -h)) / (2 * h)
      for i, leaf in enumerate(leaves)
      for k in range(leaf.size)
    ]
  )


def _flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "own", "match"),
  [
    ("classes", _surprise, _divergence),
    ("numbers", _square, _half_square),
  ],
)
def test_gradient_equals_finite_differences_of_the_mixture(kind, own, match):
  """The teacher's predictions are constants."""
  alpha, temperature, episodes = 0.3, 2.5, EPISODES[kind]
  (student, answers), (teacher, goals) = _students(kind), _teachers(kind)
  learner = taught(
    student,
    teacher,
    TEACHER_PARAMS,
    LOSSES[kind],
    alpha=alpha,
    temperature=temperature,
  )
  goal = np.asarray(goals(TEACHER_PARAMS, episodes))
  targets = episodes.query.targets

  def scores(params):
    predictions = np.asarray(answers(params, episodes))
    return own(predictions, targets), match(predictions, goal, temperature)

  grads, metrics = jax.jit(learner.meta_grad)(PARAMS, episodes, RNG)
  expected = dict(zip(("loss", "match"), scores(PARAMS), strict=True))
  if kind == "classes":
    same = np.asarray(answers(PARAMS, episodes)).argmax(-1) == goal.argmax(-1)
    expected["agreement"] = same.mean()
    assert 0 < same.mean() < 1
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-9)

  def mixture(params):
    loss, distance = scores(params)
    return (1 - alpha) * loss + alpha * distance

  differences = _differences(mixture, PARAMS)
  np.testing.assert_allclose(_flat(grads), differences, rtol=1e-6, atol=1e-8)
  assert np.abs(differences).max() > 0.01


@pytest.mark.slow
def test_without_a_say_of_the_teacher_it_is_the_student():
  (student, _), (teacher, _) = _students("numbers"), _teachers("numbers")
  learner = taught(
    student, teacher, TEACHER_PARAMS, mean_squared_error, alpha=0.0
  )
  episodes = EPISODES["numbers"]
  found, metrics = jax.jit(learner.meta_grad)(PARAMS, episodes, RNG)
  grads, own = jax.jit(student.meta_grad)(PARAMS, episodes, RNG)
  chex.assert_trees_all_close(found, grads, rtol=1e-10, atol=1e-13)
  np.testing.assert_allclose(metrics["loss"], own["loss"], rtol=1e-12)
  assert optax.tree.norm(grads) > 0.01
  assert metrics["match"] > 0.01


@pytest.mark.slow
def test_nothing_is_learned_from_oneself():
  student, _ = _students("classes")

  @jax.jit
  def learn(teacher_params):
    learner = taught(student, student, teacher_params, cross_entropy, alpha=1.0)
    return learner.meta_grad(PARAMS, EPISODES["classes"], RNG)

  grads, metrics = learn(PARAMS)
  np.testing.assert_allclose(metrics["match"], 0, atol=1e-14)
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_allclose(leaf, 0, atol=1e-12)
  assert metrics["agreement"] == 1
  grads, others = learn(_draw_params(STUDENT, 3))
  assert optax.tree.norm(grads) > 0.01
  assert others["match"] > 0.01
  assert others["agreement"] < 1
  assert others["loss"] == metrics["loss"]


def test_nothing_of_the_teacher_is_differentiated_or_updated():
  """Its parameters matter, but their gradient is that of a constant."""
  (student, _), (teacher, _) = _students("classes"), _teachers("classes")

  @jax.jit
  @jax.value_and_grad
  def match(teacher_params):
    learner = taught(student, teacher, teacher_params, cross_entropy)
    grads, metrics = learner.meta_grad(PARAMS, EPISODES["classes"], RNG)
    chex.assert_trees_all_equal_shapes(grads, PARAMS)
    return metrics["match"]

  here, grads = match(TEACHER_PARAMS)
  there, _ = match(_draw_params(TEACHER, 4))
  assert abs(here - there) > 0.01
  chex.assert_trees_all_equal(grads, jax.tree.map(np.zeros_like, grads))


def test_all_but_the_gradient_is_the_students():
  (student, _), (teacher, _) = _students("classes"), _teachers("classes")
  learner = taught(student, teacher, TEACHER_PARAMS, cross_entropy)
  assert learner._replace(meta_grad=student.meta_grad) == student


# --- Other teachers and students. ---


@pytest.mark.slow
def test_an_ensemble_teaches_the_mean_of_its_members_probabilities():
  size, episodes = 3, EPISODES["classes"]
  (student, answers), (member, member_answers) = (
    _students("classes"),
    _teachers("classes"),
  )
  members = _draw_params(TEACHER, 5, (size,))
  ensemble = learned_ensemble(
    member, members, average_probabilities, cross_entropy
  )
  equals = ensemble.init(RNG, episodes.support.inputs[0])
  learner = taught(student, ensemble, equals, cross_entropy, alpha=1.0)
  grads, metrics = jax.jit(learner.meta_grad)(PARAMS, episodes, RNG)
  p = [
    scipy.special.softmax(
      member_answers(jax.tree.map(lambda x, m=m: x[m], members), episodes),
      axis=-1,
    )
    for m in range(size)
  ]
  goal, predictions = np.mean(p, axis=0), answers(PARAMS, episodes)
  expected = _divergence(predictions, np.log(goal))
  np.testing.assert_allclose(metrics["match"], expected, rtol=1e-9)
  same = np.asarray(predictions).argmax(-1) == goal.argmax(-1)
  np.testing.assert_allclose(metrics["agreement"], same.mean(), rtol=1e-12)
  assert optax.tree.norm(grads) > 0.01


def _blobs(draw, num_tasks):
  """What tells the classes apart is in 2 inputs of 8; the rest is loud noise.

  The query's labels are all 0: nothing can be learned from them.
  """

  labels = np.tile(np.arange(15) % WAYS, (num_tasks, 1))
  means = 3 * draw.normal(size=(num_tasks, WAYS, 2))
  x = 3 * draw.normal(size=(num_tasks, 15, 8))
  x[..., :2] = np.take_along_axis(means, labels[..., None], axis=1)
  x[..., :2] += 0.5 * draw.normal(size=(num_tasks, 15, 2))
  support = Batch(x[:, :6], labels[:, :6])
  return Episode(support, Batch(x[:, 6:], 0 * labels[:, 6:]))


@pytest.mark.slow
def test_a_prototypical_network_learns_to_agree_with_a_slow_maml():
  """From the teacher alone, whose model is shown what matters only."""
  steps, chunk = 150, 16
  model = MLP(WAYS, (8,))
  shown = SimpleNamespace(
    init=None, apply=lambda params, x: model.apply(params, x[..., :2])
  )
  teacher = maml(shown, cross_entropy, optax.sgd(0.3), 5)
  teacher_params = jax.jit(model.init)(RNG, jnp.zeros((1, 2)))
  student = embedding(MLP(8, (16,)), nearest_mean(WAYS), cross_entropy)
  learner = taught(student, teacher, teacher_params, cross_entropy, alpha=1.0)
  optimizer = optax.adam(0.01)

  @jax.jit
  def learn(chunks):
    def step(carry, episodes):
      params, state = carry
      grads, metrics = learner.meta_grad(params, episodes, RNG)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), metrics

    params = learner.init(RNG, chunks.support.inputs[0, 0])
    return jax.lax.scan(step, (params, optimizer.init(params)), chunks)[1]

  # Every chunk is of new tasks, so what is reported is of unseen ones.
  tasks = _blobs(np.random.default_rng(0), steps * chunk)
  metrics = learn(
    jax.tree.map(lambda x: x.reshape(steps, chunk, *x.shape[1:]), tasks)
  )
  before, after = (
    {name: x[part].mean() for name, x in metrics.items()}
    for part in (slice(2), slice(-20, None))
  )
  assert after["agreement"] > before["agreement"] + 0.2
  assert after["match"] < 0.5 * before["match"]


# --- What is refused. ---


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alphas_out_of_range_are_named(alpha):
  (student, _), (teacher, _) = _students("classes"), _teachers("classes")
  with pytest.raises(ValueError, match=rf"alpha={alpha}: must be 0 to 1"):
    taught(student, teacher, TEACHER_PARAMS, cross_entropy, alpha=alpha)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive_are_named(temperature):
  (student, _), (teacher, _) = _students("classes"), _teachers("classes")
  with pytest.raises(
    ValueError, match=rf"temperature={temperature}: must be above 0"
  ):
    taught(
      student,
      teacher,
      TEACHER_PARAMS,
      cross_entropy,
      temperature=temperature,
    )


def test_targets_that_are_no_single_array_are_refused():
  student = MetaLearner(
    lambda rng, inputs: {},
    lambda params, support, rng: params,
    lambda params, inputs: inputs,
    None,
  )
  batch = Batch(jnp.ones((1, 2, 3)), {"a": jnp.ones((1, 2)), "b": jnp.ones(1)})
  learner = taught(student, student, {}, lambda p, t: p.mean())
  with pytest.raises(ValueError, match="^taught: targets must be one array"):
    learner.meta_grad({}, Episode(batch, batch), RNG)


@pytest.mark.slow
def test_share_and_temperature_of_the_teacher_are_swept():
  (student, _), (teacher, _) = _students("classes"), _teachers("classes")

  @jax.jit
  @jax.vmap
  def learn(alpha, temperature):
    learner = taught(
      student,
      teacher,
      TEACHER_PARAMS,
      cross_entropy,
      alpha=alpha,
      temperature=temperature,
    )
    grads, metrics = learner.meta_grad(PARAMS, EPISODES["classes"], RNG)
    return grads, metrics["match"]

  alphas, temperatures = [0.0, 1.0, 0.3, 0.3], [2.0, 2.0, 2.0, 8.0]
  grads, match = learn(jnp.array(alphas), jnp.array(temperatures))
  # Linear in the share, and another divergence at another temperature.
  for leaf in jax.tree.leaves(grads):
    expected = 0.7 * leaf[0] + 0.3 * leaf[1]
    np.testing.assert_allclose(leaf[2], expected, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(match[:3], match[0], rtol=1e-12)
  assert abs(match[3] - match[0]) > 0.01


def test_student_with_a_schedule_is_taught_at_every_step():
  student, _ = _students("classes")
  scheduled = student._replace(schedule=lambda step: student)
  teacher, _ = _teachers("classes")
  learner = taught(scheduled, teacher, TEACHER_PARAMS, cross_entropy)
  assert learner.at_step(jnp.int32(0)).meta_grad is learner.meta_grad
