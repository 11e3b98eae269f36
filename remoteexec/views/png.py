"""A graph as PNG, by matplotlib, which has to be installed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from .graph import Graph
from .picture import FONT_SIZE, lines, shapes

_DOTS = 150
_PER_INCH = 96.0
_MOST_PIXELS = 30_000
"""matplotlib has no wider images: 2**16 pixels is its limit, and few viewers show more than this."""


def write(graph: Graph, path: Path) -> None:
    """Draw it into a file; a graph too large for one is drawn smaller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    found, layout = shapes(graph)
    size = (max(layout.width, 1) / _PER_INCH, max(layout.height, 1) / _PER_INCH)
    dots = min(_DOTS, _MOST_PIXELS / max(size))
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, layout.width)
    axes.set_ylim(layout.height, 0)
    for points, _ in lines(graph, layout):
        for start, end in pairwise(points[:-1]):
            axes.plot([start[0], end[0]], [start[1], end[1]], color="#666677", linewidth=1)
        axes.add_patch(
            FancyArrowPatch(
                points[-2], points[-1], arrowstyle="-|>", mutation_scale=10, color="#666677", shrinkA=0, shrinkB=0
            )
        )
    for box, shape in zip(layout.boxes, found, strict=True):
        style = "round,pad=0,rounding_size=10" if shape.rounded else "square,pad=0"
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        axes.add_patch(
            FancyBboxPatch(corner, box.width, box.height, boxstyle=style, facecolor=shape.colour, edgecolor="#444455")
        )
        axes.text(box.x, box.y, shape.text, ha="center", va="center", fontsize=FONT_SIZE * 72 / _PER_INCH)
    figure.savefig(path, dpi=dots, format="png")
