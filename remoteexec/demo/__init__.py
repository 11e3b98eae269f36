"""Clusters for trying things out: an embedded SSH server, a rootless SLURM, and the demonstration that uses them."""
