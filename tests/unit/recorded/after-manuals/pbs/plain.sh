#!/bin/bash
#PBS -N rx-a-0
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /dev/null
#PBS -r n
#PBS -V
#PBS -l select=1:ncpus=1:mpiprocs=1:ompthreads=1
cd '/r/it'"'"'s/rx-a-0' || exit 74
exec env REMOTEEXEC_JOB_ID="${PBS_JOBID%%[!0-9]*}" '/opt/py thon' /r/server runner 0 >>'/r/it'"'"'s/rx-a-0'/0.log 2>&1
