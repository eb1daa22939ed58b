"""Meta-Experience Replay on streams of tasks, against what forgets and replays.

  python -m experiments.rer_continual --stream=rotations

learns scikit-learn's digits, turned further (or with pixels permuted anew) in
each of 10 tasks, every example seen once, by online SGD, elastic weight
consolidation (EWC), plain replay and MER. Step sizes and strengths are chosen
on streams of validation images, then each method meets new streams of test
images, `--num_streams` of each. Reported are Riemer et al.'s (2019) retained
accuracy (RA), learning accuracy (LA), and RA - LA, backward transfer and
interference (BTI).
"""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from sklearn.datasets import load_digits

from metajax import continual
from metajax.evaluation import Estimate, estimate
from metajax.models.mlp import MLP
from metajax.results import write_results
from metajax.runs import folder, plots, report, rng_keys
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.types import Array, Batch, Params, PRNGKey

OWN = {
  "stream": flags.DEFINE_enum(
    "stream", "rotations", ["rotations", "permutations"], "How tasks differ."
  ),
  "tasks": flags.DEFINE_integer("tasks", 10, "Tasks of a stream.", 2),
  "examples": flags.DEFINE_integer("examples", 500, "Images of a task.", 1),
  "capacity": flags.DEFINE_integer(
    "capacity", 200, "Images that replay and MER keep.", 1
  ),
  "batch": flags.DEFINE_integer(
    "batch", 10, "Images replayed at once, with the new one.", 1
  ),
  "batches": flags.DEFINE_integer(
    "batches", 2, "Batches replayed for each new image.", 1
  ),
  "hidden": flags.DEFINE_integer("hidden", 100, "Units of two layers.", 1),
  "num_streams": flags.DEFINE_integer(
    "num_streams", 10, "Streams at test, a network for each.", 2
  ),
}
UNUSED = (
  "learner steps meta_batch task_chunk inner_steps inner_lr outer_lr "
  "outer_schedule memory eval_tasks log_every eval_every checkpoint_every "
  "coordinator num_processes process_id must_save stall_seconds"
).split()

NUM_TEST = 597  # Images; of the other 1200 a third is for validation.
STREAMS = {"rotations": continual.rotated, "permutations": continual.permuted}
# Candidates: steps of SGD on one image, and on the mean of a batch.
STEP_SIZES = (0.01, 0.03, 0.1, 0.3)


class Method(NamedTuple):
  """A learner of some numbers, and values to choose from."""

  make: Callable[..., continual.ContinualLearner]
  names: tuple[str, ...]
  values: list[tuple[float, ...]]


def methods() -> dict[str, Method]:
  replay = {
    name: FLAGS[name].value for name in ("capacity", "batch", "batches")
  }
  return {
    "online": Method(
      functools.partial(continual.online, loss),
      ("step_size",),
      [(a,) for a in STEP_SIZES],
    ),
    "ewc": Method(
      functools.partial(continual.elastic_weights, loss),
      ("step_size", "strength"),
      [(a, c) for a in STEP_SIZES for c in (3.0, 10.0, 30.0, 100.0, 300.0)],
    ),
    "replay": Method(
      functools.partial(continual.replayed, loss, **replay),
      ("step_size",),
      [(a,) for a in STEP_SIZES],
    ),
    "mer": Method(
      functools.partial(continual.meta_experience_replay, loss, **replay),
      ("step_size", "within"),
      [(a, b) for a in STEP_SIZES[1:] for b in (0.03, 0.1, 0.3, 1.0)],
    ),
  }


def main() -> None:
  workdir = folder.start("rer_continual")
  began = time.perf_counter()
  train, validation, test = load()
  both = jax.tree.map(lambda *x: jnp.concatenate(x), train, validation)
  trial = streams(train, validation, "validation", 1 + FLAGS.num_streams // 2)
  final = streams(both, test, "test", FLAGS.num_streams)
  metrics: dict[str, Estimate] = {}
  retained: dict[str, np.ndarray] = {}
  chosen: dict[str, dict[str, float]] = {}
  curves: dict[str, dict[float, Estimate]] = {}
  for name, method in methods().items():
    best, accuracies = once(
      workdir / f"{name}.npz", lambda m=method: choose(m, trial, final)
    )
    chosen[name] = dict(zip(method.names, method.values[best], strict=True))
    last, own = accuracies[:, -1], accuracies.diagonal(axis1=1, axis2=2)
    retained[name] = last.mean(-1)
    metrics[f"{name}_ra"] = estimate(retained[name])
    metrics[f"{name}_la"] = estimate(own.mean(-1))
    metrics[f"{name}_bti"] = estimate((last - own).mean(-1))
    curves[name] = {
      i + 1: estimate(accuracies[:, i, : i + 1].mean(-1))
      for i in range(FLAGS.tasks)
    }
    print(
      f"{name}: {metrics[f'{name}_ra'].mean:.1f}% retained, {chosen[name]}, "
      f"{time.perf_counter() - began:.0f} s so far",
      file=sys.stderr,
    )
  metrics["mer_minus_replay_ra"] = estimate(
    retained["mer"] - retained["replay"]
  )
  plots.curves(
    workdir / "retained.png",
    curves,
    "tasks learned so far",
    "mean accuracy on them in percent",
  )
  write_results(
    workdir,
    experiment="rer_continual",
    protocol={
      **{name: flag.value for name, flag in OWN.items()},
      "numbers_of_methods": chosen,
      "images": {
        "train": len(train.targets),
        "validation": len(validation.targets),
        "test": len(test.targets),
      },
      "eval_seed": FLAGS.eval_seed,
    },
    metrics=metrics,
    wall_seconds=time.perf_counter() - began,
    compile_seconds=0.0,
    steps=FLAGS.tasks * FLAGS.examples,
    seed=FLAGS.seed,
  )
  report.publish(workdir, FLAGS.tasks * FLAGS.examples, metrics)
  report.show(workdir, metrics, "streams")


def choose(
  method: Method, trial: continual.Stream, final: continual.Stream
) -> tuple[int, np.ndarray]:
  """Returns which values retain most at trial, and their final percentages."""
  retained = play(method, method.values, trial)[:, :, -1].mean((1, 2))
  best = int(retained.argmax())
  return best, 100 * play(method, [method.values[best]], final)[0]


def once(
  path: Path, compute: Callable[[], tuple[int, np.ndarray]]
) -> tuple[int, np.ndarray]:
  """Reads what an interrupted run had computed, or computes and writes it."""
  if not path.exists():
    best, accuracies = compute()
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
      np.savez(file, best=best, accuracies=accuracies)
    temporary.replace(path)
  with np.load(path) as found:
    return int(found["best"]), found["accuracies"]


def load() -> tuple[Batch, Batch, Batch]:
  """Splits the digits for training, validation and test, by --eval_seed."""
  digits = load_digits()
  order = np.random.default_rng(FLAGS.eval_seed).permutation(len(digits.target))
  images = jnp.asarray(digits.images[order] / 16, jnp.float32)[..., None]
  labels = jnp.asarray(digits.target[order], jnp.int32)
  bounds = np.cumsum([0, 800, 400, NUM_TEST])
  train, validation, test = (
    Batch(images[a:b], labels[a:b])
    for a, b in zip(bounds, bounds[1:], strict=False)
  )
  return train, validation, test


def loss(params: Params, example: Batch) -> Array:
  logits = model().apply(params, example.inputs[None])[0]
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, example.targets
  )


def model() -> MLP:
  return MLP(10, (FLAGS.hidden, FLAGS.hidden))


def streams(
  train: Batch, test: Batch, split: str, number: int
) -> continual.Stream:
  """Makes the fixed streams of a split, `[streams, tasks, ...]`."""
  make = STREAMS[FLAGS.stream]
  keys = jax.random.split(rng_keys.evaluation_key(split), number)
  one = lambda key: make(train, test, FLAGS.tasks, FLAGS.examples, key)  # noqa: E731
  return jax.jit(jax.vmap(one))(keys)


def play(
  method: Method, values: list[tuple[float, ...]], streams: continual.Stream
) -> np.ndarray:
  """Learns streams; returns accuracies `[values, streams, tasks, tasks]`."""

  def one(values: Array, stream: continual.Stream, key: PRNGKey) -> Array:
    init_key, learn_key = jax.random.split(key)
    params = model().init(init_key, stream.train.inputs[0, :1])
    return continual.accuracies_over_stream(
      method.make(*values), model(), params, stream, learn_key
    )

  number = streams.train.targets.shape[0]
  keys = jax.random.split(jax.random.key(FLAGS.seed), number)
  both = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))
  return np.asarray(jax.jit(both)(jnp.array(values), streams, keys))


if __name__ == "__main__":
  run(main, unused=UNUSED)
