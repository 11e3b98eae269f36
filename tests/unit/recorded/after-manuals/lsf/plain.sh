#!/bin/bash
#BSUB -J "rx-a-0"
#BSUB -o /dev/null
#BSUB -n 1
cd '/r/it'"'"'s/rx-a-0' || exit 74
exec env REMOTEEXEC_JOB_ID="$LSB_JOBID" '/opt/py thon' /r/server runner 0 >>'/r/it'"'"'s/rx-a-0'/0.log 2>&1
