"""Paired differences, lines of pictures and levels that are reached."""

import numpy as np
import pytest
from absl import flags

from metajax.runs import plots, scoring
from metajax.runs.flags import flag_values
from metajax.runs.stages import reached

SCORES = {"base": np.array([1.0, 2.0, 6.0]), "ours": np.array([2.0, 4.0, 9.0])}


def test_differences_are_paired():
  """Of 1, 2, 3 the standard deviation is 1; of the scores apart, 2.6 or 3.6."""
  (name, gain), *rest = scoring.differences(
    SCORES, [("ours", "base"), ("base", "ours")]
  ).items()
  assert name == "ours_minus_base"
  assert gain == (2.0, pytest.approx(1.96 / 3**0.5), 3)
  assert [(k, v.mean) for k, v in rest] == [("base_minus_ours", -2.0)]


def test_a_line_has_an_estimate_of_each_column():
  values = np.stack(list(SCORES.values()))
  line = plots.line([1, 2, 5], values)
  assert list(line) == [1, 2, 5]
  assert [e.mean for e in line.values()] == [1.5, 3.0, 7.5]
  # Two values d apart: 1.96 d / 2.
  np.testing.assert_allclose(
    [e.ci95 for e in line.values()], 1.96 * np.array([1, 2, 3]) / 2
  )
  with pytest.raises(ValueError):
    plots.line([1, 2], values)


@pytest.mark.parametrize(
  "level, step", [(0.0, 2), (0.3, 4), (0.5, 6), (0.6, None)]
)
def test_the_first_step_at_a_level_is_found(level, step):
  assert reached({2: 0.2, 4: 0.4, 6: 0.5, 8: 0.3}, level) == step


def test_values_of_flags_are_by_name():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["test"])
  assert flag_values("inner_steps", "inner_lr") == {
    "inner_steps": flags.FLAGS.inner_steps,
    "inner_lr": flags.FLAGS.inner_lr,
  }
