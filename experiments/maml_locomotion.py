r"""Locomotion in brax by MAML (Finn et al. 2017, section 5.3, appendix A.2).

  python -m experiments.maml_locomotion --task=cheetah_direction

A cheetah or an ant runs, and does not see which way or how fast it should: the
reward tells. A policy plays some episodes, takes a gradient step on them, and
plays again. The script reports the mean return of an episode before and after
1, 2 and 3 steps on new tasks, of the trained policy and of the untrained one.
Flags are those of maml_navigation.

Returns are not comparable with the published ones, which are MuJoCo's. The
defaults are smaller than the published protocol, --preset=published: 40 tasks,
20 episodes of 200 steps, hidden layers of 100 units.

  python -m experiments.maml_locomotion --steps=75 --meta_batch=8 \
      --validation_tasks=4 --eval_tasks=20

takes 19 minutes to train and 11 to test on a busy core, 11 minutes of CPU time
in all. That is too little: it gets -17.9 after one step, and the untrained
policy -16.8.
"""

from absl import flags

from experiments.shared import policy_runs, trial_plots
from metajax.runs import plots
from metajax.runs.flags import FLAGS, flag_values
from metajax.runs.script import run
from metajax.tasks.locomotion import LOCOMOTION, locomotion

flags.DEFINE_enum(
  "task", "cheetah_direction", list(LOCOMOTION), "What is learned."
)
DEFAULTS = {
  "steps": 300,
  "meta_batch": 10,
  "episodes": 10,
  "inner_lr": 0.1,
  "outer_lr": 3e-3,
  "validation_tasks": 10,
  "eval_episodes": 20,
  "eval_tasks": 40,
  "log_every": 5,
  "eval_every": 25,
  "checkpoint_every": 25,
}
PRESETS = {
  "published": {
    "meta_batch": 40,
    "episodes": 20,
    "horizon": 200,
    "hidden": [100, 100],
    "steps": 1000,
  }
}


def main() -> None:
  played = policy_runs.play_all(
    "maml_locomotion", locomotion(FLAGS.task, FLAGS.horizon), untrained=True
  )
  if played is None:
    return
  plots.curves(
    played.workdir / "rewards.png",
    {
      f"{name}, {k} step{'s'[: k != 1]}": trial_plots.by_time(
        rollouts.rewards[:, k].mean(1)
      )
      for name, rollouts in {
        "trained": played.rollouts,
        "untrained": played.untrained,
      }.items()
      for k in (0, 3)
    },
    "step of the episode",
    "mean reward of a step",
  )
  policy_runs.finish("maml_locomotion", played, flag_values("task"))


if __name__ == "__main__":
  # The baseline factorises matrices.
  run(
    main,
    presets=PRESETS,
    defaults=DEFAULTS,
    unused=policy_runs.UNUSED,
    spare_threads=True,
  )
