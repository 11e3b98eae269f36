"""What a user asked to see of an executor's calls, and showing it."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from .graph import Graph, Recorder

log = logging.getLogger("remoteexec")


@dataclass(frozen=True)
class Views:
    """What is to be shown of the calls, by the names that executors' parameters have.

    Attributes:
        plot_dependency_graph: True: nothing runs, every result is None, and the graph is drawn at the shutdown.
            "after": the calls run, and the graph shows how each went.
        plot_dependency_graph_filename: where it is drawn, an .svg or .png; if None, in the notebook. Means
            `plot_dependency_graph=True` unless that is "after".
        export_workflow_filename: where the graph goes as JSON, as the Python Workflow Definition has it; nothing runs
            either, unless `plot_dependency_graph` is "after".
        log_obj_size: log how large each call is.
    """

    plot_dependency_graph: bool | Literal["after"] = False
    plot_dependency_graph_filename: str | Path | None = None
    export_workflow_filename: str | Path | None = None
    log_obj_size: bool = False

    def check(self, disable_dependencies: bool) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names parameter and rule.
        """
        if self.plot_dependency_graph not in (False, True, "after"):
            raise ValueError(
                f"plot_dependency_graph must be True, False or 'after', not {self.plot_dependency_graph!r}"
            )
        for name, value in (
            ("plot_dependency_graph", self.plot_dependency_graph),
            ("plot_dependency_graph_filename", self.plot_dependency_graph_filename),
            ("export_workflow_filename", self.export_workflow_filename),
        ):
            if value and disable_dependencies:
                raise ValueError(f"{name} and disable_dependencies=True exclude each other: there is no graph then")
        for name in ("plot_dependency_graph_filename", "export_workflow_filename"):
            self._check_place(name)
        self._check_picture()

    def _check_place(self, name: str) -> None:
        """Refuse what cannot become a file: said after the calls, they would have run in vain."""
        path = getattr(self, name)
        if path is None:
            return
        found = os.path.abspath(path)
        if os.path.isdir(found):
            raise ValueError(f"{name}={os.fspath(path)!r} is a directory: name a file in it")
        while not os.path.lexists(found := os.path.dirname(found)):
            pass
        if not os.path.isdir(found) or not os.access(found, os.W_OK):
            raise ValueError(f"{name}={os.fspath(path)!r}: nothing can be written in {found!r}; name another place")

    def _check_picture(self) -> None:
        if self.plot_dependency_graph_filename is None:
            return
        suffix = os.path.splitext(self.plot_dependency_graph_filename)[1].lower()
        if suffix not in (".svg", ".png"):
            raise ValueError(
                "plot_dependency_graph_filename must end in .svg or .png, "
                f"not {str(self.plot_dependency_graph_filename)!r}"
            )
        if suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
            raise ValueError("plot_dependency_graph_filename: .png needs matplotlib (pip install matplotlib); .svg not")

    @property
    def recorded(self) -> bool:
        """Whether the graph is wanted at all."""
        return bool(self.plot_dependency_graph or self.plot_dependency_graph_filename or self.export_workflow_filename)

    @property
    def nothing_runs(self) -> bool:
        """Whether the calls are only drawn."""
        return self.recorded and self.plot_dependency_graph != "after"

    def recorder(self) -> Recorder | None:
        """What writes the calls down, if the graph is wanted."""
        from .graph import Recorder  # late: few ask for it

        return Recorder(self.export_workflow_filename is not None) if self.recorded else None

    def show(self, graph: Graph) -> None:
        """Draw and export."""
        from pathlib import Path

        if self.export_workflow_filename is not None:
            from .workflow import to_json

            _made(Path(self.export_workflow_filename)).write_text(to_json(graph), encoding="utf-8")
        if self.plot_dependency_graph_filename is not None:
            write_picture(graph, _made(Path(self.plot_dependency_graph_filename)))
        elif self.plot_dependency_graph:
            _show_in_notebook(graph)


def write_picture(graph: Graph, path: Path) -> None:
    """Draw a graph into an .svg or .png file."""
    if path.suffix.lower() == ".png":
        from .png import write

        write(graph, path)
    else:
        from .svg import draw

        path.write_text(draw(graph), encoding="utf-8")


def _made(path: Path) -> Path:
    """The same path, in a directory that is there: it would be late to refuse it now that all has run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _show_in_notebook(graph: Graph) -> None:
    display: Any = getattr(sys.modules.get("IPython.display"), "display", None)
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if display is None or shell is None:
        log.warning(
            "plot_dependency_graph shows the graph in a notebook; elsewhere give plot_dependency_graph_filename"
        )
    else:
        display(graph)
