"""Entries of a cache directory, and calls that share them and each other; nothing runs here."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec import errors, get_cache_data, get_future_from_cache
from remoteexec.engine.cache import CachedInput, CacheDirectory, CacheWarning, Pointer
from remoteexec.engine.caching import Before, CachedCall, Caching, Wish
from remoteexec.futures import TaskFuture
from remoteexec.selections import get_item_from_future
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import TaskKey
from remoteexec_server.wire.resources import Resources

RESOURCES = {"cores": 1, "error_log_file": "errors.txt"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory that does not exist yet, with a nasty name."""
    parent = tmp_path / "a'; echo b ü"
    parent.mkdir(mode=0o700)
    return parent / "cache of mine"


class Runner:
    """An executor that runs a call when the test says so.

    Attributes:
        started: futures of the calls that were started, in order.
    """

    def __init__(self, directory: Path | None, **settings: Any) -> None:
        self.caching = Caching(None if directory is None else str(directory), **settings)
        self.started: list[TaskFuture[Any]] = []
        self.before: list[Before | None] = []

    def submit(
        self, fn: Callable[..., Any], *args: Any, resource_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> TaskFuture[Any]:
        _, wish = self.caching.split(resource_dict)
        assert wish is not None
        return self.caching.submit(wish, CachedCall(fn, args, kwargs, RESOURCES), self._start)

    def _start(self, before: Before | None, check: object = None) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture(TaskKey(f"t{len(self.started)}"), self, lambda _: None)
        self.started.append(future)
        self.before.append(before)
        return future

    def end(self, number: int, result: Any) -> None:
        future = self.started[number]
        future.show_running()
        future.ran = future.ran._replace(started=10.0, ended=12.5, job="77")
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Submit a call and let it end as it would."""
        count = len(self.started)
        future = self.submit(fn, *args, **kwargs)
        if len(self.started) > count:
            try:
                self.end(count, fn(*args))
            except Exception as exc:
                self.end(count, exc)
            self.caching.wait()
        return future


def add(a: Any, b: Any = 2) -> Any:
    return a + b


def fail(text: str) -> None:
    raise KeyError(text)


@dataclasses.dataclass
class Found:
    value: int


# ---- found again ----


def test_a_call_that_has_run_is_done_when_it_is_submitted_again(directory: Path) -> None:
    first = Runner(directory)
    ran = first.run(add, 1)
    second = Runner(directory)
    again = second.submit(add, a=1, b=2)
    assert (ran.result(), again.done(), again.result(), second.started) == (3, True, 3, [])
    assert (ran.cache_key, again.cache_key) == (again.cache_key, ran.cache_key)
    assert (again.task.state, again.cancel(), again.owner) == ("done", False, None)


def test_arrays_and_objects_come_back_as_they_were(directory: Path) -> None:
    array = np.arange(10_000.0).reshape(100, 100)
    Runner(directory).run(add, array, array)
    found = Runner(directory).submit(add, array, array).result()
    assert np.array_equal(found, 2 * array)
    found[0, 0] = 5.0  # it is the caller's own
    Runner(directory).run(Found, 3)
    assert Runner(directory).submit(Found, 3).result() == Found(3)


def test_another_call_or_another_directory_is_not_found(directory: Path, tmp_path: Path) -> None:
    runner = Runner(directory)
    runner.run(add, 1)
    calls = [runner.submit(add, 2), runner.submit(add, 1, resource_dict={"cache_directory": str(tmp_path / "other")})]
    assert [call.done() for call in calls] == [False, False]


def test_a_name_of_its_own_finds_whatever_is_under_it(directory: Path) -> None:
    runner = Runner(directory)
    named = runner.run(add, 1, resource_dict={"cache_key": "mine"})
    found = runner.submit(add, 5, resource_dict={"cache_key": "mine"})
    assert (named.result(), found.result(), found.cache_key) == (3, 3, "mine")
    assert runner.submit(add, 1).done() is False


def test_results_in_two_futures_are_two_objects(directory: Path) -> None:
    runner = Runner(directory)
    futures = [runner.submit(list, "ab") for _ in range(3)]
    runner.end(0, ["a", "b"])
    results = [future.result(10) for future in futures]
    assert (len(runner.started), results, len(set(map(id, results)))) == (1, [["a", "b"]] * 3, 3)


# ---- while it runs ----


def test_the_same_call_submitted_twice_while_it_runs_runs_once(directory: Path) -> None:
    runner = Runner(directory)
    one, two = runner.submit(add, 1), runner.submit(add, 1, b=2)
    assert (one is two, len(runner.started)) == (False, 1)
    runner.started[0].show_running()
    assert (one.running(), two.running(), two.task.state) == (True, True, "running")
    runner.end(0, 3)
    assert (one.result(10), two.result(10), runner.submit(add, 1).done()) == (3, 3, True)


def test_cancelling_one_of_two_leaves_the_other(directory: Path) -> None:
    runner = Runner(directory)
    one, two = runner.submit(add, 1), runner.submit(add, 1)
    assert (one.cancel(), one.cancelled(), runner.started[0].cancelled()) == (True, True, False)
    assert concurrent.futures.wait([one], timeout=0).done == {one}
    runner.end(0, 3)
    assert two.result(10) == 3


def test_cancelling_all_cancels_the_call_and_what_runs_cannot_be_cancelled(directory: Path) -> None:
    runner = Runner(directory)
    one, two = runner.submit(add, 1), runner.submit(add, 1)
    assert (one.cancel(), two.cancel(), runner.started[0].cancelled()) == (True, True, True)
    runner.started[0].show_running()
    runner.caching.wait()
    three = runner.submit(add, 1)
    runner.started[1].show_running()
    assert (three.cancel(), three.cancelled()) == (False, False)


def test_a_call_that_is_cancelled_from_within_cancels_its_futures(directory: Path) -> None:
    runner = Runner(directory)
    one, two = runner.submit(add, 1), runner.submit(add, 1)
    runner.started[0].cancel()
    runner.started[0].show_running()
    runner.caching.wait()
    assert (one.cancelled(), two.cancelled(), concurrent.futures.wait([one, two], timeout=0).not_done) == (
        True,
        True,
        set(),
    )


def test_a_future_that_is_done_has_its_entry(directory: Path) -> None:
    runner = Runner(directory)
    seen: list[bool] = []
    future = runner.submit(add, 1)
    future.add_done_callback(lambda _: seen.append(Runner(directory).submit(add, 1).done()))
    runner.end(0, 3)
    runner.caching.wait()
    assert seen == [True]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_call_that_another_process_ran_and_took_away_is_found_or_runs_here(
    directory: Path, tmp_path: Path, kept: bool
) -> None:
    """It had ended, and its session was gone, before anybody looked there."""
    name = Runner(tmp_path / "elsewhere").run(add, 1).cache_key
    assert name is not None
    runner, other = Runner(directory), Runner(directory)
    taken: TaskFuture[Any] = TaskFuture(TaskKey("x"), runner, lambda _: None)
    pointer = Pointer("local /r", "s-1", "x")
    CacheDirectory(str(directory)).point(name, pointer)
    wish, call = Wish(str(directory)), CachedCall(add, (1,), {}, RESOURCES)
    begun = threading.Event()

    def start(before: Before | None, check: object = None) -> TaskFuture[Any]:
        begun.set()
        return runner._start(before)

    future = runner.caching.submit(wish, call, start, lambda _, __: taken, lambda _: pointer)
    assert runner.started == []
    if kept:
        other.run(add, 1)
    taken.set_exception(errors.TaskUnknownLoss("session s-1 has no such task"))
    if not kept:
        assert begun.wait(10)
        with runner.caching._lock:  # until it is followed
            pass
        runner.end(0, 3)

    assert future.result(10) == 3
    runner.caching.wait()
    assert (len(runner.started), CacheDirectory(str(directory)).pointer(name)) == (0 if kept else 1, None)


def test_many_threads_that_submit_one_call_run_it_once(directory: Path) -> None:
    runner = Runner(directory)
    futures: list[TaskFuture[Any]] = []
    threads = [threading.Thread(target=lambda: futures.append(runner.submit(add, 1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.end(0, 3)
    assert ([future.result(10) for future in futures], len(runner.started)) == ([3] * 20, 1)


# ---- failures ----


def test_a_call_that_failed_is_not_kept(directory: Path) -> None:
    runner = Runner(directory)
    future = runner.run(fail, "x")
    assert (type(future.exception()), runner.submit(fail, "x").done()) == (KeyError, False)


def test_a_call_that_failed_is_kept_if_that_is_asked_for(directory: Path) -> None:
    Runner(directory, keep_errors=True).run(fail, "x")
    found = Runner(directory, keep_errors=True).submit(fail, "x").exception()
    assert (type(found), found.args if found else None) == (KeyError, ("x",))
    assert "raise KeyError(text)" in str(found.__cause__ if found else "")


def test_a_failure_that_was_kept_is_not_for_executors_that_keep_none(directory: Path) -> None:
    Runner(directory, keep_errors=True).run(fail, "x")
    assert Runner(directory).submit(fail, "x").done() is False


def test_a_call_that_is_submitted_again_after_it_was_cancelled_runs(directory: Path) -> None:
    runner = Runner(directory)
    assert runner.submit(add, 1).cancel()
    again = runner.submit(add, 1)
    runner.end(1, 3)
    runner.caching.wait()
    assert (again.result(), len(runner.started)) == (3, 2)


def test_cancels_of_an_executor_are_passed_on_at_once(directory: Path) -> None:
    runner = Runner(directory)
    one, two, other = runner.submit(add, 1), runner.submit(add, 1), runner.submit(add, 2)
    with runner.caching._lock:  # the keeper cannot have told them
        runner.started[0].cancel()
        runner.caching.pass_on_cancels()
        assert [future.cancelled() for future in (one, two, other)] == [True, True, False]
    runner.end(1, 4)
    runner.caching.wait()
    assert other.result() == 4


@pytest.mark.parametrize(
    "why", [errors.TaskKilled("killed"), errors.TaskTimeout("late"), errors.RemoteTaskError("x", task="t")]
)
def test_what_happened_to_a_process_is_never_kept(directory: Path, why: Exception) -> None:
    runner = Runner(directory, keep_errors=True)
    runner.submit(add, 1)
    runner.end(0, why)
    runner.caching.wait()
    assert runner.submit(add, 1).done() is False


def test_the_failure_of_an_input_is_not_kept_as_the_call_s_own(directory: Path) -> None:
    runner = Runner(directory, keep_errors=True)
    upstream = runner.submit(fail, "x")
    runner.submit(add, upstream)
    for number in (0, 1):
        runner.end(number, KeyError("x"))
    runner.caching.wait()
    names = list(CacheDirectory(directory).names())
    assert [name.partition("-")[0] for name in names] == ["fail"]


def test_a_result_that_cannot_be_kept_still_comes(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(directory)
    future = runner.submit(add, 1)
    lock = threading.Lock()
    runner.end(0, lock)
    assert future.result(10) is lock
    runner.caching.wait()
    assert "the result of add was not cached: TypeError: cannot pickle" in caplog.text


def test_a_call_without_a_key_runs_and_says_so(directory: Path) -> None:
    runner = Runner(directory)
    with pytest.warns(CacheWarning, match="a call of add is not cached, it has no key: .*; name it with cache_key"):
        runner.submit(add, threading.Lock())
    assert len(runner.started) == 1


def test_a_start_that_fails_leaves_nothing(directory: Path) -> None:
    runner = Runner(directory)

    def refuse(before: Before | None, check: object) -> TaskFuture[Any]:
        raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="closed"):
        runner.caching.submit(Wish(str(directory)), CachedCall(add, (1,), {}, RESOURCES), refuse)
    runner.caching.wait()
    runner.submit(add, 1)
    assert len(runner.started) == 1


# ---- futures as arguments ----


def test_a_chain_is_found_without_any_of_it_running(directory: Path) -> None:
    def chain(runner: Runner) -> TaskFuture[Any]:
        pair = runner.submit(divmod, 7, 2)
        return runner.submit(add, get_item_from_future(pair, 0), runner.submit(add, pair, ()))

    first = Runner(directory)
    chain(first)
    for number, result in enumerate([(3, 1), (3, 1), "end"]):
        first.end(number, result)
    first.caching.wait()
    second = Runner(directory)
    assert (chain(second).result(0), second.started) == ("end", [])
    assert len(list(CacheDirectory(directory).names())) == 3


def test_items_of_one_result_are_different_arguments(directory: Path) -> None:
    runner = Runner(directory)
    pair = runner.submit(divmod, 7, 2)
    for item in (0, 1, 0):
        runner.submit(add, get_item_from_future(pair, item))
    assert len(runner.started) == 3


def test_a_future_that_nothing_is_known_of_is_looked_up_when_it_is_done(directory: Path) -> None:
    done: concurrent.futures.Future[int] = concurrent.futures.Future()
    done.set_result(1)
    Runner(directory).run(add, done)
    first = Runner(directory, asks_late=True)
    early = first.submit(add, done)
    first.end(0, 3)
    assert early.result(10) == 3
    later: concurrent.futures.Future[int] = concurrent.futures.Future()
    second = Runner(directory, asks_late=True)
    late = second.submit(add, later)
    later.set_result(1)
    ask = second.before[0]
    assert ask is not None
    hit = ask()
    assert hit is not None
    second.end(0, hit.result)
    assert (late.result(10), late.cache_key) == (3, early.cache_key)


def test_an_executor_that_does_not_ask_late_runs_such_a_call_uncached(directory: Path) -> None:
    runner = Runner(directory)
    future = runner.submit(add, concurrent.futures.Future())
    assert (future is runner.started[0], future.cache_key) == (True, None)


# ---- what users say ----


def test_cache_keys_have_to_be_file_names(directory: Path) -> None:
    for name in ("", ".", "..", "a/b", "/etc/passwd", ".hidden", "-rf", "a\nb", "a" * 201, "ü", 5, b"a", "a\0"):
        with pytest.raises(ValueError, match=r"cache_key=.*file name"):
            Caching(str(directory)).split({"cache_key": name})
    assert Caching(str(directory)).split({"cache_key": "Cu-fcc_4.05.x"})[1] == Wish(str(directory), "Cu-fcc_4.05.x")


def test_a_cache_key_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="cache_key='a' needs a cache_directory"):
        Caching(None).split({"cache_key": "a"})
    assert Caching(None, otherwise="/c").split({"cache_key": "a"}) == (None, Wish("/c", "a"))


def test_a_resource_dict_is_read_and_not_changed() -> None:
    given = {"cores": 2, "cache_key": "a", "cache_directory": "/c"}
    assert Caching("/d").split(given) == ({"cores": 2}, Wish("/c", "a"))
    assert given == {"cores": 2, "cache_key": "a", "cache_directory": "/c"}
    assert Caching(None).split({"cores": 2}) == ({"cores": 2}, None)
    assert Caching("/d").split(Resources()) == (Resources(), Wish("/d"))


def test_an_executor_s_resource_dict_may_name_the_directory_and_no_key() -> None:
    caching = Caching(None)
    assert (caching.take_defaults({"cores": 2, "cache_directory": "/c"}), caching.on) == ({"cores": 2}, True)
    assert caching.split(None) == (None, Wish("/c"))
    with pytest.raises(ValueError, match="cache_key in an executor's resource_dict"):
        Caching("/d").take_defaults({"cache_key": "a"})


# ---- files ----


@pytest.fixture
def entry(directory: Path) -> Path:
    """The file of the call add(1), whose result is 3."""
    Runner(directory).run(add, 1)
    (name,) = CacheDirectory(directory).names()
    return CacheDirectory(directory).path(name)


def damaged(data: bytes) -> dict[str, bytes]:
    other = header.seal(header.Header("entry", "x", "ok"), data[header.BLOCK :], b"k" * 32)
    return {
        "empty": b"",
        "cut short": data[:-1],
        "one bit": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "one bit of the header": data.replace(b'"ok"', b'"OK"', 1),
        "something else": b"PK\3\4" + bytes(2000),
        "sealed by somebody else": other + data[header.BLOCK :],
        "a pickle": b"cos\nsystem\n(S'false'\ntR.",
    }


@pytest.mark.parametrize("kind", damaged(b'"ok"' + bytes(2000)))
def test_a_file_that_is_not_what_was_written_is_reported_and_made_again(
    directory: Path, entry: Path, kind: str
) -> None:
    entry.write_bytes(damaged(entry.read_bytes())[kind])
    runner = Runner(directory)
    with pytest.warns(CacheWarning, match="is not loaded, as if it were not there"):
        future = runner.run(add, 1)
    assert (future.result(), len(runner.started)) == (3, 1)
    assert Runner(directory).submit(add, 1).done()


def test_a_fifo_in_the_place_of_an_entry_is_reported_and_made_again(directory: Path, entry: Path) -> None:
    entry.unlink()
    for path in (entry, entry.with_suffix(".running")):
        os.mkfifo(path)
    runner = Runner(directory)
    with pytest.warns(CacheWarning, match=r"\.h5. is not loaded.*no regular file"):
        future = runner.run(add, 1)
    assert (future.result(), len(runner.started)) == (3, 1)
    assert Runner(directory).submit(add, 1).done()


def test_a_fifo_in_the_place_of_the_key_is_refused(directory: Path, entry: Path) -> None:
    (entry.parent / "key").unlink()
    os.mkfifo(entry.parent / "key")
    with pytest.raises(errors.UnsafeRoot, match="no regular file"):
        CacheDirectory(directory)


def test_an_entry_under_another_name_is_not_loaded(directory: Path, entry: Path) -> None:
    os.rename(entry, entry.with_name("other.h5"))
    with pytest.warns(CacheWarning, match="stands where entry 'other' should be"):
        assert Runner(directory).submit(add, 1, resource_dict={"cache_key": "other"}).done() is False


def test_an_entry_of_another_directory_is_not_loaded(directory: Path, entry: Path, tmp_path: Path) -> None:
    foreign = CacheDirectory(tmp_path / "foreign").path(entry.stem)
    foreign.write_bytes(entry.read_bytes())
    with pytest.warns(CacheWarning, match="damaged or not of this session"):
        assert CacheDirectory(tmp_path / "foreign").find(entry.stem) is None


def test_an_entry_of_another_python_is_not_loaded(
    directory: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "PYTHON", "3.9")
    with pytest.warns(CacheWarning, match="loading it could crash the interpreter"):
        assert CacheDirectory(directory).find(entry.stem) is None


def test_an_entry_whose_class_is_gone_is_reported_and_made_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(directory)
    runner.run(add, 1, resource_dict={"cache_key": "a"})
    runner.submit(add, 1, resource_dict={"cache_key": "b"})
    runner.end(1, Vanishing())
    runner.caching.wait()
    monkeypatch.delattr(Vanishing, "__setstate__")
    with pytest.warns(CacheWarning, match=r"b\.h5. is not loaded"):
        assert runner.submit(add, 1, resource_dict={"cache_key": "b"}).done() is False


class Vanishing:
    """Cannot be loaded once `__setstate__` is gone."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return Vanishing, (), (1, 2, 3)

    def __setstate__(self, state: object) -> None: ...


def test_the_directory_is_the_user_s_alone(directory: Path, entry: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, directory / "cache", entry]}
    modes["key"] = stat.S_IMODE((directory / "cache" / "key").stat().st_mode)
    assert modes == {directory.name: 0o700, "cache": 0o700, entry.name: 0o600, "key": 0o600}
    assert sorted(os.listdir(directory / "cache")) == sorted(["key", entry.name])


def test_a_directory_that_others_may_write_to_is_refused(directory: Path, entry: Path) -> None:
    (directory / "cache").chmod(0o777)
    with pytest.raises(errors.UnsafeRoot, match=r"cache_directory=.* cannot be used: .*mode 0777"):
        Runner(directory).submit(add, 1)


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "AB" * 32])
def test_a_key_file_that_is_no_key_is_refused_and_left_alone(directory: Path, entry: Path, text: str) -> None:
    key = directory / "cache" / "key"
    key.write_text(text)
    with pytest.raises(errors.UnsafeRoot, match="are not 64 hexadecimal digits; put the right one back, or remove it"):
        Runner(directory).submit(add, 1)
    assert key.read_text() == text


def test_no_cluster_is_named_where_there_is_none(directory: Path, entry: Path) -> None:
    (directory / "cache").chmod(0o777)
    with pytest.raises(errors.UnsafeRoot) as refused:
        Runner(directory).submit(add, 1)
    assert ("cannot be used: directory " in str(refused.value), "on the cluster" in str(refused.value)) == (True, False)


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Runner(tmp_path).run(add, 1)
    assert (stat.S_IMODE(tmp_path.stat().st_mode), Runner(tmp_path).submit(add, 1).done()) == (0o755, True)


# ---- looking at it ----


def test_an_entry_tells_the_call(directory: Path, entry: Path) -> None:
    told = get_cache_data(directory)
    assert told == [
        {
            "function": told[0]["function"],
            "input_args": (1,),
            "input_kwargs": {},
            "output": 3,
            "error": None,
            "resource_dict": RESOURCES,
            "runtime": 2.5,
            "queue_id": "77",
            "error_log_file": "errors.txt",
            "filename": str(entry),
        }
    ]
    assert told[0]["function"](3) == 5


def test_arguments_are_told_as_they_were_at_submit(directory: Path) -> None:
    runner, array = Runner(directory), np.zeros(1000)
    runner.submit(add, array, b=[array])
    array[:] = 7
    runner.end(0, None)
    runner.caching.wait()
    (told,) = get_cache_data(directory)
    assert (told["input_args"][0].sum(), told["input_kwargs"]["b"][0].sum()) == (0, 0)


def test_futures_are_told_by_their_results(directory: Path) -> None:
    runner = Runner(directory)
    kept, failed = runner.submit(add, 1), runner.submit(fail, "x")
    runner.submit(max, [kept, failed], {"k": (kept,)}, resource_dict={"cache_key": "top"})
    for number, result in enumerate((3, KeyError("x"), 9)):
        runner.end(number, result)
    runner.caching.wait()
    (top,) = [told for told in get_cache_data(directory) if told["filename"].endswith("top.h5")]
    assert top["input_args"] == ([3, CachedInput(failed.cache_key)], {"k": (3,)})


def test_large_arguments_are_not_kept(directory: Path) -> None:
    Runner(directory).run(len, np.zeros(3 << 20))
    (told,) = get_cache_data(directory)
    assert (told["function"], told["input_args"], told["input_kwargs"], told["output"]) == (len, None, None, 3 << 20)


def test_errors_are_told(directory: Path) -> None:
    Runner(directory, keep_errors=True).run(fail, "x")
    (told,) = get_cache_data(directory)
    assert (told["output"], type(told["error"]), told["error"].args) == (None, KeyError, ("x",))


def test_what_cannot_be_loaded_is_reported_and_left_out(directory: Path, entry: Path) -> None:
    entry.with_name("zzz.h5").write_bytes(b"zzz")
    with pytest.warns(CacheWarning, match="zzz.h5"):
        assert [told["output"] for told in get_cache_data(directory)] == [3]


def test_a_directory_without_entries_has_none_and_is_not_changed(tmp_path: Path) -> None:
    assert (get_cache_data(tmp_path), os.listdir(tmp_path)) == ([], [])
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        get_cache_data(tmp_path / "misspelt")


def test_a_future_is_made_from_an_entry(directory: Path, entry: Path) -> None:
    Runner(directory, keep_errors=True).run(fail, "x", resource_dict={"cache_key": "failed"})
    assert get_future_from_cache(directory, entry.stem).result(0) == 3
    assert type(get_future_from_cache(directory, "failed").exception(0)) is KeyError


def test_no_future_is_made_from_an_entry_that_is_not_there(directory: Path, entry: Path, tmp_path: Path) -> None:
    for where in (directory, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="has no entry 'nothing'"):
            get_future_from_cache(where, "nothing")
    with pytest.raises(ValueError, match="cache_key"):
        get_future_from_cache(directory, "../cache/key")


def test_warnings_as_errors_leave_nothing_running(directory: Path, entry: Path) -> None:
    entry.write_bytes(b"")
    runner = Runner(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CacheWarning):
            runner.submit(add, 1)
    runner.caching.wait()
    assert runner.started == []
