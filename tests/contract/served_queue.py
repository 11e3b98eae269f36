"""A SlurmQueue in a process of the cluster's user, called from the tests' process, which may be root's.

Run as a script it is the far end: `served_queue.py SERVER_SIDE`. Calls and answers are pickles; both ends are ours.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remoteexec_server.batch.base import JobFacts, JobId, JobRef, JobSpec
    from remoteexec_server.wire.resources import Resources
    from tests.clusters.rootless import SlurmCluster


class ServedQueue:
    """The near end: a Queue."""

    def __init__(self, cluster: SlurmCluster, timeout_s: float = 30.0, **environment: str) -> None:
        """Start the far end.

        Args:
            timeout_s: of SlurmSettings.
            environment: variables it has beside those of a session on the login node.
        """
        package = cluster.directory / "queue-package"  # the cluster's user may not be able to read the checkout
        if not package.exists():
            import remoteexec_server

            shutil.copytree(Path(remoteexec_server.__file__).parent, package / "remoteexec_server")
            shutil.copy(__file__, package)
            for path in (package, *package.rglob("*")):
                path.chmod(0o755)
        self._process = subprocess.Popen(
            [str(cluster.python), str(package / "served_queue.py"), str(package), str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**cluster.environment, **environment},
            cwd=cluster.home,
            **cluster.account.popen_arguments(),
        )

    def _call(self, what: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((what, arguments), self._process.stdin)
        self._process.stdin.flush()
        well, answer = pickle.load(self._process.stdout)
        if well:
            return answer
        raise answer

    @property
    def name(self) -> str:
        return str(self._call("name"))

    @property
    def helper_pid(self) -> int | None:
        """Process that imports pysqa, if there is one."""
        found: int | None = self._call("helper_pid")
        return found

    def max_array(self) -> int:
        return int(self._call("max_array"))

    def prewarm(self) -> None:
        self._call("prewarm")

    def submit(self, spec: JobSpec) -> JobId:
        job: JobId = self._call("submit", spec)
        return job

    def unheeded(self, resources: Resources) -> Sequence[str]:
        found: Sequence[str] = self._call("unheeded", resources)
        return found

    def script(self, spec: JobSpec) -> str:
        return str(self._call("script", spec))

    def find(self, name: str) -> JobId | None:
        job: JobId | None = self._call("find", name)
        return job

    def cancel(self, refs: Sequence[JobRef]) -> None:
        self._call("cancel", refs)

    def states(self, refs: Sequence[JobRef]) -> Mapping[JobRef, JobFacts]:
        facts: Mapping[JobRef, JobFacts] = self._call("states", refs)
        return facts

    def close(self) -> None:
        """End the far end too."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._call("close")
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def main() -> None:
    """Serve calls until stdin ends."""
    sys.path.insert(0, sys.argv[1])
    from remoteexec_server.batch.pysqa_queue import SlurmQueue, SlurmSettings

    os.umask(0o077)
    queue = SlurmQueue(SlurmSettings(timeout_s=float(sys.argv[2])))
    while True:
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if what == "helper_pid":
                answer: object = queue._helper.pid
            else:
                found = getattr(queue, what)
                answer = found(*arguments) if callable(found) else found
            pickle.dump((True, answer), sys.stdout.buffer)
        except Exception as exc:
            pickle.dump((False, exc), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
