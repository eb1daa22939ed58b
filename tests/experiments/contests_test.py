"""References are chosen on validation tasks and, where asked, on test tasks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnax")
ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, for the flags. A task pays one of three actions.
SCRIPT = """
import json
import sys
import jax
import jax.numpy as jnp
import numpy as np
from experiments.shared import contests
from experiments.shared.references import Reference
from metajax.runs import rng_keys
from metajax.runs.flags import FLAGS
from metajax.tasks.trials import Player, Trials

FLAGS(["test", "--eval_tasks=7", "--references_only"] + sys.argv[1:])

def reset(rng):
  return jax.random.randint(rng, (), 0, 3), jnp.zeros(1)

def step(paid, action, rng):
  return paid, jnp.zeros(1), jnp.where(action == paid, 1.0, 0.0), False

def always(action):
  # An integer is static, whatever else is traced.
  assert isinstance(action, int) or isinstance(action, jax.core.Tracer)
  chosen = jnp.asarray(action).astype(jnp.int32)
  return Player(lambda: (), lambda memory, step, rng: (chosen, memory))

def count(split):
  keys = jax.random.split(rng_keys.evaluation_key(split), 7)
  paid = [int(reset(jax.random.split(key)[0])[0]) for key in keys]
  return np.bincount(paid, minlength=3)

for seed in range(20):  # To one whose splits choose differently.
  FLAGS.eval_seed = seed
  counts = {split: count(split) for split in ("validation", "test")}
  if counts["validation"].argmax() != counts["test"].argmax():
    break

tasks = Trials(reset, step, 3, 2)
grids = {
  "ints": {str(i): i for i in range(3)},
  "floats": {str(i): float(i) for i in range(3)},
}
references = {
  name: Reference(always, grid, on_test=True)
  for name, grid in grids.items()
}
references["alone"] = Reference(lambda _: always(1))
references["ours"] = Reference(always, grids["floats"])
played = contests.play_all("contest", tasks, lambda: references, "alone")
metrics = contests.totals(played, "alone")
contests.finish("contest", played, {}, metrics, {"alone": 1.0})
print(json.dumps({k: v.tolist() for k, v in counts.items()}))
"""


@pytest.mark.slow
def test_a_published_reference_is_chosen_by_the_test_tasks_too(tmp_path):
  workdir = tmp_path / "run"
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, f"--workdir={workdir}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  counts = json.loads(done.stdout.splitlines()[-1])
  results = json.loads((workdir / "results.json").read_text())
  means = {k: v["mean"] for k, v in results["metrics"].items()}
  chosen = results["protocol"]["parameters_of_players"]
  best = {k: str(max(range(3), key=v.__getitem__)) for k, v in counts.items()}
  assert best["validation"] != best["test"]
  for name in ("ints", "floats"):
    assert chosen[name] == best["test"]
    assert chosen[f"{name}_chosen_on_validation"] == best["validation"]
    assert means[name] == pytest.approx(2 * max(counts["test"]) / 7)
    assert means[f"{name}_chosen_on_validation"] == pytest.approx(
      2 * counts["test"][int(best["validation"])] / 7
    )
  assert chosen["ours"] == best["validation"]
  assert "ours_chosen_on_validation" not in means
  assert means["alone"] == pytest.approx(2 * counts["test"][1] / 7)
  assert results["steps"] == 0
  # Nothing was trained.
  for name in ("meta_batch", "outer_optimizer", "outer_lr", "outer_schedule"):
    assert results["protocol"][name] is None
  assert not any("rer" in name for name in means)
