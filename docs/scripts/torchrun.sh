#!/bin/bash
# One run on several machines without a queue. Start it on each of them, with the same arguments:
#   NODES=2 DEVICES=8 HEAD=first-machine docs/scripts/torchrun.sh RUN_DIR experiment=diffullama_7b
# HEAD is a machine that all others reach; RUN_DIR is on a file system that all share. One machine alone needs none of
# this: `dlmkit train trainer.devices=8 ...` starts its processes by itself.
set -euo pipefail
nodes=${NODES:-1}
devices=${DEVICES:-8}
run_dir=$1
shift
torchrun --nnodes="$nodes" --nproc-per-node="$devices" --rdzv-backend=c10d \
    --rdzv-endpoint="${HEAD:-localhost}:${PORT:-29500}" --rdzv-id="$(basename "$run_dir")" \
    --no-python dlmkit train "$@" \
    trainer.num_nodes="$nodes" trainer.devices="$devices" hydra.run.dir="$run_dir" if_exists=auto
