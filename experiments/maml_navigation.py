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
-39.2, -10.8, -3.9 and -3.4. With --inner_steps=2 it takes 14 minutes on a core
with other work, and gets -39.3, -10.9, -3.3 and -2.8.
"""

import jax

from experiments.shared import paths, policy_runs
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.tasks.navigation import navigation

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
HORIZON = 100  # Of the published returns.
PUBLISHED = (-40.41, -11.68, -3.33, -3.23)
DRAWN = 3  # Goals in the picture.


def main() -> None:
  played = policy_runs.play_all("maml_navigation", navigation(FLAGS.horizon))
  if played is None:
    return
  # The first test tasks, with the episodes that were scored.
  first = jax.tree.map(lambda x: x[:DRAWN], played.rollouts)
  paths.draw(
    played.workdir / "paths.png",
    played.tasks[:DRAWN],
    first.observations,
    first.mask,
    [f"{k} step{'s'[: k != 1]}" for k in policy_runs.EVALUATED],
  )
  as_published = FLAGS.horizon == HORIZON and FLAGS.algorithm == "maml"
  published = PUBLISHED if as_published else ()
  policy_runs.finish("maml_navigation", played, {}, published)


if __name__ == "__main__":
  # The baseline factorises matrices.
  run(
    main,
    defaults=DEFAULTS,
    unused=policy_runs.UNUSED,
    spare_threads=True,
  )
