#!/bin/bash
# entrypoint.sh login|node|all: login = slurmctld and sshd, node = slurmd, all = everything in one container.
#   /shared/authorized_keys   who may log in as "user"; every container of a cluster mounts the same /shared
#   /shared/munge.key         made by the first container that comes
#   NODES=2 CPUS=4 MEMORY_MB=4000
set -euo pipefail
role=$1
nodes=${NODES:-2}
render() { python3 /opt/remoteexec/config/render.py "$@"; }

mkdir -p /shared /run/sshd /run/slurm /run/munge /var/log/slurm /var/spool/slurm/ctld /etc/slurm
chown munge:munge /run/munge
if [ ! -e /shared/munge.key ]; then
    # link() lets one container win
    (umask 077 && dd if=/dev/urandom of=/shared/munge.key.$$ bs=128 count=1 status=none)
    ln /shared/munge.key.$$ /shared/munge.key 2>/dev/null || true
    rm -f /shared/munge.key.$$
fi
install -o munge -g munge -m 400 /shared/munge.key /etc/munge/munge.key
setpriv --reuid=munge --regid=munge --clear-groups munged

values=("cpus=${CPUS:-4}" "memory_mb=${MEMORY_MB:-4000}" "all_nodes=n[1-$nodes]")
if [ "$role" = all ]; then
    host=$(hostname -s)
    lines=$(for i in $(seq "$nodes"); do echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i))"; done)
    for i in $(seq "$nodes"); do mkdir -p -m 1777 "/var/spool/slurm/tmp-n$i"; done
    values+=("controller=$host(127.0.0.1)" "nodes=$lines" tmp=/var/spool/slurm/tmp-%n)
else
    values+=("nodes=NodeName=n[1-$nodes]")
fi
render slurm.conf "${values[@]}" >/etc/slurm/slurm.conf
render cgroup.conf >/etc/slurm/cgroup.conf
# SLURM before 23 does not know CgroupPlugin=disabled and needs no file
[ "$(slurmctld -V | grep -oE '[0-9]+' | head -n 1)" -ge 23 ] || rm /etc/slurm/cgroup.conf

if [ "$role" != node ]; then
    # kept in the volume, so that a new container of the same cluster has the same host key
    [ -e /shared/host_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -C remoteexec -f /shared/host_ed25519
    if [ -e /shared/authorized_keys ]; then
        install -D -o root -g root -m 644 /shared/authorized_keys /etc/ssh/authorized_keys
    fi
    install -m 600 /shared/host_ed25519 /etc/ssh/ssh_host_ed25519_key
    render sshd_config authorized_keys=/etc/ssh/authorized_keys password_authentication=no >/etc/ssh/sshd_config
fi

case $role in
login)
    /usr/sbin/sshd
    exec slurmctld -D
    ;;
node)
    exec slurmd -D
    ;;
all)
    /usr/sbin/sshd
    slurmctld
    for i in $(seq "$nodes"); do slurmd -N "n$i"; done
    exec tail --follow=name --retry --quiet /var/log/slurm/slurmctld.log
    ;;
*)
    exec "$@"
    ;;
esac
