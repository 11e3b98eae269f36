"""Fill in a configuration template; also run as a script inside the container image, so standard library only.

python3 render.py slurm.conf controller=login nodes="NodeName=n[1-2]" > /etc/slurm/slurm.conf
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

# The values of a cluster with root's daemons in the system's places; each set-up names what differs.
DEFAULTS = {
    "slurm.conf": {
        "cluster": "remoteexec",
        "controller": "login",
        "user": "root",
        "auth": "auth/munge",
        "cred": "cred/munge",
        "auth_info": "",
        "port": "6817",
        "run": "/run/slurm",
        "log": "/var/log/slurm",
        "spool": "/var/spool/slurm",
        "tmp": "/tmp",
        "task_plugin": "task/none",
        "memory_kill": "JobAcctGatherParams=OverMemoryKill",
        "memory_per_cpu_mb": "500",
        "max_array_size": "10001",
        "first_job_id": "1",
        "message_timeout_s": "10",
        "gres_types": "",
        "preemption": "",
        "cpus": "4",
        "memory_mb": "4000",
        "nodes": "NodeName=n[1-2]",
        "all_nodes": "n[1-2]",
        "partitions": "",
    },
    "cgroup.conf": {"cgroup_plugin": "disabled", "constrain_memory": "no"},
    "sshd_config": {
        "port": "22",
        "address": "0.0.0.0",
        "host_key": "/etc/ssh/ssh_host_ed25519_key",
        "authorized_keys": ".ssh/authorized_keys",
        "strict_modes": "yes",
        "password_authentication": "yes",
        "permit_root_login": "no",
        "use_pam": "yes",
        "banner": "none",
        "environment": "",
    },
}


def render(template: str, **values: str) -> str:
    """Return the text of a configuration file.

    Args:
        template: slurm.conf, cgroup.conf or sshd_config.
        values: what differs from DEFAULTS.

    Raises:
        ValueError: a value that the template does not know.
    """
    defaults = DEFAULTS[template]
    if unknown := sorted(values.keys() - defaults.keys()):
        raise ValueError(f"{template} has no {', '.join(unknown)}; it knows {', '.join(sorted(defaults))}")
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return string.Template(text).substitute(defaults | values)


if __name__ == "__main__":
    sys.stdout.write(render(sys.argv[1], **dict(argument.split("=", 1) for argument in sys.argv[2:])))
