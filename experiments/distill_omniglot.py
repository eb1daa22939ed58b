"""Knowledge distillation on Omniglot, and what it does to few-shot learning.

  python -m experiments.distill_omniglot --data_dir=DIR

A wide network learns to tell the training characters apart; narrow ones learn
it alone, from the wide one, from an ensemble of wide ones, from themselves
(born again), or with hints of its features. Reported of each: accuracy on
drawings not trained on, agreement with the teacher, size and time; and, on
characters never seen, the few-shot accuracy of its features under a ridge and a
logistic head (Tian et al. 2020). Everything is trained from several seeds at
once, and differences are paired.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import plots, training
from experiments.flags import FLAGS, define_data_dir, refuse, run
from experiments.stages import Stages
from metajax import distillation
from metajax.evaluation import Estimate, estimate
from metajax.learners import embedding, logistic, ridge
from metajax.losses import accuracy, cross_entropy
from metajax.models.conv import conv4
from metajax.tasks import few_shot_episodes
from metajax.tasks.omniglot import load_omniglot, split_characters
from metajax.training import supervised_trainer
from metajax.training.loop import Schedule
from metajax.types import Array, Model, Params

define_data_dir()
flags.DEFINE_integer("filters", 64, "Channels of the teacher.", lower_bound=8)
flags.DEFINE_multi_integer(
  "student_filters", [32, 16], "Channels of the students.", lower_bound=8
)
flags.DEFINE_integer("num_seeds", 3, "Seeds, trained at once.", lower_bound=2)
flags.DEFINE_integer(
  "batch_size", 128, "Images of a training step.", lower_bound=1
)
flags.DEFINE_float(
  "temperature", 4.0, "By which logits are divided.", lower_bound=1e-3
)
flags.DEFINE_float(
  "alpha", 0.9, "How much the teacher counts, 0 to 1.", 0.0, 1.0
)
flags.DEFINE_multi_integer(
  "ways", [5, 20], "Classes of the few-shot tasks.", lower_bound=2
)
FLAGS.set_default("steps", 1500)
FLAGS.set_default("outer_lr", 3e-3)
FLAGS.set_default("outer_schedule", "cosine")
FLAGS.set_default("log_every", 250)
FLAGS.set_default("eval_every", 500)
FLAGS.set_default("checkpoint_every", 500)

TRAIN = 15  # Drawings of a character, of its 20; the others are the test.
QUERIES = 5


class Data(NamedTuple):
  """Images `[n, ...]` in uint8 with labels, and characters never seen."""

  train: dict[str, Array]
  test: dict[str, Array]
  novel: Array  # [characters, 20, ...]


class Pixels:
  """A model of images in uint8, so that a data set stays small in memory."""

  def __init__(self, model: Model):
    self.model = model

  def init(self, rng: Array, inputs: Array) -> Params:
    return self.model.init(rng, _scaled(inputs))

  def apply(self, params: Params, inputs: Array) -> Array:
    return self.model.apply(params, _scaled(inputs))


def _scaled(inputs: Array) -> Array:
  return inputs.astype(jnp.float32) / 255


def load() -> Data:
  data = load_omniglot(FLAGS.data_dir)
  known, _, novel = split_characters(data, "random", 0)

  def part(drawings: slice) -> dict[str, Array]:
    images = data.images[known, drawings]
    labels = np.repeat(np.arange(len(known), dtype=np.int32), images.shape[1])
    return {
      "inputs": jnp.asarray(images.reshape(-1, *images.shape[2:])),
      "labels": jnp.asarray(labels),
    }

  return Data(
    part(slice(TRAIN)),
    part(slice(TRAIN, None)),
    jnp.asarray(data.images[novel]),
  )


class Students:
  """Trains stacks of networks `[seeds, ...]` and asks them."""

  def __init__(self, data: Data):
    self.data, self.runs = data, Stages("distill_omniglot")
    self.num_classes = int(data.train["labels"].max()) + 1

  def model(self, filters: int) -> Model:
    return Pixels(
      conv4(
        self.num_classes,
        filters=filters,
        normalization="group",
        head_init=nn.initializers.glorot_uniform(),
      )
    )

  def features(self, filters: int) -> Model:
    """The model without its head; it reads the same parameters."""
    return Pixels(conv4(None, filters=filters, normalization="group"))

  def train(
    self, name: str, init: Callable, loss: Callable, **teaching: Array
  ) -> Params:
    """Returns the trained stack; `teaching` is `[examples, ...]`."""
    rate = optax.cosine_decay_schedule(FLAGS.outer_lr, FLAGS.steps)

    def init_stack(rng: Array) -> Params:
      image = self.data.train["inputs"][:1]
      keys = jax.random.split(rng, FLAGS.num_seeds)
      return jax.vmap(lambda key: init(key, image))(keys)

    trainer = supervised_trainer(
      init_stack,
      loss,
      optax.adam(rate),
      self.data.train | teaching,
      batch_size=FLAGS.batch_size,
      rng=jax.random.fold_in(jax.random.key(FLAGS.seed), 1),
    )
    schedule = Schedule(
      FLAGS.steps, FLAGS.log_every, FLAGS.eval_every, FLAGS.checkpoint_every
    )
    trained = self.runs.train(name, trainer, schedule, FLAGS.batch_size)
    return trained.state.meta_params

  def answers(self, model: Model, stack: Params, part: dict) -> Array:
    """Logits or features of all seeds, `[examples, seeds, ...]`."""

    def all_seeds(inputs: Array) -> Array:
      answers = jax.vmap(model.apply, (0, None))(stack, inputs)
      return answers.swapaxes(0, 1)

    return distillation.predict_all(all_seeds, part["inputs"])


def main() -> None:
  refuse("learner", "inner_steps", "inner_lr", "memory", "meta_batch")
  if FLAGS.outer_schedule != "cosine":
    refuse("outer_schedule")
  data = load()
  students = Students(data)
  # Name -> (filters, stack).
  stacks = train_all(students)
  teacher = students.model(FLAGS.filters)
  goal = students.answers(teacher, stacks["teacher"][1], data.test).argmax(-1)

  metrics: dict[str, Estimate] = {}
  right: dict[str, np.ndarray] = {}
  sizes: dict[int, dict[str, float]] = {}
  few_shot = scorers(students)
  for name, (filters, stack) in stacks.items():
    model = students.model(filters)
    found = students.answers(model, stack, data.test).argmax(-1)
    # A value for each image (below, for each task): the mean over the seeds.
    right[name] = np.mean(found == data.test["labels"][:, None], axis=1)
    metrics[f"accuracy/{name}"] = estimate(right[name])
    metrics[f"agreement/{name}"] = estimate(np.mean(found == goal, axis=1))
    if filters not in sizes:
      sizes[filters] = size_and_time(model, students.features(filters), stack)
  values = {
    f"{task}/{name}": score(filters, stack)
    for task, score in few_shot.items()
    for name, (filters, stack) in stacks.items()
  }
  metrics |= {name: estimate(value) for name, value in values.items()}
  tasks = list(few_shot)
  for name in stacks:
    alone = "teacher" if name.startswith("teacher") else f"alone{_width(name)}"
    if name == alone:
      continue
    metrics[f"accuracy/{name}_minus_{alone}"] = estimate(
      right[name] - right[alone]
    )
    for task in tasks:
      metrics[f"{task}/{name}_minus_{alone}"] = estimate(
        values[f"{task}/{name}"] - values[f"{task}/{alone}"]
      )
  recovered = {
    f"{kind}_{filters}": float(
      (right[f"{kind}_{filters}"] - right[f"alone_{filters}"]).mean()
      / (right["teacher"] - right[f"alone_{filters}"]).mean()
    )
    for filters in FLAGS.student_filters
    for kind in ("distilled", "ensemble", "born_again", "hints")
  }
  draw(students, metrics, sizes)
  report(stacks, metrics, sizes, recovered, tasks)
  training.finish(
    students.runs.workdir,
    "distill_omniglot",
    {
      "classes": students.num_classes,
      "train_drawings": TRAIN,
      "normalization": "group",
      "seeds": FLAGS.num_seeds,
      "batch_size": FLAGS.batch_size,
      "temperature": FLAGS.temperature,
      "alpha": FLAGS.alpha,
      "query_shots": QUERIES,
      "sizes": sizes,
      "recovered_gap": recovered,
      "metrics": "means over seeds; intervals over test images, or over tasks",
    },
    metrics,
    students.runs.total(),
  )


def _width(name: str) -> str:
  return name[name.rindex("_") :]


def train_all(students: Students) -> dict[str, tuple[int, Params]]:
  """Trains the teacher and every student."""
  data = students.data.train
  tell = {"temperature": FLAGS.temperature, "alpha": FLAGS.alpha}
  wide = students.model(FLAGS.filters)

  def alone(model: Model) -> Callable:
    return distillation.side_by_side(distillation.alone(model))

  def taught(model: Model) -> Callable:
    loss = distillation.taught(model, **tell)
    return distillation.side_by_side(loss, own=["teacher"])

  stacks = {}
  teacher = students.train("teacher", wide.init, alone(wide))
  stacks["teacher"] = FLAGS.filters, teacher
  logits = students.answers(wide, teacher, data)
  stacks["teacher_born_again"] = (
    FLAGS.filters,
    students.train(
      "teacher_born_again", wide.init, taught(wide), teacher=logits
    ),
  )
  together = distillation.predict_all(
    distillation.ensemble(wide, teacher), data["inputs"]
  )
  seen = students.answers(students.features(FLAGS.filters), teacher, data)
  for filters in FLAGS.student_filters:
    model = students.model(filters)
    features = students.features(filters)

    def init_hinted(rng: Array, image: Array, model=model, filters=filters):
      keys = jax.random.split(rng)
      glorot = nn.initializers.glorot_uniform()
      return {
        "student": model.init(keys[0], image),
        "regressor": glorot(keys[1], (filters, FLAGS.filters)),
      }

    train = functools.partial(students.train, init=model.init)
    by_itself = train(f"alone_{filters}", loss=alone(model))
    found = {
      "alone": by_itself,
      "distilled": train(
        f"distilled_{filters}", loss=taught(model), teacher=logits
      ),
      "ensemble": train(
        f"ensemble_{filters}",
        loss=distillation.side_by_side(distillation.taught(model, **tell)),
        teacher=together,
      ),
      "born_again": train(
        f"born_again_{filters}",
        loss=taught(model),
        teacher=students.answers(model, by_itself, data),
      ),
      "hints": students.train(
        f"hints_{filters}",
        init_hinted,
        distillation.side_by_side(
          distillation.hinted(model, features.apply, **tell),
          own=["teacher", "hint"],
        ),
        teacher=logits,
        hint=seen,
      )["student"],
    }
    stacks |= {f"{k}_{filters}": (filters, v) for k, v in found.items()}
  return stacks


def scorers(students: Students) -> dict[str, Callable[..., np.ndarray]]:
  """Few-shot task -> `(filters, stack) -> accuracies`, a mean over seeds."""

  @functools.cache
  def compiled(head: str, ways: int, filters: int):
    tasks = few_shot_episodes(students.data.novel, ways, 1, QUERIES, 1)
    heads = {"ridge": ridge, "logistic": logistic}
    learner = embedding(
      # The episodes have their pixels between 0 and 1 already.
      students.features(filters).model,
      heads[head](ways),
      cross_entropy,
      normalize=True,
    )
    return training.task_scorer(
      learner, tasks, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
    )

  def score(head: str, ways: int, filters: int, stack: Params) -> np.ndarray:
    run = compiled(head, ways, filters)
    members = [
      jax.tree.map(lambda x, i=i: x[i], stack) for i in range(FLAGS.num_seeds)
    ]
    return np.mean([run(params)["accuracy"] for params in members], axis=0)

  return {
    f"{ways}w1s_{head}": functools.partial(score, head, ways)
    for ways in FLAGS.ways
    for head in ("ridge", "logistic")
  }


def size_and_time(
  model: Model, features: Model, stack: Params
) -> dict[str, float]:
  """Numbers of parameters, and milliseconds for 256 images, of one network."""
  images = jnp.zeros((256, 28, 28, 1), jnp.uint8)
  params = jax.tree.map(lambda x: x[0], stack)
  apply = jax.jit(model.apply)
  seconds = []
  for _ in range(12):
    start = time.perf_counter()
    apply(params, images).block_until_ready()
    seconds.append(time.perf_counter() - start)
  shapes = jax.eval_shape(features.init, jax.random.key(0), images)
  count = functools.partial(_count)
  return {
    "parameters": count(params),
    "parameters_without_head": count(shapes),
    "milliseconds_of_256": 1e3 * float(np.median(seconds[2:])),
  }


def _count(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def draw(students: Students, metrics, sizes) -> None:
  """Accuracy against the number of parameters, by kind of student."""
  lines = {
    kind: {
      sizes[filters]["parameters"]: metrics[f"accuracy/{kind}_{filters}"]
      for filters in FLAGS.student_filters
    }
    for kind in ("alone", "distilled", "ensemble", "born_again", "hints")
  }
  lines["teacher"] = {
    sizes[FLAGS.filters]["parameters"]: metrics["accuracy/teacher"]
  }
  plots.curves(
    students.runs.workdir / "accuracy.png",
    lines,
    "parameters, head included",
    "test accuracy",
    log="x",
  )


def report(stacks, metrics, sizes, recovered, tasks) -> None:
  """Prints a line for each network."""
  print(f"\n{'':20} accuracy  agreement  " + "  ".join(tasks))
  for name in stacks:
    few = [f"{metrics[f'{task}/{name}'].mean:{len(task)}.4f}" for task in tasks]
    print(
      f"{name:20} {metrics[f'accuracy/{name}'].mean:8.4f}  "
      f"{metrics[f'agreement/{name}'].mean:9.4f}  " + "  ".join(few)
    )
  print("\nrecovered of the gap between student alone and teacher:")
  for name, share in recovered.items():
    print(f"  {name:16} {share:.2f}")
  for filters, size in sizes.items():
    print(
      f"  {filters} filters: {size['parameters']} parameters "
      f"({size['parameters_without_head']} without the head), "
      f"{size['milliseconds_of_256']:.1f} ms for 256 images"
    )


if __name__ == "__main__":
  run(main)
