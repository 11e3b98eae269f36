"""The process that submits through pysqa starts quickly, and has pandas all the same where pysqa should need it."""

from __future__ import annotations

import subprocess
import sys

START = "import sys; from remoteexec_server.batch import pysqa_helper; assert pysqa_helper.main(['0']) == 0; "


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", START + code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + done.stderr.splitlines()


def test_the_helper_is_ready_without_pandas() -> None:
    assert run("sys.exit('numpy' in sys.modules)") == ['{"ready": true}']


def test_what_is_used_of_pandas_is_the_real_one() -> None:
    code = "from pysqa.base import core; print(core.pandas.Series([1]).sum(), core.pandas.DataFrame({'a': [2]}).a[0])"
    assert run(code) == ['{"ready": true}', "1 2"]
