"""2-D navigation by MAML (Finn et al. 2017, section 5.3 and appendix A.2).

  python -m experiments.maml_navigation

A point walks to a goal that it does not see. A policy plays 20 episodes, takes
a gradient step on them, and plays again. The script reports the mean return of
an episode before and after 1, 2 and 3 steps on 100 new goals. The paper has
-40.41, -11.68, -3.33 and -3.23.

--outer=trpo is the paper's outer step. --outer=ppo takes several epochs of Adam
on ProMP's clipped objective, and --kl_penalty=5e-4 adds its KL penalty.
--outer=adam takes one step of Adam. --algorithm has MAML's relatives, a policy
pretrained on all goals, and an oracle that sees the goal.

The policy is smaller than that of the published code, which has (100, 100)
hidden units. Each inner step is --later_lr times as long as the one before. The
paper halves the second, which overshoots here.

It takes 6.5 minutes on one core, half a minute of them to compile, and gets
-39.2, -10.8, -3.9 and -3.4.
"""

import jax
from absl import flags

from experiments.shared import paths, policy_training
from metajax.evaluation import estimate
from metajax.models.mlp import MLP
from metajax.policies import gaussian_policy, played_tasks
from metajax.runs import folder, loggers, plots, report, rng_keys, training
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.tasks.navigation import navigation
from metajax.training import TrainState
from metajax.training.loop import fit

flags.DEFINE_integer("horizon", 100, "Largest length of an episode.", 1)
flags.DEFINE_multi_integer(
  "hidden", [64, 64], "Hidden units of each layer of the policy.", 1
)
flags.DEFINE_integer("validation_tasks", 20, "Goals of a validation.", 2)
flags.DEFINE_integer(
  "eval_episodes",
  40,
  "Episodes for each inner step in validation and test.",
  1,
)
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
EVALUATED = range(len(PUBLISHED))  # Inner steps.
DRAWN = 3  # Goals in the picture.


def main() -> None:
  tasks = policy_training.seen(navigation(FLAGS.horizon))
  policy = gaussian_policy(MLP(2, FLAGS.hidden), tasks.actions)
  learner, trainer, rates = policy_training.build(policy, tasks)

  # One program for validation, test and picture.
  play = played_tasks(
    learner,
    tasks,
    num_steps=EVALUATED[-1],
    num_episodes=FLAGS.eval_episodes,
    tasks_at_once=FLAGS.validation_tasks,
  )

  def validate(state: TrainState) -> dict[str, float]:
    key = rng_keys.evaluation_key("validation")
    _, rollouts = play(state.meta_params, key, FLAGS.validation_tasks)
    means = rollouts.returns.mean((0, 2))
    return {f"return_{k}_steps": float(x) for k, x in enumerate(means)}

  workdir = folder.start("maml_navigation")
  if report.show_finished(workdir, saves_learner=False):
    return
  trained = fit(
    trainer,
    rng_keys.init_key(),
    training.schedule(),
    workdir,
    tasks_per_step=FLAGS.meta_batch,
    validate=validate,
    rates=rates,
    loggers=loggers.by_flag(workdir),
    must_save=FLAGS.must_save,
    stall_seconds=FLAGS.stall_seconds,
  )
  goals, rollouts = play(
    trained.state.meta_params,
    rng_keys.evaluation_key("test"),
    FLAGS.eval_tasks,
  )
  returns = rollouts.returns.mean(-1)
  legend = {
    f"validation/return_{k}_steps": f"{k} step{'s'[: k != 1]}"
    for k in EVALUATED
  }
  legend["return_after"] = "training, after adaptation"
  plots.learning_curve(workdir, legend, "return of an episode")
  # The first test tasks, with the episodes that were scored.
  first = jax.tree.map(lambda x: x[:DRAWN], rollouts)
  paths.draw(workdir / "paths.png", goals[:DRAWN], first)
  report.finish(
    workdir,
    "maml_navigation",
    {
      **flag_values("horizon", "hidden", "eval_episodes"),
      **policy_training.protocol(),
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
