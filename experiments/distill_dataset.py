"""A data set distilled into 1 or 10 images a class.

  python -m experiments.distill_dataset

learns synthetic images by unrolled optimisation, by gradient matching (DC), by
distribution matching (DM) and by kernel inducing points (KIP), and reports the
test accuracy of fresh networks trained on them, against random real images,
herding, and the full set. By default of scikit-learn's handwritten digits;
`--data=omniglot` takes characters of Omniglot.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from metajax.distillation import (
  SyntheticSet,
  distribution_matching,
  gradient_matching,
  herding,
  kernel_inducing,
  kernel_ridge,
  relu_tangent_kernel,
  synthetic_set,
  unrolled,
)
from metajax.evaluation import Estimate, estimate
from metajax.learners import distill_data
from metajax.losses import accuracy
from metajax.models.mlp import MLP
from metajax.runs import plots, report, rng_keys, scoring, training
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks import class_batches
from metajax.tasks.omniglot import load_omniglot
from metajax.training import meta_trainer
from metajax.training.logging import waiting
from metajax.types import Batch, Episode, MetaLearner, TaskFamily

define_data_dir()
flags.DEFINE_enum(
  "data",
  "digits",
  ["digits", "omniglot"],
  "scikit-learn's digits, 8 x 8, or characters of Omniglot, 14 x 14 pixels.",
)
flags.DEFINE_integer(
  "classes", 20, "Characters, with --data=omniglot.", lower_bound=2
)
flags.DEFINE_multi_integer(
  "per_class", [1, 10], "Synthetic images of a class.", lower_bound=1
)
flags.DEFINE_integer("hidden", 100, "Units of two layers.", lower_bound=1)
flags.DEFINE_integer(
  "eval_steps", 500, "Steps of the networks at test.", lower_bound=1
)
flags.DEFINE_integer(
  "real_batch", 64, "Real images of a class in a meta-step.", lower_bound=1
)
flags.DEFINE_integer("draws", 10, "Draws of random real images.", lower_bound=2)
DEFAULTS = {
  "steps": 1000,
  "meta_batch": 4,
  "inner_steps": 30,
  "inner_lr": 0.3,
  "outer_lr": 0.01,
  "eval_tasks": 20,
  "outer_schedule": "cosine",
}

KERNEL = relu_tangent_kernel(2)


class Data(NamedTuple):
  """Real images: `[classes, n, ...]` to learn from, and a test set."""

  train: jax.Array
  test: Batch


@waiting("loading data")
def load() -> Data:
  """Splits the drawings of every class; the split is fixed by --eval_seed."""
  rng = np.random.default_rng(FLAGS.eval_seed)
  if FLAGS.data == "digits":
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    classes = [rng.permutation(images[digits.target == c]) for c in range(10)]
    num_train = 120
  else:
    data = load_omniglot(FLAGS.data_dir, 14)
    chosen = rng.permutation(len(data.images))[: FLAGS.classes]
    images = data.images[chosen].astype(np.float32) / 255
    classes = [rng.permutation(x) for x in images]
    num_train = 15
  labels = [c for c, x in enumerate(classes) for _ in x[num_train:]]
  test = np.concatenate([x[num_train:] for x in classes])
  return Data(
    jnp.stack([jnp.asarray(x[:num_train]) for x in classes]),
    Batch(jnp.asarray(test), jnp.asarray(labels, jnp.int32)),
  )


def flat(images: jax.Array) -> jax.Array:
  """`[classes, n, ...]` -> `[n classes, ...]`, the class changing fastest."""
  return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])


def objectives(model: MLP, features: MLP):
  """Name -> (objective, fields that are learned)."""
  images = ("inputs",)
  return {
    "unrolled": (
      unrolled(model, FLAGS.inner_steps, memory=FLAGS.memory),
      SyntheticSet._fields,
    ),
    "dc": (gradient_matching(model, FLAGS.inner_steps), images),
    "dm": (distribution_matching(features), images),
    "kip": (kernel_inducing(KERNEL), images),
  }


def main() -> None:
  data = load()
  num_classes, num_train = data.train.shape[:2]
  for number in FLAGS.per_class:
    if number > num_train:
      raise ValueError(
        f"--per_class={number}: must be at most {num_train}, the real images "
        "of a class."
      )
  widths = (FLAGS.hidden, FLAGS.hidden)
  model, features = MLP(num_classes, widths), MLP(FLAGS.hidden, widths)
  runs = Stages("distill_dataset")
  tasks = class_batches(data.train, min(FLAGS.real_batch, num_train))
  make = functools.partial(
    synthetic_set, num_classes=num_classes, step_size=FLAGS.inner_lr
  )

  test = jax.tree_util.Partial(
    lambda batch, key: Episode(batch, batch), data.test
  )

  everything = make(flat(data.train))

  def scorer(steps: int):
    """Accuracies of fresh networks: each a task, the test set its query."""
    # Only evaluated, so the objective is none.
    learner = distill_data(model, unrolled(model, 0), everything, steps)
    score = scoring.task_scorer(
      learner, test, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
    )
    return lambda synthetic: score(synthetic)["accuracy"]

  score = scorer(FLAGS.eval_steps)
  # What is learned for K steps is used for K steps.
  score_unrolled = scorer(FLAGS.inner_steps)
  metrics: dict[str, Estimate] = {"full": estimate(score(everything))}
  images: dict[int, dict[str, np.ndarray]] = {}
  for number in FLAGS.per_class:
    draw = class_batches(data.train, number)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.draws)
    random = [make(draw(key).query.inputs) for key in keys]
    herded = flat(jax.vmap(lambda x, n=number: x[herding(x, n)])(data.train))
    # An interval over draws, whose networks' mean is one value.
    metrics[f"random_{number}"] = estimate([score(x).mean() for x in random])
    metrics[f"herding_{number}"] = estimate(score(make(herded)))
    images[number] = {"random": random[0].inputs, "herding": herded}
    for name, (objective, learned) in objectives(model, features).items():
      learner = distill_data(
        model, objective, random[0], FLAGS.eval_steps, learned=learned
      )
      synthetic = train(runs, f"{name}_{number}", learner, tasks)
      test_of = score_unrolled if name == "unrolled" else score
      metrics[f"{name}_{number}"] = estimate(test_of(synthetic))
      images[number][name] = synthetic.inputs
      if name == "kip":
        metrics[f"{name}_{number}_kernel"] = kernel_score(synthetic, data.test)
  plots.mosaics(runs.workdir / "synthetic.png", images, num_classes)
  report.finish(
    runs.workdir,
    "distill_dataset",
    {
      "data": FLAGS.data,
      "classes": num_classes,
      "train_per_class": num_train,
      "test_images": len(data.test.targets),
      "hidden": FLAGS.hidden,
      "inner_steps": FLAGS.inner_steps,
      "inner_lr": FLAGS.inner_lr,
      "eval_steps": FLAGS.eval_steps,
      "real_batch": FLAGS.real_batch,
      "metrics": "test accuracy of fresh networks; intervals over networks, "
      "for random images over draws",
    },
    metrics,
    runs.total(),
  )


def train(
  runs: Stages, name: str, learner: MetaLearner, tasks: TaskFamily
) -> SyntheticSet:
  adam = training.outer_optimizer(FLAGS.outer_schedule)
  trainer = meta_trainer(
    learner,
    # Gradients through many steps are large now and then.
    optax.chain(optax.clip_by_global_norm(1.0), adam),
    tasks,
    meta_batch=FLAGS.meta_batch,
    rng=rng_keys.task_key(),
    task_chunk=FLAGS.task_chunk or None,
  )
  trained = runs.train(
    name,
    trainer,
    training.schedule(),
    FLAGS.meta_batch,
    rates=training.outer_rates(),
  )
  return trained.state.meta_params


def kernel_score(synthetic: SyntheticSet, test: Batch) -> Estimate:
  """Of regression with the kernel itself; the interval is over test images."""
  predict = kernel_ridge(KERNEL, synthetic.inputs, synthetic.targets)
  return estimate(predict(test.inputs).argmax(-1) == test.targets)


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("learner",))
