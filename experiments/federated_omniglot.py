"""Federated averaging over Omniglot's alphabets (McMahan et al. 2017).

  python -m experiments.federated_omniglot --data_dir=DIR

Each background alphabet is a client that knows its own characters only. One
network learns to tell all 964 characters apart by FedSGD, FedAvg with several
local epochs, FedProx and FedAdam; how many rounds does each need to a target
accuracy?
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import plots, training
from experiments.flags import FLAGS, define_data_dir, refuse, run
from experiments.stages import Stages
from metajax.evaluation import Estimate, estimate
from metajax.losses import cross_entropy
from metajax.models.conv import conv4
from metajax.tasks.omniglot import load_omniglot
from metajax.training import Clients, federated_trainer
from metajax.training.logging import read_jsonl
from metajax.training.loop import Schedule
from metajax.types import Batch, Params

define_data_dir()
flags.DEFINE_integer("filters", 32, "Channels of conv4.", lower_bound=8)
flags.DEFINE_integer(
  "batch_size", 50, "Images of a local step, except in FedSGD.", lower_bound=1
)
flags.DEFINE_float(
  "target", 0.3, "Validation accuracy that is asked for.", lower_bound=0.0
)
flags.DEFINE_float("proximal", 0.01, "Mu of FedProx.", lower_bound=0.0)
flags.DEFINE_float(
  "sgd_lr", 1.0, "Step size of FedSGD, one step a round.", lower_bound=0.0
)
FLAGS.set_default("steps", 100)
FLAGS.set_default("meta_batch", 10)
FLAGS.set_default("inner_lr", 0.1)
FLAGS.set_default("outer_lr", 0.01)
FLAGS.set_default("log_every", 5)
FLAGS.set_default("eval_every", 5)
FLAGS.set_default("checkpoint_every", 20)

TRAIN, VALIDATION = 14, 3  # Of a character's 20 drawings; the rest is the test.


def main() -> None:
  refuse("learner", "inner_steps", "memory", "outer_schedule", "eval_tasks")
  clients, validation, test = alphabets()
  num_classes = int(validation.targets.max()) + 1
  model = conv4(num_classes, filters=FLAGS.filters, normalization="group")
  runs = Stages("federated_omniglot")
  average, adam = optax.sgd(1.0), optax.adam(FLAGS.outer_lr, eps=1e-3)
  # Name -> (server optimizer, local epochs, batch size, step size, proximal).
  methods = {
    "fedsgd": (average, 1, None, FLAGS.sgd_lr, 0.0),
    "fedavg_1_epoch": (average, 1, FLAGS.batch_size, FLAGS.inner_lr, 0.0),
    "fedavg_5_epochs": (average, 5, FLAGS.batch_size, FLAGS.inner_lr, 0.0),
    "fedprox_5_epochs": (
      average,
      5,
      FLAGS.batch_size,
      FLAGS.inner_lr,
      FLAGS.proximal,
    ),
    "fedadam_1_epoch": (adam, 1, FLAGS.batch_size, FLAGS.inner_lr, 0.0),
  }

  @jax.jit
  def correct(params: Params, batch: Batch) -> jax.Array:
    """Whether each image is recognised, 500 at a time."""
    predicted = jax.lax.map(
      lambda image: model.apply(params, image[None])[0].argmax(),
      batch.inputs,
      batch_size=500,
    )
    return predicted == batch.targets

  schedule = Schedule(
    FLAGS.steps, FLAGS.log_every, FLAGS.eval_every, FLAGS.checkpoint_every
  )
  metrics, curves, rounds = {}, {}, {}
  for name, (server, epochs, size, rate, proximal) in methods.items():
    trainer = federated_trainer(
      model,
      cross_entropy,
      clients,
      optax.sgd(rate),
      server,
      clients_per_round=FLAGS.meta_batch,
      rng=jax.random.fold_in(jax.random.key(FLAGS.seed), 1),
      local_epochs=epochs,
      batch_size=size,
      proximal=proximal,
      client_chunk=FLAGS.task_chunk or 1,
    )
    trained = runs.train(
      name,
      trainer,
      schedule,
      FLAGS.meta_batch,
      validate=lambda state: {
        "accuracy": float(correct(state.meta_params, validation).mean())
      },
    )
    metrics[name] = estimate(correct(trained.state.meta_params, test))
    curves[name] = {
      line["step"]: binomial(float(line["validation/accuracy"]), validation)
      for line in read_jsonl(runs.workdir / name / "metrics.jsonl")
      if "validation/accuracy" in line
    }
    reached = [k for k, v in curves[name].items() if v.mean >= FLAGS.target]
    rounds[name] = min(reached, default=None)
  plots.curves(
    runs.workdir / "rounds.png", curves, "rounds", "validation accuracy"
  )
  print(f"\nrounds to a validation accuracy of {FLAGS.target}:")
  for name, number in rounds.items():
    print(f"  {name:18} {number or f'more than {FLAGS.steps}'}")
  training.finish(
    runs.workdir,
    "federated_omniglot",
    {
      "clients": len(clients.sizes),
      "classes": num_classes,
      "filters": FLAGS.filters,
      "normalization": "group",
      "batch_size": FLAGS.batch_size,
      "client_lr": FLAGS.inner_lr,
      "fedsgd_lr": FLAGS.sgd_lr,
      "proximal": FLAGS.proximal,
      "target": FLAGS.target,
      "rounds_to_target": rounds,
      "metrics": "test accuracy, intervals over images",
    },
    metrics,
    runs.total(),
  )


def alphabets() -> tuple[Clients, Batch, Batch]:
  """The background alphabets as clients; validation and test images."""
  data = load_omniglot(FLAGS.data_dir)
  images = data.images[data.is_background].astype(np.float32) / 255
  names = data.alphabets[data.is_background]
  labels = np.arange(len(names))
  members = [np.flatnonzero(names == name) for name in np.unique(names)]
  sizes = np.array([len(m) * TRAIN for m in members], np.int32)

  def padded(values: np.ndarray) -> jnp.ndarray:
    """`[characters, drawings, ...]` -> `[clients, max_size, ...]`."""
    flat = [
      values[m].reshape(size, *values.shape[2:])
      for m, size in zip(members, sizes, strict=True)
    ]
    out = np.zeros((len(flat), max(sizes), *values.shape[2:]), values.dtype)
    for row, examples in zip(out, flat, strict=True):
      row[: len(examples)] = examples
    return jnp.asarray(out)

  def batch(drawings: slice) -> Batch:
    chosen = images[:, drawings]
    targets = np.repeat(labels, chosen.shape[1])
    return Batch(
      jnp.asarray(chosen.reshape(-1, *chosen.shape[2:])), jnp.asarray(targets)
    )

  targets = np.repeat(labels[:, None], TRAIN, axis=1)
  clients = Clients(
    Batch(padded(images[:, :TRAIN]), padded(targets)), jnp.asarray(sizes)
  )
  last = TRAIN + VALIDATION
  return clients, batch(slice(TRAIN, last)), batch(slice(last, None))


def binomial(accuracy: float, batch: Batch) -> Estimate:
  size = len(batch.targets)
  width = 1.96 * np.sqrt(accuracy * (1 - accuracy) / size)
  return Estimate(accuracy, width, size)


if __name__ == "__main__":
  run(main)
