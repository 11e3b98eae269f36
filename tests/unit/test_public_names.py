"""What is public is sorted, documented where it stands, and mentioned in the docs."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import remoteexec
from remoteexec import errors

CHECKOUT = Path(__file__).parent.parent.parent
WITH_NAMES = ["remoteexec", *(f"remoteexec.{name}" for name in ("api", "errors", "resources", "executors.cluster"))]


def documented() -> str:
    """README and docs as one text."""
    pages = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", WITH_NAMES)
def test_public_names_are_sorted_and_exist(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__all__ == sorted(module.__all__)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_every_public_name_and_every_error_is_mentioned_in_the_docs() -> None:
    words = set(re.findall(r"\w+", documented()))

    missing = sorted({*remoteexec.__all__, *errors.__all__} - {"__version__", "task_lost"} - words)

    assert missing == [], f"README.md and docs/*.md do not mention {', '.join(missing)}"


def test_every_public_class_and_method_says_what_it_is() -> None:
    silent = []
    for name in remoteexec.__all__:
        value = getattr(remoteexec, name)
        if not inspect.isclass(value):
            continue
        members = {f"{name}.{key}": member for key, member in vars(value).items() if inspect.isfunction(member)}
        for full, member in {name: value, **members}.items():
            if not full.rpartition(".")[2].startswith("_") and not inspect.getdoc(member):
                silent.append(full)

    assert silent == []
