#!/usr/bin/env bash
# Builds the documentation site, or serves it. A warning is an error.
#
#   scripts/docs.sh          # into site/
#   scripts/docs.sh serve    # at http://127.0.0.1:8000, built again on changes
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment docs
# The theme's authors advertise their next tool on the terminal.
export NO_MKDOCS_2_WARNING=1
case ${1:-build} in
  build) exec mkdocs build --strict ;;
  serve) exec mkdocs serve --strict "${@:2}" ;;
  *)
    echo "error: usage: $0 [build|serve]" >&2
    exit 2
    ;;
esac
