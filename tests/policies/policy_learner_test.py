"""Policy learners and their trainer, on small tasks with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners.partition import last_layer
from metajax.models.mlp import MLP
from metajax.policies.advantages import Estimator, advantages
from metajax.policies.evaluation import played_tasks, returns_by_step
from metajax.policies.policy import categorical_policy, gaussian_policy
from metajax.policies.policy_learner import POLICY_LEARNERS, policy_learner
from metajax.policies.surrogates import clipped, score_function
from metajax.policies.trainer import policy_trainer
from metajax.policies.trust_region import TrustRegion
from metajax.tasks.navigation import navigation
from metajax.tasks.playable import Discrete

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
    num_steps=num_steps,
    num_episodes=EPISODES,
    credit=credit,
    fisher_every=1,
    **POLICY_LEARNERS[name],
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


def _float64(num_steps):
  """A learner without a stopped ratio in its inner steps, for float64."""
  tasks = navigation(6)
  policy = gaussian_policy(MODEL, tasks.actions)
  learner = policy_learner(
    policy,
    tasks,
    inner_lr=RATE,
    num_steps=num_steps,
    num_episodes=EPISODES,
    inner_surrogate=score_function,
    fisher_every=1,
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
@pytest.mark.parametrize("num_steps", [2])
def test_outer_gradient_equals_finite_differences(num_steps):
  """Of a loss whose inner steps have no stopped ratio: the score function."""
  with jax.enable_x64(True):
    learner, params, experience, draw = _float64(num_steps)
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
def test_anil_adapts_the_last_layer_alone():
  _, _, learner, params, experience = _parts("anil")
  rollouts = jax.tree.map(lambda x: x[0, 0], experience.before)
  new = jax.jit(learner.adapt)(params, rollouts)
  moved = jax.tree.map(
    lambda x, y: bool((x != y).any()), params["policy"], new["policy"]
  )
  assert moved == last_layer(params["policy"])


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
    "fisher_every": 0,
    "estimator": Estimator(discount=2.0),
  }.items():
    named = "discount=2.0" if name == "estimator" else f"{name}={value}"
    with pytest.raises(ValueError, match=f"{named}: must be"):
      policy_learner(policy, tasks, **{name: value})
  learner = policy_learner(policy, tasks)
  build = functools.partial(
    policy_trainer, learner, tasks, rng=jax.random.key(0)
  )
  with pytest.raises(ValueError, match="meta_batch=0: must be"):
    build(TrustRegion(), meta_batch=0)
  with pytest.raises(ValueError, match="epochs=2: TRPO takes one step"):
    build(TrustRegion(), meta_batch=1, epochs=2)
  with pytest.raises(ValueError, match="max_kl=-1: must be"):
    build(TrustRegion(max_kl=-1), meta_batch=1)
