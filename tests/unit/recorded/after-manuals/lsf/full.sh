#!/bin/bash
#BSUB -J "rx-a-1.energy_Ag[1-8]%3"
#BSUB -o /dev/null
#BSUB -n 6
#BSUB -R "span[ptile=4]"
#BSUB -M 512MB
#BSUB -R "rusage[mem=512MB]"
#BSUB -R "select[gpu && big]"
#BSUB -gpu "num=2/host"
#BSUB -x
#BSUB -W 2
#BSUB -q fast
#BSUB -P proj
#BSUB -sp 5
#BSUB -w "ended(5) && ended(6[3])"
cd '/r/it'"'"'s/rx-a-1' || exit 74
exec env REMOTEEXEC_JOB_ID="${LSB_JOBID}_$((LSB_JOBINDEX - 1))" '/opt/py thon' /r/server runner "$((LSB_JOBINDEX - 1))" >>'/r/it'"'"'s/rx-a-1'/"$((LSB_JOBINDEX - 1))".log 2>&1
