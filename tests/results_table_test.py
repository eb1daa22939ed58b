"""docs/results_images.md has the raw results; others have tables, too."""

import json
import re
from pathlib import Path

import pytest

from metajax import results_table

ROOT = Path(__file__).resolve().parents[1]


def test_rows_of_the_docs_are_those_of_the_raw_results(capsys):
  results_table.main(sorted(map(str, ROOT.glob("docs/results/reproduce/*"))))
  header, _, *rows = capsys.readouterr().out.splitlines()
  page = (ROOT / "docs/results_images.md").read_text()
  assert header in page.splitlines()
  found = re.findall(r"^\| `\w+_\d+w\d+s` \|.*$", page, re.MULTILINE)
  assert sorted(found) == sorted(rows)
  assert len(rows) > 10


def _write(path, experiment, **means):
  path.parent.mkdir(exist_ok=True)
  metrics = {
    name: {"mean": mean, "ci95": 0.0125, "num_tasks": 600}
    for name, mean in means.items()
  }
  results = {"experiment": experiment, "protocol": {}, "metrics": metrics}
  results |= {"steps": 70_000, "wall_seconds": 90.0, "device": "cpu x2"}
  path.write_text(json.dumps(results))
  return str(path)


def test_any_experiment_has_a_table_of_its_metrics(tmp_path, capsys):
  paths = [
    _write(tmp_path / "one" / "results.json", "sinusoid", mse=0.25, nll="nan"),
    _write(tmp_path / "two.json", "sinusoid", mse=12.5),
    _write(tmp_path / "three.json", "bandits", reward=78.25),
  ]
  results_table.main(paths)
  ends = "| 70,000 | 1.5 min | cpu x2 |"
  assert capsys.readouterr().out.splitlines() == [
    "bandits:",
    "",
    "| row | reward | meta-steps | wall time | device |",
    "| --- | --- | --- | --- | --- |",
    f"| `three` | 78.25 ± 0.013 {ends}",
    "",
    "sinusoid:",
    "",
    "| row | mse | nll | meta-steps | wall time | device |",
    "| --- | --- | --- | --- | --- | --- |",
    f"| `one` | 0.25 ± 0.013 | nan ± 0.013 {ends}",
    f"| `two` | 12.5 ± 0.013 |  {ends}",
    "",
  ]


def test_many_metrics_are_rows(tmp_path, capsys):
  means = {f"player_{i}": i + 0.5 for i in range(9)}
  results_table.main([_write(tmp_path / "run.json", "bandits", **means)])
  lines = capsys.readouterr().out.splitlines()
  assert lines[2:5] == [
    "| row | `run` |",
    "| --- | --- |",
    "| player_0 | 0.5 ± 0.013 |",
  ]
  assert lines[-2] == "| device | cpu x2 |"


def test_a_test_on_other_data_has_no_published_number(tmp_path, capsys):
  path = next(iter(ROOT.glob("docs/results/reproduce/maml_5w1s*")))
  results = json.loads(path.read_text())
  other = tmp_path / "other.json"
  for changed, published in (({}, "98.7"), ({"eval_data": "birds"}, "|  |")):
    results["protocol"] |= changed
    other.write_text(json.dumps(results))
    results_table.main([str(other)])
    assert published in capsys.readouterr().out.splitlines()[-1]


def test_few_shot_results_that_are_not_finite_are_printed(tmp_path, capsys):
  """They are text in the file, which was a traceback."""
  path = tmp_path / "results.json"
  kinds = ("accuracy_transductive", "accuracy_inductive")
  _write(path, "few_shot", **dict.fromkeys(kinds, "nan"))
  results = json.loads(path.read_text())
  protocol = {"learner": "maml", "ways": 5, "shots": 1, "model": "mlp"}
  protocol |= {"transductive": True, "meta_batch": 2}
  path.write_text(json.dumps(results | {"protocol": protocol}))
  results_table.main([str(path)])
  assert "| nan ± 1.25 | nan ± 1.25 |" in capsys.readouterr().out


def test_every_result_on_record_is_printed(capsys):
  paths = sorted(map(str, ROOT.glob("docs/results/*.json")))
  results_table.main(paths)
  printed = capsys.readouterr().out
  assert all(f"`{Path(path).stem}`" in printed for path in paths)


def _error(capsys, *paths):
  with pytest.raises(SystemExit, match="2"):
    results_table.main(list(map(str, paths)))
  out, line = capsys.readouterr()
  assert (out, line.count("\n")) == ("", 1)
  return line


@pytest.mark.parametrize(
  "text",
  ["", "{}", '{"experiment": "one"}', "[]", "\udcff", '{"metrics": []}'],
)
def test_what_is_no_result_is_named(text, tmp_path, capsys):
  path = tmp_path / "results.json"
  path.write_text(text, errors="surrogateescape")
  message = f"error: {path} is no results.json of a run (.*): delete it, and .*"
  assert re.match(message, _error(capsys, path))


def test_a_folder_without_results_is_named(tmp_path, capsys):
  line = _error(capsys, tmp_path)
  assert line.startswith(f"error: {tmp_path}: no results.json in it, or in ")
  line = _error(capsys, tmp_path / "no")
  assert line.startswith(f"error: {tmp_path}/no: cannot be read (No such file")
