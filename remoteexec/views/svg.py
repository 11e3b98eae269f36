"""A graph as SVG, written by nothing but the standard library."""

from __future__ import annotations

from html import escape

from .graph import Graph
from .picture import FONT_SIZE, lines, shapes


def draw(graph: Graph) -> str:
    """The picture as SVG text."""
    found, layout = shapes(graph)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width:.0f}" height="{layout.height:.0f}" '
        f'viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" font-family="sans-serif" font-size="{FONT_SIZE}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for points, text in lines(graph, layout):
        parts.append(
            f'<path d="{_curve(points)}" fill="none" stroke="#667" marker-end="url(#tip)">'
            f"<title>{_xml(text)}</title></path>"
        )
    for box, shape in zip(layout.boxes, found, strict=True):
        parts.append(
            f'<g><title>{_xml(shape.more)}</title><rect x="{box.x - box.width / 2:.1f}" '
            f'y="{box.y - box.height / 2:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
            f'rx="{10 if shape.rounded else 0}" fill="{shape.colour}" stroke="#445"/>'
            f'<text x="{box.x:.1f}" y="{box.y + FONT_SIZE / 3:.1f}" text-anchor="middle">{_xml(shape.text)}</text></g>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _curve(points: list[tuple[float, float]]) -> str:
    """A smooth line: every piece leaves and arrives vertically."""
    (x, y), *rest = points
    path = f"M{x:.1f} {y:.1f}"
    for to_x, to_y in rest:
        half = (y + to_y) / 2
        path += f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    return path


def _xml(text: str) -> str:
    """Text that XML takes: most control characters have no place in it."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))
