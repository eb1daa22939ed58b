"""Which of many like tests run every time, and which in .ci/run alone."""

import pytest


def slow_but(fast, names):
  """Returns parameters, marked slow but for those named in `fast`."""
  return [
    name if name in fast else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]
