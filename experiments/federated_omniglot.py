"""Federated averaging over Omniglot's alphabets (McMahan et al. 2017).

  python -m experiments.federated_omniglot --data_dir=DIR

Each background alphabet is a client that has its own drawings only, turned by
0, 90, 180 or 270 degrees; one network learns to tell by how much, and is judged
on alphabets that no client has. (Characters would be the other labels to take,
but no two alphabets share any, and the average of networks that each know other
classes stays at chance.) How many rounds do FedSGD, FedAvg with several local
epochs, FedProx and FedAdam need to a target accuracy?
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from metajax.evaluation import Estimate, estimate
from metajax.losses import cross_entropy
from metajax.models.conv import conv4
from metajax.runs import plots, report, rng_keys, training
from metajax.runs.flags import FLAGS, define_data_dir
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks.omniglot import load_omniglot
from metajax.training import Clients, federated_trainer
from metajax.training.logging import read_jsonl, waiting
from metajax.types import Batch, Params

define_data_dir()
flags.DEFINE_integer("filters", 32, "Channels of conv4.", lower_bound=8)
flags.DEFINE_integer(
  "batch_size", 50, "Images of a local step, except in FedSGD.", lower_bound=1
)
flags.DEFINE_float(
  "target", 0.4, "Validation accuracy that is asked for.", lower_bound=0.0
)
flags.DEFINE_float("proximal", 0.01, "Mu of FedProx.", lower_bound=0.0)
flags.DEFINE_float(
  "sgd_lr", 0.1, "Step size of FedSGD, one step a round.", lower_bound=0.0
)
DEFAULTS = {
  "steps": 40,
  "meta_batch": 10,
  "inner_lr": 0.1,
  "outer_lr": 0.01,
  "log_every": 5,
  "eval_every": 2,
  "checkpoint_every": 20,
}

DRAWINGS = 8  # Of each character, of its 20.


def main() -> None:
  clients, validation, test = alphabets()
  model = conv4(4, filters=FLAGS.filters, normalization="group")
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
    """Whether the turn of each image is found, 500 at a time."""
    predicted = jax.lax.map(
      lambda image: model.apply(params, image[None])[0].argmax(),
      batch.inputs,
      batch_size=500,
    )
    return predicted == batch.targets

  metrics, curves, rounds = {}, {}, {}
  for name, (server, epochs, size, rate, proximal) in methods.items():
    trainer = federated_trainer(
      model,
      cross_entropy,
      clients,
      optax.sgd(rate),
      server,
      clients_per_round=FLAGS.meta_batch,
      rng=rng_keys.task_key(),
      local_epochs=epochs,
      batch_size=size,
      proximal=proximal,
      client_chunk=FLAGS.task_chunk or 1,
    )
    trained = runs.train(
      name,
      trainer,
      training.schedule(),
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
  report.finish(
    runs.workdir,
    "federated_omniglot",
    {
      "clients": len(clients.sizes),
      "classes": 4,
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


@waiting("loading data")
def alphabets() -> tuple[Clients, Batch, Batch]:
  """The background alphabets as clients; others for validation and test."""
  data = load_omniglot(FLAGS.data_dir)
  rng = np.random.default_rng(FLAGS.eval_seed)
  # Every alphabet's drawings, turned.
  turned = {}
  for name in np.unique(data.alphabets):
    images = data.images[data.alphabets == name, :DRAWINGS]
    images = images.reshape(-1, *images.shape[2:]).astype(np.float32) / 255
    turns = rng.integers(0, 4, len(images), np.int32)
    for turn in range(1, 4):
      chosen = turns == turn
      images[chosen] = np.rot90(images[chosen], turn, axes=(1, 2))
    turned[name] = images, turns
  background = np.unique(data.alphabets[data.is_background])
  own = [turned[name] for name in background]
  others = [turned[name] for name in turned if name not in background]

  def joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    images, turns = zip(*parts, strict=True)
    return Batch(
      jnp.asarray(np.concatenate(images)), jnp.asarray(np.concatenate(turns))
    )

  sizes = np.array([len(turns) for _, turns in own])
  clients = Clients(joined(own), sizes, np.cumsum(sizes) - sizes)
  half = len(others) // 2
  return clients, joined(others[:half]), joined(others[half:])


def binomial(accuracy: float, batch: Batch) -> Estimate:
  size = len(batch.targets)
  width = 1.96 * np.sqrt(accuracy * (1 - accuracy) / size)
  return Estimate(accuracy, width, size)


if __name__ == "__main__":
  run(
    main,
    defaults=DEFAULTS,
    unused=("learner", "inner_steps", "memory", "outer_schedule", "eval_tasks"),
  )
