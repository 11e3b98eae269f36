"""known_hosts files are read as OpenSSH reads them; keys are added and removed without touching the rest."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from remoteexec.ssh.hostkeys import HostKey, KnownKey, Verdict, add, host_name, known_keys, remove, verdict

ONE, TWO = HostKey("ssh-ed25519", b"key one"), HostKey("ssh-ed25519", b"key two")


def line(names: str, key: HostKey) -> str:
    return f"{names} {key.type} {base64.b64encode(key.blob).decode()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ssh" / "known_hosts"


@pytest.mark.parametrize(
    ("names", "asked", "known"),
    [
        ("login.example.org", "login.example.org", True),
        ("Login.Example.org", "login.example.org", True),
        ("login.example.org,10.0.0.1", "10.0.0.1", True),
        ("login.example.org", "[login.example.org]:2222", False),
        ("[login.example.org]:2222", "[login.example.org]:2222", True),
        ("*.example.org", "login.example.org", True),
        ("*.example.org", "example.org", False),
        ("login?.example.org", "login3.example.org", True),
        ("*.example.org,!login.example.org", "login.example.org", False),
        ("loginxexample.org", "login.example.org", False),
        ("|1|broken", "login.example.org", False),
    ],
)
def test_names_match_as_in_openssh(file: Path, names: str, asked: str, known: bool) -> None:
    file.parent.mkdir()
    file.write_text(f"# a comment\n\n{line(names, ONE)} and a comment\n")
    assert known_keys(asked, [file]) == ((KnownKey(ONE, False, file, 3),) if known else ())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_hashed_names_match(file: Path) -> None:
    key = file.with_name("key")
    file.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    text = key.with_suffix(".pub").read_text().split()
    file.write_text(f"[h]:2222 {text[0]} {text[1]}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert file.read_text().startswith("|1|")

    found = known_keys("[h]:2222", [file])

    printed = subprocess.run(["ssh-keygen", "-lf", str(key)], check=True, capture_output=True, text=True).stdout
    assert [entry.key.fingerprint for entry in found] == [printed.split()[1]]
    assert known_keys("h", [file]) == ()


def test_a_key_is_judged_by_all_keys_on_file() -> None:
    def entry(key: HostKey, revoked: bool = False) -> KnownKey:
        return KnownKey(key, revoked, Path("f"), 1)

    assert [
        verdict(ONE, []),
        verdict(ONE, [entry(ONE)]),
        verdict(ONE, [entry(TWO)]),
        verdict(ONE, [entry(TWO), entry(ONE)]),
        verdict(ONE, [entry(ONE), entry(ONE, revoked=True)]),
        verdict(ONE, [entry(TWO, revoked=True)]),
    ] == [Verdict.UNKNOWN, Verdict.KNOWN, Verdict.CHANGED, Verdict.KNOWN, Verdict.REVOKED, Verdict.UNKNOWN]


def test_adding_makes_file_and_directory_private(file: Path) -> None:
    add(file, "h", ONE)
    add(file, "[h]:22022", TWO)
    assert file.read_text() == f"{line('h', ONE)}\n{line('[h]:22022', TWO)}\n"
    assert [oct(path.stat().st_mode)[-3:] for path in (file.parent, file)] == ["700", "600"]


def test_removing_leaves_what_speaks_of_others(file: Path) -> None:
    file.parent.mkdir()
    lines = [
        "# mine",
        line("h", ONE),
        line("h,other", TWO),
        line("*", ONE),
        "@revoked " + line("h", TWO),
        line("x", ONE),
    ]
    file.write_text("\n".join(lines) + "\n")
    assert remove(file, "h") == 2
    assert file.read_text().splitlines() == [lines[0], line("other", TWO), *lines[3:]]


def test_a_missing_file_holds_no_keys_and_is_not_made(file: Path) -> None:
    assert (known_keys("h", [file]), remove(file, "h"), file.exists()) == ((), 0, False)


def test_a_port_other_than_22_is_part_of_the_name() -> None:
    assert [host_name("h", 22), host_name("h", 23), host_name("::1", 23)] == ["h", "[h]:23", "[::1]:23"]
