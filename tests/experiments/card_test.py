"""The model card says what results.json and config.json say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import recipes, results, saved
from metajax.evaluation import Estimate, OverSeeds
from metajax.runs import card

RECIPE = recipes.Recipe(
  "maml",
  {"name": "mlp", "hidden": [3]},
  1,
  "mean_squared_error",
  {"name": "sgd", "learning_rate": 0.1},
  1,
  1,
)


@pytest.fixture
def workdir(tmp_path):
  results.open_workdir(tmp_path, {"steps": 30})
  results.write_results(
    tmp_path,
    experiment="few_shot",
    protocol={"learner": "maml", "ways": 5, "filters": None, "devices": 2},
    metrics={
      "accuracy": Estimate(0.9876, 0.0043, 600),
      "of_seeds": OverSeeds(0.5, 0.1, 1200, (0.4, 0.6)),
    },
    wall_seconds=12.3,
    compile_seconds=1.0,
    steps=30,
    seed=7,
  )
  return tmp_path


def test_card_has_results_command_and_protocol(workdir):
  inputs = jax.ShapeDtypeStruct((2,), jnp.float32)
  params = recipes.build(RECIPE).init(jax.random.key(0), jnp.zeros((1, 2)))
  saved.save(workdir, RECIPE, params, inputs)
  card.write(workdir, "python -m it \\\n  --ways=5")
  lines = (workdir / "card.md").read_text().splitlines()
  assert lines[0] == "# maml of few_shot"
  assert "| accuracy | 0.9876 | ± 0.0043 | 600 tasks |" in lines
  assert "| of_seeds | 0.5000 | ± 0.1000 | 2 seeds |" in lines
  assert "| ways | 5 |" in lines
  assert "python -m it \\" in lines and "  --ways=5" in lines
  assert not [line for line in lines if "devices" in line or "filters" in line]
  commit = results.environment()["git_commit"]
  (training,) = [line for line in lines if line.startswith("30 meta-steps")]
  assert f"seed 7, commit {commit}, metajax {metajax.__version__}" in training


def test_what_cannot_be_loaded_has_no_card(workdir):
  card.write(workdir, "python -m it")
  assert not (workdir / "card.md").exists()


@pytest.mark.parametrize(
  "shape, given", [((2,), "inputs"), ((4, 4, 1), "loaded.pixels(images)")]
)
def test_lines_of_use_run(shape, given, workdir):
  params = recipes.build(RECIPE).init(jax.random.key(0), jnp.zeros((1, *shape)))
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
  saved.save(workdir, RECIPE, params, inputs)
  lines = card.usage(workdir, repr(str(workdir)))
  assert f"metajax.Batch({given}, targets)" in "\n".join(lines)
  names = {
    "inputs": jnp.ones((3, *shape)),
    "images": np.ones((3, 5, 5, 3), np.uint8),
    "targets": jnp.ones((3, 1)),
  }
  names |= {f"new_{name}": x for name, x in names.items()}
  exec("\n".join(lines), names)
  assert names["predictions"].shape == (3, 1)
