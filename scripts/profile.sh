#!/usr/bin/env bash
# Writes a trace of an experiment: what runs on the devices, when, and how long.
#
#   scripts/profile.sh TRACE python -m experiments.few_shot --steps=20
#
# The folder TRACE is for TensorBoard (pip install tensorboard xprof; tensorboard
# --logdir=TRACE), its perfetto_trace.json.gz for https://ui.perfetto.dev. The
# trace is of the whole run, so few steps do.
set -euo pipefail
if (($# < 2)); then
  echo "error: usage: $0 TRACE COMMAND [FLAGS]" >&2
  exit 2
fi
trace=$1
shift
exec "$@" --profile="$trace"
