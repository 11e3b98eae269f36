#!/bin/bash
#PBS -N rx-a-1.energy_Ag
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /dev/null
#PBS -r n
#PBS -V
#PBS -l select=1:ncpus=4:mpiprocs=2:ompthreads=2:mem=512mb:ngpus=2+1:ncpus=2:mpiprocs=1:ompthreads=2:mem=512mb:ngpus=1
#PBS -l place=scatter:exclhost
#PBS -l walltime=91
#PBS -A proj
#PBS -q fast
#PBS -p 5
#PBS -J 0-7%3
#PBS -W depend=afterany:5:6[]
cd '/r/it'"'"'s/rx-a-1' || exit 74
exec env REMOTEEXEC_JOB_ID="${PBS_JOBID%%[!0-9]*}[]_$PBS_ARRAY_INDEX" '/opt/py thon' /r/server runner "$PBS_ARRAY_INDEX" >>'/r/it'"'"'s/rx-a-1'/"$PBS_ARRAY_INDEX".log 2>&1
