"""The graph of calls, drawn and exported by an executor, before and after running."""

from __future__ import annotations

import json
import logging
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from remoteexec import SingleNodeExecutor, get_item_from_future

pytestmark = pytest.mark.usefixtures("process_mark")

SVG = "{http://www.w3.org/2000/svg}"


def add(a: int, b: int = 1) -> int:
    return a + b


def record(path: str) -> dict[str, int]:
    Path(path).touch()
    return {"x": 1}


def texts(path: Path) -> list[str]:
    return [node.text or "" for node in ET.parse(path).iter(f"{SVG}text")]


@pytest.mark.parametrize("kept", [False, True])
def test_with_a_file_name_alone_nothing_runs_and_the_graph_is_drawn(kept: bool, tmp_path: Path) -> None:
    picture, ran = tmp_path / "graph.svg", tmp_path / "ran"
    with SingleNodeExecutor(block_allocation=kept, plot_dependency_graph_filename=str(picture)) as exe:
        first = exe.submit(record, str(ran))
        second = exe.submit(add, get_item_from_future(first, "x"), b=2)
        results: list[object] = [first.result(), second.result(), exe.submit(add, second).result()]
        assert results == [None, None, None]
    assert not ran.exists()
    assert sorted(texts(picture)) == sorted([f"'{ran}'"[:31] + "…", "record", "2", "add", "add"])


def test_after_running_the_graph_says_how_each_call_went(tmp_path: Path) -> None:
    picture = tmp_path / "graph.svg"
    with SingleNodeExecutor(
        max_workers=2, plot_dependency_graph="after", plot_dependency_graph_filename=picture
    ) as exe:
        good = exe.submit(add, 1)
        bad = exe.submit(add, good, "x")
        assert (good.result(30), type(bad.exception(30))) == (2, TypeError)
    titles = [node.text or "" for node in ET.parse(picture).iter(f"{SVG}title")]
    module = __name__
    states = [title.splitlines()[1].partition(",")[0] for title in titles if title.startswith(f"{module}.add")]
    assert states == ["t1: done", "t2: failed"]


def test_a_workflow_is_exported(tmp_path: Path) -> None:
    exported = tmp_path / "workflow.json"
    with SingleNodeExecutor(export_workflow_filename=exported) as exe:
        first = exe.submit(add, 1, 2)
        exe.submit(add, first, b=first)
    assert json.loads(exported.read_text()) == {
        "version": "0.1.0",
        "nodes": [
            {"id": 0, "type": "input", "value": 1, "name": "a"},
            {"id": 1, "type": "input", "value": 2, "name": "b"},
            {"id": 2, "type": "function", "value": f"{__name__}.add"},
            {"id": 3, "type": "function", "value": f"{__name__}.add"},
            {"id": 4, "type": "output", "name": "result"},
        ],
        "edges": [
            {"target": 2, "targetPort": "a", "source": 0, "sourcePort": None},
            {"target": 2, "targetPort": "b", "source": 1, "sourcePort": None},
            {"target": 3, "targetPort": "a", "source": 2, "sourcePort": None},
            {"target": 3, "targetPort": "b", "source": 2, "sourcePort": None},
            {"target": 4, "targetPort": None, "source": 3, "sourcePort": None},
        ],
    }


def test_a_notebook_shows_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    notebook = types.ModuleType("IPython")
    notebook.get_ipython = object  # type: ignore[attr-defined]
    display = types.ModuleType("IPython.display")
    display.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with SingleNodeExecutor(plot_dependency_graph=True) as exe:
        exe.submit(add, 1)
    assert [graph._repr_svg_().startswith("<svg") for graph in shown] == [True]


def test_sizes_of_calls_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with SingleNodeExecutor(max_workers=1, log_obj_size=True) as exe, caplog.at_level(logging.WARNING, "remoteexec"):
        exe.submit(len, b"x" * 100_000).result(30)
    (message,) = [each for each in caplog.messages if "sends" in each]
    words = message.split()
    assert words[:5] == ["a", "call", "of", "len", "sends"]
    assert 100_000 < int(words[5]) < 101_000
