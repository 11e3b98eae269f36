#!/bin/bash
#$ -N rx-a-0
#$ -S /bin/bash
#$ -j y
#$ -o /dev/null
#$ -r n
#$ -V
cd '/r/it'"'"'s/rx-a-0' || exit 74
exec env REMOTEEXEC_JOB_ID="$JOB_ID" '/opt/py thon' /r/server runner 0 >>'/r/it'"'"'s/rx-a-0'/0.log 2>&1
