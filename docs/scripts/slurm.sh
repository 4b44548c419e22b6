#!/bin/bash
# One run on several machines of a Slurm cluster: sbatch --nodes=16 --gpus-per-node=4 --ntasks-per-node=4 \
#   docs/scripts/slurm.sh RUN_DIR experiment=diffullama_7b
# Slurm starts one process for each GPU. Five minutes before its time is up the run saves a checkpoint, puts the job
# back into the queue, and goes on when it starts again.
#SBATCH --job-name=dlmkit
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
run_dir=$1
shift
srun --kill-on-bad-exit=1 dlmkit train "$@" \
    trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
    hydra.run.dir="$run_dir" if_exists=auto
