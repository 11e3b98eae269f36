"""What a graph looks like, whatever it is drawn with: texts, colours, lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .graph import Graph, Node
from .layout import Layout, arrange

FONT_SIZE = 12
_LETTER = 7.0  # width of a letter of that size, on average
_LONGEST = 32
_COLOURS = {
    None: "#e8eefc",
    "pending": "#eeeeee",
    "running": "#fff3bf",
    "done": "#d8f5d8",
    "failed": "#ffd6d6",
    "cancelled": "#dddddd",
}
_INPUT = "#ffffff"


@dataclass(frozen=True)
class Shape:
    """One node.

    Attributes:
        text: in its box.
        more: what a viewer may show beside it.
        rounded: it is a call; values have corners.
    """

    text: str
    more: str
    colour: str
    rounded: bool


def shapes(graph: Graph) -> tuple[list[Shape], Layout]:
    """The nodes as they look and where they are."""
    found = [_shape(node) for node in graph.nodes]
    return found, arrange(graph, [len(shape.text) * _LETTER + 20 for shape in found])


def lines(graph: Graph, layout: Layout) -> Iterator[tuple[list[tuple[float, float]], str]]:
    """For each edge the points it goes through, from the lower side of one box to the upper of the next, and a text."""
    for edge, bends in zip(graph.edges, layout.bends, strict=True):
        start, end = layout.boxes[edge.source], layout.boxes[edge.target]
        passed = [
            (x, y + side * start.height / 2) for x, y in bends for side in (-1, 1)
        ]  # between boxes, not over them
        item = f"[{edge.item}] → " if edge.item is not None else ""
        yield (
            [(start.x, start.y + start.height / 2), *passed, (end.x, end.y - end.height / 2)],
            item + (edge.parameter or ""),
        )


def _shape(node: Node) -> Shape:
    if node.kind == "input":
        return Shape(_short(repr(node.value)), f"{node.name} = {_short(repr(node.value), 500)}", _INPUT, False)
    text = _short(node.name.rpartition(".")[2])
    more = node.name
    if node.task is not None:
        more += f"\n{node.task}: {node.state}"
    if node.duration_s is not None:
        text += f" {node.duration_s:.3g} s"
        more += f", {node.duration_s:.6g} s"
    return Shape(text, more, _COLOURS.get(node.state, _COLOURS[None]), True)


def _short(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
