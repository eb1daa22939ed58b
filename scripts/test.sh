#!/usr/bin/env bash
# Runs the linter, the type checker and the tests. Arguments go to pytest:
#   scripts/test.sh tests/learners -k maml
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test

status=0
ruff check --quiet . || status=1
ruff format --quiet --check . || status=1
mypy --no-error-summary metajax || status=1
if ((status)); then
  echo "ruff or mypy found faults, see above; the tests run all the same" >&2
fi

# Two workers of one thread each. NPROC is how many threads XLA's CPU client
# starts.
export JAX_PLATFORMS=${JAX_PLATFORMS-cpu} NPROC=${NPROC:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
source scripts/compile_fast.sh
# What one run has compiled the next one reads; `--cache-clear` removes it.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$PWD/.pytest_cache/d/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS-0.01}
# What a file sets up and compiles is done once, by the worker that has the file.
pytest -n 2 --dist loadfile "$@" || status=$?
exit "$status"
