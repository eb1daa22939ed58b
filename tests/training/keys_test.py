"""A seed in place of a key is named by every trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import learners
from metajax.losses import mean_squared_error
from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent
from metajax.numerics import check_key
from metajax.off_policy import PEARL, pearl_agent, pearl_trainer
from metajax.policies import (
  PPO,
  VariBAD,
  belief_network,
  categorical_policy,
  played_tasks,
  policy_learner,
  policy_trainer,
  ppo_trainer,
  returns_by_step,
  varibad_trainer,
)
from metajax.replay import (
  EpisodeReplay,
  Objective,
  Replay,
  episode_replay_trainer,
  replay_trainer,
)
from metajax.tasks import sinusoid
from metajax.tasks.bandits import bandit_tasks, bandits
from metajax.tasks.navigation import navigation
from metajax.training import (
  Clients,
  cohort_trainer,
  federated_trainer,
  meta_trainer,
  supervised_trainer,
)
from metajax.types import Batch

SGD, MODEL = optax.sgd(0.1), MLP(1, (4,))
SINUSOIDS = sinusoid(shots=2)
LEARNER = learners.maml(MODEL, mean_squared_error, SGD, num_steps=1)
CLIENTS = Clients(
  Batch(jnp.ones((2, 2, 1)), jnp.ones((2, 2, 1))), np.array([2, 2])
)
ARMS = bandit_tasks(2, 3)
POLICY = policy_learner(categorical_policy(MLP(2, (4,)), ARMS.actions), ARMS)
WALKS = navigation(3)
ENCODER = recurrent(2 * 5, units=4)


def _weights(rng):
  return MODEL.init(rng, jnp.ones((2, 1)))


TRAINERS = {
  "meta": lambda rng: meta_trainer(
    LEARNER, SGD, SINUSOIDS, meta_batch=2, rng=rng
  ),
  "supervised": lambda rng: supervised_trainer(
    _weights,
    lambda p, x, key: (jnp.float32(0), {}),
    SGD,
    jnp.ones((4, 1)),
    batch_size=2,
    rng=rng,
  ),
  "cohort": lambda rng: cohort_trainer(
    _weights, lambda rng, p, mean, count: (p, {}), 2, 1, rng=rng
  ),
  "federated": lambda rng: federated_trainer(
    MODEL,
    mean_squared_error,
    CLIENTS,
    SGD,
    SGD,
    clients_per_round=2,
    rng=rng,
  ),
  "episode_replay": lambda rng: episode_replay_trainer(
    LEARNER, SGD, SINUSOIDS, EpisodeReplay(new=1, batch=1), rng=rng
  ),
  "replay": lambda rng: replay_trainer(
    recurrent(2, units=4),
    bandits(2, 4),
    SGD,
    Objective(2, 4),
    Replay(actors=2, length=2, period=2, capacity=8, batch=2),
    rng=rng,
  ),
  "policy": lambda rng: policy_trainer(
    POLICY, ARMS, SGD, meta_batch=1, rng=rng
  ),
  "pearl": lambda rng: pearl_trainer(
    pearl_agent(MLP(4), MLP(4), MLP(1), WALKS.actions, latent=2),
    WALKS,
    SGD,
    PEARL(num_tasks=1, collected=1, episodes=1, meta_batch=1, capacity=3),
    rng=rng,
  ),
  "ppo": lambda rng: ppo_trainer(
    recurrent(2, units=4, head="actor_critic"),
    bandits(2, 4),
    SGD,
    PPO(actors=4),
    rng=rng,
  ),
  "varibad": lambda rng: varibad_trainer(
    belief_network(ENCODER, 2, latent=5),
    bandits(2, 4),
    SGD,
    SGD,
    PPO(actors=4),
    VariBAD(batch=4),
    rng=rng,
  ),
}


@pytest.mark.parametrize("seed", [0, np.int32(3), jnp.int32(0), None])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_seed_in_place_of_a_key_is_named(name, seed):
  with pytest.raises(ValueError, match="^rng=.* must be a key, such as"):
    TRAINERS[name](seed)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_seed_of_the_first_parameters_is_named(name):
  trainer = TRAINERS[name](jax.random.key(0))
  with pytest.raises(ValueError, match="^rng=0: must be a key, such as"):
    trainer.init(0)


@pytest.mark.parametrize(
  "play",
  [
    lambda rng: played_tasks(POLICY, ARMS, num_steps=1, num_episodes=1)(
      {}, rng, 1
    ),
    lambda rng: returns_by_step(
      POLICY, ARMS, {}, rng, num_tasks=1, num_steps=1, num_episodes=1
    ),
  ],
)
def test_a_seed_of_an_evaluation_of_policies_is_named(play):
  with pytest.raises(ValueError, match="^rng=0: must be a key, such as"):
    play(0)


def test_raw_keys_and_keys_of_several_seeds_are_keys():
  check_key(jax.random.PRNGKey(0))
  check_key(jax.random.split(jax.random.key(0), 3))
  check_key(np.asarray(jax.random.PRNGKey(0)))
