"""The graph of calls: which call takes which input and whose results; recorded at submit, drawn whenever wanted."""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..futures import TaskFuture, function_name
from ..selections import Batch, Selection

AnyFuture = concurrent.futures.Future[Any]
_LIST = "python_workflow_definition.shared.get_list"
_DICT = "python_workflow_definition.shared.get_dict"
"""Names the Python Workflow Definition has for putting a list or a dictionary together."""
_ITEM = "operator.getitem"
_Source = tuple["tuple[int, str | None]", "str | None"]
"""Node and item, and the parameter it goes to."""


@dataclass(frozen=True)
class Node:
    """A call, a value that is given to one, or a step between two calls.

    Attributes:
        id: its position among the nodes.
        kind: "function", "input" or "output".
        name: of a function with its module; of an input, the parameter it is given to first.
        value: of an input.
        task: key of the task; None where no task of the executor stands for it.
        state: of the task: see TaskInfo.
        duration_s: of the task, once it has ended.
    """

    id: int
    kind: str
    name: str
    value: Any = None
    task: str | None = None
    state: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class Edge:
    """The value of one node goes to another.

    Attributes:
        item: which item of it; None: all of it.
        parameter: where it goes.
    """

    source: int
    target: int
    item: str | None
    parameter: str | None


@dataclass(frozen=True)
class Graph:
    """Nodes, and edges that lead from earlier to later ones. A notebook shows it as a picture."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()

    def _repr_svg_(self) -> str:
        from .svg import draw

        return draw(self)


@dataclass
class Recorder:
    """Writes down calls. Any thread may call it; it keeps the futures, and values that are given to calls.

    Attributes:
        exact: keep arrays whole, for a workflow that can be run again; else a short text is enough.
    """

    exact: bool = False
    _nodes: list[Node] = field(default_factory=list)
    _edges: list[Edge] = field(default_factory=list)
    _futures: dict[int, tuple[AnyFuture, int]] = field(default_factory=dict)  # by id: future and its node
    _inputs: dict[Any, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards all four

    def add(
        self, future: TaskFuture[Any], fn: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any],
        inside: Sequence[AnyFuture],
    ) -> None:  # fmt: skip
        """Write down one call.

        Args:
            inside: all futures among the arguments, also those inside objects that only pickle looks into.
        """
        with self._lock:
            met: set[int] = set()
            sources: list[_Source] = [
                (self._source(value, name, met), name) for name, value in _bound(fn, given, named)
            ]
            sources += [(self._source(other, None, met), None) for other in inside if id(other) not in met]
            node = self._new("function", _qualified(fn), task=future.key)
            self._futures[id(future)] = future, node
            self._join(node, sources)

    def graph(self) -> Graph:
        """What was written down, with what is known of the tasks now."""
        with self._lock:
            nodes, futures = list(self._nodes), list(self._futures.values())
            edges = tuple(self._edges)
        for future, node in futures:
            if isinstance(future, TaskFuture):
                task = future.task
                nodes[node] = replace(nodes[node], state=task.state, duration_s=task.duration_s)
        return Graph(tuple(nodes), edges)

    def _new(self, kind: str, name: str, value: Any = None, task: str | None = None) -> int:
        self._nodes.append(Node(len(self._nodes), kind, name, value, task))
        return len(self._nodes) - 1

    def _join(self, node: int, sources: Iterable[_Source]) -> None:
        self._edges += [Edge(source, node, item, parameter) for (source, item), parameter in sources]

    def _source(self, value: Any, name: str | None, met: set[int]) -> tuple[int, str | None]:
        """The node a value comes from, and which item of that; made if there is none yet."""
        if isinstance(value, concurrent.futures.Future):
            met.add(id(value))
            return self._future(value)
        parts = _parts(value)
        if parts is not None and any(_has_future(part) for _, part in parts):
            sources = [(self._source(part, key, met), key) for key, part in parts]
            node = self._new("function", _DICT if isinstance(value, dict) else _LIST)
            self._join(node, sources)
            return node, None
        return self._input(value, name or "input"), None

    def _future(self, future: AnyFuture) -> tuple[int, str | None]:
        known = self._futures.get(id(future))
        if known is not None:
            return known[1], None
        if isinstance(future, Selection):
            source, item = self._future(future.source)
            if item is None:
                return source, str(future.key)
            node = self._new("function", _ITEM)  # an item of an item
            self._join(node, [((source, item), "a"), ((self._input(future.key, "b"), None), "b")])
            self._futures[id(future)] = future, node
            return node, None
        if isinstance(future, Batch):
            sources = [(self._future(source), str(n)) for n, source in enumerate(future.sources)]
            node = self._new("function", "remoteexec.selections.batched")
            self._join(node, sources)
        else:
            node = self._new("input", "future", "a future of another executor")
        self._futures[id(future)] = future, node
        return node, None

    def _input(self, value: Any, name: str) -> int:
        plain = plain_value(value, self.exact)
        same = (name, type(value), repr(plain))
        if same not in self._inputs:
            self._inputs[same] = self._new("input", name, plain)
        return self._inputs[same]


def plain_value(value: Any, exact: bool) -> Any:
    """A value as JSON has it; what has no such form is its `repr`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if isinstance(value, (list, tuple)):
        return [plain_value(item, exact) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain_value(item, exact) for key, item in value.items()}
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "tolist"):
        if exact:
            return plain_value(value.tolist(), exact)
        return _Summary(f"{type(value).__name__} {getattr(value, 'dtype', '')} {shape}")
    return _Summary(repr(value))


class _Summary(str):
    """A text that stands for a value, not a value that is a text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bound(
    fn: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """The arguments, each with the name of its parameter."""
    try:
        bound = inspect.signature(fn).bind(*given, **named)
        kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    except (TypeError, ValueError):  # no signature, or arguments that do not fit: the call will say so
        yield from ((str(position), value) for position, value in enumerate(given))
        yield from named.items()
        return
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{position}", item) for position, item in enumerate(value))
        elif kinds[name] is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(str(position), item) for position, item in enumerate(value)]
    return None


def _has_future(value: Any) -> bool:
    if isinstance(value, concurrent.futures.Future):
        return True
    return any(_has_future(part) for _, part in _parts(value) or ())


def _qualified(fn: Callable[..., Any]) -> str:
    return f"{getattr(fn, '__module__', None) or type(fn).__module__}.{function_name(fn)}"
