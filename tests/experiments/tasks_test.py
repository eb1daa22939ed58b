"""The tasks of an experiment's evaluations are never those of its training."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, for the flags. The learner tells which task it saw.
SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from metajax.runs import scoring, training
from metajax.runs.flags import FLAGS
from metajax.tasks import sinusoid
from metajax.types import MetaLearner

FLAGS(["test", "--meta_batch=4", "--task_chunk=1"])
seen = []

def meta_grad(params, episodes, rng):
  jax.debug.callback(
    lambda x: seen.extend(x.ravel().tolist()), episodes.support.inputs[:, 0]
  )
  return params, {"loss": jnp.zeros(())}

learner = MetaLearner(
  lambda rng, inputs: jnp.zeros(()),
  lambda params, support, rng: support.inputs[0, 0],
  lambda first, inputs: first,
  meta_grad,
)
tasks = sinusoid(1, 1)
trainer = training.trainer(learner, tasks)
state = trainer.init(jax.random.fold_in(jax.random.key(FLAGS.seed), 0))
train, _ = trainer.compile(state)
jax.block_until_ready(train(state, 500))
jax.effects_barrier()
print(*sorted(seen))
for split in ("validation", "test"):
  values = []
  metric = {"first": lambda predictions, targets: predictions}
  scoring.estimate = lambda v: values.extend(np.asarray(v).tolist())
  scoring.scorer(learner, tasks, metric, split, 600)(jnp.zeros(()))
  print(*sorted(values))
"""


@pytest.mark.slow
def test_no_task_is_shared_by_training_validation_and_test():
  """With the same seed for all; a task is told by its first input."""
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  parts = [set(map(float, line.split())) for line in done.stdout.splitlines()]
  assert [len(part) for part in parts] == [2000, 600, 600]
  for one, other in itertools.combinations(parts, 2):
    assert not one & other
