"""Tables of measured values, each beside what is wanted of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        most: the target: no more than this; None for a value that only explains another.
    """

    what: str
    measured: float
    unit: str = ""
    most: float | None = None

    @property
    def missed(self) -> bool:
        return self.most is not None and self.measured > self.most

    def cells(self) -> tuple[str, str, str, str]:
        verdict = "" if self.most is None else "MISSED" if self.missed else "OK"
        target = "" if self.most is None else f"<= {_number(self.most)} {self.unit}".rstrip()
        return self.what, f"{_number(self.measured)} {self.unit}".rstrip(), target, verdict


def finish(title: str, rows: Sequence[Row]) -> NoReturn:
    """Print the table and end the process: exit code 1 if a target is missed."""
    table = [("", "measured", "target", ""), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    print(f"\n{title}")
    for what, measured, target, verdict in table:
        line = f"  {what:<{widths[0]}}  {measured:>{widths[1]}}  {target:>{widths[2]}}  {verdict}"
        print(line.rstrip())
    sys.exit(any(row.missed for row in rows))


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"
