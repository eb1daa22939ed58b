#!/usr/bin/env bash
# Meta-trains on sinusoids and reports what is learned. Flags are those of the
# experiment: scripts/demo.sh --steps=2000
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment
exec python -m experiments.maml_sinusoid "$@"
