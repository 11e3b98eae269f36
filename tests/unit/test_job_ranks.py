"""What is understood of the end of srun or mpiexec; texts recorded from SLURM 22.05, Open MPI 4.1, MPICH 5.0."""

from __future__ import annotations
