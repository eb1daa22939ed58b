"""Whole trainings beside the published numbers, and the rows that make them."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from experiments.shared import cifar_presets, omniglot_presets
from scripts import whole_table

ROOT = Path(__file__).resolve().parents[2]


def _write(path, experiment, protocol, **means):
  metrics = {
    name: {"mean": mean, "ci95": 0.0125, "num_tasks": 600}
    for name, mean in means.items()
  }
  protocol = {
    "data": "cifar_fs",
    "model": "conv4",
    "filters": 64,
    "ways": 5,
    "shots": 1,
    "meta_batch": 4,
    "transductive": False,
  } | protocol
  results = {"experiment": experiment, "protocol": protocol}
  results |= {"metrics": metrics, "steps": 60_000, "wall_seconds": 7200.0}
  path.write_text(json.dumps(results | {"device": "gpu"}))
  return str(path)


def _cells(capsys, *paths):
  whole_table.main(list(paths))
  header, _, *rows = capsys.readouterr().out.splitlines()
  names = header.strip("| ").split(" | ")
  split = (row.removeprefix("| ").removesuffix(" |") for row in rows)
  return [dict(zip(names, row.split(" | "), strict=True)) for row in split]


def test_a_run_has_the_published_number_of_its_protocol(tmp_path, capsys):
  path = _write(
    tmp_path / "a.json",
    "few_shot",
    {"learner": "maml", "filters": 32, "transductive": True},
    accuracy_transductive=0.5912,
    accuracy_inductive=0.5,
    accuracy_5w5s=0.7,
    accuracy_5w10s=0.8,
  )
  one, five = _cells(capsys, path)
  assert one == {
    "row": "cifar_fs maml conv4-32 5w1s",
    "published": "58.9 ± 1.9 [1805.08136](https://arxiv.org/abs/1805.08136)",
    "ours": "59.12 ± 1.25",
    "protocol": "60,000 × 4 tasks, 600 test tasks, transductive",
    "wall time": "2.0 h",
    "device": "gpu",
    "raw": f"[raw]({path})",
  }
  # 10 shots have no published number.
  assert five["row"].endswith("5w5s") and five["ours"] == "70.00 ± 1.25"
  assert five["protocol"] == one["protocol"] + ", trained with 1 shot"


def test_a_test_on_other_data_has_no_published_number(tmp_path, capsys):
  path = _write(
    tmp_path / "a.json",
    "few_shot",
    {"learner": "prototypical", "eval_data": "birds", "train_shots": [1, 9]},
    accuracy_transductive=0.5,
    accuracy_inductive=0.6,
    accuracy_5w5s=0.7,
  )
  (row,) = _cells(capsys, path)
  assert row["row"] == "cifar_fs tested on birds prototypical conv4-64 5w1s"
  assert row["published"] == ""
  assert row["protocol"].endswith("inductive, trained with 1 to 9 shots")


def test_other_networks_have_no_published_number(tmp_path, capsys):
  path = _write(
    tmp_path / "a.json",
    "few_shot",
    {"learner": "ridge", "filters": [96, 192, 384, 513]},
    accuracy_transductive=0.1,
    accuracy_inductive=0.6,
  )
  (row,) = _cells(capsys, path)
  assert row["published"] == "" and row["ours"] == "60.00 ± 1.25"
  assert row["row"] == "cifar_fs ridge conv4-96-192-384-513 5w1s"


def test_a_pretraining_has_its_first_and_its_last_generation(tmp_path, capsys):
  path = _write(
    tmp_path / "a.json",
    "pretrain",
    {"generations": 2, "batch_size": 64},
    logistic_generation_0=0.62,
    logistic_generation_1=0.5,
    logistic_generation_2=0.64,
    accuracy_5w1s=0.64,
    accuracy_5w5s=0.79,
  )
  rows = _cells(capsys, path)
  assert [(row["row"], row["ours"]) for row in rows] == [
    ("cifar_fs rfs_simple conv4-64 5w1s", "62.00 ± 1.25"),
    ("cifar_fs rfs_distill conv4-64 5w1s", "64.00 ± 1.25"),
    ("cifar_fs rfs_distill conv4-64 5w5s", "79.00 ± 1.25"),
  ]
  assert "× 64 images" in rows[0]["protocol"]


@pytest.mark.parametrize("text", ["", "{}", '{"protocol": {}}', "[]"])
def test_what_is_no_result_is_named(text, tmp_path):
  path = tmp_path / "results.json"
  path.write_text(text)
  with pytest.raises(SystemExit, match=f"error: {path} is no results.json"):
    whole_table.main([str(path)])


def test_rows_of_the_script_are_presets_that_there_are():
  """An unknown row is refused by a line that names all rows."""
  script = (ROOT / "scripts/reproduce.sh").read_text()
  lists = script[: script.index("names=")]
  done = subprocess.run(
    ["bash", "-c", lists + 'printf "%s\\n" "${whole[@]}"'],
    capture_output=True,
    text=True,
    check=True,
  )
  rows = [line.split() for line in done.stdout.splitlines()]
  names = [name for name, *_ in rows]
  assert len(names) == len(set(names)) > 20
  presets = {
    "few_shot": {**cifar_presets.PRESETS, **omniglot_presets.PRESETS},
    "pretrain": {"cifar_fs_rfs_1s", "fc100_rfs_1s"},
  }
  for _, experiment, *flags in rows:
    for flag in flags:
      if chosen := re.fullmatch("--preset=(.*)", flag):
        assert chosen[1] in presets[experiment]
  refused = subprocess.run(
    ["bash", "scripts/reproduce.sh", "nope"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: no row nope; rows are: maml_5w1s ")
  assert all(f" {name}" in refused.stderr for name in names)
