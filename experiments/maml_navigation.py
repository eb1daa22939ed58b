"""2-D navigation by MAML (Finn et al. 2017, section 5.3 and appendix A.2).

  python -m experiments.maml_navigation

A point walks to a goal that it does not see. A policy plays 20 episodes, takes
a gradient step on them, and plays again. The script reports the mean return of
an episode before and after 1, 2 and 3 steps on new goals. The paper has -40.41,
-11.68, -3.33 and -3.23, with 500 outer steps.

--outer=trpo is the paper's outer step. --outer=ppo takes several epochs of Adam
on ProMP's clipped objective, without its KL penalty. --outer=adam takes one
step of Adam. The policy has less hidden units than the paper's (100, 100). As
in the paper, step sizes are halved after the first inner step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.shared import paths
from metajax.evaluation import estimate
from metajax.models.mlp import MLP
from metajax.policies import (
  POLICY_LEARNERS,
  TrustRegion,
  gaussian_policy,
  policy_learner,
  policy_trainer,
  returns_by_step,
)
from metajax.policies.evaluation import played_steps
from metajax.policies.surrogates import (
  SURROGATES,
  clipped,
  low_variance_curvature,
)
from metajax.runs import folder, loggers, plots, report, rng_keys, training
from metajax.runs.flags import FLAGS, flag_values, refuse
from metajax.runs.script import run
from metajax.tasks.navigation import navigation
from metajax.training.loop import fit
from metajax.types import Params

flags.DEFINE_enum(
  "algorithm", "maml", list(POLICY_LEARNERS), "The meta-learning algorithm."
)
flags.DEFINE_enum(
  "surrogate", "lvc", list(SURROGATES), "Loss of the inner steps."
)
flags.DEFINE_enum("outer", "trpo", ["trpo", "ppo", "adam"], "Outer step.")
flags.DEFINE_float(
  "max_kl", 0.01, "TRPO: bound of the divergence, in nats per step.", 1e-6
)
flags.DEFINE_integer("epochs", 5, "PPO: updates on the same episodes.", 1)
flags.DEFINE_integer(
  "episodes", 20, "Episodes for each inner step and after the last.", 1
)
flags.DEFINE_integer(
  "horizon", 100, "Largest number of steps of an episode.", 1
)
flags.DEFINE_multi_integer(
  "hidden", [64, 64], "Hidden units of each layer of the policy.", 1
)
flags.DEFINE_integer("validation_tasks", 20, "Goals of a validation.", 2)
DEFAULTS = {
  "steps": 300,
  "meta_batch": 20,
  "inner_lr": 0.1,
  "outer_lr": 3e-3,
  "eval_tasks": 100,
  "log_every": 5,
  "eval_every": 25,
  "checkpoint_every": 25,
}
PUBLISHED = (-40.41, -11.68, -3.33, -3.23)
STEPS = len(PUBLISHED) - 1
MAX_NORM = 1.0  # Adam's gradients are clipped to this norm.


def main() -> None:
  if FLAGS.outer == "trpo":
    refuse("outer_lr", "outer_schedule")
  else:
    refuse("max_kl")
  if FLAGS.outer != "ppo":
    refuse("epochs")
  by_ppo, by_trpo = FLAGS.outer == "ppo", FLAGS.outer == "trpo"
  tasks = navigation(FLAGS.horizon)
  policy = gaussian_policy(MLP(2, FLAGS.hidden), tasks.actions)
  learner = policy_learner(
    policy,
    tasks,
    inner_lr=lambda k: FLAGS.inner_lr / (2 if k else 1),
    num_steps=FLAGS.inner_steps,
    num_episodes=FLAGS.episodes,
    inner_surrogate=SURROGATES[FLAGS.surrogate],
    outer_surrogate=clipped() if by_ppo else low_variance_curvature,
    **POLICY_LEARNERS[FLAGS.algorithm],
  )
  epochs = FLAGS.epochs if by_ppo else 1
  optimizer = TrustRegion(max_kl=FLAGS.max_kl)
  if not by_trpo:
    optimizer = optax.chain(
      optax.clip_by_global_norm(MAX_NORM),
      training.outer_optimizer(FLAGS.outer_schedule, epochs),
    )
  trainer = policy_trainer(
    learner,
    tasks,
    optimizer,
    meta_batch=FLAGS.meta_batch,
    rng=rng_keys.task_key(),
    epochs=epochs,
  )

  @functools.partial(jax.jit, static_argnums=(1, 2))
  def score(params: Params, split: str, num_tasks: int) -> jax.Array:
    return returns_by_step(
      learner,
      tasks,
      params,
      rng_keys.evaluation_key(split),
      num_tasks=num_tasks,
      num_steps=STEPS,
      num_episodes=FLAGS.episodes,
    )

  def validate(state) -> dict[str, float]:
    means = score(state.meta_params, "validation", FLAGS.validation_tasks)
    means = np.asarray(means).mean(0)
    return {f"return_{k}_steps": float(x) for k, x in enumerate(means)}

  workdir = folder.start("maml_navigation", goes_on=True)
  if report.show_finished(workdir):
    return
  trained = fit(
    trainer,
    rng_keys.init_key(),
    training.schedule(),
    workdir,
    tasks_per_step=FLAGS.meta_batch,
    validate=validate,
    rates=None if by_trpo else training.outer_rates(epochs),
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
  params = trained.state.meta_params
  returns = np.asarray(score(params, "test", FLAGS.eval_tasks))
  plots.learning_curve(
    workdir,
    {f"validation/return_{k}_steps": f"{k} steps" for k in range(STEPS + 1)},
    "return of an episode, validation",
  )
  # The first test tasks, and the episodes that were scored.
  keys = jax.random.split(rng_keys.evaluation_key("test"), FLAGS.eval_tasks)[:3]
  task_keys, play_keys = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
  goals = jax.vmap(tasks.draw)(task_keys)
  play = played_steps(learner, STEPS, FLAGS.episodes)
  played = jax.jit(jax.vmap(functools.partial(play, params)))(goals, play_keys)
  paths.draw(workdir / "paths.png", goals, played)
  names = "algorithm surrogate outer episodes horizon hidden inner_lr"
  names += " max_kl" * by_trpo + " epochs" * by_ppo
  report.finish(
    workdir,
    "maml_navigation",
    {
      **flag_values(*names.split(), "inner_steps"),
      "outer_optimizer": "trpo" if by_trpo else "adam",
      "devices": 1,
      "published": dict(enumerate(PUBLISHED)),
    },
    {f"return_{k}_steps": estimate(x) for k, x in enumerate(returns.T)},
    trained,
  )
  print("\npublished: " + "  ".join(map(str, PUBLISHED)))


if __name__ == "__main__":
  # The baseline factorises matrices.
  run(
    main,
    defaults=DEFAULTS,
    unused=("learner", "task_chunk", "memory"),
    spare_threads=True,
  )
