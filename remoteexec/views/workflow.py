"""A graph as JSON in the form of the Python Workflow Definition, 0.1.0."""

from __future__ import annotations

import json
from typing import Any

from .graph import Graph


def to_json(graph: Graph) -> str:
    """The workflow as text; every call whose result no other takes has an output."""
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        if node.kind == "function":
            nodes.append({"id": node.id, "type": "function", "value": node.name})
        else:
            nodes.append({"id": node.id, "type": "input", "value": node.value, "name": node.name})
    edges = [_edge(edge.source, edge.item, edge.target, edge.parameter) for edge in graph.edges]
    taken = {edge.source for edge in graph.edges}
    last = [node.id for node in graph.nodes if node.kind == "function" and node.id not in taken]
    for number, source in enumerate(last):
        name = "result" if len(last) == 1 else f"result_{number}"
        edges.append(_edge(source, None, len(nodes), None))
        nodes.append({"id": len(nodes), "type": "output", "name": name})
    return json.dumps({"version": "0.1.0", "nodes": _unique(nodes), "edges": edges}, indent=2) + "\n"


def _edge(source: int, item: str | None, target: int, parameter: str | None) -> dict[str, Any]:
    return {"target": target, "targetPort": parameter, "source": source, "sourcePort": item}


def _unique(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes, no two inputs with the same name: a workflow's inputs are told apart by it."""
    seen: dict[str, int] = {}
    for node in nodes:
        if node["type"] == "input":
            name = node["name"]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                node["name"] = f"{name}_{seen[name] - 1}"
    return nodes
