"""The engine of a teacher's networks: folding, batch, compiling, CUDA graphs, and its description (P4)."""
