"""What runs the teacher's networks: folding, batch, compiling, CUDA graphs, and what of it makes the bytes (P4)."""
