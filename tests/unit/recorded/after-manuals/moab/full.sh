#!/bin/bash
#MSUB -N rx-a-1.energy_Ag
#MSUB -S /bin/bash
#MSUB -j oe
#MSUB -o /dev/null
#MSUB -r n
#MSUB -V
#MSUB -l nodes=1:ppn=4:gpus=2:gpu:big+1:ppn=2:gpus=1:gpu:big
#MSUB -l mem=1024mb
#MSUB -l walltime=91
#MSUB -l naccesspolicy=singlejob
#MSUB -l qos=high
#MSUB -q fast
#MSUB -A proj
#MSUB -p 5
#MSUB -l depend=afterany:5:6
cd '/r/it'"'"'s/rx-a-1' || exit 74
exec env REMOTEEXEC_JOB_ID="${MOAB_JOBID:-}" '/opt/py thon' /r/server runner 0 >>'/r/it'"'"'s/rx-a-1'/0.log 2>&1
