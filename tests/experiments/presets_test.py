"""Every preset of `few_shot` is a learner that can be built and trained."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own, for the flags.
SCRIPT = """
import json
import jax, jax.numpy as jnp
from experiments import few_shot
from experiments.shared import cifar_presets, image_networks, omniglot_presets
from metajax import recipes
from metajax.runs import learner_options, training
from metajax.runs.flags import FLAGS

found = {}
for name, preset in (cifar_presets.PRESETS | omniglot_presets.PRESETS).items():
  FLAGS.unparse_flags()
  for flag in FLAGS:
    FLAGS[flag].unparse()
  given = [
    f"--{flag}=" + (",".join(map(str, x)) if isinstance(x, list) else str(x))
    for flag, x in preset.items()
  ]
  FLAGS(["test", *given])
  assert all(FLAGS[flag].value == x for flag, x in preset.items()), name
  network = image_networks.network(FLAGS.learner)
  recipe = learner_options.recipe(
    FLAGS.learner, network, "cross_entropy", FLAGS.ways, FLAGS.eval_inner_steps
  )
  size = 32 if preset.get("data") else 28
  inputs = jax.ShapeDtypeStruct((5, size, size, 3), jnp.float32)
  init = recipes.build(recipe).init
  params = jax.eval_shape(init, jax.random.key(0), inputs)
  optimizer = training.outer_optimizer(
    FLAGS.outer_schedule, rule=FLAGS.outer_optimizer
  )
  assert jax.tree.leaves(jax.eval_shape(optimizer.init, params))
  network = params.get("embedding")
  found[name] = {
    "json": json.loads(json.dumps(recipe._asdict())) == recipe._asdict(),
    "numbers": sum(x.size for x in jax.tree.leaves(network)),
  }
momentum = training.outer_optimizer("constant", 1, 0.1, rule="momentum")
x, path = jnp.asarray(2.0), []
state = momentum.init(x)
for gradient in (1.0, -3.0):
  update, state = momentum.update(jnp.asarray(gradient), state, x)
  x = x + update
  path.append(float(x))
print(json.dumps([found, path]))
"""


@pytest.mark.slow
def test_every_preset_is_built_and_described_in_json():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found, path = json.loads(done.stdout)
  assert all(about["json"] for about in found.values())
  rows = {"maml", "boil", "prototypical", "ridge", "ridge_wide", "svm"}
  assert {
    f"{data}_{row}_5w{shots}s"
    for data in ("cifar_fs", "fc100")
    for row in rows | {"meta_baseline"}
    for shots in (1, 5)
  } <= set(found)
  # Kernels, and a scale, an offset, a mean and a variance for each channel.
  widths = [3, 96, 192, 384, 512]
  numbers = sum(
    9 * a * b + 4 * b for a, b in zip(widths, widths[1:], strict=False)
  )
  assert found["cifar_fs_ridge_wide_5w1s"]["numbers"] == numbers
  # SGD with Nesterov's momentum 0.9 and weight decay 5e-4, written out.
  x, velocity, expected = 2.0, 0.0, []
  for gradient in (1.0, -3.0):
    decayed = gradient + 5e-4 * x
    velocity = decayed + 0.9 * velocity
    x -= 0.1 * (decayed + 0.9 * velocity)
    expected.append(x)
  np.testing.assert_allclose(path, expected, rtol=1e-6)
