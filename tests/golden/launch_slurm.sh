#!/bin/bash
# Starts the run "big" on 2 nodes. Written by `qwen-align launch --slurm`;
# untested on hardware: read it before it runs. Submit it with sbatch.
# All nodes need this Python, the recipe and the home at these paths.
#SBATCH --job-name=big
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --output=big-%j.txt
#SBATCH --open-mode=append
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --time=24:00:00
#SBATCH --requeue
set -uo pipefail
cd /work || exit 4

srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none \
  /env/bin/python -P -m qwen_align.cli run /work/recipe.yaml --home '/work/a home' --set seed=5 --tiny
code=$?
# 75: stopped before the time limit, or a node did not come back. The run goes on where it stopped.
if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
