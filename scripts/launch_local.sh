#!/usr/bin/env bash
# Runs an experiment in N processes of this machine, which are one run.
#
#   scripts/launch_local.sh 2 python -m experiments.maml_sinusoid --steps=1000
#
# On CPUs the processes share the cores. A signal goes to all. Where one fails,
# its exit code is the run's, and the others end within GRACE (10) seconds.
set -euo pipefail
if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "error: usage: $0 N COMMAND [FLAGS], N being 1 or more" >&2
  exit 2
fi
number=$1
shift
port=$(python3 -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')
cores=$(($(nproc) / number))
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$((cores > 1 ? cores : 1))}

# Each in a process group of its own, so that a terminal's Ctrl-C comes once, from
# here, and not twice.
set -m
processes=()
for ((i = 0; i < number; i++)); do
  "$@" --coordinator="127.0.0.1:$port" --num_processes="$number" \
    --process_id="$i" &
  processes+=($!)
done
stopped=
stop() {
  stopped=1
  kill -TERM "${processes[@]}" 2> /dev/null || true
}
trap stop INT TERM

running() {
  local process
  for process in "${processes[@]}"; do
    if kill -0 "$process" 2> /dev/null; then return 0; fi
  done
  return 1
}

failed=
while running; do
  code=0
  wait -n || code=$?
  # More than 128 may be a signal that came to the waiting.
  if ((code == 0)) || [[ -n $failed ]]; then continue; fi
  if ((code > 128)) && [[ -n $stopped ]]; then continue; fi
  failed=$code
  # Those that wait for it in a collective hear no signal but the last.
  for ((i = 0; i < ${GRACE:-10} * 10; i++)); do
    if ! running; then break; fi
    sleep 0.1
  done
  kill -KILL "${processes[@]}" 2> /dev/null || true
done

status=${failed:-0}
for process in "${processes[@]}"; do
  code=0
  wait "$process" || code=$?
  if ((status == 0)); then status=$code; fi
done
if ((status)) && [[ -z $stopped ]]; then
  echo "error: a process has ended ($status), and with it the run" >&2
fi
exit "$status"
