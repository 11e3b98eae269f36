"""Keys of calls: equal for what means the same, different for what does not, and the same in every session."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import enum
import functools
import itertools
import random
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec.engine.keys import call_key
from remoteexec_server.contents.bulk import bulk
from remoteexec_server.contents.objects import Contents, NoContent


def key(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    return call_key(fn, args, kwargs).name()


def content(obj: object) -> bytes:
    return Contents().digest(obj)


def written(source: str, **names: Any) -> Callable[..., Any]:
    """The function f of a module that is not installed."""
    module: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(textwrap.dedent(source), f"<{random.random()}>", "exec"), module)
    f: Callable[..., Any] = module["f"]
    return f


# ---- functions ----

PLAIN = """
def f(x):
    return x + 1
"""
SAME = {
    "a comment and empty lines": """


        # why
        def f(x):

            # what
            return x + 1  # how
    """,
    "a docstring": '''
        def f(x):
            """Add one."""
            return x + 1
    ''',
    "annotations": """
        def f(x: int) -> int:
            return x + 1
    """,
}
OTHER = {
    "a constant": "def f(x): return x + 2",
    "an operator": "def f(x): return x - 1",
    "a default": "def f(x=1): return x + 1",
    "a keyword": "def f(*, x): return x + 1",
    "a parameter": "def f(y): return y + 1",
    "a float": "def f(x): return x + 1.0",
    "a generator": "def f(x): yield x + 1",
    "a coroutine": "async def f(x): return x + 1",
    "the name": "def g(x): return x + 1\nf = g",
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME.keys())
def test_text_that_means_nothing_is_not_in_the_key(source: str) -> None:
    assert key(written(source), 1) == key(written(PLAIN), 1)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER.keys())
def test_another_meaning_is_another_key(source: str) -> None:
    assert content(written(source)) != content(written(PLAIN))


def test_inner_functions_and_classes_count_with_their_code_and_not_with_their_lines() -> None:
    source = """
        def f(x):
            class Inner:
                '''One.'''
                size = {size}
                def area(self): return [x * k for k in range(self.size)]
            return (lambda: Inner().area())()
    """
    moved = source.replace("class", "\n            # a remark\n            class").replace("One.", "Two, at length.")
    assert key(written(source.format(size=2)), 1) == key(written(moved.format(size=2)), 1)
    assert key(written(source.format(size=2)), 1) != key(written(source.format(size=3)), 1)


def test_exception_handlers_count() -> None:
    source = "def f(x):\n  try:\n    return 1 / x\n  except {}:\n    return 0"
    assert key(written(source.format("ValueError")), 1) != key(written(source.format("TypeError")), 1)


def test_globals_count_if_they_are_used() -> None:
    source = "def f(x): return x * SCALE"
    plain = key(written(source, SCALE=2), 1)
    assert [key(written(source, SCALE=scale, OTHER=other), 1) == plain for scale, other in ((2, 5), (3, 5))] == [
        True,
        False,
    ]


def test_globals_of_inner_functions_count() -> None:
    source = "def f(x): return [SCALE * k for k in (lambda: range(x))()]"
    assert key(written(source, SCALE=2), 1) != key(written(source, SCALE=3), 1)


def test_own_functions_that_are_called_count_however_far_away() -> None:
    source = """
        def h(x): return x {} 1
        def g(x): return h(x)
        table = {{"g": [g]}}
        def f(x): return table["g"][0](x)
    """
    assert key(written(source.format("+")), 1) == key(written(source.format("+")), 1)
    assert key(written(source.format("+")), 1) != key(written(source.format("-")), 1)


def test_functions_that_call_each_other_have_a_key() -> None:
    source = """
        def even(x): return x == 0 or odd(x - 1)
        def odd(x): return x != {} and even(x - 1)
        f = even
    """
    assert key(written(source.format(0)), 1) == key(written(source.format(0)), 1)
    assert key(written(source.format(0)), 1) != key(written(source.format(1)), 1)


def test_two_functions_that_change_places_are_told_apart_at_any_depth() -> None:
    source = """
        def make(inner): return lambda x: inner(x)
        a, b = make(make(lambda x: x + 1)), make(make(lambda x: x * 2))
        def f(x): return a(x) - b(x)
        def g(x): return b(x) - a(x)
    """
    one = written(source)
    two = written(source.replace("a, b", "b, a"))
    assert key(one, 1) != key(two, 1)


def test_closures_count_with_their_values() -> None:
    def adder(n: Any) -> Callable[[int], Any]:
        return lambda x: x + n

    assert [key(adder(n), 1) == key(adder(1), 1) for n in (1, 2, 1.0, True)] == [True, False, False, False]


def test_keyword_defaults_count() -> None:
    assert content(written("def f(*, k=1): return k")) != content(written("def f(*, k=2): return k"))


def test_methods_and_attributes_of_an_own_class_count() -> None:
    source = """
        class Base:
            def area(self): return {}
        class Square(Base):
            side = {}
            @property
            def double(self): return {} * self.side
            @staticmethod
            def s(): return 1
        def f(x): return Square().area()
    """
    plain = key(written(source.format(1, 2, 3)), 1)
    numbers = itertools.product((1, 7), (2, 8), (3, 9))
    assert [key(written(source.format(*n)), 1) == plain for n in numbers] == [True] + [False] * 7


def test_pickling_an_object_does_not_change_its_class() -> None:
    class Fresh:
        def __init__(self) -> None:
            self.a = 1

    before = content(Fresh)
    Fresh().__reduce_ex__(4)  # adds __slotnames__ to the class
    assert content(Fresh) == before


def test_what_hides_behind_a_decorator_counts() -> None:
    source = """
        import functools
        def twice(g):
            @functools.wraps(g)
            def call(*args): return {} * g(*args)
            return call
        @functools.lru_cache(maxsize=None)
        def cached(x): return x + {}
        class K:
            @functools.cached_property
            def p(self): return {}
        @twice
        def f(x): return cached(x) + K().p
    """
    plain = key(written(source.format(2, 1, 5)), 1)
    same = key(written(source.format(2, 1, 5)), 1)
    others = [key(written(source.format(*n)), 1) for n in ((3, 1, 5), (2, 9, 5), (2, 1, 6))]
    assert (same == plain, [other == plain for other in others]) == (True, [False] * 3)


def test_a_global_that_cannot_be_taken_apart_counts_by_its_class() -> None:
    source = "def f(x): return lock and x"
    locks = [key(written(source, lock=lock), 1) for lock in (threading.Lock(), threading.Lock(), threading.Event())]
    assert (locks[0] == locks[1], locks[0] == locks[2]) == (True, False)


def test_callables_of_every_kind_have_keys() -> None:
    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return x * self.by

        def method(self, x: int) -> int:
            return x + self.by

    made: list[Callable[..., Any]] = [
        Scale(2), Scale(3), Scale(2).method, Scale(3).method, Scale, len, max, [1].append, "a".join, np.sin, np.cos,
        functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1), dict, np.linalg.norm,
    ]  # fmt: skip
    keys = [content(fn) for fn in made]
    assert len(set(keys)) == len(made)
    assert keys[0] == content(Scale(2))
    assert keys[2] == content(Scale(2).method)


# ---- arguments ----


def test_arguments_are_taken_by_parameter() -> None:
    def f(a: int, b: int = 2, *rest: int, c: int = 3, **more: int) -> None: ...

    same = [key(f, 1), key(f, a=1), key(f, 1, 2), key(f, 1, b=2), key(f, 1, c=3), key(f, b=2, a=1)]
    assert set(same) == {key(f, 1)}
    others = [key(f, 2), key(f, 1, 3), key(f, 1, 2, 3), key(f, 1, c=4), key(f, 1, d=4), key(f, 1, 2, 3, 4)]
    assert len({*others, key(f, 1)}) == 7
    assert key(f, 1, d=4, e=5) == key(f, 1, e=5, d=4)


def test_positional_only_parameters_do_not_take_keywords() -> None:
    def f(a: int, /, **more: int) -> None: ...

    assert key(f, 1, a=2) != key(f, 2, a=1)


def test_arguments_that_a_function_refuses_still_have_a_key() -> None:
    def f(a: int) -> None: ...

    assert len({key(f), key(f, 1, 2), key(f, 1, a=1), key(f, b=1), key(max), key(max, 1, 2)}) == 6


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


Pair = collections.namedtuple("Pair", "a b")


class Node:
    def __init__(self, *children: Node) -> None:
        self.children = list(children)
        self.parent: Node | None = None
        for child in children:
            child.parent = self


def ring(n: int) -> list[Any]:
    one: list[Any] = [n]
    one.append(one)
    return one


DIFFERENT: list[Callable[[], object]] = [
    lambda: None, lambda: 0, lambda: 0.0, lambda: -0.0, lambda: False, lambda: 0j, lambda: "", lambda: b"",
    lambda: 1, lambda: 1 << 80, lambda: "1", lambda: b"1", lambda: "\udc80", lambda: bytearray(b"1"), lambda: ...,
    list, tuple, dict, set, frozenset, lambda: [1], lambda: (1,), lambda: [[1]],
    lambda: [1, 2], lambda: [2, 1], lambda: [1, [2]], lambda: [[1], 2], lambda: {1: 2}, lambda: {"1": 2},
    lambda: {1: 2, 3: 4}, lambda: {1: 4, 3: 2}, lambda: {1, 2}, lambda: {"a", "b"}, lambda: {(1, 2), (2, 1)},
    lambda: collections.OrderedDict(a=1, b=2), lambda: collections.OrderedDict(b=2, a=1),
    lambda: collections.Counter("aab"), lambda: collections.defaultdict(int, a=1), lambda: collections.deque([1]),
    lambda: range(3), lambda: slice(1, 2), lambda: Path("a"), lambda: Path("b"), lambda: Colour.RED,
    lambda: Colour.BLUE, lambda: Point(1), lambda: Point(2), lambda: Pair(1, 2), lambda: Pair(2, 1), lambda: Colour,
    lambda: Point,
    lambda: Node(), lambda: Node(Node()), lambda: Node(Node(), Node()), lambda: Node(Node(Node())),
    lambda: ring(1), lambda: ring(2), lambda: [ring(1)], lambda: int, lambda: list[int],
    lambda: ValueError("a"), lambda: ValueError("b"), lambda: np.float64(1), lambda: np.float32(1),
    lambda: np.array(1.0), lambda: np.zeros(3), lambda: np.zeros((3, 1)), lambda: np.zeros((1, 3)),
    lambda: np.zeros(3, "f4"),
    lambda: np.zeros(0), lambda: np.zeros((0, 2)), lambda: np.arange(3.0), lambda: np.arange(3.0).astype(">f8"),
    lambda: np.array(["a", 1], object), lambda: np.array([None, 1], object), lambda: np.array("2020", "M8[D]"),
    lambda: np.array("2020", "M8[s]"), lambda: np.zeros(2, [("a", "i4"), ("b", "f8")]), lambda: np.dtype("f8"),
    lambda: np.ma.array([1, 2], mask=[False, True]), lambda: np.ma.array([1, 2], mask=[True, False]),
    lambda: np.array([True]),
    lambda: np.array([1], "u1"), lambda: np.longdouble(1), lambda: np.random.default_rng(1), lambda: np.array(["a"]),
    lambda: types.SimpleNamespace(a=1), lambda: "a" * 70_000, lambda: b"a" * 70_000, lambda: "b" * 70_000,
]  # fmt: skip


def test_equal_values_agree_and_different_ones_do_not() -> None:
    once, again = [content(make()) for make in DIFFERENT], [content(make()) for make in DIFFERENT]
    assert once == again
    twice = [n for n, digest in enumerate(once) if once.index(digest) != n]
    assert twice == []


def test_order_of_dictionaries_and_sets_does_not_count() -> None:
    class Part(str):
        __slots__ = ()

    items = [("b", 1), ("a", 2), (3, [4]), ((1, "x"), {5: 6, 7: 8}), (None, {"z", "y", 1.5, (1, 2)}), (int, len)]
    expected = content(dict(items))
    for _ in range(20):
        random.shuffle(items)
        assert content(dict(items)) == expected
    words = [Part(f"word {n}") for n in range(50)]
    assert content(set(words)) == content({Part(word) for word in words[::-1]})
    assert content(collections.Counter("abc")) == content(collections.Counter("cba"))


def test_it_does_not_count_which_equal_objects_are_one_object() -> None:
    one, text = [1, [2]], "te" + str(1)
    assert content([one, one, text, text]) == content([[1, [2]], [1, [2]], "te" + str(1), "te" + str(1)])
    array = np.arange(3)
    assert content([array, array]) == content([np.arange(3), np.arange(3)])


def test_shared_parts_are_read_once() -> None:
    nested: list[Any] = [[1]]
    for _ in range(200):
        nested = [nested, nested]
    assert content(nested) == content([nested[0], nested[0]])


def test_many_objects_that_know_each_other_are_read_once() -> None:
    def everybody(n: int) -> list[Node]:
        nodes = [Node() for _ in range(n)]
        for node in nodes:
            node.children = nodes
        return nodes

    assert content(everybody(60)) == content(everybody(60))
    assert content(everybody(60)) != content(everybody(61))


def test_arrays_count_by_value_and_not_by_layout() -> None:
    array = np.arange(24.0).reshape(4, 6)
    same = [np.asfortranarray(array), np.arange(48.0).reshape(4, 12)[:, :6] * 0 + array, array[::-1][::-1]]
    assert {content(a) for a in same} == {content(array)}
    assert content(array.T) != content(array)


def test_bytes_between_fields_and_behind_long_doubles_do_not_count() -> None:
    dtype = np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8]})
    dirty = np.frombuffer(bytearray(range(16)) * 2, dtype).copy()
    clean = np.zeros(2, dtype)
    for name in ("a", "b"):
        clean[name] = dirty[name]
    assert content(dirty) == content(clean)
    noise = np.full(3 * np.dtype(np.longdouble).itemsize, 0xAB, np.uint8).view(np.longdouble)
    noise[:] = 1.5
    assert content(noise) == content(np.full(3, 1.5, np.longdouble))


def test_large_arrays_are_not_copied_and_differ_in_every_byte() -> None:
    array = np.zeros(3 << 20, np.uint8)
    array.flags.writeable = False
    plain = content(array)
    changed = array.copy()
    seen = {plain}
    for position in (0, 1, (1 << 20) - 1, 1 << 20, len(array) - 1):
        changed[position] = 1
        seen.add(content(changed))
        changed[position] = 0
    assert (len(seen), content(changed) == plain) == (6, True)
    assert len({bulk(memoryview(bytes(n))) for n in (0, 1, 2, 1 << 20, (1 << 20) + 1, (1 << 20) + 16)}) == 6


def test_frames_of_pandas_count_by_columns_and_not_by_blocks() -> None:
    pd = pytest.importorskip("pandas")
    whole = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": list("xy")}, index=["r", "s"])
    grown = pd.DataFrame({"a": [1, 2]}, index=["r", "s"])
    grown["b"] = [3, 4]
    grown["c"] = list("xy")
    assert content(whole) == content(grown)
    others = [whole.assign(a=[1, 9]), whole[["b", "a", "c"]], whole.rename(index={"r": "t"}), whole["a"], whole["b"]]
    assert len({content(other) for other in [*others, whole]}) == 6


def test_a_part_of_a_column_of_pandas_is_what_it_contains() -> None:
    pd = pytest.importorskip("pandas")
    columns = [
        pd.Series(["a", "b", None], dtype="string"),
        pd.Series(["a", "b", "a"], dtype="category"),
        pd.Series(pd.date_range("2020", periods=3)),
        pd.Series([1, 2, None], dtype="Int64"),
    ]
    for column in columns:
        part = column[1:]
        index = pd.RangeIndex(1, 3)
        assert content(part) == content(part.copy()) == content(pd.Series(list(part), dtype=part.dtype, index=index))
        assert content(part) != content(column[:2])
    assert len({content(column) for column in columns}) == 4


def test_a_partial_is_a_call_of_its_function() -> None:
    f = written("def f(x, y=2): return x")
    plain = key(f, 1, y=3)

    assert [key(functools.partial(f, 1), y=3), key(functools.partial(functools.partial(f, y=4), 1), y=3)] == [plain] * 2
    assert key(functools.partial(f, 2), y=3) != plain


def test_what_cannot_be_taken_apart_has_no_key_and_says_why() -> None:
    with pytest.raises(NoContent, match="cannot pickle"):
        key(len, threading.Lock())
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NoContent, match="RecursionError"):
        key(len, deep)


def test_what_a_result_depends_on_besides_counts() -> None:
    keys = {call_key(len, ([],), {}, beside=beside).name() for beside in ((), (1,), (2,), (len,))}
    assert len(keys) == 4


# ---- futures ----


def test_a_future_counts_as_the_call_it_stands_for() -> None:
    one, two = (concurrent.futures.Future[int]() for _ in range(2))
    names = {one: "f-1", two: "g-2"}
    found = call_key(max, ([one, {"a": two}],), {}, names.get)
    assert found.futures == ()
    assert found.name() != call_key(max, ([two, {"a": one}],), {}, names.get).name()


def test_a_future_of_a_call_without_a_key_counts_by_its_result() -> None:
    early: concurrent.futures.Future[int] = concurrent.futures.Future()
    early.set_result(3)
    late: concurrent.futures.Future[int] = concurrent.futures.Future()
    found = call_key(max, ([late, late],), {})
    assert (found.futures, found.known) == ((late,), False)
    late.set_result(3)
    assert (found.known, found.name()) == (True, call_key(max, ([early, early],), {}).name())


# ---- sessions ----

SCRIPT = """
import sys, enum, collections, dataclasses, pathlib
import numpy as np
from remoteexec.engine.keys import call_key
import helper
from helper import scale, Thing

LIMITS = {"low": 1, "high": {"a", "b", "c", 3, (4, 5)}}

class Colour(enum.Flag):
    RED = enum.auto()
    BLUE = enum.auto()

@dataclasses.dataclass
class Point:
    x: float
    tags: set = dataclasses.field(default_factory=set)

def use(p, *, names=frozenset({"x", "y", "z"}), **more):
    "Do it."
    import json, late
    class Local:
        "inner"
        def m(self): return self.a, self.b
    return helper.shift(scale(p.x)) + len(LIMITS["high"] & names) if p in {"q", "r", "s"} else Thing(Colour.RED)

call = dict(q=Point(1.5, {"u", "v", "w"}), r=np.arange(5), s={str(n): n for n in range(20)}, t=Colour.RED | Colour.BLUE,
            u=[pathlib.PurePosixPath("a"), collections.Counter("hello"), int, len, Thing(1)])
if len(sys.argv) > 1:
    import late
    [use.__code__, [helper.shift(k) for k in range(100)]]
print(call_key(use, (Point(2.0, {"a", "b"}),), call).name())
"""
HELPER = """
import numpy as np
def scale(x): return SCALE * x + other(x)
def other(x): return np.sin(x)
def shift(x): return x + 1
def unused(x): return 0
SCALE = 2
class Thing:
    def __init__(self, a): self.a = a
"""
LATE = "VALUE = 1\ndef f(): return VALUE\n"


class Project:
    """A script with modules beside it, run in sessions of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.files = {"script.py": SCRIPT, "helper.py": HELPER, "late.py": LATE}

    def key(self, hash_seed: str = "1", *arguments: str) -> str:
        for name, text in self.files.items():
            (self._directory / name).write_text(text)
        command = [sys.executable, "-B", "script.py", *arguments]
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
        done = subprocess.run(
            command, cwd=self._directory, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.stdout

    def changed(self, name: str, old: str, new: str) -> str:
        """The key after one change, which is then taken back."""
        before = self.files[name]
        assert old in before
        self.files[name] = before.replace(old, new)
        try:
            return self.key()
        finally:
            self.files[name] = before


def test_a_key_is_the_same_in_every_session_and_changes_with_the_meaning(tmp_path: Path) -> None:
    project = Project(tmp_path)
    plain = project.key()
    assert plain.startswith("use-")
    assert (project.key("2", "warm"), project.key("3")) == (plain, plain)
    project.files["script.py"] = SCRIPT.replace("def use", "# a comment\n\n\ndef use").replace("Do it.", "Do it well.")
    project.files["script.py"] = project.files["script.py"].replace('"inner"', '"inside"')
    project.files["helper.py"] = HELPER.replace("return 0", "return 1").replace("def other", "# a comment\n\ndef other")
    project.files["late.py"] = LATE.replace("def f", "\n# a comment\ndef f")
    assert project.key() == plain
    other = {
        "a global of a module": project.changed("helper.py", "SCALE = 2", "SCALE = 3"),
        "a function behind a function": project.changed("helper.py", "np.sin", "np.cos"),
        "a function of a module": project.changed("helper.py", "x + 1", "x + 2"),
        "a method": project.changed("helper.py", "self.a = a", "self.a = -a"),
        "a module imported late": project.changed("late.py", "VALUE = 1", "VALUE = 2"),
    }
    assert {what: found != plain for what, found in other.items()} == dict.fromkeys(other, True)


def test_a_function_that_dispatches_is_what_is_registered_whatever_abstract_classes_there_are() -> None:
    source = """
    import functools
    from collections.abc import Sized

    @functools.singledispatch
    def f(x):
        return 1

    @f.register(Sized)
    def _(x):
        return 2
    """
    before = key(written(source), 1)
    Sequence.register(type("Another", (), {}))
    same, other = written(source), written(source.replace("return 2", "return 3"))
    same([])

    assert (key(same, 1), key(other, 1) == before) == (before, False)
