"""A key is used once: for a task, for batches, for noise or for a learner."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, for the flags. What draws tells its key.
SCRIPT = """
import json, pathlib, sys
import jax, jax.numpy as jnp
from experiments.shared import regressors
from metajax.runs import plots
from metajax.types import Batch, Episode, MetaLearner

used = {}

def note(what, key):
  jax.debug.callback(
    lambda data: used.setdefault(what, []).append(data.tolist()),
    jax.random.key_data(key),
  )

def telling(name, draw):
  def told(key, *arguments, **options):
    note(name, key)
    return draw(key, *arguments, **options)
  return told

def tasks(key):
  note("tasks", key)
  x = jnp.zeros((2, 4, 4, 1))
  return Episode(*2 * [Batch(x, jnp.arange(2))])

def curves(key):
  note("tasks", key)
  return Episode(*2 * [Batch(jnp.zeros((2, 1)), jnp.zeros((2, 1)))])

def learner(outputs):
  def adapt(params, support, rng):
    note("learner", rng)
  return MetaLearner(
    None, adapt, lambda _, x: jnp.zeros((len(x), outputs)), None
  )

rng = jax.random.key(3)
folder = pathlib.Path(sys.argv[1])
plots.image_episodes(
  folder / "a.png", learner(2), (), tasks, rng, 2, columns=4
)
other = jax.random.key(4)
plots.sinusoid_fits(folder / "b.png", {"fit": learner(1)}, (), curves, other)
params = regressors.init(rng)
jax.random.choice = telling("batches", jax.random.choice)
jax.random.normal = telling("noise", jax.random.normal)
jax.block_until_ready(regressors.train(rng, params, params, 0, num_steps=3))
jax.block_until_ready(regressors.fisher(rng, params))
jax.effects_barrier()
# The curve is drawn by keys that are split from its own.
used["curve"] = [
  jax.random.key_data(key).tolist() for key in [rng, *jax.random.split(rng, 9)]
]
print(json.dumps(used))
"""


@pytest.mark.slow
def test_tasks_learners_batches_and_noise_have_keys_of_their_own(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  used = json.loads(done.stdout)
  # Two tasks of images and four curves, three batches.
  found = {what: {*map(tuple, keys)} for what, keys in used.items()}
  assert {what: len(keys) for what, keys in found.items()} == {
    **{"tasks": 6, "learner": 6, "batches": 3, "noise": 1, "curve": 10},
  }
  assert len(set.union(*found.values())) == 6 + 6 + 3 + 1 + 10
