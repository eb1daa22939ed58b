"""Meta-learners that teach one meta-learner, on few-shot Omniglot.

  python -m experiments.distill_learners --data_dir=DIR

meta-trains several MAML runs, and teaches one student, task by task, to predict
as their ensemble does: how much of the ensemble's gain does it keep, at a
fraction of the cost? And a slow learner teaches a fast one: a prototypical
network, which takes no gradient step at all, learns alone, and from the first
MAML run with all its steps. `--teacher_workdirs` takes finished runs of
`experiments.few_shot` for the ensemble.
"""

import jax
import jax.numpy as jnp
import optax
from absl import flags

from metajax import aggregation
from metajax.evaluation import Estimate, estimate
from metajax.learners import (
  embedding,
  learned_ensemble,
  maml,
  nearest_mean,
  taught,
)
from metajax.losses import accuracy, cross_entropy
from metajax.models.conv import conv4
from metajax.runs import scoring
from metajax.runs.finished import define_runs, find_runs, read_run
from metajax.runs.flags import FLAGS, define_data_dir, refuse
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks import omniglot
from metajax.training.logging import waiting

define_data_dir()
define_runs("teacher_workdirs", instead_of="teachers")
flags.DEFINE_float(
  "alpha", 0.9, "How much the teacher counts, 0 to 1.", 0.0, 1.0
)
flags.DEFINE_float(
  "temperature", 1.0, "By which logits are divided.", lower_bound=1e-3
)
DEFAULTS = {
  "steps": 3000,
  "meta_batch": 8,
  "outer_schedule": "cosine",
  "inner_lr": 2.0,
  "log_every": 500,
  "checkpoint_every": 1000,
}

SHOTS = 1


def main() -> None:
  if FLAGS.teacher_workdirs:
    refuse("teachers")
  found = find_runs("teacher_workdirs")
  with waiting("loading data"):
    splits = omniglot(
      FLAGS.data_dir, ways=FLAGS.ways, shots=SHOTS, query_shots=SHOTS
    )
  model = conv4(FLAGS.ways, filters=FLAGS.filters)
  report = {"accuracy": accuracy}

  def learner(eval_steps: int):
    return maml(
      model,
      cross_entropy,
      optax.sgd(FLAGS.inner_lr),
      FLAGS.inner_steps,
      num_eval_steps=eval_steps,
      metrics=report,
      memory=FLAGS.memory,
    )

  # Taught with its training's steps, asked with all.
  slow, student = learner(FLAGS.eval_inner_steps), learner(FLAGS.inner_steps)
  fast = embedding(
    conv4(None, filters=FLAGS.filters),
    nearest_mean(FLAGS.ways),
    cross_entropy,
    metrics=report,
  )
  image = jax.eval_shape(splits.train, jax.random.key(0)).support.inputs
  teachers = [read_run(teacher_run, model, image) for teacher_run in found]
  runs = Stages("distill_learners")
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
  # The student has a seed that no teacher has.
  seed = len(teachers)
  from_all = taught(student, together, equal, cross_entropy, **teach)
  from_slow = taught(fast, slow, teachers[0], cross_entropy, **teach)
  rows = {
    f"teacher_{i}": (slow, params) for i, params in enumerate(teachers)
  } | {"ensemble": (together, equal)}
  for name, (trained, tested) in {
    "student_alone": (slow, slow),
    "student_taught": (from_all, slow),
    "prototypical_alone": (fast, fast),
    "prototypical_taught": (from_slow, fast),
  }.items():
    rows[name] = (
      tested,
      runs.meta_train(name, trained, splits.train, seed=seed),
    )
  values = {
    name: scoring.task_scorer(
      tested, splits.test, report, "test", FLAGS.eval_tasks
    )(params)["accuracy"]
    for name, (tested, params) in rows.items()
  }
  metrics: dict[str, Estimate] = {k: estimate(v) for k, v in values.items()}
  for name, other in (
    ("ensemble", "student_alone"),
    ("student_taught", "student_alone"),
    ("prototypical_taught", "prototypical_alone"),
    ("prototypical_taught", "teacher_0"),
  ):
    metrics[f"{name}_minus_{other}"] = estimate(values[name] - values[other])
  gain = metrics["ensemble_minus_student_alone"]
  kept = None
  if gain.mean > gain.ci95:  # Else there is nothing to keep.
    kept = metrics["student_taught_minus_student_alone"].mean / gain.mean
    print(f"\nof the ensemble's gain, the student keeps {kept:.2f}")
  else:
    print("\nthe ensemble is no better than the student alone")
  report.finish(
    runs.workdir,
    "distill_learners",
    {
      "ways": FLAGS.ways,
      "shots": SHOTS,
      "query_shots": SHOTS,
      "filters": FLAGS.filters,
      "normalization": "batch",
      "transductive": True,
      "inner_steps": FLAGS.inner_steps,
      "eval_inner_steps": FLAGS.eval_inner_steps,
      "inner_lr": FLAGS.inner_lr,
      "teachers": len(teachers),
      "alpha": FLAGS.alpha,
      "temperature": FLAGS.temperature,
      "kept_of_the_gain": kept,
    },
    metrics,
    runs.total(),
  )


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("learner",))
