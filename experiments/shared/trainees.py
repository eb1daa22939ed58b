"""Trains players and computes their rewards on validation and test tasks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from metajax.runs import rng_keys, training
from metajax.runs.flags import FLAGS
from metajax.runs.stages import Stages
from metajax.tasks.trials import Player, Trials, play
from metajax.training import Trainer, TrainState
from metajax.training.logging import waiting
from metajax.training.loop import Trained
from metajax.types import Params

MAX_NORM = 10.0  # Gradients are clipped to this norm.


class Trainee(NamedTuple):
  """A player that is trained.

  Attributes:
    trainer: the trainer of the player's parameters.
    player: `(params) -> player`, without exploration.
    rates: the step sizes of the trainer, see `training.loop.fit`.
  """

  trainer: Trainer
  player: Callable[[Params], Player]
  rates: training.Rates


def train(
  stages: Stages,
  name: str,
  trainee: Trainee,
  tasks: Trials,
  validate: Callable[[TrainState], dict[str, float]] = lambda _: {},
) -> tuple[Trained, np.ndarray]:
  """Trains a player. Returns the training and rewards on test tasks.

  The rewards are `[tasks, steps]`. Validations log the reward on validation
  tasks and the metrics of `validate`.
  """

  def rewards(params: Params, split: str) -> jax.Array:
    return scorer(tasks, split)(trainee.player(params))

  score = jax.jit(lambda params: rewards(params, "validation").sum(-1).mean())
  trained = stages.train(
    name,
    trainee.trainer,
    training.schedule(),
    FLAGS.meta_batch,
    validate=lambda state: (
      {"reward": float(score(state.meta_params))} | validate(state)
    ),
    rates=trainee.rates,
  )
  test = jax.jit(lambda params: rewards(params, "test"))
  with waiting("evaluating on test tasks"):
    return trained, np.asarray(test(trained.state.meta_params))


def progress(stages: Stages, name: str, tasks: Trials) -> dict[int, float]:
  """Returns the validation rewards of a training by environment steps."""
  per_step = FLAGS.meta_batch * tasks.num_steps
  rewards = stages.history(name, "validation/reward")
  return {step * per_step: reward for step, reward in rewards.items()}


def scorer(tasks: Trials, split: str) -> Callable[[Player], jax.Array]:
  """Returns `player -> rewards [tasks, steps]` on fixed tasks of a split."""
  rng = rng_keys.evaluation_key(split)
  keys = jax.random.split(rng, FLAGS.eval_tasks)
  return lambda player: jax.vmap(lambda key: play(player, tasks, key).rewards)(
    keys
  )
