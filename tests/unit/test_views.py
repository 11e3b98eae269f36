"""The graph of calls: what is written down, where it is drawn, and what the files say."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remoteexec.futures import Ran, TaskFuture
from remoteexec.selections import batched, get_item_from_future, split_future
from remoteexec.views import svg, workflow
from remoteexec.views.graph import Edge, Graph, Node, Recorder, plain_value
from remoteexec.views.layout import Box, arrange
from remoteexec.views.views import Views, write_picture
from remoteexec_server.wire.messages import TaskKey

MODULE = __name__


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def take(*parts: Any, **named: Any) -> None: ...


class Calls:
    """Calls as an executor would write them down."""

    def __init__(self, exact: bool = False) -> None:
        self.recorder = Recorder(exact)
        self.count = 0

    def __call__(self, fn: Any, *args: Any, inside: Any = (), **kwargs: Any) -> TaskFuture[Any]:
        self.count += 1
        future: TaskFuture[Any] = TaskFuture(TaskKey(f"t{self.count}"), self, lambda key: None)
        self.recorder.add(future, fn, args, kwargs, inside)
        return future

    @property
    def nodes(self) -> list[tuple[str, str, Any]]:
        return [(node.kind, node.name.removeprefix(f"{MODULE}."), node.value) for node in self.recorder.graph().nodes]

    @property
    def edges(self) -> list[tuple[int, int, str | None, str | None]]:
        edges = self.recorder.graph().edges
        return [(edge.source, edge.target, edge.item, edge.parameter) for edge in edges]


def test_arguments_are_inputs_named_like_their_parameters() -> None:
    calls = Calls()
    calls(add, 2, b=3)
    assert calls.nodes == [("input", "a", 2), ("input", "b", 3), ("function", "add", None)]
    assert calls.edges == [(0, 2, None, "a"), (1, 2, None, "b")]


def test_a_future_is_an_edge_from_its_call() -> None:
    calls = Calls()
    first = calls(add, 1)
    calls(add, first, first)
    assert calls.nodes == [("input", "a", 1), ("function", "add", None), ("function", "add", None)]
    assert calls.edges == [(0, 1, None, "a"), (1, 2, None, "a"), (1, 2, None, "b")]


def test_equal_inputs_of_one_name_are_one_node() -> None:
    calls = Calls()
    for value in (1, 1, True, 1.0):
        calls(add, value)
    assert [value for kind, _, value in calls.nodes if kind == "input"] == [1, True, 1.0]


def test_arguments_without_names_get_numbers() -> None:
    calls = Calls()
    calls(take, 5, 6, x=7)
    calls(max, 8, 9)
    names = [name for kind, name, _ in calls.nodes if kind == "input"]
    assert names == ["parts_0", "parts_1", "x", "0", "1"]


def test_items_are_said_at_the_edge_and_items_of_items_are_steps() -> None:
    calls = Calls()
    first = calls(add, 1)
    _, second = split_future(first, 2)
    calls(add, second, get_item_from_future(second, "x"))
    assert calls.nodes == [
        ("input", "a", 1),
        ("function", "add", None),
        ("function", "operator.getitem", None),
        ("input", "b", "x"),
        ("function", "add", None),
    ]
    assert calls.edges == [(0, 1, None, "a"), (1, 2, "1", "a"), (3, 2, None, "b"), (1, 4, "1", "a"), (2, 4, None, "b")]


def test_lists_and_dictionaries_with_futures_are_steps_of_their_own() -> None:
    calls = Calls()
    first = calls(add, 1)
    calls(add, [first, {"k": first}])
    assert [name for kind, name, _ in calls.nodes if kind == "function"] == [
        "add",
        "python_workflow_definition.shared.get_dict",
        "python_workflow_definition.shared.get_list",
        "add",
    ]
    assert calls.edges == [
        (0, 1, None, "a"),
        (1, 2, None, "k"),
        (1, 3, None, "0"),
        (2, 3, None, "1"),
        (3, 4, None, "a"),
    ]


@dataclass
class Holder:
    future: Any

    def __repr__(self) -> str:
        return "Holder"


def test_a_future_inside_an_object_is_an_edge_without_a_name() -> None:
    calls = Calls()
    first = calls(add, 1)
    calls(add, Holder(first), inside=[first])
    assert calls.nodes[2:] == [("input", "a", "Holder"), ("function", "add", None)]
    assert calls.edges[1:] == [(2, 3, None, "a"), (1, 3, None, None)]


def test_a_batch_comes_from_all_it_may_hold_and_a_foreign_future_from_nowhere() -> None:
    calls = Calls()
    futures = [calls(add, 1), calls(add, 2)]
    calls(add, batched(futures, 2)[0], Future())
    assert calls.nodes[4:] == [
        ("function", "remoteexec.selections.batched", None),
        ("input", "future", "a future of another executor"),
        ("function", "add", None),
    ]
    assert calls.edges[2:] == [(1, 4, None, "0"), (3, 4, None, "1"), (4, 6, None, "a"), (5, 6, None, "b")]


def test_the_graph_tells_how_each_call_went() -> None:
    calls = Calls()
    good, bad = calls(add, 1), calls(add, 2)
    good.ran = Ran(started=10.0, ended=12.5)
    good.set_result(1)
    bad.set_exception(ValueError())
    found = [(n.task, n.state, n.duration_s) for n in calls.recorder.graph().nodes if n.kind == "function"]
    assert found == [("t1", "done", 2.5), ("t2", "failed", None)]


@pytest.mark.parametrize(
    ("value", "exact", "plain"),
    [
        ((1, [2.5, None]), False, [1, [2.5, None]]),
        ({"a": True}, False, {"a": True}),
        ({1: 2}, False, "{1: 2}"),
        (math.inf, False, "inf"),
        (np.arange(3), False, "ndarray int64 (3,)"),
        (np.arange(3), True, [0, 1, 2]),
        (np.float64(1.5), True, 1.5),
    ],
)
def test_values_as_json_has_them(value: Any, exact: bool, plain: Any) -> None:
    assert plain_value(value, exact) == plain


def diamond() -> Graph:
    nodes = [Node(0, "input", "x", 1)] + [Node(n, "function", f"m.f{n}") for n in range(1, 5)]
    edges = [(0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (1, 4)]
    return Graph(tuple(nodes), tuple(Edge(a, b, None, None) for a, b in edges))


def test_every_node_stands_below_all_it_depends_on() -> None:
    layout = arrange(diamond(), [50.0] * 5)
    assert [round((box.y - layout.boxes[0].y) / 74) for box in layout.boxes] == [0, 1, 2, 2, 3]
    assert [len(bends) for bends in layout.bends] == [0, 0, 0, 0, 0, 1]


def test_no_two_boxes_overlap_and_all_are_on_the_picture() -> None:
    layout = arrange(diamond(), [50.0, 120.0, 90.0, 20.0, 60.0])

    def apart(a: Box, b: Box) -> bool:
        return abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2

    boxes = layout.boxes
    assert all(apart(a, b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert all(b.x - b.width / 2 > 0 and b.x + b.width / 2 < layout.width and b.y < layout.height for b in boxes)


def test_an_empty_graph_has_a_picture() -> None:
    ET.fromstring(svg.draw(Graph()))


def test_a_chain_of_ten_thousand_calls_is_drawn() -> None:
    count = 10_000
    nodes = tuple(Node(n, "function", "f") for n in range(count))
    edges = tuple(Edge(n, n + 1, None, None) for n in range(count - 1))
    assert svg.draw(Graph(nodes, edges)).count("<rect") == count + 1


def test_the_picture_says_names_states_and_values_also_nasty_ones() -> None:
    calls = Calls()
    calls(add, "<&\x00'\"ü").set_result(1)
    root = ET.fromstring(calls.recorder.graph()._repr_svg_())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert texts == [repr("<&\x00'\"ü"), "add"]
    assert titles == ["a", "a = " + repr("<&\x00'\"ü"), f"{MODULE}.add\nt1: done"]


def test_the_workflow_file() -> None:
    calls = Calls(exact=True)
    first = calls(add, np.arange(2), 5)
    calls(add, get_item_from_future(first, "x"), 5)
    calls(add, 7)
    assert json.loads(workflow.to_json(calls.recorder.graph())) == {
        "version": "0.1.0",
        "nodes": [
            {"id": 0, "type": "input", "value": [0, 1], "name": "a"},
            {"id": 1, "type": "input", "value": 5, "name": "b"},
            {"id": 2, "type": "function", "value": f"{MODULE}.add"},
            {"id": 3, "type": "function", "value": f"{MODULE}.add"},
            {"id": 4, "type": "input", "value": 7, "name": "a_1"},
            {"id": 5, "type": "function", "value": f"{MODULE}.add"},
            {"id": 6, "type": "output", "name": "result_0"},
            {"id": 7, "type": "output", "name": "result_1"},
        ],
        "edges": [
            {"target": 2, "targetPort": "a", "source": 0, "sourcePort": None},
            {"target": 2, "targetPort": "b", "source": 1, "sourcePort": None},
            {"target": 3, "targetPort": "a", "source": 2, "sourcePort": "x"},
            {"target": 3, "targetPort": "b", "source": 1, "sourcePort": None},
            {"target": 5, "targetPort": "a", "source": 4, "sourcePort": None},
            {"target": 6, "targetPort": None, "source": 3, "sourcePort": None},
            {"target": 7, "targetPort": None, "source": 5, "sourcePort": None},
        ],
    }


@pytest.mark.parametrize(
    ("views", "no_futures", "message"),
    [
        (Views(plot_dependency_graph="later"), False, "plot_dependency_graph must be True, False or 'after'"),  # type: ignore[arg-type]
        (Views(plot_dependency_graph=True), True, "plot_dependency_graph and disable_dependencies=True exclude"),
        (
            Views(plot_dependency_graph_filename="g.svg"),
            True,
            "plot_dependency_graph_filename and disable_dependencies",
        ),
        (Views(export_workflow_filename="w.json"), True, "export_workflow_filename and disable_dependencies=True"),
        (Views(plot_dependency_graph_filename="g.pdf"), False, "must end in .svg or .png, not 'g.pdf'"),
    ],
)
def test_what_cannot_be_shown_is_refused(views: Views, no_futures: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views.check(no_futures)


def test_png_is_refused_where_nothing_can_draw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs matplotlib"):
        Views(plot_dependency_graph_filename=Path("g.png")).check(False)


@pytest.mark.parametrize(
    ("views", "recorded", "nothing_runs"),
    [
        (Views(), False, False),
        (Views(log_obj_size=True), False, False),
        (Views(plot_dependency_graph=True), True, True),
        (Views(plot_dependency_graph_filename="g.svg"), True, True),
        (Views(export_workflow_filename="w.json"), True, True),
        (Views("after", "g.svg", "w.json"), True, False),
    ],
)
def test_what_is_only_drawn_and_what_runs(views: Views, recorded: bool, nothing_runs: bool) -> None:
    assert (views.recorded, views.nothing_runs, views.recorder() is not None) == (recorded, nothing_runs, recorded)


def test_a_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_picture(diamond(), tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_a_notebook_the_graph_has_to_have_a_file(caplog: pytest.LogCaptureFixture) -> None:
    Views(plot_dependency_graph=True).show(diamond())
    assert "give plot_dependency_graph_filename" in caplog.text


def test_pictures_go_into_directories_that_are_made(tmp_path: Path) -> None:
    views = Views("after", tmp_path / "a" / "b" / "g.svg", tmp_path / "c" / "w.json")
    views.check(False)
    views.show(diamond())
    assert (tmp_path / "a" / "b" / "g.svg").exists()
    assert (tmp_path / "c" / "w.json").exists()


def test_what_cannot_be_written_at_the_end_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory.svg").mkdir()
    below, itself = tmp_path / "file" / "sub" / "w.json", tmp_path / "directory.svg"
    with pytest.raises(
        ValueError, match=r"export_workflow_filename=.*: nothing can be written in .*file'; name another"
    ):
        Views(export_workflow_filename=below).check(False)
    with pytest.raises(ValueError, match=r"plot_dependency_graph_filename=.* is a directory: name a file in it"):
        Views(plot_dependency_graph_filename=itself).check(False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.svg", "file"]
