"""Many MAML initialisations into one learner, on few-shot Omniglot.

  python -m experiments.aggregate_omniglot --data_dir=DIR

meta-trains from several seeds, keeping running averages and snapshots of each
run, and compares on the same test tasks: the runs themselves, the ensemble of
their adapted predictions, EMA and SWA, uniform and greedy soups of snapshots
and of seeds (as they are, and with their filters matched), and learned weights.
Differences to the first run are paired. With `--member_workdirs` the members
are runs of `experiments.few_shot` instead, which keep no averages.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from metajax import aggregation
from metajax.evaluation import Estimate, estimate
from metajax.learners import (
  ENCODED,
  REGISTRY,
  learned_average,
  learned_ensemble,
)
from metajax.losses import accuracy, cross_entropy
from metajax.models.conv import conv4
from metajax.runs import plots, report, scoring, training
from metajax.runs.finished import define_runs, find_runs, read_run
from metajax.runs.flags import FLAGS, define_data_dir, refuse
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks import omniglot
from metajax.training import (
  Trainer,
  choose_task_chunk,
  meta_trainer,
  task_mesh,
)
from metajax.training.logging import waiting
from metajax.training.loop import Schedule
from metajax.types import Array, MetaLearner, Params

define_data_dir()
define_runs("member_workdirs", instead_of="members")
flags.DEFINE_integer("snapshots", 5, "Snapshots of a run.", lower_bound=2)
flags.DEFINE_float(
  "ema_decay", 0.99, "Decay of the moving average.", lower_bound=0.0
)
flags.DEFINE_integer(
  "weight_steps", 100, "Meta-steps of the learned weights.", lower_bound=1
)
DEFAULTS = {
  "steps": 4000,
  "meta_batch": 8,
  "inner_lr": 2.0,
  "log_every": 500,
  "eval_every": 1000,
  "checkpoint_every": 1000,
}

SHOTS = 1
LAYERS = [[f"Conv_{i}", f"BatchNorm_{i}"] for i in range(4)] + [["Dense_0"]]


class Members(Stages):
  """The trainings of this experiment."""

  def __init__(self, learner: MetaLearner, splits):
    super().__init__("aggregate_omniglot")
    self.learner, self.splits = learner, splits
    # Chosen once for all trainings.
    mesh = task_mesh(FLAGS.meta_batch)
    self.task_chunk = FLAGS.task_chunk or choose_task_chunk(
      learner, splits.train, FLAGS.meta_batch // mesh.size
    )
    # Averages look at the last half of a run, which has left the beginning.
    period = max(1, FLAGS.steps // (2 * FLAGS.snapshots))
    self.averages = {
      "ema": aggregation.ema(FLAGS.ema_decay),
      "swa": aggregation.swa(FLAGS.steps // 2, 1),
      "snapshots": aggregation.recent(FLAGS.snapshots, period),
    }

  def member(self, index: int) -> tuple[Params, dict[str, Params]]:
    """Returns a run's last parameters, and its averages by name."""
    optimizer = aggregation.averaging(optax.adam(FLAGS.outer_lr), self.averages)
    trainer = self.trainer(self.learner, optimizer, seed=FLAGS.seed + index)
    trained = self.train(
      f"member_{index}",
      trainer,
      training.schedule(),
      FLAGS.meta_batch,
      seed=index,
    )
    states = trained.state.opt_state.averages
    averages = {k: a.value(states[k]) for k, a in self.averages.items()}
    return trained.state.meta_params, averages

  def weights(self, name: str, learner: MetaLearner) -> Params:
    steps = FLAGS.weight_steps
    trainer = self.trainer(learner, optax.adam(0.05), seed=FLAGS.seed)
    every = max(1, steps // 5)
    schedule = Schedule(steps, every, steps, steps)
    trained = self.train(name, trainer, schedule, FLAGS.meta_batch)
    return trained.state.meta_params

  def trainer(
    self,
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    seed: int,
  ) -> Trainer:
    return meta_trainer(
      learner,
      optimizer,
      self.splits.train,
      meta_batch=FLAGS.meta_batch,
      rng=jax.random.fold_in(jax.random.key(seed), 1),
      task_chunk=self.task_chunk,
    )


def main() -> None:
  if FLAGS.member_workdirs:
    refuse("members", "snapshots", "ema_decay", "steps")
  found_runs = find_runs("member_workdirs")
  with waiting("loading data"):
    splits = omniglot(
      FLAGS.data_dir, ways=FLAGS.ways, shots=SHOTS, query_shots=SHOTS
    )
  model = conv4(FLAGS.ways, filters=FLAGS.filters)
  learner = REGISTRY[FLAGS.learner](
    model,
    cross_entropy,
    optax.sgd(FLAGS.inner_lr),
    FLAGS.inner_steps,
    num_eval_steps=FLAGS.eval_inner_steps,
    metrics={"accuracy": accuracy},
    memory=FLAGS.memory,
  )
  image = jax.eval_shape(splits.train, jax.random.key(0)).support.inputs
  trees = [
    jax.tree.structure(jax.eval_shape(x.init, jax.random.key(0), image))
    for x in (learner, model)
  ]
  if FLAGS.learner in ENCODED or trees[0] != trees[1]:
    raise ValueError(
      f"--learner={FLAGS.learner} does not learn the initialisation of a "
      "classifier, which is combined here: choose maml, or another that does."
    )
  finals = [read_run(found, model, image) for found in found_runs]
  runs, averages = Members(learner, splits), {}
  if not finals:
    found = [runs.member(i) for i in range(FLAGS.members)]
    finals, averages = [params for params, _ in found], found[0][1]
  seeds = aggregation.stack_models(finals)
  axes = aggregation.chain_axes(finals[0], LAYERS)
  aligned = aggregation.align_stack(seeds, axes, rounds=5)

  @functools.cache
  def scorer(split: str) -> Callable[[Params], np.ndarray]:
    return values(learner, splits, split)

  def validated(params: Params) -> float:
    return float(scorer("validation")(params).mean())

  def soup(stack: Params) -> Params:
    params, chosen = aggregation.greedy_soup(stack, validated)
    print(f"greedy soup of {chosen}")
    return params

  rows = {f"member_{i}": params for i, params in enumerate(finals)}
  if averages:
    snapshots = averages["snapshots"]
    rows["ema"], rows["swa"] = averages["ema"], averages["swa"]
    rows["soup_of_snapshots"] = aggregation.weighted_average(snapshots)
    rows["greedy_soup_of_snapshots"] = soup(snapshots)
  rows["soup_of_seeds"] = aggregation.weighted_average(seeds)
  rows["soup_of_aligned_seeds"] = aggregation.weighted_average(aligned)
  rows["greedy_soup_of_seeds"] = soup(seeds)
  scores = {name: scorer("test")(params) for name, params in rows.items()}

  average = learned_average(learner, aligned)
  pooled = functools.partial(
    learned_ensemble,
    learner,
    pool=aggregation.average_probabilities,
    loss_fn=cross_entropy,
  )
  weights = runs.weights("learned_average", average)
  name = "learned_average_of_aligned_seeds"
  scores[name] = values(average, splits, "test")(weights)

  def equal(size: int) -> Params:
    return {"logits": jnp.zeros(size), "beta": jnp.zeros(())}

  together = pooled(members=seeds)
  score = values(together, splits, "test")
  scores["learned_ensemble"] = score(runs.weights("learned_ensemble", together))
  sizes = range(1, len(finals) + 1)
  scores["ensemble_of_1"] = scores["member_0"]
  for size in sizes[1:-1]:
    members = jax.tree.map(lambda x, n=size: x[:n], seeds)
    score_some = values(pooled(members=members), splits, "test")
    scores[f"ensemble_of_{size}"] = score_some(equal(size))
  scores[f"ensemble_of_{sizes[-1]}"] = score(equal(sizes[-1]))
  if averages:
    score = values(pooled(members=snapshots), splits, "test")
    scores["ensemble_of_snapshots"] = score(equal(FLAGS.snapshots))

  plots.curves(
    runs.workdir / "ensemble_size.png",
    {"test": {n: estimate(scores[f"ensemble_of_{n}"]) for n in sizes}},
    "runs in the ensemble",
    "test accuracy",
  )
  draw_barrier(runs, seeds, aligned)
  print(f"\n{'':34} accuracy, and difference to member_0")
  gains: dict[str, Estimate] = {}
  for name, value in scores.items():
    gains[name] = estimate(value - scores["member_0"])
    print(
      f"{name:34} {value.mean():.4f}  {gains[name].mean:+.4f} "
      f"+- {gains[name].ci95:.4f}"
    )
  report.finish(
    runs.workdir,
    "aggregate_omniglot",
    {
      "learner": FLAGS.learner,
      "ways": FLAGS.ways,
      "shots": SHOTS,
      "query_shots": SHOTS,
      "filters": FLAGS.filters,
      "normalization": "batch",
      "transductive": True,
      "inner_steps": FLAGS.inner_steps,
      "eval_inner_steps": FLAGS.eval_inner_steps,
      "inner_lr": FLAGS.inner_lr,
      "ema_decay": FLAGS.ema_decay,
      "snapshots": FLAGS.snapshots,
      "weight_steps": FLAGS.weight_steps,
    },
    {name: estimate(value) for name, value in scores.items()}
    | {f"{k}_minus_member_0": v for k, v in gains.items() if k != "member_0"},
    runs.total(),
    steps=FLAGS.weight_steps if found_runs else FLAGS.steps,
  )


def values(
  learner: MetaLearner, splits, split: str
) -> Callable[[Params], np.ndarray]:
  """Returns `meta_params -> accuracies`, of the same tasks for everybody."""
  num_tasks = {"validation": 200, "test": FLAGS.eval_tasks}[split]
  score = scoring.task_scorer(
    learner, getattr(splits, split), {"accuracy": accuracy}, split, num_tasks
  )
  return lambda params: score(params)["accuracy"]


def draw_barrier(runs: Members, seeds: Params, aligned: Params) -> None:
  """Query loss after adaptation along the line from the first run to others."""
  rng = jax.random.fold_in(jax.random.key(FLAGS.eval_seed), 4)
  tasks = runs.splits.validation

  def loss(params: Params) -> Array:
    def chunk(key):
      episodes = jax.vmap(tasks)(jax.random.split(key, 10))
      return runs.learner.meta_grad(params, episodes, key)[1]["loss"]

    return jax.lax.map(chunk, jax.random.split(rng, 10)).mean()

  @jax.jit
  def line(stack: Params, index: Array) -> Array:
    one, other = (jax.tree.map(lambda x, i=i: x[i], stack) for i in (0, index))
    return aggregation.loss_barrier(loss, one, other, num_points=11).losses

  lines = {}
  grid = np.linspace(0, 1, 11)
  others = range(1, len(jax.tree.leaves(seeds)[0]))
  for name, stack in (("as trained", seeds), ("aligned", aligned)):
    losses = np.stack([line(stack, jnp.int32(i)) for i in others])
    lines[name] = {
      w: Estimate(float(mean), 0.0, len(losses))
      for w, mean in zip(grid, losses.mean(0), strict=True)
    }
  plots.curves(
    runs.workdir / "barrier.png",
    lines,
    "place on the line from one run to another",
    "validation loss after adaptation",
  )


if __name__ == "__main__":
  run(main, defaults=DEFAULTS, unused=("outer_schedule",))
