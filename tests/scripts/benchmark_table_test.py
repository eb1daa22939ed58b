"""The tables beside the raw results of benchmarks are made of them."""

from pathlib import Path

import pytest

from scripts import benchmark_table

FOLDERS = sorted(
  (Path(__file__).resolve().parents[2] / "benchmarks/results").iterdir()
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_table_is_that_of_the_raw_results(folder, capsys):
  benchmark_table.main([str(folder / "benchmark.jsonl")])
  table = capsys.readouterr().out
  assert table in (folder / "README.md").read_text()
  assert len(table.splitlines()) > 5


def test_what_is_no_result_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"seconds_per_meta_step": 1}\n')
  with pytest.raises(SystemExit, match=f"error: {path} is not of"):
    benchmark_table.main([str(path)])
