"""Distils meta-learners into a single meta-learner on few-shot Omniglot.

  python -m experiments.distill_learners --data_dir=DIR

The script meta-trains several MAML runs. It then teaches one student to predict
like their ensemble, task by task. It measures how much of the ensemble's gain
the student keeps, at a fraction of the cost. Next a slow learner teaches a fast
one: a prototypical network, which takes no gradient step, is trained alone and
by the first MAML run with all its steps. `--teacher_workdirs` uses finished
runs of `experiments.few_shot` as the ensemble.

With `--steps=20000` and three finished teachers (98.1, 98.9 and 95.7%) the
script takes two hours on shared cores. The ensemble has 98.7%, the student
95.9% alone and 96.1% taught, the prototypical network 98.2% alone and 98.0%
taught. With `--steps=2000` and teachers of 53 to 63% the script takes 23
minutes, and teaching does harm.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments.shared import one_shot
from metajax import aggregation
from metajax.evaluation import estimate
from metajax.learners import embedding, learned_ensemble, nearest_mean, taught
from metajax.losses import cross_entropy
from metajax.models.conv import conv4
from metajax.runs import report, scoring
from metajax.runs.finished import define_runs, find_runs
from metajax.runs.flags import FLAGS, define_data_dir, flag_values, refuse
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.types import MetaLearner

define_data_dir()
define_runs("teacher_workdirs", instead_of="teachers")
flags.DEFINE_float(
  "alpha",
  0.9,
  "Weight of the teacher in the student's loss, 0 to 1. The labels have the "
  "rest.",
  0.0,
  1.0,
)
flags.DEFINE_float(
  "temperature",
  1.0,
  "Temperature of distillation: logits are divided by it before the softmax.",
  lower_bound=1e-3,
)
DEFAULTS = {
  "steps": 3000,
  "meta_batch": 8,
  "outer_schedule": "cosine",
  "inner_lr": 2.0,
  "log_every": 500,
  "checkpoint_every": 1000,
}


def main() -> None:
  if FLAGS.teacher_workdirs:
    refuse("teachers")
  found = find_runs("teacher_workdirs")
  splits = one_shot.tasks()
  # The teacher adapts with the steps of the test, the student with fewer.
  slow = one_shot.learner(FLAGS.eval_inner_steps)
  student = one_shot.learner(FLAGS.inner_steps)
  fast = embedding(
    conv4(None, filters=FLAGS.filters),
    nearest_mean(FLAGS.ways),
    cross_entropy,
    metrics=one_shot.METRICS,
  )
  teachers = one_shot.finished(found, splits.train)
  # The students learn from teachers that take so many steps.
  runs = Stages("distill_learners", trained_by=["eval_inner_steps"])
  if not teachers:
    teachers = [
      runs.meta_train(f"teacher_{i}", slow, splits.train, seed=i)
      for i in range(FLAGS.teachers)
    ]
  together = learned_ensemble(
    slow,
    aggregation.stack_models(teachers),
    aggregation.average_probabilities,
    cross_entropy,
  )
  equal = together.init(jax.random.key(0), jnp.zeros(0))
  teach = {"alpha": FLAGS.alpha, "temperature": FLAGS.temperature}
  from_all = taught(student, together, equal, cross_entropy, **teach)
  from_slow = taught(fast, slow, teachers[0], cross_entropy, **teach)
  # No teacher has the seed of the students.
  taken, seed = {run.flags.get("seed", 0) for run in found}, len(teachers)
  while FLAGS.seed + seed in taken:
    seed += 1
  # Row -> (the tested learner, its meta-parameters).
  rows = {f"teacher_{i}": (slow, params) for i, params in enumerate(teachers)}
  rows["ensemble"] = (together, equal)
  for name, (trained, tested) in {
    "student_alone": (slow, slow),
    "student_taught": (from_all, slow),
    "prototypical_alone": (fast, fast),
    "prototypical_taught": (from_slow, fast),
  }.items():
    params = runs.meta_train(name, trained, splits.train, seed=seed)
    rows[name] = tested, params

  @functools.cache  # It compiles once for all parameters of a learner.
  def scorer(tested: MetaLearner):
    return one_shot.scorer(tested, splits, "test")

  values = {
    name: scorer(tested)(params) for name, (tested, params) in rows.items()
  }
  metrics = {name: estimate(value) for name, value in values.items()}
  pairs = (
    ("ensemble", "student_alone"),
    ("student_taught", "student_alone"),
    ("prototypical_taught", "prototypical_alone"),
    ("prototypical_taught", "teacher_0"),
  )
  metrics |= scoring.differences(values, pairs)
  gain = metrics["ensemble_minus_student_alone"]
  kept = None
  if gain.mean > gain.ci95:  # Otherwise the ensemble has no gain to keep.
    kept = metrics["student_taught_minus_student_alone"].mean / gain.mean
    print(f"\nof the ensemble's gain, the student keeps {kept:.2f}")
  else:
    print("\nthe ensemble is no better than the student alone")
  report.finish(
    runs.workdir,
    "distill_learners",
    {
      **one_shot.protocol(),
      **flag_values("alpha", "temperature"),
      "teachers": len(teachers),
      "kept_of_the_gain": kept,
    },
    metrics,
    runs.total(),
  )


if __name__ == "__main__":
  # Some of what it compares factorises matrices.
  run(main, defaults=DEFAULTS, unused=("learner",), spare_threads=True)
