"""Names and layout of one session's files, and how they are published.

    <root>/sessions/<session>/
        key                        the session's key, 64 hex digits
        bursts/<burst>.h5 .json    bundle, and the `Submit` it came with
        bursts/<burst>.owner       which service submits it
        services/<service>         written again and again while it has something to submit or to wait for
        jobs/<job name>/           job.json, run_queue.sh, <index>.log
        checkpoints/<task>.h5      what its next attempt starts from; see `checkpoint`
        outcomes/<task>.running    claim of the runner that has the task
        outcomes/<task>.h5         how the task ended
        outcomes/<task>.lost       why there will be no outcome (JSON `Loss`)
        outcomes/<task>.link       whose outcome will be the task's; see `links`
        outcomes/<task>.died-<n>   why attempt n, from 1, did not end; there will be another (JSON `Loss`)
        journal/<writer>.jsonl     one writer a file: appends of two writers are not safe on NFS

A file is published by writing a temporary name beside it, flushing, and renaming: its final name means it is whole.
What is there is seen by listing the directory: NFS remembers for up to 60 s that a name was absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..wire import plain
from ..wire.names import TaskKey
from ..wire.records import BurstId, Loss, Terms
from ..wire.resources import Resources

if TYPE_CHECKING:
    from ..wire.messages import Submit

SILENT_S = 120.0
"""A service that has not been heard of for so long is gone; NFS may hide a change for 60."""
_LARGE_LOG = 10**8
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
"""What sessions, bursts and tasks may be called: they become file names."""


class StoreError(Exception):
    """A name or a file of the store is not what it should be."""


def checked(name: str) -> str:
    """A name that may become a file name.

    Raises:
        StoreError: it may not.
    """
    if not NAME.match(name):
        raise StoreError(f"{name!r}: letters, digits and . _ - only, at most 100, not starting with . or -")
    return name


def client_of(key: TaskKey) -> str:
    """Who has named a task, and its burst; "" where that is not to be seen."""
    return key.rpartition("-")[0]


@dataclass(frozen=True)
class Claim:
    """Who runs a task: the content of a `.running` file."""

    job: str
    host: str
    pid: int
    started: float


@dataclass(frozen=True)
class JobTask:
    """One element of a job: which call of which burst, and where the inputs' jobs are to be asked about."""

    position: int
    key: TaskKey


@dataclass(frozen=True)
class Job:
    """Content of a job.json: all a runner needs to know.

    Attributes:
        upstream: the scheduler's names of the jobs that compute the inputs, by task key.
        scheduler: name of the queue to ask about them.
        grace_s: see `records.Terms`.
        attempt: which attempt of its tasks it is, from 1.
        move: how often it went behind another job before it could begin; see `late_inputs`.
        command: starts a runner, without its arguments: for what the task submits, and for further attempts.
        terms: for the same.
    """

    name: str
    burst: BurstId
    tasks: tuple[JobTask, ...]
    resources: Resources
    upstream: Mapping[str, str] = field(default_factory=dict)
    scheduler: str = ""
    grace_s: float = 90.0
    attempt: int = 1
    move: int = 0
    command: tuple[str, ...] = ()
    terms: Terms = field(default_factory=Terms)


@dataclass(frozen=True)
class Session:
    """One session's directory."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, key_hex: str) -> Session:
        """Make the session, or open the one that is there, whose key stays what it was.

        Raises:
            StoreError: the name or the key is not one.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", key_hex):
            raise StoreError("a session key is 64 hexadecimal digits")
        session = cls(root / "sessions" / checked(name))
        for part in ("bursts", "jobs", "outcomes", "journal", "services"):
            (session.path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        if "key" not in os.listdir(session.path):
            _publish_once(session.path / "key", key_hex.encode())
        return session

    @property
    def key(self) -> bytes:
        """The key of the session's file digests."""
        return bytes.fromhex((self.path / "key").read_text())

    @property
    def outcomes(self) -> Path:
        """Where claims, outcomes and losses are."""
        return self.path / "outcomes"

    def bundle(self, burst: BurstId) -> Path:
        """The burst's calls."""
        return self.path / "bursts" / f"{checked(burst)}.h5"

    def outcome(self, key: TaskKey) -> Path:
        """How the task ended."""
        return self.outcomes / f"{checked(key)}.h5"

    def lost(self, key: TaskKey) -> Path:
        """Why it did not end."""
        return self.outcomes / f"{checked(key)}.lost"

    def died(self, key: TaskKey, attempt: int) -> Path:
        """Why an attempt did not end."""
        return self.outcomes / f"{checked(key)}.died-{attempt}"

    def running(self, key: TaskKey) -> Path:
        """Who has it."""
        return self.outcomes / f"{checked(key)}.running"

    def job_directory(self, name: str) -> Path:
        """Script, description and logs of a job."""
        return self.path / "jobs" / checked(name)

    def checkpoint(self, key: TaskKey) -> Path:
        """What the next attempt of a task starts from."""
        return self.path / "checkpoints" / f"{checked(key)}.h5"

    def add_burst(self, submit: Submit, bundle: bytes) -> None:
        """Keep a burst: the bundle first, then its manifest, whose name makes the burst known."""
        from ..wire import messages  # late: runners need none of them

        publish(self.bundle(submit.burst), bundle)
        try:
            publish(self.bundle(submit.burst).with_suffix(".json"), messages.to_json(submit).encode())
        except OSError:
            self.bundle(submit.burst).unlink(missing_ok=True)  # nobody will ever read it, and the disk may be full
            raise

    def manifests(self, clients: Collection[str] | None = None) -> list[Path]:
        """Of every burst that was kept, or of those of some clients."""
        prefixes = [""] if clients is None else [f"{client}-" for client in clients]
        return [path for prefix in prefixes for path in (self.path / "bursts").glob(f"{prefix}*.json")]

    def bursts(self, clients: Collection[str] | None = None) -> Iterator[Submit]:
        """Every burst that was kept, or those of some clients, oldest first."""
        from ..wire import messages

        for path in sorted(self.manifests(clients), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            manifest = messages.from_json(path.read_bytes())
            if isinstance(manifest, messages.Submit):
                yield manifest

    def add_job(self, job: Job) -> Path:
        """Describe a job before it is submitted: the intent that makes a submission findable. Returns its directory."""
        directory = self.job_directory(job.name)
        directory.mkdir(mode=0o700, exist_ok=True)
        publish(directory / "job.json", plain.to_json(job).encode())
        return directory

    def find_task(self, key: TaskKey, named: str = "", among: Container[str] | None = None) -> tuple[Job, int] | None:
        """The last job of a task's last attempt, and which of its elements; reads the description of every job.

        Args:
            named: only of those jobs that have this in their name.
            among: only of these jobs.
        """
        found: tuple[Job, int] | None = None
        for path in (self.path / "jobs").glob(f"*{named}*/job.json"):
            if among is not None and path.parent.name not in among:
                continue
            _, job = read_job(path.parent)
            for index, task in enumerate(job.tasks):
                if task.key == key and (found is None or (job.attempt, job.move) > (found[0].attempt, found[0].move)):
                    found = job, index
        return found

    def log(self, job_name: str, index: int) -> Path:
        """What element `index` of a job printed."""
        return self.job_directory(job_name) / f"{index}.log"

    def publish_outcome(self, key: TaskKey, data: bytes) -> None:
        """How the task ended, for all to see."""
        publish(self.outcome(key), data)

    def publish_loss(self, key: TaskKey, loss: Loss) -> None:
        """Why the task did not end, for all to see."""
        publish(self.lost(key), plain.to_json(loss).encode())

    def publish_death(self, key: TaskKey, attempt: int, loss: Loss) -> None:
        """Why an attempt did not end, for all to see; the task can be claimed by the next from then on.

        The claim goes first: whoever sees the death finds no claim but that of a later attempt.
        """
        self.running(key).unlink(missing_ok=True)
        publish(self.died(key, attempt), plain.to_json(loss).encode())

    def deaths(self, key: TaskKey) -> list[Loss]:
        """Why attempts of a task died, the first first."""
        found: list[Loss] = []
        with contextlib.suppress(OSError, ValueError):
            while True:
                found.append(plain.build(Loss, json.loads(self.died(key, len(found) + 1).read_bytes())))
        return found

    def ends(self, key: TaskKey, attempt: int) -> list[str]:
        """Names of the files that say how a task, or that attempt of it, has ended; each opened, not listed.

        For whoever is about to say that there is none: a listing may be late. Asked once, since NFS remembers for a
        while which names it was asked for in vain.
        """
        names = [f"{checked(key)}.{suffix}" for suffix in ("h5", "link", "lost", f"died-{attempt}")]
        return [name for name in names if os.path.exists(self.outcomes / name)]

    def claim(self, key: TaskKey, claim: Claim, attempt: int = 1) -> bool:
        """Take a task for this runner: False if another has it, it has ended, or this attempt has died before.

        Safe on NFS (O_EXCL, version 3 on).
        """
        try:
            handle = os.open(self.running(key), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(plain.to_json(claim))
        names = os.listdir(self.outcomes)
        if any(f"{key}.{suffix}" in names for suffix in ("h5", "lost", "link", f"died-{attempt}")):
            self.running(key).unlink(missing_ok=True)
            return False
        return True

    def read_loss(self, key: TaskKey) -> Loss:
        """The content of a `.lost` file."""
        return plain.build(Loss, json.loads(self.lost(key).read_bytes()))

    def read_claim(self, key: TaskKey) -> Claim | None:
        """Who has the task; None while the claim is being written or after it was given up."""
        try:
            return plain.build(Claim, json.loads(self.running(key).read_bytes()))
        except (OSError, ValueError):
            return None

    def own(self, burst: BurstId, owner: str) -> None:
        """From now on this service submits the burst, and an older one stops when it sees that."""
        publish(self.bundle(burst).with_suffix(".owner"), owner.encode())

    def owner(self, burst: BurstId) -> str:
        """Which service submits the burst; "" before one has said so."""
        try:
            return self.bundle(burst).with_suffix(".owner").read_text()
        except FileNotFoundError:
            return ""

    def beat(self, service: str) -> None:
        """A service is alive, and has something to submit or to wait for.

        Raises:
            OSError: it can neither write its file nor touch it.
        """
        path = self.path / "services" / checked(service)
        try:
            publish(path, b"")
        except OSError as exc:
            try:
                os.utime(path)  # a full disk has room for that
            except OSError:
                raise exc from None

    def end_beat(self, service: str) -> None:
        """A service ends."""
        (self.path / "services" / checked(service)).unlink(missing_ok=True)

    def alive(self, service: str | None = None) -> bool:
        """Whether a service, or any, has said so in the last `SILENT_S`. By the clock of the file system, the only one
        that all hosts share, so something is written for it; where that cannot be, nobody is taken for gone."""
        beats = self.path / "services"
        clock = beats / f".now.{socket.gethostname()}.{os.getpid()}"
        try:
            publish(clock, b"")
            now = clock.stat().st_mtime
        except OSError:
            return True
        finally:
            clock.unlink(missing_ok=True)
        names = [service] if service is not None else [name for name in os.listdir(beats) if not name.startswith(".")]
        return any(now - _changed_at(beats / checked(name)) < SILENT_S for name in names)

    def remove(self) -> None:
        """Remove all files of the session. Whoever still works for it finds nothing under its name from then on."""
        import shutil  # late, as few need it

        gone = self.path.with_name(f".{self.path.name}.{time.time_ns()}")
        with contextlib.suppress(OSError):
            self.path.rename(gone)
        shutil.rmtree(gone if gone.exists() else self.path, ignore_errors=True)


def read_job(directory: Path) -> tuple[Session, Job]:
    """The session a job belongs to, and its description."""
    job = plain.build(Job, json.loads((directory / "job.json").read_bytes()))
    return Session(directory.parent.parent), job


def publish(path: Path, data: bytes) -> None:
    """Write a file so that its name appears only when it is whole and on disk, 0600.

    Raises:
        OSError: nothing of the file is left.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _changed_at(path: Path) -> float:
    try:
        handle = os.open(path, os.O_RDONLY)  # opened, not asked: NFS then looks
    except FileNotFoundError:
        return 0.0
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


def _publish_once(path: Path, data: bytes) -> None:
    """The same, unless somebody else was first."""
    import secrets  # late, as few need it

    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    publish(partial, data)
    try:
        os.link(partial, path)  # fails if the other was first, where a rename would replace its file
    except FileExistsError:
        pass
    finally:
        partial.unlink()


class Journal:
    """Append-only notes of one writer; the notes of all writers together are the state."""

    def __init__(self, session: Session) -> None:
        self._directory = session.path / "journal"
        self._path = self._directory / f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._handle: int | None = None

    def append(self, note: dict[str, Any]) -> None:
        """Write one note through to the disk.

        Raises:
            OSError: nothing of the note is left, or half a line that no reader takes for a note.
        """
        if self._handle is None:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        whole = os.lseek(self._handle, 0, os.SEEK_END)
        data = memoryview(json.dumps(note, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)
        except OSError:
            with contextlib.suppress(OSError):  # the next note would become part of half a line
                os.ftruncate(self._handle, whole)
            raise

    def notes(self) -> Iterator[dict[str, Any]]:
        """All notes of all writers, each writer's in order; a line cut off by a crash is passed over."""
        for path in sorted(self._directory.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def log_tail(path: Path, lines: int = 20, most: int = 8192) -> str:
    """The last lines of a log; "" if there is none. Reads at most `most` bytes, however long the log is."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def large_log(path: Path) -> str:
    """What to say of the size of a log beside its name: " (1.1 GB)"; "" of one that an editor opens."""
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    return f" ({size / 1e9:.1f} GB)" if size >= _LARGE_LOG else ""
