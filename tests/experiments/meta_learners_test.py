"""The flags of one learner alone: each of them reaches it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, for the flags.
SCRIPT = """
import json
from absl import flags
from metajax.learners import OPTIONS
from metajax.runs import learner_options
from metajax.runs.flags import FLAGS

# By default step_normalization is whether the network normalises.
flags.DEFINE_string("normalization", "batch", "Of the network.")
FLAGS(["test", "--steps=100", "--inner_lr=0.1"])
changed = {}
for learner, options in OPTIONS.items():
  for option in options:
    name, default = option.name, option.default
    before = learner_options.own(learner)
    if isinstance(default, bool):
      FLAGS[name].value = not default
    else:
      FLAGS[name].value = default / 2 if option.high else 2 * default + 1
    after = learner_options.own(learner)
    FLAGS[name].value = default
    changed[name] = [k for k in after if before[k] != after[k]]
print(json.dumps(changed))
"""


@pytest.mark.slow
def test_each_own_flag_changes_one_thing_that_the_learner_is_given():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  changed = json.loads(done.stdout)
  assert set(changed) > {"damping", "cg_steps", "inner_batch", "learned_rates"}
  assert [k for k, given in changed.items() if len(given) != 1] == []
