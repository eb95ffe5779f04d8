"""Doctor: `hub doctor` as it is typed, on this machine; its prediction against a hub that is full."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from hub import cli
from hub.diagnosis import Severity
from hub.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE

from .few_files import LIMIT_ENV
from .hubs import HubProcess, clean_environment, run_hub, to_toml

SECRET = "hunter2hunter2hunter2hunter2hunter2"
UPGRADE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
DESCRIPTORS_MARGIN = 16
"""What a worker opens, as its settings have it: a pool's further connections, sockets of its neighbours."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from this machine."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Write a settings file with these over a Redis that is away, and return its path."""

    def write(**values: Any) -> str:
        base = {"state_dir": str(tmp_path / "state"), "listen": ["127.0.0.1:0"], "internal": []}
        path = tmp_path / "hub.toml"
        path.write_text(to_toml({**base, **values}))
        return str(path)

    return write


def report(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and the object that --json prints."""
    ended = run_hub("doctor", "--json", *map(str, arguments))
    assert ended.stderr == ""
    return ended.returncode, json.loads(ended.stdout)


# This machine


def test_this_machine_is_examined(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A single client breaks nothing: exit status 0, a head, a verdict, and with --all what is fine."""
    path = config()
    assert cli.run(["doctor", "-n", "1", "--config", path]) == EXIT_OK
    shown = capsys.readouterr()
    assert shown.err == ""
    head, verdict, *_ = shown.out.splitlines()
    assert head.startswith("1 connections (websocket) on ") and verdict.startswith("This machine holds about ")
    assert "BREAKS" not in shown.out and "more are fine" in shown.out
    assert cli.run(["doctor", "-n", "1", "--all", "--config", path]) == EXIT_OK
    assert "\nfine    open files: " in capsys.readouterr().out


def test_too_many_break_it(config: Any) -> None:
    """A hundred million: exit status 1, worst first, and each finding that breaks says at which number."""
    status, said = report("-n", 100_000_000, "--config", config())
    assert status == EXIT_FAILED and not said["ok"]
    severities = [Severity[one["severity"].upper()] for one in said["findings"]]
    assert severities == sorted(severities) and severities[0] is Severity.BREAKS
    breaking = [one for one in said["findings"] if one["severity"] == "breaks"]
    assert [one["ceiling"] for one in breaking] == sorted(one["ceiling"] for one in breaking)
    assert (said["holds"], said["first_limit"]) == (breaking[0]["ceiling"], breaking[0]["rule"])
    assert {"memory", "open files"} <= {one["rule"] for one in breaking}
    assert all(one["found"] for one in said["findings"])


def test_a_redis_that_is_away_breaks_it_and_its_password_is_not_told(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(redis={"url": f"redis://:{SECRET}@127.0.0.1:1"}, auth={"hmac_secret": SECRET}, api={"key": SECRET})
    for option in ("--all", "--json"):
        assert cli.run(["doctor", option, "--config", path]) == EXIT_FAILED
        shown = capsys.readouterr()
        assert "127.0.0.1:1" in shown.out and "does not start" in shown.out
        assert SECRET not in shown.out + shown.err


def test_a_port_that_is_taken_is_told(config: Any) -> None:
    """Without a hub that is looked at, it may be another's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        _, said = report("-n", 1, "--config", config(listen=[address]))
    found = {one["rule"]: one for one in said["findings"]}[f"listener {address}"]
    assert (found["severity"], found["found"]) == ("risk", "in use by a process")


def test_wrong_settings_and_arguments_exit_with_2(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", "--config", str(tmp_path / "none.toml")]) == EXIT_USAGE
    assert cli.run(["doctor", "-n", "0", "--config", config()]) == EXIT_USAGE
    assert cli.run(["doctor", "--wire", "telex", "--config", config()]) == EXIT_USAGE
    assert capsys.readouterr().out == ""


def test_a_pid_of_no_hub_is_a_wrong_argument(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its limits would be told as the hub's."""
    for pid, words in ((4194999, "which no process has"), (os.getpid(), "which is no hub")):
        assert cli.run(["doctor", "--pid", str(pid), "--config", config()]) == EXIT_USAGE
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == (
            "",
            f"hub: --pid: found {pid}, {words}; allowed: the pid of a hub's supervisor\n",
        )


# A hub that is full


@contextmanager
def full(hub: HubProcess, most: int) -> Iterator[int]:
    """Connect until one is turned away with 503; how many are in."""
    host, _, port = hub.ws_url.split("/")[2].partition(":")
    with ExitStack() as held:
        for count in range(most):
            sock = held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            sock.sendall(UPGRADE)
            answer = sock.recv(4096)
            if answer.startswith(b"HTTP/1.1 503 "):
                yield count
                return
            assert answer.startswith(b"HTTP/1.1 101 ")
        pytest.fail(f"nobody was turned away, {most} are in")


@pytest.mark.parametrize("limit", [200, 300])
def test_the_prediction_is_what_a_full_worker_holds(limit: int) -> None:
    """Doctor looks at a hub that runs with few descriptors; then clients come until one is told that it is full."""
    settings = {"workers": 1, "listen": ["127.0.0.1:0"]}
    with HubProcess(settings, module="tests.few_files", env={LIMIT_ENV: str(limit)}) as hub:
        status, said = report("-n", 1000, "--pid", hub.pid, "--config", hub.config_path)
        assert (status, said["first_limit"]) == (EXIT_FAILED, "open files")
        found = {one["rule"]: one["found"] for one in said["findings"]}
        assert found["Redis persistence"] == "append-only file" and found["Redis eviction"] == "noeviction, 256.0 MiB"
        with full(hub, 1000) as held:
            assert said["holds"] - DESCRIPTORS_MARGIN <= held <= said["holds"] + DESCRIPTORS_MARGIN


def test_the_first_of_two_workers_is_full_where_it_was_predicted() -> None:
    """The kernel spreads clients by chance: within four standard deviations of it, and never more than both hold."""
    settings = {"workers": 2, "listen": ["127.0.0.1:0"]}
    with HubProcess(settings, module="tests.few_files", env={LIMIT_ENV: "300"}) as hub:
        _, said = report("-n", 1000, "--pid", hub.pid, "--config", hub.config_path)
        with full(hub, 1000) as held:
            assert abs(held - said["holds"]) <= 4 * 20 + DESCRIPTORS_MARGIN
            assert held <= 2 * (300 - 64)


def test_a_limit_that_doctor_calls_enough_is_enough() -> None:
    """With just the number that it asks for, so many clients are in."""
    settings = {"workers": 1, "listen": ["127.0.0.1:0"]}
    with HubProcess(settings, module="tests.few_files", env={LIMIT_ENV: "200"}) as hub:
        _, said = report("-n", 250, "--pid", hub.pid, "--config", hub.config_path)
    needed = int({one["rule"]: one for one in said["findings"]}["open files"]["needed"])
    enough = {LIMIT_ENV: str(needed + DESCRIPTORS_MARGIN)}
    with HubProcess(settings, module="tests.few_files", env=enough) as hub, full(hub, 1000) as held:
        assert 250 <= held <= 250 + 2 * DESCRIPTORS_MARGIN
