"""Imported before what needs the extra `rl`: says so where it is missing."""

import importlib.util

from experiments.script import fail

for _name in ("flashbax", "gymnax"):
  if importlib.util.find_spec(_name) is None:
    fail(
      f"{_name} is not installed: run scripts/environment.sh rl, or "
      "pip install -e '.[rl]'."
    )
