"""Prints the meta-steps that scripts/benchmark.py timed as a Markdown table.

python scripts/benchmark_table.py DIR/*.jsonl
"""

import json
import sys
from pathlib import Path

COLUMNS = (
  "meta-step | milliseconds (least–most) | tasks a second | of the product "
  "rate | of the roofline | temporaries"
)


def main(paths: list[str]) -> None:
  print(f"| {COLUMNS} |")
  print("|---" * (COLUMNS.count("|") + 1) + "|")
  for path in paths:
    try:
      lines = [json.loads(x) for x in Path(path).read_text().splitlines()]
      rows = [_row(x) for x in lines if "seconds_per_meta_step" in x]
    except (OSError, ValueError, KeyError, TypeError) as error:
      sys.exit(f"error: {path} is not of scripts/benchmark.py ({error!r}).")
    for row in rows:
      print("| " + " | ".join(row) + " |")


def _row(line: dict) -> list[str]:
  name = "{model}, {ways}-way {shots}-shot, {query_shots} query, {tasks} tasks"
  name = name.format_map(line)
  if line["query_shots"] > 1:
    name = name.replace("query", "queries")
  name = f"{line['learner']}, {name}"
  if line["inner_steps"] > 1:
    name += f", {line['inner_steps']} inner steps"
  if line.get("conv_lowering", "auto") != "auto":
    name += f", {line['conv_lowering']}"
  middle, least, most = (
    1e3 * line[f"seconds_{k}"] for k in ("per_meta_step", "min", "max")
  )
  return [
    name,
    f"{_short(middle)} ({_short(least)}–{_short(most)})",
    f"{line['tasks_per_second']:,.0f}",
    f"{line['fraction_of_peak']:.3f}",
    f"{line['fraction_of_roofline']:.2f}",
    f"{_short(line['peak_temp_bytes'] / 1e6)} MB",
  ]


def _short(number: float) -> str:
  """Writes a number with three digits, or all digits before the point."""
  return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


if __name__ == "__main__":
  if not sys.argv[1:]:
    sys.exit("error: give at least one file of results.")
  main(sys.argv[1:])
