"""Start the ranks of a command: with torchrun, Slurm's srun, or a Ray cluster."""
