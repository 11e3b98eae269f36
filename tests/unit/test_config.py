"""clusters.toml: what is written is read, comments stay, and every mistake is told with file, key, rule and remedy."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from remoteexec.config import ClusterConfig, config_path, load_cluster, load_clusters, remove_cluster, save_cluster
from remoteexec.errors import ConfigError

FULL = ClusterConfig(
    name="full.one",
    host="login.example.org",
    user="me",
    port=2222,
    identity_file="~/.ssh/my key",
    known_hosts="/tmp/a'; echo b",
    root="$SCRATCH/ünï code",
    python="python3.11",
    scheduler="local",
    login_shell=True,
    poll_s=5.0,
    resources={"partition": "short", "threads_per_core": 2},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "below" / "clusters.toml"


def test_what_is_saved_is_loaded(file: Path) -> None:
    small = ClusterConfig(name="small", host="h")
    assert [save_cluster(FULL, file), save_cluster(small, file)] == [file, file]
    assert load_clusters(file) == {"full.one": FULL, "small": small}
    assert load_cluster("full.one", file) == FULL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_file_is_the_users_alone(file: Path) -> None:
    save_cluster(FULL, file)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)] == [0o700, 0o600]
    assert [path.name for path in file.parent.iterdir()] == ["clusters.toml"]


def test_other_entries_and_comments_stay_as_they_are(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(
        '# my clusters\n[a]\nhost = "a"   # the old one\n\n[b]\nhost = "b"\n[b.resources]\ncores = 2\n\n'
        "# c is slow\n[c]\nhost = 'c'\n"
    )
    save_cluster(ClusterConfig(name="b", host="b2"), file)
    assert file.read_text() == (
        '# my clusters\n[a]\nhost = "a"   # the old one\n\n[b]\nhost = "b2"\n\n# c is slow\n[c]\nhost = \'c\'\n'
    )
    remove_cluster("b", file)
    assert file.read_text() == "# my clusters\n[a]\nhost = \"a\"   # the old one\n\n# c is slow\n[c]\nhost = 'c'\n"
    remove_cluster("c", file)
    remove_cluster("a", file)
    assert load_clusters(file) == {}


def test_an_entry_in_unusual_form_is_replaced_too(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('a.host = "x"\nb = {host = "y"}\n')
    save_cluster(ClusterConfig(name="b", host="z"), file)
    assert load_clusters(file) == {"a": ClusterConfig(name="a", host="x"), "b": ClusterConfig(name="b", host="z")}


def test_a_variable_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMOTEEXEC_CONFIG", str(tmp_path / "mine.toml"))
    assert config_path() == tmp_path / "mine.toml"
    monkeypatch.delenv("REMOTEEXEC_CONFIG")
    assert config_path().parts[-2:] == ("remoteexec", "clusters.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[mycluster]\nhost = 'h'\nprot = 22\n",
            "{file}: cluster 'mycluster' has an unknown key 'prot': did you mean 'root' or 'port'?\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\nxyzzy = 22\n",
            "{file}: cluster 'mycluster' has an unknown key 'xyzzy': known are host, user, port, identity_file, "
            "known_hosts, root, python, scheduler, login_shell, poll_s, "
            "pysqa_config_directory, resources.\n{remedy}",
        ),
        (
            "[mycluster]\nuser = 'me'\n",
            "{file}: cluster 'mycluster' has no host: it must name its login node.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\nport = '22'\n",
            "{file}: port = '22' of cluster 'mycluster': must be a number from 1 to 65535.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\nroot = 'here'\n",
            "{file}: root = 'here' of cluster 'mycluster': must be a path on the cluster that begins with '/', '~/' or "
            "a variable such as '$SCRATCH/'.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\nscheduler = 'abacus'\n",
            "{file}: scheduler = 'abacus' of cluster 'mycluster': must be one of "
            "slurm, flux, pbs, torque, lsf, sge, moab, local.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = '-oProxyCommand=x'\n",
            "{file}: host = '-oProxyCommand=x' of cluster 'mycluster': must be the name or address of a login node, "
            "without user or port.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\npoll_s = 0\n",
            "{file}: poll_s = 0 of cluster 'mycluster': must be a number of seconds greater than 0.\n{remedy}",
        ),
        (
            "[mycluster]\nhost = 'h'\nresources = {cores = 0}\n",
            "{file}: resources of cluster 'mycluster': cores=0: must be a whole number of at least 1.\n{remedy}",
        ),
        (
            "mycluster = 'h'\n",
            "{file}: mycluster = 'h' stands outside of a cluster's table: put it below a line `[CLUSTER]`.",
        ),
        (
            "[mycluster\n",
            "{file} is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 11).\n"
            "Correct that place; `remoteexec` changed nothing.",
        ),
        (
            "[mycluter]\nhost = 'h'\n[other]\nhost = 'h'\n",
            "{file} has no cluster 'mycluster': there are mycluter, other.\nDid you mean 'mycluter'?\n"
            "To add it, run `remoteexec config add-cluster mycluster --host HOST --user USER`.",
        ),
        (
            "",
            "{file} has no cluster 'mycluster': there is none yet.\n"
            "To add it, run `remoteexec config add-cluster mycluster --host HOST --user USER`.",
        ),
    ],
)
def test_a_mistake_is_told_with_file_key_rule_and_remedy(file: Path, text: str, message: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    remedy = "Correct it in the file, or run `remoteexec config add-cluster mycluster` anew."
    with pytest.raises(ConfigError) as caught:
        load_cluster("mycluster", file)
    assert str(caught.value) == message.format(file=file, remedy=remedy)
    assert file.read_text() == text


def test_a_broken_file_is_not_overwritten(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("[a\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        save_cluster(FULL, file)
    assert file.read_text() == "[a\n"


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "a\n", "ü", "$(x)"])
def test_a_name_that_could_be_an_option_or_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig(name=name, host="h")
    assert str(caught.value) == (
        f"{name!r} cannot name a cluster: use letters, digits, '.', '_' and '-', and begin with a letter or digit."
    )


@pytest.mark.parametrize("root", ["~", "~/x", "/x y/ü", "$SCRATCH", "${WORK}/a'; echo b", "/"])
def test_roots_may_begin_with_home_or_a_variable(root: str) -> None:
    assert ClusterConfig(name="a", host="h", root=root).root == root


@pytest.mark.parametrize("root", ["", "x", "~me/x", "$(x)/y", "$1/x", "/a\nb", "/a/../b"])
def test_other_roots_are_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="root = "):
        ClusterConfig(name="a", host="h", root=root)


def test_resources_are_copied() -> None:
    mine = {"cores": 1}
    config = ClusterConfig(name="a", host="h", resources=mine)
    mine["cores"] = 3
    assert config.resources == {"cores": 1}
