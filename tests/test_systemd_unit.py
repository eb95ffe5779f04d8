"""The units in systemd/: systemd accepts them, they are closed, and their times fit the settings' defaults.

Checked without a running systemd; tests/e2e/test_sandbox.py runs a hub under the system call filter. DynamicUser and
the file system's protection show only on a real host.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.config import Settings, load
from hub.mistakes import as_table
from hub.tune import SYSCTL_PATH

DIRECTORY = Path(__file__).parent.parent / "systemd"
UNIT = DIRECTORY / "hub.service"
SERVICES = sorted(path.name for path in DIRECTORY.glob("*.service"))
SOCKETS = sorted(path.name for path in DIRECTORY.glob("*.socket"))
DROPINS = sorted(str(path.relative_to(DIRECTORY)) for path in DIRECTORY.glob("*.d/*"))
EXPOSURE = 15
"""Of systemd's own score, times ten."""
systemd = pytest.mark.needs("systemd-analyze", "apt-get install systemd")


def directives(unit: Path = UNIT) -> Iterator[tuple[str, str]]:
    for line in unit.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            yield key, value


def value(key: str, unit: Path = UNIT) -> str:
    [found] = [text for name, text in directives(unit) if name == key]
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of all that run /bin/true, as /opt/hub isn't here, with the commented examples in force."""
    directory = tmp_path / "system"
    shutil.copytree(DIRECTORY, directory)
    for name in SERVICES:
        text = (directory / name).read_text().replace("/opt/hub/bin/hub ", "/bin/true ")
        (directory / name).write_text(re.sub(r"^# (?=LoadCredential=|MemoryMax=)", "", text, flags=re.MULTILINE))
    (directory / "valkey-server.service").write_text("[Service]\nExecStart=/bin/true\n")
    return directory


@pytest.fixture
def unit(units: Path) -> Path:
    return units / "hub.service"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=20)


@systemd
@pytest.mark.parametrize("name", [*SERVICES, *SOCKETS, "valkey-server.service"])
def test_systemd_accepts_the_unit(units: Path, name: str) -> None:
    """`verify` has nothing to say: no unknown key, no bad value, examples and drop-ins included."""
    # Without --recursive-errors=yes an unknown key is a warning and exit status 0.
    result = analyze("verify", "--recursive-errors=yes", str(units / name))
    assert (result.returncode, result.stderr) == (0, "")


@systemd
@pytest.mark.parametrize("name", [*SERVICES, *SOCKETS, *DROPINS])
def test_verify_would_notice(units: Path, name: str) -> None:
    """The check above can fail: a directive that does not exist is refused in each of the files."""
    path = units / name
    path.write_text(re.sub(r"^(\w+)=", r"\1x=", path.read_text(), count=1, flags=re.MULTILINE))
    unit = path.parent.name.removesuffix(".d") if name in DROPINS else name
    result = analyze("verify", "--recursive-errors=yes", str(units / unit))
    assert result.returncode != 0 or result.stderr


@systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_low(units: Path, name: str) -> None:
    """systemd's own score of the sandbox is at most 1.5 of 10."""
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(units / name))
    print(result.stdout.splitlines()[-1])
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert score and float(score[1]) <= EXPOSURE / 10
    assert result.returncode == 0


@systemd
def test_the_score_would_notice(unit: Path) -> None:
    """The gate above can fail: with all capabilities the score is too high."""
    unit.write_text(unit.read_text().replace("CapabilityBoundingSet=", ""))
    assert analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(unit)).returncode != 0


def test_an_instance_is_the_same_but_for_its_name() -> None:
    """hub@.service is hub.service with %i in its paths: what is learnt about one is put into both."""

    def as_instance(key: str, text: str) -> str:
        if key == "Description":
            return text.replace("hub,", "hub %i,")
        if key in ("StateDirectory", "RuntimeDirectory"):
            return "hub-%i"
        return text.replace("/etc/hub/hub.toml", "/etc/hub/%i.toml")

    instance = list(directives(DIRECTORY / "hub@.service"))
    assert [(key, as_instance(key, text)) for key, text in directives()] == [d for d in instance if d[0] != "User"]
    assert ("User", "hub-%i") in instance


@pytest.mark.parametrize(("name", "port", "protocol"), [("http", "80", ""), ("https", "443", "tls:")])
def test_sockets_are_one_for_each_worker(name: str, port: str, protocol: str) -> None:
    """They share the port, belong to the hub, and are called what the settings in their head name."""
    path = DIRECTORY / f"hub-{name}@.socket"
    found = dict(directives(path))
    assert (found["ListenStream"], found["ReusePort"], found["Service"]) == (port, "yes", "hub.service")
    assert found["FileDescriptorName"] == name
    tcp = Settings().tcp
    assert (int(found["Backlog"]), int(found["ReceiveBuffer"])) == (tcp.backlog, tcp.receive_buffer_bytes)
    assert f'listen = ["{protocol}systemd:{name}"]' in path.read_text()


def test_the_kernel_settings_are_those_that_hub_tune_names() -> None:
    """hub-tune.service loads the file where `hub tune` says that it belongs, and is done before the hub starts."""
    path = DIRECTORY / "hub-tune.service"
    assert value("ConditionPathExists", path) == SYSCTL_PATH
    assert value("ExecStart", path) == f"/usr/sbin/sysctl -q -e -p {SYSCTL_PATH}"
    assert "hub-tune.service" in value("After").split()


def test_the_times_fit_the_defaults() -> None:
    """systemd waits longer than a drain, and kills no supervisor that is busy replacing a hung worker."""
    settings = load(None)
    assert float(value("TimeoutStopSec")) > settings.shutdown_delay_s + settings.drain_window_s + 15
    assert float(value("WatchdogSec")) > settings.heartbeat_timeout_s + 2


def test_waiting_for_redis_never_meets_the_start_limit() -> None:
    """Starts that each wait for redis.start_timeout_s are too few for the limit: the hub comes when Redis does."""
    each = Settings().redis.start_timeout_s + float(value("RestartSec"))
    assert float(value("StartLimitIntervalSec")) / each < float(value("StartLimitBurst"))


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "mixed"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2"),
        ("LimitNOFILE", "1048576"),
        ("OOMPolicy", "continue"),
        ("DynamicUser", "yes"),
        ("StateDirectory", "hub"),
        ("UMask", "0077"),
        ("Environment", "MALLOC_ARENA_MAX=2"),
        ("ExecStartPre", "/opt/hub/bin/hub check --config /etc/hub/hub.toml"),
        ("ExecStart", "/opt/hub/bin/hub serve --config /etc/hub/hub.toml"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
    ],
)
def test_what_the_hub_relies_on(key: str, wanted: str) -> None:
    """Each of these is there once, with the value that the hub's behaviour needs."""
    assert value(key) == wanted


def test_pinning_is_allowed() -> None:
    """The last word of the system call filter lets pin = true work."""
    assert [text for key, text in directives() if key == "SystemCallFilter"][-1] == "sched_setaffinity"


@pytest.mark.parametrize(("name", "directory"), [("hub.service", "/etc/hub"), ("hub@.service", "/etc/hub/%i")])
def test_credentials_are_named_like_settings(name: str, directory: str) -> None:
    """The commented examples name secret settings, so that uncommenting one is enough."""
    names = re.findall(rf"^# LoadCredential=([^:]+):{directory}/\w+$", (DIRECTORY / name).read_text(), re.MULTILINE)
    secrets = [
        f"{table}.{name}"
        for table, field in Settings.model_fields.items()
        if (inner := as_table(field.annotation))
        for name, setting in inner.model_fields.items()
        if not setting.repr
    ]
    assert sorted(names) == sorted(secrets)


def test_comments_stand_on_their_own_lines() -> None:
    """systemd has no comments at a line's end: it would take them for the value."""
    files = [UNIT.parent / name for name in (*SERVICES, *SOCKETS, *DROPINS)]
    assert [line for path in files for line in directives(path) if "#" in line[1]] == []
