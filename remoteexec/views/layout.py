"""Where the nodes of a graph are drawn: in layers, each node below all it depends on. Pure.

Longest paths give the layers; an edge over several layers gets a bend in each of those between; a few sweeps put every
node near the middle of its neighbours, which removes most crossings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .graph import Edge, Graph

_SWEEPS = 4
GAP = 18.0
LAYER = 74.0
HEIGHT = 34.0
_MARGIN = 16.0
_MOST_BENDS = 20_000
"""Beyond that long edges are drawn straight: nobody could follow them anyway."""


@dataclass(frozen=True)
class Box:
    """The middle of a node, and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Where all is.

    Attributes:
        boxes: of the nodes, in their order.
        bends: of the edges, in their order: the points each passes between its two boxes.
    """

    boxes: tuple[Box, ...]
    bends: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def arrange(graph: Graph, widths: Sequence[float]) -> Layout:
    """Place the nodes.

    Args:
        widths: of their boxes.
    """
    layer_of = _layers(graph)
    chains, layers, sizes = _with_bends(graph.edges, layer_of, list(widths))
    _sort(layers, chains)
    total = max((_extent(layer, sizes) for layer in layers), default=0.0)
    middle: dict[int, tuple[float, float]] = {}
    for depth, layer in enumerate(layers):
        x = _MARGIN + (total - _extent(layer, sizes)) / 2
        for item in layer:
            middle[item] = (x + sizes[item] / 2, _MARGIN + depth * LAYER + HEIGHT / 2)
            x += sizes[item] + GAP
    boxes = tuple(Box(*middle[n], widths[n], HEIGHT) for n in range(len(graph.nodes)))
    bends = tuple(tuple(middle[item] for item in chain[1:-1]) for chain in chains)
    height = max(len(layers) - 1, 0) * LAYER + HEIGHT
    return Layout(boxes, bends, total + 2 * _MARGIN, height + 2 * _MARGIN)


def _layers(graph: Graph) -> list[int]:
    """Layer of each node: below all its sources; what has none stands right above the first that takes it."""
    layer = [0] * len(graph.nodes)
    takers: dict[int, list[int]] = {}
    has_source = [False] * len(graph.nodes)
    for edge in sorted(graph.edges, key=lambda edge: edge.target):  # sources come before what takes them
        layer[edge.target] = max(layer[edge.target], layer[edge.source] + 1)
        has_source[edge.target] = True
        takers.setdefault(edge.source, []).append(edge.target)
    for node, targets in takers.items():
        if not has_source[node]:
            layer[node] = min(layer[target] for target in targets) - 1
    return layer


def _with_bends(
    edges: Iterable[Edge], layer_of: Sequence[int], sizes: list[float]
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Each edge as a chain of nodes and bends, one a layer; the layers with the bends in them; sizes of all."""
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for node, depth in enumerate(layer_of):
        layers[depth].append(node)
    chains = []
    for edge in edges:
        chain = [edge.source]
        if len(sizes) < _MOST_BENDS:
            for depth in range(layer_of[edge.source] + 1, layer_of[edge.target]):
                layers[depth].append(len(sizes))
                chain.append(len(sizes))
                sizes.append(0.0)
        chains.append([*chain, edge.target])
    return chains, layers, sizes


def _sort(layers: list[list[int]], chains: Sequence[Sequence[int]]) -> None:
    """Sort each layer by the middle of its items' neighbours, down and up in turns."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)
    place: dict[int, float] = {}
    for layer in layers:
        _number(layer, place)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for layer in layers if down else reversed(layers):
            wanted = {n: sum(place[m] for m in near[n]) / len(near[n]) if n in near else place[n] for n in layer}
            layer.sort(key=wanted.__getitem__)
            _number(layer, place)


def _number(layer: Sequence[int], place: dict[int, float]) -> None:
    """Places between 0 and 1, so that layers of different lengths compare."""
    for position, item in enumerate(layer):
        place[item] = (position + 0.5) / len(layer)


def _extent(layer: Sequence[int], sizes: Sequence[float]) -> float:
    return sum(sizes[item] for item in layer) + GAP * max(len(layer) - 1, 0)
