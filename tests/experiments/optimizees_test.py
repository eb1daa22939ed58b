"""The problems of learned optimizers: no test set is in the training."""

import subprocess
import sys

# A process of its own, as scripts have flags of the same names.
PROGRAM = """
import numpy as np
import experiments.learned_optimizer
from experiments.shared import optimizees
from metajax.runs.flags import FLAGS

FLAGS(["learned_optimizer", "--inner_steps=20", "--steps=1"])
found = optimizees.problems()["breast_cancer"]
train = np.asarray(found.train.inputs, np.float64)
np.testing.assert_allclose(train.mean(0), 0, atol=1e-4)
np.testing.assert_allclose(train.std(0), 1, atol=1e-4)
assert len(train) == 400 and found.test.inputs.shape == (169, 30)
assert abs(np.asarray(found.test.inputs).mean(0)).max() > 0.01
"""


def test_features_are_standardised_by_the_training_set(monkeypatch):
  monkeypatch.delenv("METAJAX_DATA_DIR", raising=False)
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600
  )
  assert not done.returncode, done.stderr
