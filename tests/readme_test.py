"""The README's example does what it says."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parent.parent / "README.md"


def test_example_learns_the_prior_of_its_tasks(capsys):
  """For lines, MAML's initialisation is the mean line: 2 x - 1."""
  (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
  names = {"__name__": "example"}
  exec(compile(code, str(README), "exec"), names)
  params = names["state"].meta_params
  np.testing.assert_allclose(params["slope"], [2.0], atol=0.15)
  np.testing.assert_allclose(params["offset"], -1.0, atol=0.15)
  assert "huber" in capsys.readouterr().out
