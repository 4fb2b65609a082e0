#!/bin/bash
# A build on two nodes of a Slurm cluster: `sbatch examples/slurm.sh IMAGES WEIGHTS STORE [FLAGS ...]`.
# Each task of srun is one process of the build. The same command continues a stopped or requeued one.
#SBATCH --job-name=giftwrap
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM a minute before the time is over: processes end their current block, and nothing is lost.
#SBATCH --signal=TERM@60
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: sbatch examples/slurm.sh IMAGES WEIGHTS STORE [FLAGS ...]" >&2
    exit 2
fi
images=$1 weights=$2 store=$3
shift 3

# --kill-on-bad-exit: when one process ends with an error, the others end too.
srun --kill-on-bad-exit=1 python -m giftwrap build --images "$images" --weights "$weights" --store "$store" \
    --teacher torchvision:resnet18 --size 224 --views 300 --device cuda --dtype bfloat16 "$@"
