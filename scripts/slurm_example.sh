#!/usr/bin/env bash
# An experiment on two nodes of a SLURM cluster, a process a GPU:
#
#   sbatch scripts/slurm_example.sh
#
# JAX reads from SLURM where the processes are, and gives each a GPU of its node
# (so SLURM must not: no --gpus-per-task). The folder of the run, and that
# of the data, must be the same on all nodes. Cut off by the time limit, the same
# command goes on from the checkpoint that the signal made it write.
#SBATCH --job-name=metajax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --signal=TERM@60
set -euo pipefail
source scripts/environment.sh
environment cuda
srun --kill-on-bad-exit=1 python -m experiments.few_shot \
  --coordinator=auto --workdir=runs/omniglot_5w1s --preset=5w1s "$@"
