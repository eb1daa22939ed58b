"""Policy learners and their trainer, on small tasks with known answers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners.partition import last_layer
from metajax.models.mlp import MLP
from metajax.policies.advantages import Estimator, advantages
from metajax.policies.context import context_alone, with_context
from metajax.policies.evaluation import played_tasks, returns_by_step
from metajax.policies.policy import categorical_policy, gaussian_policy
from metajax.policies.policy_learner import POLICY_LEARNERS, policy_learner
from metajax.policies.surrogates import clipped, score_function
from metajax.policies.trainer import KLPenalty, policy_trainer
from metajax.policies.trust_region import TrustRegion
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import Continuous, Discrete

RATE, EPISODES, TASKS = 0.7, 4, 3
MODEL = MLP(2, (4,))


@functools.cache
def _parts(name, num_steps=1, credit=0.0):
  tasks = navigation(6)
  policy = gaussian_policy(MODEL, tasks.actions)
  learner = policy_learner(
    policy,
    tasks,
    inner_lr=RATE,
    num_episodes=EPISODES,
    credit=credit,
    fisher_every=1,
    **{"num_steps": num_steps, **POLICY_LEARNERS[name]},
  )
  params = learner.init(jax.random.key(0))
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(1), TASKS))
  experience = jax.jit(learner.collect)(params, drawn, jax.random.key(2))
  return policy, tasks, learner, params, experience


@pytest.mark.slow
def test_adaptation_is_a_gradient_step_on_the_normal_density():
  """The gradient of log N is written out; the bias of the head is compared."""
  _, _, learner, params, experience = _parts("maml")
  rollouts = jax.tree.map(lambda x: x[0, 0], experience.before)
  new = jax.jit(learner.adapt)(params, rollouts)
  found = np.asarray(jax.jit(lambda r: advantages(r, Estimator()))(rollouts))
  mean, log_scale = map(np.asarray, rollouts.distribution)
  score = (np.asarray(rollouts.actions) - mean) * np.exp(-2 * log_scale)
  inside = np.asarray(rollouts.mask)
  ascent = (found[..., None] * score)[inside].mean(0)
  old_bias = params["policy"]["model"]["params"]["Dense_1"]["bias"]
  new_bias = new["policy"]["model"]["params"]["Dense_1"]["bias"]
  np.testing.assert_allclose(
    new_bias - old_bias, RATE * ascent, rtol=1e-3, atol=1e-5
  )
  of_scale = (score * (np.asarray(rollouts.actions) - mean)) - 1.0
  ascent = (found[..., None] * of_scale)[inside].mean(0)
  np.testing.assert_allclose(
    new["policy"]["log_scale"], RATE * ascent, rtol=1e-3, atol=1e-5
  )


def _loss(learner, experience):
  return lambda params: learner.outer(params, experience)[0]


def _float64(num_steps, name="maml"):
  """A learner without a stopped ratio in its inner steps, for float64."""
  tasks = navigation(6)
  policy = gaussian_policy(MODEL, tasks.actions)
  learner = policy_learner(
    policy,
    tasks,
    inner_lr=RATE,
    num_episodes=EPISODES,
    inner_surrogate=score_function,
    fisher_every=1,
    **{"num_steps": num_steps, **POLICY_LEARNERS[name]},
  )
  # Biases of zero would put the first step of an episode, at the origin, on
  # the kinks of the ReLUs.
  draw = np.random.default_rng(0).normal
  params = jax.tree.map(
    lambda x: jnp.float64(x) + 0.2 * draw(size=x.shape),
    learner.init(jax.random.key(0)),
  )
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(1), TASKS))
  experience = jax.jit(learner.collect)(params, drawn, jax.random.key(2))
  return learner, params, experience, draw


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, num_steps",
  [("maml", 2), ("meta_sgd", 1), ("anil", 1), ("cavia", 1)],
)
def test_outer_gradient_equals_finite_differences(name, num_steps):
  """Of a loss whose inner steps have no stopped ratio: the score function."""
  with jax.enable_x64(True):
    learner, params, experience, draw = _float64(num_steps, name)
    loss = jax.jit(_loss(learner, experience))
    gradient = jax.jit(jax.grad(_loss(learner, experience)))(params)
    for _ in range(2):
      way = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape)), params)
      small = jax.tree.map(lambda w: 1e-5 * w, way)
      above = loss(jax.tree.map(jnp.add, params, small))
      below = loss(jax.tree.map(jnp.subtract, params, small))
      slope = sum(
        jnp.vdot(g, w)
        for g, w in zip(
          jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True
        )
      )
      np.testing.assert_allclose((above - below) / 2e-5, slope, rtol=1e-5)


@pytest.mark.slow
def test_first_order_has_another_gradient_at_the_same_loss():
  """With the identity as derivative, it is the gradient at the adapted one."""
  _, _, maml, params, experience = _parts("maml")
  _, _, fomaml, _, _ = _parts("fomaml")
  (loss, grads), (other_loss, other) = (
    jax.jit(jax.value_and_grad(_loss(x, experience)))(params)
    for x in (maml, fomaml)
  )
  np.testing.assert_allclose(loss, other_loss, rtol=1e-6, atol=1e-7)
  norm, difference = optax.tree.norm(grads), optax.tree.sub(grads, other)
  assert optax.tree.norm(difference) > 0.01 * norm
  _, _, pretrained, _, _ = _parts("pretrained")

  def at_adapted(one):
    alone = jax.tree.map(lambda x: x[None], one)
    return jax.grad(_loss(pretrained, alone))(one.adapted)

  expected = jax.jit(jax.vmap(at_adapted))(experience)
  for x, y in zip(
    jax.tree.leaves(other), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y.mean(0), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_divergence_is_zero_at_the_policy_that_played():
  _, _, learner, params, experience = _parts("maml")
  _, divergence, _ = jax.jit(learner.outer)(params, experience)
  np.testing.assert_allclose(divergence, 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [0, 2])
def test_fisher_product_is_the_hessian_of_the_divergence(num_steps):
  """With the derivative of the adaptation, by forward over reverse."""
  with jax.enable_x64(True):
    learner, params, experience, draw = _float64(num_steps)
    way = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape)), params)
    found = jax.jit(lambda p, e, v: learner.fisher(p, e)(v))(
      params, experience, way
    )

    def gradient(params, experience):
      return jax.grad(lambda p: learner.outer(p, experience)[1])(params)

    expected = jax.jit(
      lambda p, e, v: jax.jvp(lambda p: gradient(p, e), (p,), (v,))[1]
    )(params, experience, way)
    for x, y in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICY_LEARNERS)
def test_learner_keeps_the_contract(name):
  """And adapts what it says alone: the last layer, the context or all."""
  _, _, learner, params, experience = _parts(name)
  rollouts = jax.tree.map(lambda x: x[0, 0], experience.before)
  adapt = jax.jit(learner.adapt)
  new = adapt(params, rollouts, 0)
  moved = jax.tree.map(
    lambda x, y: bool((x != y).any()), params["policy"], new["policy"]
  )
  own = {"anil": last_layer, "cavia": context_alone}
  every = lambda params: jax.tree.map(lambda _: True, params)  # noqa: E731
  assert moved == own.get(name, every)(params["policy"])
  again = adapt(new, rollouts, 1)  # It can be adapted again.
  assert jax.tree.structure(again) == jax.tree.structure(params)
  seen = experience.after.observations[0, :, 0]
  actions = learner.act(new, seen, jax.random.key(3))
  assert actions.shape == (EPISODES, 2)


@pytest.mark.slow
def test_meta_gradient_is_that_of_new_experience():
  _, tasks, learner, params, experience = _parts("cavia")
  drawn = jax.vmap(tasks.draw)(jax.random.split(jax.random.key(1), TASKS))
  grads, metrics = jax.jit(learner.meta_grad)(params, drawn, jax.random.key(2))
  expected = jax.jit(jax.grad(_loss(learner, experience)))(params)
  for x, y in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
  assert np.isfinite(metrics["return_after"])


class _Normalized(nn.Module):
  outputs: int

  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
    return nn.Dense(self.outputs)(nn.relu(x))


@pytest.mark.parametrize(
  "policy",
  [
    categorical_policy(_Normalized(3), Discrete(3)),
    gaussian_policy(_Normalized(2), Continuous(2)),
  ],
)
def test_running_statistics_are_refused_which_took_gradient_steps(policy):
  message = "^model: keeps running statistics, which a policy does not update"
  with pytest.raises(ValueError, match=message):
    policy.init(jax.random.key(0), jnp.ones((1, 2)))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, bool])
def test_context_adapts_beside_observations_of_integers(dtype):
  """It was rounded to them, and so had no effect and no derivative."""
  model = MLP(2, (4,))
  policy = with_context(categorical_policy(model, Discrete(2)), 3)
  seen = jnp.array([[1, 0], [0, 1]], dtype)
  params = policy.init(jax.random.key(0), seen)
  params["context"] = jnp.array([0.3, -0.2, 0.7])

  numbers = jnp.concatenate(
    [seen.astype(jnp.float32), jnp.tile(params["context"], (2, 1))], -1
  )
  logits = policy.apply(params, seen).logits
  expected = model.apply(params["weights"], numbers)
  np.testing.assert_allclose(logits, expected, rtol=1e-6)
  found = jax.grad(lambda p: policy.apply(p, seen).logits[:, 0].sum())(params)
  assert found["context"].any()


@pytest.mark.slow
def test_context_begins_at_zero_in_every_task():
  """The outer loss does not read it, so nothing trains it."""
  _, _, learner, params, experience = _parts("cavia")
  other = {
    **params,
    "policy": {**params["policy"], "context": jnp.ones(5)},
  }
  loss = jax.jit(jax.value_and_grad(_loss(learner, experience)))
  (here, grads), (there, _) = loss(params), loss(other)
  assert here == there
  np.testing.assert_array_equal(grads["policy"]["context"], 0.0)
  first = grads["policy"]["weights"]["model"]["params"]["Dense_0"]["kernel"]
  assert np.abs(first[2:]).max() > 0  # The weights that read it do train.


def _moved(params):
  draw = np.random.default_rng(5).normal
  return jax.tree.map(lambda x: x + 0.1 * draw(size=x.shape), params)


@pytest.mark.slow
def test_drift_is_the_divergence_of_two_normal_densities():
  policy, _, learner, params, experience = _parts("maml")
  drift = jax.jit(learner.drift)
  np.testing.assert_allclose(drift(params, experience), 0.0, atol=1e-6)
  moved = _moved(params)
  first = jax.tree.map(lambda x: np.float64(x[:, 0]), experience.before)
  new = policy.apply(moved["policy"], first.observations.reshape(-1, 2))
  mean, log_scale = (np.float64(x).reshape(TASKS, EPISODES, -1, 2) for x in new)
  old_scale, scale = np.exp(first.distribution.log_scale), np.exp(log_scale)
  error = first.distribution.mean - mean
  kl = np.log(scale / old_scale) - 0.5
  kl = (kl + (old_scale**2 + error**2) / (2 * scale**2)).sum(-1)
  inside = first.mask > 0
  expected = np.mean([x[m].mean() for x, m in zip(kl, inside, strict=True)])
  assert expected > 1e-3
  np.testing.assert_allclose(drift(moved, experience), expected, rtol=1e-4)


def test_weight_of_the_penalty_follows_the_drift():
  penalty = KLPenalty(target=0.3, smallest=0.4)
  for drift, weight in [(0.1, 0.5), (0.21, 1.0), (0.44, 1.0), (0.46, 2.0)]:
    assert penalty.next_weight(jnp.float32(1), jnp.float32(drift)) == weight
  few = penalty.next_weight(jnp.float32(0.5), jnp.float32(0.0))
  np.testing.assert_allclose(few, 0.4)
  fixed = penalty._replace(adaptive=False)
  assert fixed.next_weight(jnp.float32(1), jnp.float32(9.0)) == 1


@pytest.mark.slow
def test_penalized_step_is_that_of_a_loop_and_adapts_its_weight():
  """Two updates by gradient descent of the loss and 0.3 times the drift."""
  _, tasks, learner, _, _ = _parts("maml")
  rate, rng = 0.1, jax.random.key(7)
  trainer = policy_trainer(
    learner,
    tasks,
    optax.sgd(rate),
    meta_batch=TASKS,
    rng=rng,
    epochs=2,
    penalty=KLPenalty(0.3, target=1e-6),
  )
  state = trainer.init(jax.random.key(0))
  params = jax.device_get(state.meta_params)
  train, _ = trainer.compile(state)
  state, metrics = train(state, 1)
  task_key, play_key = jax.random.split(jax.random.fold_in(rng, 0))
  drawn = jax.vmap(tasks.draw)(jax.random.split(task_key, TASKS))
  experience = jax.jit(learner.collect)(params, drawn, play_key)
  slope = jax.jit(
    jax.grad(
      lambda p: (
        learner.outer(p, experience)[0] + 0.3 * learner.drift(p, experience)
      )
    )
  )
  for _ in range(2):
    params = jax.tree.map(lambda x, g: x - rate * g, params, slope(params))
  for x, y in zip(
    jax.tree.leaves(state.meta_params), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.opt_state.weight, 0.6, rtol=1e-6)
  assert metrics["drift"] > 0


@pytest.mark.slow
def test_learned_factors_scale_the_step_and_have_a_gradient():
  _, _, learner, params, experience = _parts("meta_sgd")
  rollouts = jax.tree.map(lambda x: x[0, 0], experience.before)
  adapt = jax.jit(learner.adapt)
  step = optax.tree.sub(adapt(params, rollouts)["policy"], params["policy"])
  twice = {
    **params,
    "factors": jax.tree.map(lambda f: 2.0 * f, params["factors"]),
  }
  longer = optax.tree.sub(adapt(twice, rollouts)["policy"], params["policy"])
  for x, y in zip(jax.tree.leaves(step), jax.tree.leaves(longer), strict=True):
    np.testing.assert_allclose(2 * x, y, rtol=1e-3, atol=1e-6)
  grads = jax.jit(jax.grad(_loss(learner, experience)))(params)
  assert optax.tree.norm(grads["factors"]) > 0


def test_credit_of_one_task_is_refused_since_it_would_be_none():
  _, tasks, learner, params, _ = _parts("maml", credit=0.3)
  trainer = policy_trainer(
    learner, tasks, optax.sgd(0.1), meta_batch=1, rng=jax.random.key(0)
  )
  state = trainer.init(jax.random.key(1))
  with pytest.raises(ValueError, match="^credit: compares .*meta_batch=1"):
    trainer.compile(state)


@pytest.mark.slow
def test_credit_adds_the_gradient_of_the_first_episodes():
  """Written out: minus the outcome, less its mean, times the scores' sum."""
  policy, _, learner, params, experience = _parts("maml")
  _, _, credited, _, _ = _parts("maml", credit=0.3)
  outcome = np.asarray(experience.after.returns).mean(1)
  outcome = outcome - outcome.mean()

  def scores(params):
    seen = experience.before.observations[:, 0]
    chosen = policy.apply(params["policy"], seen.reshape(-1, 2))
    log_probs = chosen.log_prob(
      experience.before.actions[:, 0].reshape(-1, 2)
    ).reshape(TASKS, EPISODES, -1)
    inside = experience.before.mask[:, 0]
    total = jnp.where(inside, log_probs, 0.0).sum((1, 2)) / EPISODES
    return -(outcome * total).mean()

  plain, more = (
    jax.jit(jax.grad(_loss(x, experience)))(params) for x in (learner, credited)
  )
  expected = jax.jit(jax.grad(scores))(params)
  difference = jax.tree.map(lambda a, b: (a - b) / 0.3, more, plain)
  for x, y in zip(
    jax.tree.leaves(difference), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  "outer, epochs, steps",
  [
    (TrustRegion(max_kl=0.05), 1, 100),
    (optax.adam(0.03), 1, 40),
    (optax.adam(0.005), 4, 40),
  ],
  ids=["trpo", "adam", "ppo"],
)
def test_training_improves_the_return_after_adaptation(outer, epochs, steps):
  tasks = navigation(10)
  policy = gaussian_policy(MLP(2, (16,)), tasks.actions, initial_scale=0.5)
  extra = {"outer_surrogate": clipped()} if epochs > 1 else {}
  learner = policy_learner(
    policy, tasks, inner_lr=0.5, num_episodes=10, **extra
  )
  trainer = policy_trainer(
    learner,
    tasks,
    outer,
    meta_batch=10,
    rng=jax.random.key(1),
    epochs=epochs,
  )
  state = trainer.init(jax.random.key(0))

  @jax.jit
  def after_adaptation(params):
    returns = returns_by_step(
      learner,
      tasks,
      params,
      jax.random.key(3),
      num_tasks=200,
      num_steps=1,
      num_episodes=10,
    )
    return returns[:, 1]

  before = after_adaptation(state.meta_params)
  train, _ = trainer.compile(state)
  state, metrics = train(state, steps)
  assert state.step == steps
  gains = after_adaptation(state.meta_params) - before  # Of the same tasks.
  assert gains.mean() > 2 * gains.std() / len(gains) ** 0.5
  if isinstance(outer, TrustRegion):
    assert 0 < metrics["kl"] <= 0.05


@pytest.mark.slow
def test_played_tasks_are_those_of_a_loop_written_out():
  """In chunks of 2, the last of them not full; steps of 0.7 and 0.35."""
  policy, tasks, _, params, _ = _parts("maml")
  learner = policy_learner(
    policy, tasks, inner_lr=lambda k: RATE * 0.5**k, num_episodes=EPISODES
  )
  options = {"num_steps": 2, "num_episodes": EPISODES}
  rng = jax.random.key(5)
  drawn, rollouts = played_tasks(learner, tasks, tasks_at_once=2, **options)(
    params, rng, 3
  )
  play = jax.jit(lambda p, task, key: learner.play(p, task, key, EPISODES))
  adapt = jax.jit(learner.adapt, static_argnums=2)
  returns = np.zeros((3, 3))
  for i, key in enumerate(jax.random.split(rng, 3)):
    task_key, play_key = jax.random.split(key)
    task, phi = tasks.draw(task_key), params
    np.testing.assert_array_equal(drawn[i], task)
    for k, step_key in enumerate(jax.random.split(play_key, 3)):
      played = play(phi, task, step_key)
      returns[i, k] = played.returns.mean()
      phi = adapt(phi, played, k)
  assert np.ptp(returns, axis=1).min() > 1e-3
  np.testing.assert_allclose(rollouts.returns.mean(-1), returns, rtol=1e-4)
  again = jax.jit(
    lambda p: returns_by_step(learner, tasks, p, rng, num_tasks=3, **options)
  )(params)
  np.testing.assert_allclose(again, returns, rtol=1e-4)


@pytest.mark.slow
def test_training_goes_on_bit_for_bit():
  _, tasks, learner, _, _ = _parts("maml")
  trainer = policy_trainer(
    learner, tasks, TrustRegion(), meta_batch=2, rng=jax.random.key(1)
  )
  train, _ = trainer.compile(trainer.init(jax.random.key(0)))
  whole, _ = train(trainer.init(jax.random.key(0)), 4)
  part, _ = train(trainer.init(jax.random.key(0)), 1)
  part, _ = train(part, 3)
  for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_cannot_be_is_refused():
  tasks = navigation(6)
  policy = gaussian_policy(MODEL, tasks.actions)
  wrong = categorical_policy(MODEL, Discrete(2))
  with pytest.raises(ValueError, match="policy: chooses from Discrete"):
    policy_learner(wrong, tasks)
  for name, value in {
    "inner_lr": -1.0,
    "num_steps": -1,
    "num_episodes": 0,
    "credit": -1.0,
    "context": -1,
    "fisher_every": 0,
    "estimator": Estimator(discount=2.0),
  }.items():
    named = "discount=2.0" if name == "estimator" else f"{name}={value}"
    with pytest.raises(ValueError, match=f"{named}: must be"):
      policy_learner(policy, tasks, **{name: value})
  with pytest.raises(ValueError, match="context=2: only the context adapts"):
    policy_learner(policy, tasks, context=2, mask=last_layer)
  learner = policy_learner(policy, tasks)
  build = functools.partial(
    policy_trainer, learner, tasks, rng=jax.random.key(0)
  )
  with pytest.raises(ValueError, match="meta_batch=0: must be"):
    build(TrustRegion(), meta_batch=0)
  with pytest.raises(ValueError, match="epochs=2: TRPO takes one step"):
    build(TrustRegion(), meta_batch=1, epochs=2)
  with pytest.raises(ValueError, match="TRPO bounds the divergence itself"):
    build(TrustRegion(), meta_batch=1, penalty=KLPenalty())
  for name in ("weight", "target", "smallest"):
    wrong = KLPenalty()._replace(**{name: 0.0})
    with pytest.raises(ValueError, match=f"{name}=0.0: must be"):
      build(optax.sgd(0.1), meta_batch=1, penalty=wrong)
  with pytest.raises(ValueError, match="penalty: float given, must be a KLPe"):
    build(optax.sgd(0.1), meta_batch=1, penalty=0.1)
  with pytest.raises(ValueError, match="estimator: float given, must be a Est"):
    policy_learner(policy, tasks, estimator=0.99)
  with pytest.raises(ValueError, match="max_kl=-1: must be"):
    build(TrustRegion(max_kl=-1), meta_batch=1)


def test_what_needs_an_inner_step_is_not_ignored_without_one():
  with pytest.raises(ValueError, match="^credit=0.3: .* num_steps=0; give 0"):
    _parts("pretrained", credit=0.3)
  _, tasks, learner, _, _ = _parts("pretrained")
  trainer = policy_trainer(
    learner,
    tasks,
    optax.sgd(0.1),
    meta_batch=1,
    rng=jax.random.key(0),
    penalty=KLPenalty(),
  )
  state = trainer.init(jax.random.key(0))
  with pytest.raises(ValueError, match="^penalty: .* num_steps=0; give None"):
    trainer.compile(state)
