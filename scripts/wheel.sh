#!/usr/bin/env bash
# Builds the wheel and tries it as a user would, outside the checkout:
#
#   scripts/wheel.sh [DIR]    the wheel is left in DIR; default: dist
#
# A new environment gets the wheel alone, and runs the example of README.md and
# the help of `metajax.classify` there. METAJAX_CONSTRAINTS as in environment.sh.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
root=$PWD
folder=$(mkdir -p -- "${1:-dist}" && cd -- "${1:-dist}" && pwd)
constraints=${METAJAX_CONSTRAINTS-constraints.txt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A copy, because setuptools leaves folders of its own where it builds.
cp -r metajax setup.cfg pyproject.toml README.md LICENSE "$scratch"
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --disable-pip-version-check --quiet)
rm -f "$folder"/metajax-*.whl
(cd "$scratch" && "${pip[@]}" wheel --no-deps --wheel-dir "$folder" .)
"${pip[@]}" install ${constraints:+--constraint "$constraints"} \
  "$folder"/metajax-*.whl

mkdir "$scratch/elsewhere"
cd "$scratch/elsewhere"
"$scratch/venv/bin/python" - "$root" <<'EOF'
import pathlib, re, sys
root = pathlib.Path(sys.argv[1])
exec(re.search(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)[1])
installed = pathlib.Path(metajax.__file__)
assert root not in installed.parents, installed
print(f"metajax {metajax.__version__} works from {installed.parent}")
EOF
"$scratch/venv/bin/python" -m metajax.classify --help > /dev/null
ls "$folder"/metajax-*.whl
