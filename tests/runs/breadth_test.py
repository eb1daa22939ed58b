"""Tests by shots and by ways, and their pictures, of a learner that is known.

In a process of its own, for the flags.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from metajax import learners
from metajax.losses import accuracy, cross_entropy
from metajax.models.mlp import MLP
from metajax.runs import breadth, scoring
from metajax.runs.flags import FLAGS
from metajax.tasks.image_files import Images
from metajax.tasks.image_splits import split_episodes

FLAGS(["test", "--eval_tasks=16", "--pictures=all"])
# Seven classes of eight images: each of one grey, so that one shot suffices.
# The last two classes are the same.
labels = np.repeat(np.arange(7), 8)
greys = np.asarray([0, 40, 80, 120, 160, 250, 250], np.uint8)
images = np.broadcast_to(greys[labels][:, None, None, None], (56, 2, 2, 1))
images = Images(images, labels, list("abcdefg"))
asked, scored = [], []

def tasks(ways, shots):
  asked.append((ways, shots))
  return split_episodes(images, "here", "test", ways, 2, shots=shots)

def build(ways):
  return learners.prototypical(MLP(3, ()), cross_entropy, num_outputs=ways)

def score(ways, family):
  scored.append(ways)
  found = scoring.scorer(
    build(ways), family, {"accuracy": accuracy}, "test", FLAGS.eval_tasks
  )
  return found(params)["accuracy"]

params = build(2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
folder = pathlib.Path(sys.argv[1])
found = breadth.test(
  folder,
  breadth.TaskMaker(tasks, lambda: images),
  score,
  build(5),
  params,
  ways=5,
  shots=3,
  any_ways=True,
)
print(json.dumps([{k: v.mean for k, v in found.items()}, scored, asked]))
"""


@pytest.mark.slow
def test_numbers_that_the_images_allow_are_tested(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  means, scored, asked = json.loads(done.stdout)
  # 8 images allow 6 shots beside 2 queries, and there are 7 classes.
  assert set(means) == {
    *(f"accuracy_5w{k}s" for k in (1, 2, 3, 5)),
    "accuracy_2w3s",
  }
  assert sorted(scored) == [2, 5, 5, 5, 5]
  assert [5, 10] in asked and [10, 3] in asked
  # Only the two equal classes are confused. Both are in 10 of 21 tasks of 5,
  # which then have 4 of 10 queries of these classes.
  assert all(0.8 < mean <= 1 for mean in means.values())
  assert {path.name for path in tmp_path.iterdir()} == {
    "accuracy_by_shots.png",
    "accuracy_by_ways.png",
    "confusion.png",
  }
