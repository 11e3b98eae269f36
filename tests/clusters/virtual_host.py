"""PID 1 of a virtual host: names it, gives it its own /tmp, /dev/shm and /etc/hosts, starts daemons, collects orphans.

    virtual_host.py HOSTNAME HOSTS_FILE DAEMON_COMMAND_LINE...

Runs in namespaces that `unshare` has just made. Standard library only.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time


def main() -> None:
    hostname, hosts_file, *daemons = sys.argv[1:]
    socket.sethostname(hostname)
    for argv in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "--bind", hosts_file, "/etc/hosts"],
        ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"],
        ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"],
    ):
        subprocess.run(argv, check=True)
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    for line in daemons:
        subprocess.Popen(shlex.split(line), stdin=subprocess.DEVNULL).returncode = 0  # collected below
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(3600)  # all daemons have ended: the host stays, as a real one would


if __name__ == "__main__":
    main()
