#!/bin/bash
#PBS -N rx-a-1.energy_Ag
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /dev/null
#PBS -r n
#PBS -V
#PBS -l nodes=1:ppn=4:gpus=2:gpu:big+1:ppn=2:gpus=1:gpu:big
#PBS -l mem=1024mb
#PBS -l naccesspolicy=singlejob
#PBS -l qos=high
#PBS -l walltime=91
#PBS -A proj
#PBS -q fast
#PBS -p 5
#PBS -t 0-7%3
#PBS -W depend=afterany:5,afteranyarray:6[]
cd '/r/it'"'"'s/rx-a-1' || exit 74
exec env REMOTEEXEC_JOB_ID="${PBS_JOBID%%[!0-9]*}[]_$PBS_ARRAYID" '/opt/py thon' /r/server runner "$PBS_ARRAYID" >>'/r/it'"'"'s/rx-a-1'/"$PBS_ARRAYID".log 2>&1
