#!/bin/bash
#MSUB -N rx-a-0
#MSUB -S /bin/bash
#MSUB -j oe
#MSUB -o /dev/null
#MSUB -r n
#MSUB -V
#MSUB -l nodes=1:ppn=1
cd '/r/it'"'"'s/rx-a-0' || exit 74
exec env REMOTEEXEC_JOB_ID="${MOAB_JOBID:-}" '/opt/py thon' /r/server runner 0 >>'/r/it'"'"'s/rx-a-0'/0.log 2>&1
