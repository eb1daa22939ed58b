#!/usr/bin/env bash
# Installs metajax and its dependencies into .venv, unless that is done already.
#
#   scripts/environment.sh [EXTRA]     EXTRA: test, brax, cuda, grain, rl,
#                                  xminigrid or docs; default: none
#
# Other scripts source this file and call `environment [EXTRA]`, which leaves
# them in the root of the checkout with the programs of .venv first in PATH.
#
#   PYTHON               interpreter to make .venv from; default: python3
#   METAJAX_CONSTRAINTS  pip's constraints; default: constraints.txt; empty:
#                        none, that is the newest versions setup.cfg allows

environment() {
  local extra=${1:-} root venv state python version
  root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
  venv=$root/.venv
  state=$venv/.metajax # Exists only if this script made .venv.
  _choose_python && cd -- "$root" || return
  if ! _is_installed; then
    # One script at a time; the lock falls with its holder.
    (
      if command -v flock > /dev/null && ! flock -n 9; then
        echo "Waiting for another script to install metajax" >&2
        flock 9 || true # Some network file systems have no locks.
      fi
      _is_installed || _install
    ) 9< setup.cfg || return
  fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

# Sets `python` and its `version`: PYTHON if given, else what .venv was made
# from, else python3.
_choose_python() {
  local found
  python=${PYTHON:-python3}
  if [[ -z ${PYTHON:-} && -d $state && -x $venv/bin/python ]]; then
    python=$venv/bin/python
  fi
  # The base interpreter, since .venv may have to be made anew.
  if ! found=$("$python" -c 'import sys
path = getattr(sys, "_base_executable", None) or sys.executable
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], path))
sys.exit(sys.version_info < (3, 11))' 2> /dev/null); then
    found=${found:+is ${found%% *}}
    _fail "metajax needs Python >= 3.11, but $python ${found:-does not run}." \
      "Install a newer one and name it, like PYTHON=/usr/bin/python3.12"
    return 1
  fi
  version=${found%% *}
  python=${found#* }
}

# Whether .venv is whole, in its place, and has what is wanted.
_is_installed() {
  _is_whole && [[ $(_read wanted) == "$(_wanted)" ]] &&
    [[ -z $extra || ,$(_read extras), == *,$extra,* ]]
}

_is_whole() {
  [[ -x $venv/bin/python && ! -e $state/unfinished ]] &&
    [[ $(_read home) == "$version $root" ]]
}

_read() {
  cat "$state/$1" 2> /dev/null || true
}

_wanted() {
  local constraints=${METAJAX_CONSTRAINTS-constraints.txt}
  cat setup.cfg pyproject.toml ${constraints:+"$constraints"} | cksum
}

_install() {
  local extras constraints=${METAJAX_CONSTRAINTS-constraints.txt}
  local versions=(--upgrade --upgrade-strategy=eager)
  if [[ -n $constraints ]]; then versions=(--constraint "$constraints"); fi
  if [[ -e $venv && ! -d $state ]]; then
    _fail "$venv was not made by this script. Move it away and run this again."
    return 1
  fi
  if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    _fail "$python cannot make virtual environments." \
      "On Debian or Ubuntu: sudo apt install python$version-venv"
    return 1
  fi
  # What was installed before stays, for the versions to fit together.
  extras=$(_read extras)
  if [[ -n $extra && ,$extras, != *,$extra,* ]]; then
    extras=${extras:+$extras,}$extra
  fi
  echo "Installing metajax${extras:+[$extras]} for Python $version into .venv," \
    "which takes about a minute" >&2
  mkdir -p "$state" || return
  if ! _is_whole; then
    touch "$state/unfinished" &&
      find "$venv" -mindepth 1 -maxdepth 1 ! -name .metajax \
        -exec rm -rf {} + &&
      "$python" -m venv "$venv" &&
      echo "$version $root" > "$state/home" || return
  fi
  touch "$state/unfinished" || return
  if ! "$venv/bin/python" -m pip install --no-input \
    --disable-pip-version-check "${versions[@]}" \
    --editable ".${extras:+[$extras]}" > "$state/pip.log" 2>&1; then
    # Without a network, say, pip gives up before it touches anything.
    if ! grep -q '^Installing collected packages' "$state/pip.log"; then
      rm -f "$state/unfinished"
    fi
    tail -n 20 "$state/pip.log" >&2
    _fail "the installation failed, see above and $state/pip.log"
    return 1
  fi
  _wanted > "$state/wanted" && echo "$extras" > "$state/extras" &&
    rm "$state/unfinished"
}

_fail() {
  echo "error: $*" >&2
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set -euo pipefail
  environment "$@"
fi
