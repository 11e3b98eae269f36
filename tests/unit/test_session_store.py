"""A session's files: names that cannot leave it, whole or not there, one claim a task, journals cut off by crashes."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from remoteexec_server.store import session as store
from remoteexec_server.store.session import (
    Claim,
    Job,
    JobTask,
    Journal,
    Session,
    StoreError,
    checked,
    log_tail,
    publish,
    read_job,
)
from remoteexec_server.wire.messages import BurstId, Entry, Loss, Submit, TaskKey
from remoteexec_server.wire.resources import Resources

KEY = "0f" * 32
A, B = TaskKey("a"), TaskKey("b")
CLAIM = Claim("7_1", "n1", 99, 1.5)


@pytest.fixture
def session(tmp_root: Path) -> Session:
    tmp_root.mkdir(mode=0o700)
    return Session.create(tmp_root, "s-1", KEY)


def files(session: Session) -> list[str]:
    return sorted(str(path.relative_to(session.path)) for path in session.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["a", "A-1", "s.x_9", "0", "x" * 100])
def test_a_name_may_hold_letters_digits_and_three_more(name: str) -> None:
    assert checked(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a b", "-a", ".a", "ü", "a\n", "a\0", "x" * 101])
def test_a_name_that_could_leave_the_session_is_refused(name: str, session: Session) -> None:
    with pytest.raises(StoreError, match="letters, digits"):
        checked(name)
    for path in (session.bundle, session.outcome, session.lost, session.running, session.job_directory):
        with pytest.raises(StoreError):
            path(name)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        Session.create(session.path.parent.parent, name, KEY)


def test_a_new_session_is_private(session: Session) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in session.path.iterdir()}

    parts = ("bursts", "jobs", "outcomes", "journal", "services")
    assert modes == {**dict.fromkeys(parts, 0o700), "key": 0o600}
    assert session.key == bytes.fromhex(KEY)


def test_a_session_that_is_opened_again_has_the_key_it_had(session: Session) -> None:
    root = session.path.parent.parent

    assert Session.create(root, "s-1", KEY) == session
    assert Session.create(root, "s-1", "00" * 32).key == bytes.fromhex(KEY)
    with pytest.raises(StoreError, match="64 hexadecimal digits"):
        Session.create(root, "s-2", "0F" * 32)
    assert session.key == bytes.fromhex(KEY)


def test_a_burst_is_there_with_its_manifest_only_when_both_are_whole(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Submit(BurstId("b-1"), (Entry(A), Entry(B, 0, (A,))), (Resources(cwd="a'; echo"),), 3)
    names: list[str] = []

    def noted(path: Path, data: bytes) -> None:
        names.append(path.name)
        publish(path, data)

    monkeypatch.setattr(store, "publish", noted)

    session.add_burst(submit, b"abc")

    assert names == ["b-1.h5", "b-1.json"]
    assert (list(session.bursts()), session.bundle(BurstId("b-1")).read_bytes()) == ([submit], b"abc")


def test_bursts_come_in_the_order_they_were_kept(session: Session) -> None:
    names = [BurstId(f"b-{n}") for n in (3, 1, 10, 2)]
    for n, name in enumerate(names):
        session.add_burst(Submit(name, (Entry(A),), (Resources(),), 0), b"")
        os.utime(session.bundle(name).with_suffix(".json"), ns=(n, n))

    assert [submit.burst for submit in session.bursts()] == names


def test_a_job_is_described_for_its_runner(session: Session) -> None:
    job = Job(
        "rx-b-1-0", BurstId("b-1"), (JobTask(0, A), JobTask(2, B)), Resources(cwd="ü"), {"x": "7_1"}, "slurm", 9.5
    )

    directory = session.add_job(job)

    assert (read_job(directory), directory) == ((session, job), session.path / "jobs" / "rx-b-1-0")
    assert session.add_job(job) == directory


def test_a_file_is_published_whole_and_private(session: Session) -> None:
    publish(session.path / "x", b"one")
    publish(session.path / "x", b"two")

    assert ((session.path / "x").read_bytes(), stat.S_IMODE((session.path / "x").stat().st_mode)) == (b"two", 0o600)
    assert files(session) == ["key", "x"]


@pytest.mark.parametrize("fails", ["fsync", "replace", "open"])
def test_a_failed_publication_leaves_nothing_new(session: Session, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    publish(session.path / "x", b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        publish(session.path / "x", b"new")
    monkeypatch.undo()

    assert ((session.path / "x").read_bytes(), files(session)) == (b"old", ["key", "x"])


def test_a_task_is_claimed_once(session: Session) -> None:
    assert [session.claim(A, CLAIM), session.claim(A, Claim("8", "n2", 1, 2.0))] == [True, False]
    assert (session.read_claim(A), session.read_claim(B)) == (CLAIM, None)


def test_of_many_runners_one_gets_the_task(session: Session) -> None:
    start, won = threading.Barrier(8), []

    def run(n: int) -> None:
        start.wait()
        if session.claim(A, Claim(str(n), "n", n, 0.0)):
            won.append(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    claim = session.read_claim(A)
    assert claim is not None
    assert won == [claim.pid]


@pytest.mark.parametrize("end", ["outcome", "loss"])
def test_a_task_that_has_ended_cannot_be_claimed(session: Session, end: str) -> None:
    if end == "outcome":
        session.publish_outcome(A, b"data")
    else:
        session.publish_loss(A, Loss("cancelled", "m"))

    assert (session.claim(A, CLAIM), session.claim(B, CLAIM)) == (False, True)
    assert not session.running(A).exists()


@pytest.mark.parametrize("text", ["", "{", '{"job":"7"', "[]", '{"job":7}', "\ud800"])
def test_a_claim_that_is_being_written_is_none_yet(session: Session, text: str) -> None:
    session.running(A).write_bytes(text.encode(errors="surrogatepass"))

    assert session.read_claim(A) is None


def test_a_loss_is_plain_json(session: Session) -> None:
    loss = Loss("killed", "ended by SIGSEGV\nü", "7_1", "n1", None, 11, "tail", "/log")
    session.publish_loss(A, loss)

    assert (session.read_loss(A), json.loads(session.lost(A).read_bytes())["signal"]) == (loss, 11)


def test_a_newer_service_takes_a_burst_over(session: Session) -> None:
    owners = [session.owner(BurstId("b-1"))]
    for name in ("one", "two"):
        session.own(BurstId("b-1"), name)
        owners.append(session.owner(BurstId("b-1")))

    assert owners == ["", "one", "two"]


def test_a_service_that_falls_silent_counts_as_gone_by_the_clock_of_the_file_system(session: Session) -> None:
    alive = [session.alive("one")]
    session.beat("one")
    alive.append(session.alive("one"))
    now = (session.path / "services" / "one").stat().st_mtime
    for seconds in (store.SILENT_S - 60.0, store.SILENT_S + 60.0):
        os.utime(session.path / "services" / "one", (now - seconds, now - seconds))
        alive.append(session.alive("one"))

    assert alive == [False, True, True, False]
    assert os.listdir(session.path / "services") == ["one"]


def test_the_notes_of_all_writers_are_read_in_order(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(100, 200))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    first, second = Journal(session), Journal(session)
    first.append({"n": 1})
    second.append({"n": 3, "text": "a\nb ü"})
    first.append({"n": 2})
    first.close()
    second.close()
    Journal(session).close()  # nothing written: no file

    assert list(Journal(session).notes()) == [{"n": 1}, {"n": 2}, {"n": 3, "text": "a\nb ü"}]
    assert len(list((session.path / "journal").iterdir())) == 2


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_note_cut_off_by_a_crash_is_passed_over(session: Session, cut: int) -> None:
    journal = Journal(session)
    journal.append({"n": 1})
    journal.append({"name": "ü"})
    journal.close()
    [path] = (session.path / "journal").iterdir()
    path.write_bytes(path.read_bytes()[:-cut])

    notes = list(Journal(session).notes())

    assert notes[:1] == [{"n": 1}]
    assert notes[1:] in ([], [{"name": "ü"}])


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_note_that_finds_no_room_leaves_no_half_a_line_before_the_next(
    session: Session, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal, write = Journal(session), os.write
    written: list[int] = []

    def full(handle: int, data: bytes | None = None) -> int:
        if data is not None and not written:
            written.append(write(handle, data[:5]))
            return 5
        raise OSError(28, "No space left on device")

    journal.append({"n": 1})
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        journal.append({"n": 2})
    monkeypatch.undo()
    journal.append({"n": 3})
    journal.close()

    assert list(Journal(session).notes()) == [{"n": 1}, {"n": 3}]


def test_a_service_says_that_it_is_alive_on_a_full_disk_and_takes_nobody_for_gone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.beat("s")
    os.utime(session.path / "services" / "s", (0, 0))

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "publish", full)
    assert session.alive("s")
    session.beat("s")
    monkeypatch.undo()
    assert session.alive("s")


def test_the_end_of_a_log_is_read_however_long_it_is(session: Session) -> None:
    path = session.path / "0.log"
    assert log_tail(path) == ""
    path.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"%d \xff\n" % n for n in range(30)))

    assert log_tail(path) == "\n".join(f"{n} \ufffd" for n in range(10, 30))
    assert log_tail(path, lines=1) == "29 \ufffd"
    path.write_bytes(b"x" * 100_000)
    assert len(log_tail(path)) == 8192


def test_a_removed_session_is_gone(session: Session) -> None:
    session.publish_outcome(A, b"data")
    session.remove()
    session.remove()

    assert not session.path.exists()
