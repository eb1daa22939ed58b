"""What `pretrain` leaves can be loaded, and tested again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import metajax

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
  "steps": 4,
  "meta_batch": 8,
  "filters": 4,
  "image_size": 32,
  "ways": 2,
  "query_shots": 2,
  "eval_tasks": 4,
  "validation_tasks": 2,
  "generations": 1,
  "averages": "true",
  "fine_tune_steps": 2,
  "pictures": "all",
}


def _run(command):
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=os.environ,
    check=True,
    stderr=subprocess.PIPE,
    text=True,
  )
  return done.stderr


def _steps(workdir):
  return {
    path: path.stat().st_mtime for path in workdir.glob("*/metrics.jsonl")
  }


@pytest.mark.slow
def test_the_trained_embedding_is_a_prototypical_network(tmp_path):
  draw = np.random.default_rng(0)
  for name in range(12):
    folder = tmp_path / "images" / str(name)
    folder.mkdir(parents=True)
    for i in range(4):
      pixels = draw.integers(256, size=(32, 32, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  workdir = tmp_path / "run"
  flags = {"data_dir": tmp_path / "images", "workdir": workdir} | FLAGS
  command = [sys.executable, "-m", "experiments.pretrain"]
  command += [f"--{name}={value}" for name, value in flags.items()]
  _run(command)
  metrics = json.loads((workdir / "results.json").read_text())["metrics"]
  heads = ("logistic", "ridge", "nearest_mean", "cosine", "fine_tuned")
  rows = {f"{head}_generation_{i}" for head in heads for i in (0, 1)}
  averages = {
    f"logistic_{kind}_generation_{i}"
    for kind in ("ema", "soup")
    for i in (0, 1)
  }
  differences = {
    f"{x}_minus_logistic_generation_{x.rsplit('_', 1)[1]}" for x in averages
  }
  assert {*metrics} == {
    *(rows | averages | differences),
    "logistic_generation_1_minus_logistic_generation_0",
    "logistic_ensemble",
    "logistic_ensemble_minus_logistic_generation_0",
    # A class has 4 images, and there are 3 classes for test.
    "accuracy_2w1s",
    "accuracy_2w2s",
  }
  assert {path.stem for path in workdir.glob("*.png")} == {
    *("accuracy_by_shots", "accuracy_by_ways", "confusion", "episodes"),
    "learning_curve",
  }
  loaded = metajax.load(workdir)
  assert loaded.channels is not None and loaded.inputs.shape == (32, 32, 3)
  images = jnp.asarray(draw.normal(size=(2, 32, 32, 3)), jnp.float32)
  task_params = loaded.adapt(metajax.Batch(images, jnp.arange(2)))
  logits = loaded.predict(task_params, images)
  # Each support image is nearest to itself.
  np.testing.assert_array_equal(logits.argmax(-1), [0, 1])

  # It is tested with other tasks, without training.
  steps = _steps(workdir)
  told = _run([*command, "--shots=2", "--query_shots=1", "--pictures=few"])
  assert "compiling" not in told and _steps(workdir) == steps
  again = json.loads((workdir / "results.json").read_text())
  assert again["protocol"]["shots"] == 2 and {*again["metrics"]} >= rows
  assert (workdir / "earlier" / "results_0.json").exists()
  assert not (workdir / "accuracy_by_shots.png").exists()
  # A setting of the training stays what it was.
  refused = subprocess.run(
    [*command, "--filters=8"], cwd=ROOT, capture_output=True, check=False
  )
  assert refused.returncode == 2 and b"--filters=4" in refused.stderr
