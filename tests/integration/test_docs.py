"""What README and guide show is what happens: their examples run, and print what stands below them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from remoteexec.config import save_cluster
from remoteexec.config.model import ClusterConfig

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```python\n(.*?)```\n\s*```text\n(.*?)```", re.DOTALL)
CACHE = EXAMPLE.findall((CHECKOUT / "docs" / "cache.md").read_text(encoding="utf-8"))
EXAMPLES = [
    pytest.param(code, output, id=f"{page} {number}")
    for page in ("README.md", "docs/guide.md")
    for number, (code, output) in enumerate(EXAMPLE.findall((CHECKOUT / page).read_text(encoding="utf-8")), 1)
]
EXAMPLES.append(pytest.param("".join(c for c, _ in CACHE), "".join(o for _, o in CACHE), id="docs/cache.md"))


def test_every_example_shows_its_output() -> None:
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    assert sum(page.read_text(encoding="utf-8").count("```python") for page in pages) == len(EXAMPLES) - 1 + len(CACHE)


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_an_example_prints_what_stands_below_it(
    code: str, output: str, embedded_config: ClusterConfig, tmp_path: Path
) -> None:
    clusters = save_cluster(replace(embedded_config, name="mycluster"), tmp_path / "clusters.toml")
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "REMOTEEXEC_CONFIG": str(clusters), "HOME": str(tmp_path), "SCRATCH": str(tmp_path)},
        check=False,
    )
    assert (done.stdout, done.stderr) == (output, "")
