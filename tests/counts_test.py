"""Numbers of things are integers. A loop of 1.5 steps would take two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import (
  aggregation,
  bilevel,
  context,
  distillation,
  evaluate,
  learned_optimizers,
  learners,
  players,
  tasks,
)
from metajax.calibration import expected_calibration_error
from metajax.continual import meta_experience_replay, reservoir
from metajax.learners import heads
from metajax.losses import mean_squared_error
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.recurrent import recurrent
from metajax.numerics import check_counts
from metajax.policies import PPO, ppo_trainer, varibad_trainer
from metajax.policies.ppo import check_ppo
from metajax.replay import Objective, epsilon_ladder, n_step_double_q
from metajax.replay.buffers import lay_out
from metajax.replay.learning import check_objective
from metajax.replay.sequences import sequence_starts
from metajax.tabular import tabular_classifier
from metajax.tasks import augmentation, sinusoid
from metajax.tasks.bandits import bandits
from metajax.tasks.class_batches import class_batches
from metajax.tasks.playable import Discrete, playable
from metajax.tasks.tabular_mdp import mdp_tasks
from metajax.training import (
  cohort_trainer,
  meta_trainer,
  supervised_trainer,
  task_mesh,
)

MODEL, SGD = MLP(1, (4,)), optax.sgd(0.1)
KEY = jax.random.key(0)
LEARNER = learners.maml(MODEL, mean_squared_error, SGD, num_steps=1)
IMAGES = np.zeros((4, 4, 8, 8, 1), np.uint8)
LINE = {"inputs": jnp.ones((4, 1)), "labels": jnp.ones((4, 1))}


def _learner(build, **options):
  arguments = {"num_steps": 1} | options
  return build(MODEL, mean_squared_error, SGD, **arguments)


def _trainer(**options):
  return meta_trainer(
    LEARNER,
    SGD,
    sinusoid(shots=2),
    rng=KEY,
    **{"meta_batch": 2, **options},
  )


def _evaluate(**options):
  scores = {"mse": mean_squared_error}
  return evaluate(LEARNER, {}, sinusoid(shots=2), scores, KEY, **options)


def _nothing(*arguments):
  del arguments


# By the name of the argument: calls that need a count.
CALLS = {
  "num_steps": [
    lambda n: _learner(learners.maml, num_steps=n),
    lambda n: _learner(learners.meta_sgd, num_steps=n),
    lambda n: _learner(learners.imaml, num_steps=n),
    lambda n: heads.logistic(2, num_steps=n),
    lambda n: aggregation.stacking_weights(jnp.zeros((2, 3)), n),
    lambda n: context.attention_descent(mean_squared_error, num_steps=n),
  ],
  "num_layers": [
    distillation.relu_tangent_kernel,
    lambda n: context.linear_attention(mean_squared_error, num_layers=n),
    lambda n: tabular_classifier(num_layers=n),
  ],
  "num_eval_steps": [lambda n: _learner(learners.maml, num_eval_steps=n)],
  "target_steps": [lambda n: _learner(learners.bmg, target_steps=n)],
  "cg_steps": [lambda n: _learner(learners.imaml, cg_steps=n)],
  "inner_batch": [lambda n: _learner(learners.reptile, inner_batch=n)],
  "ways": [heads.nearest_mean, heads.ridge, heads.logistic],
  "meta_batch": [lambda n: _trainer(meta_batch=n)],
  "task_chunk": [
    lambda n: _trainer(task_chunk=n),
    lambda n: _evaluate(task_chunk=n),
  ],
  "num_tasks": [lambda n: _evaluate(num_tasks=n)],
  "batch_size": [
    lambda n: supervised_trainer(
      _nothing, _nothing, SGD, LINE, batch_size=n, rng=KEY
    ),
    lambda n: distillation.predict_all(_nothing, LINE["inputs"], batch_size=n),
  ],
  "shots": [lambda n: sinusoid(shots=n)],
  "query_shots": [lambda n: sinusoid(shots=2, query_shots=n)],
  "num_inputs": [
    lambda n: tasks.gaussian_processes(num_inputs=n),
    lambda n: tasks.linear_regression(num_inputs=n),
  ],
  "num_arms": [lambda n: bandits(n, 2), players.greedy, players.thompson],
  "num_actions": [players.random_player],
  "num_actors": [epsilon_ladder],
  "states": [lambda n: players.ucrl2(players.Sizes(states=n), 1.0)],
  "width": [
    lambda n: context.tnp_d(width=n),
    lambda n: context.conditional_neural_process(width=n),
    lambda n: context.alpaca(width=n),
    lambda n: context.memory_augmented(2, width=n),
    lambda n: context.ttt_linear(2, width=n),
    lambda n: context.convolutional_process(width=n),
  ],
  "channels": [lambda n: context.snail(2, channels=n)],
  "positions": [lambda n: context.sequence_transformer(positions=n)],
  "hidden": [
    lambda n: learned_optimizers.mlp_optimizer(hidden=(n,)),
    lambda n: bilevel.learned_loss(1, hidden=(n,)),
  ],
  "num_outputs": [
    recurrent,
    lambda n: context.tnp_d(num_outputs=n),
    lambda n: context.conditional_neural_process(num_outputs=n),
  ],
  "num_pulls": [
    lambda n: bandits(2, n),
    lambda n: players.gittins_indices(n, 0.9),
  ],
  "num_samples": [lambda n: players.likeliest_thompson(2, n)],
  "num_states": [lambda n: mdp_tasks(num_states=n)],
  "horizon": [
    lambda n: playable(
      _nothing, _nothing, _nothing, actions=Discrete(2), horizon=n
    )
  ],
  "actions": [
    lambda n: playable(
      _nothing, _nothing, _nothing, actions=Discrete(n), horizon=2
    )
  ],
  "capacity": [lambda n: reservoir(jnp.zeros(2), n)],
  "batches": [
    lambda n: meta_experience_replay(
      _nothing, 0.1, 0.1, capacity=2, batch=2, batches=n
    )
  ],
  "per_class": [lambda n: class_batches(IMAGES, n)],
  "length": [
    lambda n: bilevel.of_steps(_nothing, n),
    lambda n: sequence_starts(4, n, 1),
  ],
  "max_size": [lambda n: bilevel.direct(max_size=n)],
  "num_terms": [lambda n: bilevel.neumann(n, 0.1)],
  "population": [lambda n: bilevel.search("CMA_ES", {}, population=n)],
  "units": [
    lambda n: learned_optimizers.lstm_optimizer(units=n),
    lambda n: recurrent(2, units=n),
  ],
  "num_chosen": [lambda n: distillation.herding(jnp.ones((4, 2)), n)],
  "num_bins": [
    lambda n: expected_calibration_error(
      jnp.zeros((2, 3)), jnp.zeros(2, int), num_bins=n
    )
  ],
  "num_blocks": [lambda n: conv4(2, num_blocks=n)],
  "joined_blocks": [lambda n: conv4(2, strided=False, joined_blocks=n)],
  "period": [
    lambda n: aggregation.swa(period=n),
    lambda n: sequence_starts(4, 3, n),
  ],
  "count": [lambda n: aggregation.recent(count=n, period=1)],
  "padding": [augmentation.random_crop],
  "size": [augmentation.cutout],
  "burn_in": [lambda n: check_objective(Objective(2, 4, burn_in=n), 4)],
  "n": [
    lambda n: check_objective(Objective(2, 4, n=n), 4),
    lambda n: n_step_double_q(
      jnp.ones(2), jnp.ones(2), jnp.ones((3, 2)), jnp.ones((3, 2)), n
    ),
  ],
  "epochs": [lambda n: check_ppo(PPO(epochs=n), task_mesh(1))],
  "shards": [lambda n: lay_out(None, n, actors=4)],
  # Without a mesh, which is built by them.
  "actors": [
    lambda n: lay_out(None, None, actors=n),
    lambda n: ppo_trainer(None, None, SGD, PPO(n), rng=KEY),
    lambda n: varibad_trainer(None, None, SGD, SGD, PPO(n), None, rng=KEY),
  ],
  "cohort": [lambda n: cohort_trainer(_nothing, _nothing, 6, n, rng=KEY)],
}


@pytest.mark.parametrize("value", [1.5, 2.0, True, np.float32(2)])
@pytest.mark.parametrize("name", CALLS)
def test_a_count_that_is_no_integer_is_refused(name, value):
  for call in CALLS[name]:
    with pytest.raises(ValueError, match=f"^{name}=.*must be an integer, "):
      call(value)


@pytest.mark.parametrize("name", CALLS)
def test_a_negative_count_is_refused(name):
  for call in CALLS[name]:
    with pytest.raises(
      ValueError, match=f"^{name}=-1: must be (from )?[012] (or more|to )"
    ):
      call(-1)


def test_integers_of_numpy_and_traced_numbers_are_counts():
  check_counts(n=np.int64(1), m=jnp.int32(2), k=3)

  @jax.jit
  def twice(n):
    check_counts(n=n)
    return 2 * n

  assert twice(-1.5) == -3
