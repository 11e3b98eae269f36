"""The cluster side is installed for real: into roots of all kinds, with Pythons of all kinds."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from remoteexec.config import ClusterConfig
from remoteexec.deploy import Installed, install, look, package_files, probe, start_argv
from remoteexec.errors import ConfigError, PythonMismatch, RunnerError, RunnerMissing, UnsafeRoot
from remoteexec.ssh.fabric_link import FabricLink
from tests.clusters.embedded import EmbeddedTestCluster
from tests.clusters.rootless import SlurmCluster

Cluster = SlurmCluster | EmbeddedTestCluster

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
NASTY = "a'; echo b ü $x"


@pytest.fixture(params=["embedded_cluster", pytest.param("slurm_cluster", marks=pytest.mark.slurm)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    found: Cluster = request.getfixturevalue(request.param)
    yield found
    found.recover()


@pytest.fixture
def config(cluster: Cluster) -> ClusterConfig:
    return configuration(cluster)


@pytest.fixture
def link(config: ClusterConfig) -> Iterator[FabricLink]:
    link = FabricLink(config.ssh_settings())
    link.connect()
    yield link
    link.close()


def configuration(cluster: Cluster) -> ClusterConfig:
    return ClusterConfig(
        name="mycluster",
        host=cluster.host,
        user=cluster.user,
        port=cluster.port,
        identity_file=str(cluster.identity_file),
        known_hosts=str(cluster.known_hosts),
        root=cluster.new_root(NASTY),
        python=str(cluster.python),
        scheduler=cluster.scheduler,
    )


def out(link: FabricLink, script: str, *words: str) -> str:
    return link.run(["sh", "-c", script, *words]).check().stdout.decode()


def is_there(link: FabricLink, path: PurePosixPath | str) -> bool:
    return link.run(["test", "-e", str(path)]).exit_code == 0


def needs_ordinary_user(link: FabricLink) -> None:
    if out(link, "id -u") == "0\n":
        pytest.skip("the user of this cluster is root, whom no permission stops")


def test_an_installation_is_private_and_starts(link: FabricLink, config: ClusterConfig) -> None:
    steps: list[str] = []
    package = package_files()
    installed = install(link, config, report=steps.append)
    assert installed == Installed(
        python=PurePosixPath(str(config.python)),
        root=PurePosixPath(config.root),
        digest=package.digest,
        version=package.version,
        python_version=installed.python_version,
    )
    assert steps == [f"sending remoteexec_server {package.digest}"]
    open_to_others = out(link, 'find "$0" -perm /077', config.root)
    assert open_to_others == ""
    facts = probe(link, config)
    assert (facts.root, facts.root_problem, facts.version) == (config.root, None, package.version)
    assert facts.python == installed.python_version
    assert (facts.scheduler or "").split()[0] == config.scheduler


def test_installing_again_changes_nothing(link: FabricLink, config: ClusterConfig) -> None:
    first = install(link, config)
    listing = 'find "$0" -printf "%P %T@ %i\\n" | grep -v install.lock | sort'
    before = out(link, listing, config.root)
    steps: list[str] = []
    assert install(link, config, report=steps.append) == first
    assert (steps, out(link, listing, config.root)) == ([], before)


def test_a_damaged_package_is_replaced(link: FabricLink, config: ClusterConfig) -> None:
    installed = install(link, config)
    main = installed.root / "server" / installed.digest / "remoteexec_server" / "__main__.py"
    out(link, 'echo damaged > "$0"', str(main))
    install(link, config)
    assert probe(link, config).version == installed.version
    assert out(link, 'ls -A "$0"', str(installed.root / "server")) == f"{installed.digest}\n"


def test_other_versions_are_left_alone(link: FabricLink, config: ClusterConfig) -> None:
    out(link, 'umask 077; mkdir -p "$0/server/0123/remoteexec_server"', config.root)
    install(link, config)
    assert is_there(link, f"{config.root}/server/0123/remoteexec_server")


def test_banner_and_noise_do_not_matter(cluster: Cluster, config: ClusterConfig) -> None:
    def through() -> None:
        link = FabricLink(config.ssh_settings())
        link.connect()
        try:
            assert install(link, config).root == PurePosixPath(config.root)
            assert probe(link, config).root == config.root
        finally:
            link.close()

    if isinstance(cluster, EmbeddedTestCluster):
        cluster.change(banner="Welcome!\n", noise='{"done": 1} no line break at the end')
        through()
    else:
        with cluster.noisy_login('{"done": 1}\nno line break at the end'):
            through()


def test_home_and_variables_are_expanded_there(link: FabricLink, cluster: Cluster, config: ClusterConfig) -> None:
    name = f"rx-{os.urandom(4).hex()}"
    for root in (f"~/{name}", f"$HOME/{name}", f"${{HOME}}/{name}"):
        installed = install(link, dataclasses.replace(config, root=root))
        assert installed.root == PurePosixPath(cluster.home) / name
    # `root` is now the last of them, which the line that starts us expands itself
    assert probe(link, dataclasses.replace(config, root=root)).root == str(installed.root)


def test_a_login_shell_brings_what_the_profile_sets(slurm_cluster: SlurmCluster) -> None:
    config = dataclasses.replace(configuration(slurm_cluster), root="$SCRATCH/rx", login_shell=True)
    scratch = slurm_cluster.make_directory(f"scratch {os.urandom(4).hex()}")
    profile = PurePosixPath(slurm_cluster.home) / ".bash_profile"
    link = FabricLink(config.ssh_settings())
    link.connect()
    link.put_file(f"echo Welcome\nexport SCRATCH='{scratch}'\n".encode(), profile)
    try:
        assert install(link, config).root == PurePosixPath(scratch) / "rx"
        assert probe(link, config).root == f"{scratch}/rx"
        with pytest.raises(UnsafeRoot):
            probe(link, dataclasses.replace(config, login_shell=False))
    finally:
        link.run(["rm", str(profile)])
        link.close()


def test_a_variable_that_is_not_set_is_named(link: FabricLink, config: ClusterConfig) -> None:
    unset = dataclasses.replace(config, root="$REMOTEEXEC_NO_SUCH/x")
    with pytest.raises(UnsafeRoot) as caught:
        install(link, unset)
    assert str(caught.value) == (
        "mycluster: $REMOTEEXEC_NO_SUCH/x: the variable is not set on the cluster.\nName an absolute path."
    )
    with pytest.raises(UnsafeRoot) as caught:
        probe(link, unset)
    assert str(caught.value) == (
        "root = '$REMOTEEXEC_NO_SUCH/x' of cluster 'mycluster' cannot be expanded there: REMOTEEXEC_NO_SUCH is not "
        "set.\nName another root: `remoteexec config add-cluster mycluster --root PATH`, or add `--login-shell`."
    )


@pytest.mark.parametrize("mode", ["0770", "0755", "0702"])
def test_a_root_that_is_open_to_others_is_refused(link: FabricLink, config: ClusterConfig, mode: str) -> None:
    out(link, 'mkdir -p "$0" && chmod "$1" "$0"', config.root, mode)
    expected = (
        f"The root directory {config.root} has mode {mode}: others can read or change it.\n"
        f"See that nothing in it is foreign, then run on the cluster: chmod 700 {shlex.quote(config.root)}"
    )
    with pytest.raises(UnsafeRoot) as caught:
        install(link, config)
    assert (str(caught.value), look(link, config).root_problem) == (f"mycluster: {expected}", expected)
    assert out(link, 'ls -A "$0"; stat -c %a "$0"', config.root) == f"{mode[1:]}\n"


def test_a_root_that_everybody_can_exchange_is_refused(link: FabricLink, config: ClusterConfig) -> None:
    above = str(PurePosixPath(config.root).parent)
    out(link, 'chmod 777 "$0"', above)
    with pytest.raises(UnsafeRoot) as caught:
        install(link, config)
    assert str(caught.value) == (
        f"mycluster: The root directory {config.root} lies below {above}, where everybody can write and so exchange "
        "what is in it.\nName another root."
    )
    assert not is_there(link, config.root)
    out(link, 'chmod 1777 "$0"', above)
    assert install(link, config).root == PurePosixPath(config.root)


def test_a_root_of_somebody_else_is_refused(link: FabricLink, cluster: Cluster, config: ClusterConfig) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a directory of somebody else")
    root = Path(config.root)
    root.mkdir(mode=0o700)
    mine = int(out(link, "id -u"))
    os.chown(root, 12345, 12345)
    with pytest.raises(UnsafeRoot) as caught:
        install(link, config)
    assert str(caught.value) == (
        f"mycluster: The root directory {root} belongs to user id 12345, not to you ({mine}).\nName another root."
    )
    assert list(root.iterdir()) == []


def test_a_link_or_a_file_is_no_root(link: FabricLink, config: ClusterConfig) -> None:
    out(link, 'mkdir "$0.real"; ln -s "$0.real" "$0"', config.root)
    with pytest.raises(UnsafeRoot) as caught:
        install(link, config)
    assert str(caught.value) == (
        f"mycluster: The root directory {config.root} is a symbolic link.\nName the directory: {config.root}.real"
    )
    out(link, 'rm "$0"; touch "$0"', config.root)
    with pytest.raises(UnsafeRoot) as caught:
        install(link, config)
    assert str(caught.value) == f"mycluster: The root directory {config.root} is not a directory.\nName another root."


def test_a_root_that_cannot_be_made_is_refused(link: FabricLink, config: ClusterConfig) -> None:
    needs_ordinary_user(link)
    with pytest.raises(UnsafeRoot) as caught:
        install(link, dataclasses.replace(config, root="/remoteexec-root/x"))
    assert str(caught.value) == (
        "mycluster: The root directory /remoteexec-root/x cannot be made: / is not writable.\nName another root."
    )


def test_looking_changes_nothing(link: FabricLink, config: ClusterConfig) -> None:
    found = look(link, config)
    assert (found.root_exists, found.root_problem, found.package, found.unmet) == (False, None, False, ())
    assert (found.root, found.python_path, found.python_minor) == (PurePosixPath(config.root), config.python, HERE)
    assert not is_there(link, config.root)


def test_what_is_not_installed_says_so(link: FabricLink, config: ClusterConfig) -> None:
    digest = package_files().digest
    with pytest.raises(RunnerMissing) as caught:
        probe(link, config)
    assert str(caught.value) == (
        f"The cluster side of this version is not installed on 'mycluster' (no {config.root}/server/{digest}"
        "/remoteexec_server).\nRun `remoteexec install mycluster`."
    )
    install(link, config)
    without = dataclasses.replace(config, python=None)
    with pytest.raises(RunnerMissing) as caught:
        probe(link, without)
    assert str(caught.value) == (
        f"There is no Python for us on 'mycluster' (no program {config.root}/env/bin/python).\n"
        "Run `remoteexec install mycluster`."
    )


def test_a_python_that_does_not_exist_is_named(link: FabricLink, config: ClusterConfig) -> None:
    with pytest.raises(RunnerMissing) as caught:
        install(link, config, python="/no such/python")
    assert str(caught.value) == (
        "mycluster: /no such/python does not start as a Python on the cluster.\nName another one."
    )
    assert not is_there(link, config.root)


def other_pythons() -> list[Path]:
    """Interpreters of this machine that have another minor version than the client."""
    found = [*Path.home().glob(".pyenv/versions/*/bin/python3.*"), *Path("/usr/bin").glob("python3.*")]
    return sorted(path for path in found if re.fullmatch(r"python3\.\d+", path.name) and path.name != f"python{HERE}")


def test_another_minor_version_is_refused_before_anything_is_made(embedded_cluster: EmbeddedTestCluster) -> None:
    """Each of them, from 3.6 on: the script that says so has to run on it."""
    others = other_pythons()
    if not others:
        pytest.skip(f"this machine has no other Python than {HERE}")
    config = configuration(embedded_cluster)
    link = FabricLink(config.ssh_settings())
    link.connect()
    for python in others:
        there = python.name.removeprefix("python")
        with pytest.raises(PythonMismatch) as caught:
            install(link, config, python=str(python))
        error = caught.value
        assert (error.here, error.there) == (HERE, there)
        assert str(error).startswith(
            f"mycluster: {python} is Python {there}, your client's is {HERE}; a function pickled by one minor version "
            "can crash another.\nOn PATH there: "
        )
        assert str(error).endswith(
            f"\nName a Python {HERE} of the cluster: `--python PATH`, or run your client with a Python that the "
            "cluster has."
        )
    assert not is_there(link, config.root)
    link.close()


def bare_environment(link: FabricLink, cluster: Cluster, *options: str) -> str:
    """An environment of the cluster's user without any package but pip."""
    directory = str(cluster.make_directory(f"venv-{os.urandom(4).hex()}"))
    base = out(link, '"$0" -c "import sys; print(sys.base_prefix)"', str(cluster.python)).strip()
    link.run([f"{base}/bin/python{HERE}", "-m", "venv", *options, directory]).check()
    return f"{directory}/bin/python"


def test_without_an_index_the_error_says_so(slurm_cluster: SlurmCluster) -> None:
    config = configuration(slurm_cluster)
    link = FabricLink(config.ssh_settings())
    link.connect()
    python = bare_environment(link, slurm_cluster)
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": ""}
    site = out(link, '"$0" -c "import sysconfig; print(sysconfig.get_path(\'purelib\'))"', python).strip()
    link.put_file(f"import os; os.environ.update({offline!r})\n".encode(), PurePosixPath(site) / "offline.pth")
    with pytest.raises(RunnerError) as caught:
        install(link, config, python=python)
    message = str(caught.value)
    assert message.startswith("mycluster: No package index can be reached from the cluster; wanted: cloudpickle==")
    assert "pip's last lines:\n" in message
    assert message.endswith("\nInstall them there by other means and name that Python: `--python PATH`.")
    link.close()


def test_an_environment_that_cannot_be_written_to_names_what_it_lacks(
    link: FabricLink, cluster: Cluster, config: ClusterConfig
) -> None:
    needs_ordinary_user(link)
    python = bare_environment(link, cluster, "--without-pip")
    out(link, 'chmod -R a-w "$0"', str(Path(python).parents[1]))
    with pytest.raises(RunnerMissing) as caught:
        install(link, config, python=python, with_packages=["ase>=3"])
    out(link, 'chmod -R u+w "$0"', str(Path(python).parents[1]))
    import cloudpickle

    assert str(caught.value) == (
        f"mycluster: {python} lacks cloudpickle=={cloudpickle.__version__}, h5py>=3.9,<4, numpy>=1.23,<3, "
        "pysqa>=1.0,<2, ase>=3, and its environment cannot be written to.\n"
        "Have them installed there, or name no Python: then an environment of ours is made."
    )


@pytest.mark.parametrize("requirement", ["", " ", "-rfile", "--index-url=http://x"])
def test_an_option_is_no_requirement(requirement: str) -> None:
    config = ClusterConfig(name="c", host="h")
    with pytest.raises(ConfigError, match="--with "):
        install(FabricLink(config.ssh_settings()), config, with_packages=[requirement])


def test_an_environment_of_ours_is_made_from_a_bare_python(slurm_cluster: SlurmCluster) -> None:
    config = configuration(slurm_cluster)
    link = FabricLink(config.ssh_settings())
    link.connect()
    base = out(link, '"$0" -c "import sys; print(sys.base_prefix)"', str(slurm_cluster.python)).strip()
    steps: list[str] = []
    try:
        installed = install(link, config, f"{base}/bin/python{HERE}", ["tomli"], steps.append)
    except RunnerError as exc:
        if "No package index" in str(exc):
            pytest.skip("no package index can be reached")
        raise
    assert (installed.python, installed.own_environment) == (PurePosixPath(config.root) / "env/bin/python", True)
    assert [step.split()[0] for step in steps] == ["making", "installing", "sending"]
    own = dataclasses.replace(config, python=None)
    assert probe(link, own).problem is None
    assert out(link, '"$0" -c "import tomli; print(tomli.__name__)"', str(installed.python)) == "tomli\n"
    again: list[str] = []
    assert (install(link, own, report=again.append), again) == (installed, [])
    link.close()


def test_the_line_that_starts_us_works_in_every_shell(slurm_cluster: SlurmCluster) -> None:
    """sshd hands the line to the user's login shell, whatever that is."""
    config = configuration(slurm_cluster)
    link = FabricLink(config.ssh_settings())
    link.connect()
    install(link, config)
    link.close()
    line = shlex.join(start_argv(config, package_files().digest, "probe", "--scheduler", "local", "--sentinel", "ab"))
    for shell in ("sh", "bash", "dash", "zsh", "tcsh", "fish"):
        found = subprocess.run(["which", shell], capture_output=True, text=True, check=False).stdout.strip()
        if found:
            assert '"sentinel": "ab"' in slurm_cluster.run([found, "-c", line]).stdout
