#!/bin/sh
# Brings the Debian packages that the test clusters need: installs what is missing when root, otherwise says what to install.
# Also run before the virtual environment is made, because Debian keeps `python3 -m venv` in a package of its own.
set -eu

missing=
needs() { # PACKAGE COMMAND...: the package is missing when the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 </dev/null || missing="$missing $package"
}
PATH=$PATH:/usr/sbin:/sbin
needs slurm-wlm command -v slurmctld
needs munge command -v munged
needs openssh-server command -v sshd
needs openssh-client command -v ssh-keygen
needs iproute2 command -v ip
needs util-linux command -v setpriv
# root's own python3 may lie where the clusters' ordinary user cannot execute it; the system's never does
if [ "$(id -u)" = 0 ] || [ -x /usr/bin/python3 ]; then
    needs python3-venv /usr/bin/python3 -c 'import ensurepip, venv'
fi
# What some tests do without, each with a line that says so: CPython's own tests of executors, and a second MPI with what
# lets SLURM start it. They have these names in Debian 12; where there are none, they are left out.
wanted=
wants() { # like `needs`
    package=$1
    shift
    "$@" >/dev/null 2>&1 </dev/null || wanted="$wanted $package"
}
has_library() {
    ldconfig -p | grep -q "$1 "
}
if [ -x /usr/bin/python3 ]; then
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    wants "libpython$version-testsuite" /usr/bin/python3 -c 'import test.test_concurrent_futures'
fi
wants openmpi-bin command -v mpiexec.openmpi
wants libopenmpi3 has_library libmpi.so.40
wants libpmix-dev has_library libpmix.so
[ -n "$missing$wanted" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed here:$missing$wanted" >&2
    echo "  sudo apt-get install --no-install-recommends$missing$wanted" >&2
    echo "  Tests that need them are skipped: without slurm-wlm or openssh-server those marked slurm, without root those marked netcluster." >&2
    exit 0
fi

# Installing must not start a system-wide sshd, munged or slurmd on the machine of whoever runs the tests.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -q -o DPkg::Lock::Timeout=900 update
for package in $wanted; do
    ! apt-cache show "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "Installing:$missing"
# $missing is a list of words made above
# shellcheck disable=SC2086
apt-get -q -q -o DPkg::Lock::Timeout=900 install -y --no-install-recommends $missing >/dev/null
