"""What each part of recurrent replay is worth, on bandits.

  python -m experiments.rer_ablations

cuts trials into overlapping sequences and trains, with one thing changed at a
time: where a sequence begins (at the stored or a zero state, with burn-in or
without), how sequences are drawn (uniformly or by priority), how often each is
learned from, and, without replay, by PPO. All play equally many tasks. The
buffer holds the sequences of the last `--kept` steps. The Q-discrepancy of
Kapturowski et al. (2019, section 3) is the mean over all validations, with
states as old as the steps from one validation to the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import contests, on_policy, replaying, trial_plots
from metajax import players
from metajax.evaluation import estimate
from metajax.models.recurrent import Recurrent
from metajax.replay import Objective, q_discrepancy, q_player
from metajax.replay.sequences import sequence_starts
from metajax.runs import report, rng_keys
from metajax.runs.flags import FLAGS
from metajax.runs.script import run
from metajax.runs.stages import Stages
from metajax.tasks.trials import Trials, play
from metajax.training import TrainState

flags.DEFINE_integer("pulls", 100, "Pulls of a bandit.", lower_bound=2)
flags.DEFINE_integer("arms", 5, "Arms of a bandit.", lower_bound=2)
flags.DEFINE_integer("kept", 200, "Steps whose sequences are kept.", 2)
flags.DEFINE_list("rows", [], "Rows of the table, beside base; all if empty.")
DEFAULTS = {
  "steps": 700,
  "length": 40,
  "period": 20,
  "burn_in": 10,
}

NUM_TRIALS = 64  # Of an estimate of the Q-discrepancy.


class Variant(NamedTuple):
  """What is changed of the objective and of the replay."""

  objective: dict
  replay: dict


def variants() -> dict[str, Variant]:
  """The first is what the flags say: by default stored state and burn-in."""
  no_burn_in = {"burn_in": 0}
  ratios = {
    f"ratio_{r:g}": Variant({}, {"ratio": r})
    for r in (0.5, 1.0, 2.0, 4.0)
    if r != FLAGS.replay_ratio
  }
  return {
    "base": Variant({}, {}),
    "stored_state": Variant(no_burn_in, {}),
    "zero_state_burn_in": Variant({"zero_state": True}, {}),
    "zero_state": Variant({"zero_state": True} | no_burn_in, {}),
    "prioritised": Variant(
      {}, {"priority_exponent": 0.9, "importance_exponent": 0.6}
    ),
    **ratios,
  }


def main() -> None:
  # gymnax computes as it is imported, and devices are made before anything is.
  from metajax.tasks.bandits import bandits

  tasks = bandits(FLAGS.arms, FLAGS.pulls)
  starts = sequence_starts(tasks.num_steps, FLAGS.length, FLAGS.period)
  replay = replaying.replay(tasks)._replace(
    capacity=FLAGS.kept * FLAGS.meta_batch * len(starts)
  )
  network = replaying.network(tasks)
  trainees = {}
  for name, variant in variants().items():
    objective = replaying.objective(tasks)._replace(**variant.objective)
    changed = replay._replace(**variant.replay)
    trainee = replaying.build(tasks, network, objective, changed)
    trainees[name] = trainee, Discrepant(tasks, network, objective)
  if FLAGS.ppo:
    trainees["rl2_ppo"] = on_policy.trainee(tasks), lambda _: {}
  rows = list(dict.fromkeys(["base", *(FLAGS.rows or trainees)]))
  for name in rows:
    if name not in trainees:
      raise ValueError(f"--rows={name}: must be of {', '.join(trainees)}.")
  stages = Stages("rer_ablations")
  rival = contests.search(
    contests.Reference(lambda _: players.thompson(FLAGS.arms)), tasks
  )
  level = rival.level
  totals, curves, discrepancies = {"ts": rival.rewards.sum(-1)}, {}, {}
  for name in rows:
    trainee, discrepant = trainees[name]
    _, rewards = contests.train(stages, name, trainee, tasks, discrepant)
    totals[name] = rewards.sum(-1)
    curves[name] = contests.progress(stages, name, tasks)
    for place in ("first", "last"):
      logged = stages.history(name, f"validation/discrepancy_{place}")
      if logged:
        discrepancies[f"{name}_{place}"] = float(np.mean(list(logged.values())))
  trial_plots.learning(
    stages.workdir / "ablations.png",
    curves,
    {"ts": level},
    "environment steps",
    "reward of a task, validation",
  )
  base = totals["base"]
  report.finish(
    stages.workdir,
    "rer_ablations",
    {
      "pulls": FLAGS.pulls,
      "arms": FLAGS.arms,
      **replaying.protocol(),
      **on_policy.protocol(),
      "capacity": replay.capacity,
      "q_discrepancy": discrepancies,
      "environment_steps_to_ts": {
        name: contests.reached(curve, level) for name, curve in curves.items()
      },
    },
    {name: estimate(x) for name, x in totals.items()}
    | {
      f"{name}_minus_base": estimate(x - base)
      for name, x in totals.items()
      if name not in ("base", "ts")
    },
    stages.total(),
  )


class Discrepant:
  """Measures with states of the time of the measurement before."""

  def __init__(self, tasks: Trials, network: Recurrent, objective: Objective):
    self._before = None
    keys = jax.random.split(rng_keys.evaluation_key("validation"), NUM_TRIALS)

    @jax.jit
    def measure(old, new):
      player = q_player(network, old, tasks.num_actions, FLAGS.epsilon / 2)

      def one(key):
        return q_discrepancy(
          network,
          new,
          play(player, tasks, key),
          objective,
          FLAGS.length,
          FLAGS.period,
        )

      return jax.tree.map(lambda x: x.mean(), jax.vmap(one)(keys))

    self._measure = measure

  def __call__(self, state: TrainState) -> dict[str, float]:
    # A copy, since the loop gives the state's memory to the next.
    new = jax.tree.map(jnp.copy, state.meta_params)
    before, self._before = self._before, new
    if before is None:
      return {}
    first, last = self._measure(before, new)
    return {"discrepancy_first": float(first), "discrepancy_last": float(last)}


if __name__ == "__main__":
  run(
    main,
    defaults=replaying.DEFAULTS | DEFAULTS,
    needs=replaying.NEEDS,
    unused=(
      *replaying.UNUSED,
      *("capacity", "zero_state", "last_observation", "references_only"),
    ),
  )
