"""systemd/install.sh and uninstall.sh, really run below a directory of their own: what they leave, keep and refuse."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from hub import __version__
from tests.hubs import clean_environment

CHECKOUT = Path(__file__).parent.parent
SCRIPTS = CHECKOUT / "systemd"
UNITS = ["hub-http@.socket", "hub-https@.socket", "hub-tune.service", "hub.service", "hub@.service"]
systemctl = pytest.mark.needs("systemctl", "apt-get install systemd")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub as a wheel, made by hand: it is nothing but files, and needs no network."""
    return make_wheel(tmp_path_factory.mktemp("wheel"), __version__)


def make_wheel(directory: Path, version: str) -> Path:
    info = f"hub-{version}.dist-info"
    files = {
        str(path.relative_to(CHECKOUT)): path.read_bytes()
        for path in sorted((CHECKOUT / "hub").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    text = files["hub/__init__.py"].decode().replace(f'"{__version__}"', f'"{version}"')
    files["hub/__init__.py"] = text.encode()
    metadata = f"Metadata-Version: 2.1\nName: hub\nVersion: {version}\nProvides-Extra: embedded\n"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nhub = hub.cli:main\n"
    lines = [f"{name},sha256={digest(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    path = directory / f"hub-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class Machine:
    """A directory as the root of one."""

    def __init__(self, root: Path, wheel: Path, umask: int = 0o077) -> None:
        self.root = root
        self.wheel = wheel
        self.umask = umask

    def __truediv__(self, path: str) -> Path:
        return self.root / path

    def run(self, script: str, *arguments: str, status: int = 0) -> str:
        """What it has said; both kinds of output."""
        done = subprocess.run(
            [SCRIPTS / script, "--root", self.root, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            # The libraries are those that run the tests.
            env={**clean_environment(), "PYTHONPATH": sysconfig.get_path("purelib")},
            umask=self.umask,
            cwd="/",
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def install(self, *arguments: str, status: int = 0) -> str:
        base = ["--from", str(self.wheel), "--python", sys.executable, "--pip-args", "--no-index --no-deps"]
        return self.run("install.sh", *base, *arguments, status=status)

    def tree(self) -> dict[str, tuple[int, str]]:
        """Mode and content of all files, but for the releases; where links lead."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if "hub-releases/" in name:
                continue
            if path.is_symlink():
                found[name] = (0, os.readlink(path))
            elif path.is_file():
                found[name] = (path.stat().st_mode & 0o777, path.read_text())
        return found

    def releases(self) -> list[str]:
        directory = self / "opt/hub-releases"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
def machine(tmp_path: Path, wheel: Path) -> Machine:
    root = tmp_path / "root"
    root.mkdir()
    return Machine(root, wheel)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Machine:
    """One that the tests which only look share."""
    root = tmp_path_factory.mktemp("root")
    # The others' is strict: whatever it is, secrets are for root alone and the rest is for everybody.
    machine = Machine(root, wheel, umask=0o000)
    machine.install("--yes")
    return machine


def test_without_yes_nothing_is_done(machine: Machine) -> None:
    """It lists each step and touches nothing."""
    text = machine.install()
    assert list(machine.root.iterdir()) == []
    for part in ("hub.toml", "hmac_secret", "hub.service", "60-hub.conf", "virtual environment", "--yes does them"):
        assert part in text


@systemctl
def test_installed_it_runs_from_its_release(installed: Machine) -> None:
    """/opt/hub leads to a release that anybody may read, and whose hub runs."""
    [release] = installed.releases()
    assert re.fullmatch(rf"{re.escape(__version__)}-\d{{8}}T\d{{6}}", release)
    assert os.readlink(installed / "opt/hub") == f"hub-releases/{release}"
    env = {**clean_environment(), "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [installed / "opt/hub/bin/python", "-c", "import hub; print(hub.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd="/").stdout
    assert found.startswith(f"{installed.root}/opt/hub")
    assert (installed / "opt/hub/bin/hub").stat().st_mode & 0o777 == 0o755


@systemctl
def test_installed_there_are_settings_and_secrets(installed: Machine) -> None:
    """Settings for everybody to read, two different secrets for root alone, handed over by a drop-in."""
    tree = installed.tree()
    assert tree["etc/hub/hub.toml"] == (0o644, (CHECKOUT / "config/hub.toml").read_text())
    secrets = [tree["etc/hub/hmac_secret"], tree["etc/hub/api_key"]]
    assert [mode for mode, _ in secrets] == [0o600, 0o600]
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", text) for _, text in secrets)
    assert secrets[0] != secrets[1]
    mode, text = tree["etc/systemd/system/hub.service.d/10-secrets.conf"]
    assert mode == 0o644
    assert "LoadCredential=auth.hmac_secret:/etc/hub/hmac_secret\n" in text
    assert "LoadCredential=api.key:/etc/hub/api_key\n" in text
    assert not [name for name in tree if name.endswith(".new")]


@systemctl
def test_installed_the_units_are_ours_and_enabled(installed: Machine) -> None:
    tree = installed.tree()
    for name in UNITS:
        assert tree[f"etc/systemd/system/{name}"] == (0o644, (SCRIPTS / name).read_text())
    assert "etc/systemd/system/multi-user.target.wants/hub.service" in tree
    assert "etc/systemd/system/hub.service.wants/hub-tune.service" in tree
    assert tree["etc/sysctl.d/60-hub.conf"] == (0o644, (CHECKOUT / "config/sysctl/60-hub.conf").read_text())


@systemctl
def test_a_second_time_there_is_nothing_to_do(installed: Machine) -> None:
    before = installed.tree(), installed.releases()
    assert installed.install("--yes").endswith("Nothing to do.\n")
    assert (installed.tree(), installed.releases()) == before


@systemctl
def test_an_upgrade_keeps_what_is_the_operators(machine: Machine, tmp_path: Path) -> None:
    """Settings, secrets, kernel settings and drop-ins stay, and units are ours.

    The release before stays, and one that a hub runs from; older ones go.
    """
    machine.install("--yes")
    (machine / "etc/sysctl.d/60-hub.conf").write_text("# mine\n")
    (machine / "etc/systemd/system/hub.service.d/10-secrets.conf").write_text("# mine\n")
    (machine / "etc/systemd/system/hub.service").write_text("# an older one\n")
    (machine / "etc/systemd/system/hub.service.d/20-mine.conf").write_text("# mine\n")
    mine = {name: machine.tree()[name] for name in machine.tree() if name != "etc/systemd/system/hub.service"}
    (machine / "etc/hub/hub.toml").write_text("demo = true  # mine\n")
    mine["etc/hub/hub.toml"] = machine.tree()["etc/hub/hub.toml"]
    releases = machine.releases()
    python = machine / f"opt/hub-releases/{releases[0]}/bin/python"
    # Stands for a hub that has not been restarted.
    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as running:
        for version in ("7.0.0", "7.0.1"):
            machine.wheel = make_wheel(tmp_path, version)
            said = machine.install("--yes")
            assert "/opt/hub/bin/hub deploy --config /etc/hub/hub.toml\n" in said and "systemctl restart hub" in said
            assert machine.releases()[:-1] == releases
            releases = machine.releases()
            assert releases[-1].startswith(f"{version}-")
            assert os.readlink(machine / "opt/hub") == f"hub-releases/{releases[-1]}"
        assert running.poll() is None
        running.communicate(b"\n")
    machine.wheel = make_wheel(tmp_path, "7.0.2")
    machine.install("--yes")
    assert [name[:5] for name in machine.releases()] == ["7.0.1", "7.0.2"]
    mine["opt/hub"] = machine.tree()["opt/hub"]
    tree = machine.tree()
    assert tree.pop("etc/systemd/system/hub.service")[1] == (SCRIPTS / "hub.service").read_text()
    assert tree == mine


@systemctl
def test_a_version_that_refuses_the_settings_is_not_used(machine: Machine, tmp_path: Path) -> None:
    """The settings are checked by the new version, with the secrets, before anything is changed."""
    machine.install("--yes")
    (machine / "etc/hub/hub.toml").write_text("wrokers = 1\n")
    before = machine.tree(), machine.releases()
    machine.wheel = make_wheel(tmp_path, "7.0.0")
    text = machine.install("--yes", status=1)
    assert "wrokers" in text and "the installed one stays" in text
    assert (machine.tree(), machine.releases()) == before
    (machine / "etc/hub/hub.toml").write_text("workers = 1\n")
    machine.install("--yes")  # its secrets were found: without one `hub check` fails
    assert machine.releases()[-1].startswith("7.0.0-")


def test_what_pip_cannot_install_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    broken = tmp_path / "hub-1.0-py3-none-any.whl"
    broken.write_bytes(b"no wheel")
    machine.wheel = broken
    assert "pip could not install" in machine.install("--yes", status=1)
    assert (machine.tree(), machine.releases()) == ({}, [])


@systemctl
def test_secrets_that_are_handed_over_otherwise_are_left_alone(machine: Machine) -> None:
    dropin = machine / "etc/systemd/system/hub.service.d/mine.conf"
    dropin.parent.mkdir(parents=True)
    dropin.write_text("[Service]\nLoadCredential=auth.hmac_secret:/srv/secret\n")
    machine.install("--yes")
    assert {"etc/hub/hmac_secret", "etc/systemd/system/hub.service.d/10-secrets.conf"}.isdisjoint(machine.tree())


@systemctl
def test_another_prefix_is_in_the_units(machine: Machine) -> None:
    """And the release there is for everybody to read, though root's umask is strict."""
    machine.install("--yes", "--prefix", "/srv/realtime/hub", "--no-tune")
    _, text = machine.tree()["etc/systemd/system/hub@.service"]
    assert "ExecStart=/srv/realtime/hub/bin/hub serve --config /etc/hub/%i.toml\n" in text
    assert "/opt/hub" not in text
    [release] = (machine / "srv/realtime/hub-releases").iterdir()
    assert [path for path in (release, *release.rglob("*")) if not path.stat().st_mode & 0o004] == []
    assert "etc/sysctl.d/60-hub.conf" not in machine.tree()


@systemctl
def test_uninstalled_settings_and_data_stay(machine: Machine) -> None:
    """And installed again it has the same secrets."""
    machine.install("--yes")
    (machine / "var/lib/hub").mkdir(parents=True)
    (machine / "var/lib/hub/appendonly.aof").write_text("data")
    secret = machine.tree()["etc/hub/hmac_secret"]
    before = machine.tree()
    assert "--yes does them" in machine.run("uninstall.sh")
    assert machine.tree() == before
    machine.run("uninstall.sh", "--yes")
    assert sorted(machine.tree()) == [
        "etc/hub/api_key",
        "etc/hub/hmac_secret",
        "etc/hub/hub.toml",
        "var/lib/hub/appendonly.aof",
    ]
    assert machine.releases() == []
    assert "Nothing to do." in machine.run("uninstall.sh", "--yes")
    machine.install("--yes")
    assert machine.tree()["etc/hub/hmac_secret"] == secret


TUNED = "etc/security/limits.d/60-hub.conf"
RECORD = "var/lib/hub-tune/record.json"


def tune(machine: Machine, *arguments: str) -> None:
    command = [machine / "opt/hub/bin/hub", "tune", "--root", machine.root, *arguments]
    env = {**clean_environment(), "PYTHONPATH": sysconfig.get_path("purelib")}
    subprocess.run(command, env=env, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)


@systemctl
def test_uninstalled_the_tuning_stays_unless_it_is_taken_back(machine: Machine) -> None:
    """By a word of its own, and before the hub that can do it is gone; where it can't be, nothing is removed."""
    machine.install("--yes")
    tune(machine, "--apply")
    before = machine.tree()
    assert TUNED in before and RECORD in before
    assert "(kept: what `hub tune --apply` has changed; --undo-tune takes it back)" in machine.run("uninstall.sh")
    assert "take back what `hub tune --apply` has changed" in machine.run("uninstall.sh", "--undo-tune")
    assert machine.tree() == before
    (machine / TUNED).write_text("# mine\n")
    mine = machine.tree()
    assert "nothing was removed" in machine.run("uninstall.sh", "--yes", "--undo-tune", status=1)
    kept = {name for name in mine if not name.startswith(("etc/sysctl.d/", "var/lib/hub-tune/"))}
    assert {name: machine.tree()[name] for name in kept} == {name: mine[name] for name in kept}
    (machine / TUNED).write_text(before[TUNED][1])
    machine.run("uninstall.sh", "--yes", "--undo-tune")
    assert sorted(machine.tree()) == ["etc/hub/api_key", "etc/hub/hmac_secret", "etc/hub/hub.toml"]
    (machine / RECORD).parent.mkdir(parents=True, exist_ok=True)
    (machine / RECORD).write_text("{}")
    assert "allowed: with the hub installed" in machine.run("uninstall.sh", "--yes", "--undo-tune", status=1)


@systemctl
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ('[auth]\nhmac_secret_file = "/etc/hub/old secret"\n', [("auth.hmac_secret_file", "hmac_secret")]),
        (
            '[auth]\nhmac_secret_file = "a"\n[api]\nkey_file = "b"\n',
            [("auth.hmac_secret_file", "hmac_secret"), ("api.key_file", "api_key")],
        ),
    ],
)
def test_a_secret_that_comes_twice_is_told_with_the_way_out(
    machine: Machine, settings: str, named: list[tuple[str, str]]
) -> None:
    """By a file of the settings from before, and as a credential: lines for each, and nothing is changed."""
    (machine / "etc/hub").mkdir(parents=True)
    (machine / "etc/hub/hub.toml").write_text(settings)
    before = machine.tree()
    for arguments in ([], ["--yes"]):
        text = machine.install(*arguments, status=1)
        assert "do not fit together; nothing was changed" in text
        keys = re.findall(r"^  (\S+) in /etc/hub/hub\.toml names .*, and hub\.service hands", text, re.MULTILINE)
        assert list(zip(keys, re.findall(r"install -m 600 .* /etc/hub/(\w+)", text), strict=True)) == named
        assert (machine.tree(), machine.releases()) == (before, [])
    (machine / "etc/hub/hub.toml").write_text("workers = 1\n")
    machine.install("--yes")


@systemctl
def test_a_file_of_the_settings_is_no_conflict_where_no_unit_hands_the_same_over(machine: Machine) -> None:
    """As with one secret that the operator's own drop-in hands over; that one is."""
    dropin = machine / "etc/systemd/system/hub.service.d/mine.conf"
    dropin.parent.mkdir(parents=True)
    dropin.write_text("[Service]\nLoadCredential=auth.hmac_secret:/etc/hub/mine\n")
    (machine / "etc/hub").mkdir(parents=True)
    for name in ("mine", "key"):
        (machine / "etc/hub" / name).write_text(name * 32)
        (machine / "etc/hub" / name).chmod(0o600)
    (machine / "etc/hub/hub.toml").write_text('[api]\nkey_file = "key"\n')
    machine.install("--yes")
    (machine / "etc/hub/hub.toml").write_text('[auth]\nhmac_secret_file = "mine"\n')
    assert "auth.hmac_secret_file in" in machine.install("--yes", status=1)


@systemctl
def test_purged_nothing_is_left_but_what_is_the_operators(machine: Machine) -> None:
    machine.install("--yes")
    (machine / "etc/systemd/system/hub.service.d/mine.conf").write_text("# mine\n")
    (machine / "etc/sysctl.d/60-hub.conf").write_text("# mine\n")
    (machine / "etc/systemd/system/sockets.target.wants").mkdir()
    for number in range(2):
        name = f"hub-http@{number}.socket"
        (machine / f"etc/systemd/system/sockets.target.wants/{name}").symlink_to("/etc/systemd/system/hub-http@.socket")
    machine.run("uninstall.sh", "--yes", "--purge")
    assert sorted(machine.tree()) == ["etc/sysctl.d/60-hub.conf", "etc/systemd/system/hub.service.d/mine.conf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prefix", "/"], "--prefix: found /"),
        (["--prefix", "/usr"], "--prefix: found /usr"),
        (["--prefix", "opt/hub"], "--prefix: found opt/hub"),
        (["--prefix", "/opt/../etc"], "--prefix: found /opt/../etc"),
        (["--prefix", "/opt/a b"], "--prefix: found /opt/a b"),
        (["--prefix"], "--prefix: found nothing behind it"),
        (["--root", "/nowhere"], "--root: found /nowhere"),
        (["--force"], "found --force"),
    ],
)
@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_wrong_arguments_are_told_in_one_line(machine: Machine, script: str, arguments: list[str], words: str) -> None:
    text = machine.run(script, "--yes", *arguments, status=2)
    assert text.startswith(f"{script}: {words}") and text.count("\n") == 1


@systemctl
def test_installed_from_the_checkout_it_leaves_that_as_it_was(machine: Machine) -> None:
    """Built by pip from a copy: no build directory, which the next build would take old files from."""
    before = {path.name for path in CHECKOUT.iterdir()}
    machine.run("install.sh", "--yes", "--python", sys.executable, "--pip-args", "--no-deps")
    assert {path.name for path in CHECKOUT.iterdir()} == before
    [release] = (machine / "opt/hub-releases").iterdir()
    [package] = release.glob("lib/python3*/site-packages/hub")
    assert {path.relative_to(package) for path in package.rglob("*.lua")} == {
        path.relative_to(CHECKOUT / "hub") for path in (CHECKOUT / "hub").rglob("*.lua")
    }


def test_a_directory_that_is_no_checkout_is_refused(machine: Machine, tmp_path: Path) -> None:
    assert "allowed: a wheel file, or a checkout" in machine.run("install.sh", "--from", str(tmp_path), status=1)


@pytest.mark.needs("setpriv", "apt-get install util-linux")
@pytest.mark.skipif(os.geteuid() != 0, reason="is root, to be another user")
def test_without_root_it_says_so() -> None:
    """Before anything else, in one line. Read from standard input, as not every user can read the checkout."""
    for script in ("install.sh", "uninstall.sh"):
        command = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s", "--", "--yes"]
        text = (SCRIPTS / script).read_text().replace('. "$here/steps.sh"', (SCRIPTS / "steps.sh").read_text())
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 1 and "allowed: root" in done.stderr, done


@pytest.mark.needs("shellcheck", "apt-get install shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    command = ["shellcheck", "--external-sources", "--source-path", SCRIPTS, *SCRIPTS.glob("*.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
