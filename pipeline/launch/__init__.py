"""How the ranks of a command are started: by torchrun, by Slurm's srun, or by a Ray cluster."""
