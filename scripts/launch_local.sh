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

processes=()
for ((i = 0; i < number; i++)); do
  "$@" --coordinator="127.0.0.1:$port" --num_processes="$number" \
    --process_id="$i" &
  processes+=($!)
done
status=0 stopped=
stop() {
  stopped=1
  kill -TERM "${processes[@]}" 2> /dev/null || true
}
trap stop INT TERM

while jobs=$(jobs -pr) && [[ -n $jobs ]]; do
  code=0
  wait -n || code=$?
  # More than 128: by a signal, the waiting's or the process's.
  if ((code == 0 || status)) || [[ $(jobs -pr) == "$jobs" ]]; then continue; fi
  status=$code
  if [[ -z $stopped ]]; then
    echo "error: a process has ended ($code), and with it the run; what it had" \
      "saved is whole, run the same command to go on" >&2
  fi
  # Those that wait for it in a collective hear no signal but the last.
  sleep "${GRACE:-10}"
  kill -KILL "${processes[@]}" 2> /dev/null || true
done
exit "$status"
