#!/bin/bash
#$ -N rx-a-1.energy_Ag
#$ -S /bin/bash
#$ -j y
#$ -o /dev/null
#$ -r n
#$ -V
#$ -pe smp 6
#$ -l h_vmem=171M
#$ -l h_rt=91
#$ -l gpu,big
#$ -l exclusive=true
#$ -q fast
#$ -A proj
#$ -p 5
#$ -t 1-8
#$ -tc 3
#$ -hold_jid 5,6
cd '/r/it'"'"'s/rx-a-1' || exit 74
exec env REMOTEEXEC_JOB_ID="${JOB_ID}_$((SGE_TASK_ID - 1))" '/opt/py thon' /r/server runner "$((SGE_TASK_ID - 1))" >>'/r/it'"'"'s/rx-a-1'/"$((SGE_TASK_ID - 1))".log 2>&1
