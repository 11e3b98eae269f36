"""Lists of hosts and numbers, as SLURM and Flux write them."""

from __future__ import annotations

import itertools
import re

_PART = re.compile(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def hostnames(expression: str) -> list[str]:
    """The names that a list of SLURM or Flux stands for: "n[1-2,7],login" are n1, n2, n7 and login."""
    return [name for part in _PART.findall(expression) if part for name in _expanded(part)]


def indices(expression: str) -> list[int]:
    """Numbers of a list like "0-3,8"."""
    return [int(number) for number in _numbers(expression)] if expression else []


def _expanded(part: str) -> list[str]:
    texts = _BRACKETS.split(part)  # every second one was in brackets
    choices = [_numbers(text) if at % 2 else [text] for at, text in enumerate(texts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(expression: str) -> list[str]:
    """As they are written: "08-10" are 08, 09 and 10."""
    found: list[str] = []
    for part in expression.split(","):
        first, _, last = part.partition("-")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return found
