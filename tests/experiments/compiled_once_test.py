"""Networks of one size are compiled once, however many are trained."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, for the flags.
SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from experiments.shared import classifiers
from metajax.distillation import teaching

images = jnp.asarray(
  np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
)
for outputs in (3, None):
  before = teaching._predict_all._cache_size()
  for seed in range(3):
    model = classifiers._network(outputs, 8)  # As of each training.
    keys = jax.random.split(jax.random.key(seed), 2)
    stack = jax.vmap(lambda key: model.init(key, images[:1]))(keys)
    found = classifiers.answers(model, stack, images)
    first = jax.tree.map(lambda x: x[0], stack)
    np.testing.assert_allclose(
      found[:, 0], model.apply(first, images), rtol=1e-4, atol=1e-5
    )
  print(teaching._predict_all._cache_size() - before)
"""


@pytest.mark.slow
def test_answers_of_classifiers_have_one_program_for_each_size():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["1", "1"]
