"""The table of docs/results.md is that of the raw results."""

import re
from pathlib import Path

from scripts import results_table

ROOT = Path(__file__).resolve().parents[2]


def test_rows_of_the_docs_are_those_of_the_raw_results(capsys):
  results_table.main(sorted(map(str, ROOT.glob("docs/results/reproduce/*"))))
  header, _, *rows = capsys.readouterr().out.splitlines()
  page = (ROOT / "docs/results.md").read_text()
  assert header in page.splitlines()
  found = re.findall(r"^\| `\w+_\d+w\d+s` \|.*$", page, re.MULTILINE)
  assert sorted(found) == sorted(rows)
  assert len(rows) > 10
