"""The command line: what it says, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remoteexec import __version__
from remoteexec.cli import main
from remoteexec.cli.check import Check, Row, print_rows, run_checks
from remoteexec.cli.reference import reference
from remoteexec.errors import ConnectError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "clusters.toml"
    monkeypatch.setenv("REMOTEEXEC_CONFIG", str(file))
    monkeypatch.setenv("COLUMNS", "200")
    return file


@pytest.fixture
def run(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["remoteexec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return (ended.value.code if isinstance(ended.value.code, int) else 0, out, err)

    return run


def add(run: Run, name: str = "one", *more: str) -> tuple[int, str, str]:
    return run("config", "add-cluster", name, "--host", "login.example.org", "--no-test", *more)


def test_the_version_is_told(run: Run) -> None:
    assert run("--version") == (0, f"remoteexec {__version__}\n", "")


def test_a_cluster_is_added_shown_listed_and_removed(run: Run, file: Path) -> None:
    assert add(run, "one", "--user", "me", "--port", "2222", "--root", "$SCRATCH/x", "--login-shell") == (
        0,
        f"Saved 'one' in {file}.\nNext: `remoteexec install one`, then `remoteexec check one`.\n",
        "",
    )
    assert add(run, "second", "--scheduler", "local")[0] == 0
    assert run("config", "list") == (
        0,
        "one     me@login.example.org:2222  slurm\nsecond  login.example.org  local\n",
        "",
    )
    assert run("config", "show", "one") == (
        0,
        f'# {file}\n[one]\nhost = "login.example.org"\nuser = "me"\nport = 2222\nroot = "$SCRATCH/x"\n'
        "login_shell = true\n",
        "",
    )
    assert run("config", "remove-cluster", "one", "--yes") == (0, f"Removed 'one' from {file}.\n", "")
    assert run("config", "list") == (0, "second  login.example.org  local\n", "")


def test_an_empty_list_says_how_to_add(run: Run, file: Path) -> None:
    assert run("config", "list") == (
        0,
        f"No clusters in {file}. Add one: `remoteexec config add-cluster NAME --host HOST`.\n",
        "",
    )


def test_options_that_are_not_given_stay_as_they_are(run: Run, file: Path) -> None:
    add(run, "one", "--user", "me")
    assert run("config", "add-cluster", "one", "--port", "23", "--no-test", "--yes")[0] == 0
    assert run("config", "show", "one")[1] == f'# {file}\n[one]\nhost = "login.example.org"\nuser = "me"\nport = 23\n'


def test_files_are_named_from_the_root_of_this_machine(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    add(run, "one", "--identity-file", "key")
    assert f'identity_file = "{tmp_path / "key"}"' in run("config", "show", "one")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("config", "add-cluster", "one", "--port", "23", "--no-test"),
            "There is a cluster 'one' already (host login.example.org).\nRun the command with `--yes` to change it.",
        ),
        (
            ("config", "add-cluster", "two", "--no-test"),
            "Cluster 'two' needs the name of its login node.\nGive it with `--host HOST`.",
        ),
        (
            ("config", "add-cluster", "a b", "--host", "h", "--no-test"),
            "'a b' cannot name a cluster: use letters, digits, '.', '_' and '-', and begin with a letter or digit.",
        ),
        (
            ("config", "add-cluster", "two", "--host", "h", "--scheduler", "abacus", "--no-test"),
            "scheduler = 'abacus' of cluster 'two': must be one of slurm, flux, pbs, torque, lsf, sge, moab, local.",
        ),
        (
            ("config", "remove-cluster", "one"),
            "Nobody can be asked whether to remove 'one'.\nRun it again with `--yes`.",
        ),
        *(
            (
                command,
                "{file} has no cluster 'two': there are one.\n"
                "To add it, run `remoteexec config add-cluster two --host HOST --user USER`.",
            )
            for command in (
                ("config", "remove-cluster", "two", "--yes"),
                ("config", "show", "two"),
                ("config", "trust", "two"),
                ("check", "two"),
                ("install", "two"),
            )
        ),
    ],
)
def test_a_refusal_is_one_message_and_changes_nothing(
    run: Run, file: Path, arguments: tuple[str, ...], message: str
) -> None:
    add(run)
    before = file.read_bytes()
    assert run(*arguments) == (1, "", f"Error: {message.format(file=file)}\n")
    assert file.read_bytes() == before


def test_a_broken_entry_can_be_removed(run: Run, file: Path) -> None:
    file.write_text("[one]\nhots = 'x'\n")
    assert run("config", "remove-cluster", "one", "--yes")[0] == 0
    assert file.read_text().strip() == ""


def test_debugging_shows_where_an_error_comes_from(run: Run) -> None:
    code, _, err = run("--debug", "check", "none")
    assert (code, "Traceback" in err, "Error: " in err) == (1, True, True)


def test_checks_that_need_a_failed_one_are_skipped() -> None:
    def fail() -> str:
        raise ConnectError("nobody there\nCheck the port.\nThen the name.")

    checks = [
        Check("a", (), lambda: "fine"),
        Check("b", ("a",), fail),
        Check("c", ("b",), lambda: "never"),
        Check("d", ("a", "c"), lambda: "never"),
        Check("e", ("a",), lambda: "fine too"),
    ]
    assert list(run_checks(checks)) == [
        Row("a", "ok", "fine"),
        Row("b", "failed", "nobody there", "Check the port.\nThen the name."),
        Row("c", "skipped", "needs b"),
        Row("d", "skipped", "needs c"),
        Row("e", "ok", "fine too"),
    ]


def test_rows_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    good = print_rows(iter([Row("a", "ok", "fine"), Row("b", "failed", "no [b]x[/b]", "one\ntwo")]))
    assert (good, capsys.readouterr().out) == (
        False,
        "ok       a: fine\nfailed   b: no [b]x[/b]\n         one\n         two\n",
    )
    assert print_rows([Row("a", "ok", "fine")])


def test_the_reference_is_that_of_the_commands() -> None:
    """If this fails: python -m remoteexec.cli.reference > docs/cli.md"""
    written = Path(__file__).parents[2] / "docs" / "cli.md"
    assert written.read_text(encoding="utf-8") == reference()
