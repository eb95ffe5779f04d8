"""The unit systemd/hub.service: systemd accepts it, it is closed, and its times fit the settings' defaults.

Checked without a running systemd; DynamicUser and the system call filter themselves show only on a real host.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.config import Settings, load
from hub.mistakes import as_table

UNIT = Path(__file__).parent.parent / "systemd" / "hub.service"
systemd = pytest.mark.needs("systemd-analyze", "apt-get install systemd")


def directives() -> Iterator[tuple[str, str]]:
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            yield key, value


def value(key: str) -> str:
    [found] = [text for name, text in directives() if name == key]
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A copy that runs /bin/true, as /opt/hub isn't here, with the commented examples in force."""
    text = UNIT.read_text().replace("/opt/hub/bin/hub ", "/bin/true ")
    copy = tmp_path / "hub.service"
    copy.write_text(re.sub(r"^# (?=LoadCredential=|MemoryMax=)", "", text, flags=re.MULTILINE))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=20)


@systemd
def test_systemd_accepts_the_unit(unit: Path) -> None:
    """`verify` has nothing to say: no unknown key, no bad value, its own examples included."""
    # Without --recursive-errors=yes an unknown key is a warning and exit status 0.
    result = analyze("verify", "--recursive-errors=yes", str(unit))
    assert (result.returncode, result.stderr) == (0, "")


@systemd
def test_verify_would_notice(unit: Path) -> None:
    """The check above can fail: a misspelt directive is refused."""
    unit.write_text(unit.read_text().replace("KillMode=", "KillMood="))
    assert analyze("verify", "--recursive-errors=yes", str(unit)).returncode != 0


@systemd
def test_the_exposure_is_low(unit: Path) -> None:
    """systemd's own score of the sandbox is at most 2.0 of 10."""
    result = analyze("security", "--offline=true", "--threshold=20", str(unit))
    print(result.stdout.splitlines()[-1])
    score = re.search(r"Overall exposure level for hub.service: ([\d.]+)", result.stdout)
    assert score and float(score[1]) <= 2.0
    assert result.returncode == 0


def test_the_times_fit_the_defaults() -> None:
    """systemd waits longer than a drain, and kills no supervisor that is busy replacing a hung worker."""
    settings = load(None)
    assert float(value("TimeoutStopSec")) > settings.drain_window_s + 15
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
    ],
)
def test_what_the_hub_relies_on(key: str, wanted: str) -> None:
    """Each of these is there once, with the value that the hub's behaviour needs."""
    assert value(key) == wanted


def test_pinning_is_allowed() -> None:
    """The last word of the system call filter lets pin = true work."""
    assert [text for key, text in directives() if key == "SystemCallFilter"][-1] == "sched_setaffinity"


def test_credentials_are_named_like_settings() -> None:
    """The commented examples name secret settings, so that uncommenting one is enough."""
    names = re.findall(r"^# LoadCredential=([^:]+):/etc/hub/\w+$", UNIT.read_text(), re.MULTILINE)
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
    assert [line for line in directives() if "#" in line[1]] == []
