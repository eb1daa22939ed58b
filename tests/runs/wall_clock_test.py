"""The seconds of a run are those of all its processes."""

import json

from metajax.runs.wall_clock import wall_clock


def test_a_run_that_goes_on_counts_from_the_last_part(tmp_path):
  first = wall_clock(tmp_path)
  assert 0 <= first() < 10
  (tmp_path / "seconds.json").write_text('{"seconds": 1000.0}')
  again = wall_clock(tmp_path)
  found = again()
  assert 1000 <= found < 1010
  assert found <= again() < 1010
  assert json.loads((tmp_path / "seconds.json").read_text())["seconds"] > found
