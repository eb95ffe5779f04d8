"""Reload: mistakes of every kind, and signals at every moment, against a real hub that goes on with its clients."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from hub import reloading, status
from hub.errors import HubError
from tests.hubs import HubProcess, merged, to_toml
from tests.test_retune import STREAM, Client, clients, wait_for

BROKEN: dict[str, dict[str, Any]] = {
    "workers": {"workers": 3},
    "pin": {"pin": True},
    "listen": {"listen": ["127.0.0.1:1"]},
    "internal": {"internal": []},
    "state_dir": {"state_dir": "/tmp/elsewhere"},
    "demo": {"demo": True},
    "allowed_origins[0]": {"allowed_origins": ["app.example.com"]},
    "trusted_proxies[0]": {"trusted_proxies": ["10.0.0.0/99"]},
    "drain_window_s": {"drain_window_s": -1},
    "log_level": {"log_level": "loud"},
    "log_burst": {"log_burst": 1.5},
    "redis.url": {"redis": {"url": "redis://127.0.0.1:1"}},
    "redis.prefix": {"redis": {"prefix": "other"}},
    "embedded.maxmemory_mb": {"embedded": {"maxmemory_mb": 17}},
    "auth.hmac_secret": {"auth": {"hmac_secret": 7}},
    "auth.hmac_secret_file": {"auth": {"hmac_secret": "", "hmac_secret_file": "/nowhere"}},
    "auth.keys[0]": {"auth": {"keys": ["/nowhere.pem"]}},
    "auth.jwks_ca_file": {"auth": {"jwks_ca_file": "/nowhere.pem"}},
    "auth.algorithms[0]": {"auth": {"algorithms": ["none"]}},
    "tls.certificates[0]": {"tls": {"certificates": [1]}},
    "tcp.backlog": {"tcp": {"backlog": 1}},
    "http.body_bytes": {"http": {"body_bytes": 1}},
    "limits.connections": {"limits": {"connections": -1}},
    "limits.conections": {"limits": {"conections": 1}},
    "relay.secret": {"relay": {"secret": "x" * 40}},
    "client.pong_timeout_s": {"client": {"pong_timeout_s": 26}},
    "socketio.enabled": {"socketio": {"enabled": False}},
    "app.module": {"app": {"module": "nowhere:app"}},
    "ticker.namespace": {"ticker": {"source": "simulate", "namespace": "room"}},
    "namespaces.room.mode": {"namespaces": {"room": {**STREAM, "mode": "latest"}}},
    "namespaces.room.subscribe": {"namespaces": {"room": {**STREAM, "subscribe": "everyone"}}},
}
"""By the key that the line must name."""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess({"namespaces": {"room": STREAM}}) as hub:
        yield hub


def go_on(hub: HubProcess, everybody: list[Client], workers: list[int]) -> None:
    """Nobody was disconnected, no process was replaced, and what is published arrives."""
    assert hub.still_has(workers)
    assert everybody[0].publish("room:a", "on") == 0
    assert {one.push()["pub"]["data"] for one in everybody} == {"on"}


def test_thirty_mistakes_change_nothing_and_each_line_names_its_key(hub: HubProcess) -> None:
    """Each stands beside a change that would be good: that does not happen either."""
    assert len(BROKEN) >= 30
    workers, before = hub.worker_pids(), status.read(hub.pid)["reloads_failed"]
    with clients(hub) as everybody:
        for one in everybody:
            assert one.subscribe("room:a") == 0
        for key, broken in BROKEN.items():
            at = len(hub.stderr)
            good = {"namespaces": {"room": STREAM, "fresh": STREAM}}
            found = hub.reload(merged(good, broken))
            assert not found["ok"], (key, found)
            assert any(line.startswith((f"{key}:", f"{key} ")) for line in found["errors"]), found
            hub.logged(f"settings were not changed: {key}", since=at)
            go_on(hub, everybody, workers)
            assert everybody[0].subscribe("fresh:a") == 102
    assert status.read(hub.pid)["reloads_failed"] == before + len(BROKEN)
    assert hub.reload({})["ok"]


def a_directory(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**20)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.write_text("a = " + "[" * 100_000)


def cut_off(path: Path) -> None:
    path.write_text('workers = 2\nlisten = ["127.0.0.1:0"')


def unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "No such file"),
        (a_directory, "Is a directory"),
        (empty, "auth.hmac_secret, api.key: found neither"),
        (binary, "allowed: TOML in UTF-8"),
        (huge, "More than 16777216 bytes"),
        (endless, "Not a regular file"),
        (os.mkfifo, "Not a regular file"),
        (deep, "nested hundreds deep"),
        (cut_off, "allowed: TOML in UTF-8"),
        (unreadable, "allowed: a readable TOML file"),
    ],
)
def test_a_file_that_is_none_is_told(hub: HubProcess, make: Callable[[Path], None], words: str) -> None:
    """And the hub goes on."""
    kept = hub.config_path.with_suffix(".kept")
    os.replace(hub.config_path, kept)
    workers = hub.worker_pids()
    try:
        make(hub.config_path)
        found = reloading.outcome(hub.pid, 40.0)
        assert not found["ok"] and words in "\n".join(found["errors"]), found
        assert hub.still_has(workers)
    finally:
        if hub.config_path.is_dir():
            hub.config_path.rmdir()
        os.replace(kept, hub.config_path)
    assert hub.reload({})["ok"]


def test_a_file_that_never_ends_to_be_read_is_given_up() -> None:
    """A key of so many parts that no parser comes to an end with it, as with a dead network file system; meanwhile the
    hub serves.
    """
    with HubProcess({"workers": 1, "namespaces": {"room": STREAM}}) as hub, clients(hub, 1) as (one,):
        text = hub.config_path.read_text()
        hub.config_path.write_text(f"{'a.' * 500_000}a = 1")
        began = time.monotonic()
        os.kill(hub.pid, signal.SIGHUP)
        assert one.publish("room:a") == 0
        deadline = time.monotonic() + 40.0
        while status.read(hub.pid)["ended"] == 0:
            assert time.monotonic() < deadline and one.alive
            time.sleep(0.2)  # nothing else tells it
        assert time.monotonic() - began > 10.0
        assert status.read(hub.pid)["last"]["errors"] == ["reading and checking them took more than 15 s"]
        assert hub.reload(text=text)["ok"]


def test_a_relative_settings_file_is_found_from_where_the_hub_began(tmp_path: Path) -> None:
    """And what it names from its own directory."""
    (tmp_path / "secret").write_text("s" * 40)
    (tmp_path / "secret").chmod(0o600)
    hub = HubProcess({"auth": {"hmac_secret": ""}})
    hub.config_path = tmp_path / "hub.toml"
    hub.settings["auth"] = {"hmac_secret_file": "secret"}
    hub.config_path.write_text(to_toml(hub.settings))
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        hub.config_path = Path("hub.toml")
        hub.start()
    finally:
        os.chdir(before)
    hub.config_path = tmp_path / "hub.toml"
    with contextlib.closing(Running(hub)):
        (tmp_path / "secret").write_text("t" * 40)
        assert hub.reload({})["changed"] == ["auth.hmac_secret"]


class Running:
    """A hub that was started by hand."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub

    def close(self) -> None:
        self._hub.__exit__()


def test_a_storm_of_signals_is_a_few_reloads(hub: HubProcess) -> None:
    """What was written last holds when it is over, and no descriptor is left."""
    assert hub.reload({})["ok"]
    files = descriptors(hub)
    begun = status.read(hub.pid)["begun"]
    for number in range(200):
        if number == 150:
            hub.config_path.write_text(to_toml(merged(hub.settings, {"client": {"ping_interval_s": 99}})))
        os.kill(hub.pid, signal.SIGHUP)
        time.sleep(0.001)  # so that the kernel does not make them one before we see them
    assert reloading.outcome(hub.pid, 40.0)["ok"]
    with clients(hub, 4) as everybody:
        assert {one.connected["ping"] for one in everybody} == {99}
    assert status.read(hub.pid)["begun"] - begun < 50
    wait_for(lambda: descriptors(hub) == files)


def descriptors(hub: HubProcess) -> list[int]:
    """Of the supervisor and of each worker."""
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (hub.pid, *hub.worker_pids())]


def test_a_worker_that_hangs_holds_a_reload_up_until_it_is_replaced() -> None:
    """Its successor takes part in its place; the others serve."""
    with HubProcess({"heartbeat_timeout_s": 1, "namespaces": {"room": STREAM}}) as hub:
        hung = hub.worker_pids()[0]
        os.kill(hung, signal.SIGSTOP)
        assert hub.reload({"client": {"ping_interval_s": 99}})["ok"]
        wait_for(lambda: len(hub.worker_pids()) == 2)
        assert hung not in hub.worker_pids()
        with clients(hub) as everybody:
            assert {one.connected["ping"] for one in everybody} == {99}


def test_workers_that_die_meanwhile_come_back_with_what_holds(hub: HubProcess) -> None:
    """Killed at any moment of a reload, ten times."""
    for number in range(10):
        wanted = 60 + number
        hub.config_path.write_text(to_toml(merged(hub.settings, {"client": {"ping_interval_s": wanted}})))
        victim = hub.worker_pids()[number % 2]
        os.kill(hub.pid, signal.SIGHUP)
        time.sleep(0.02 * number)  # the moment is what this is about
        os.kill(victim, signal.SIGKILL)
        assert reloading.outcome(hub.pid, 40.0)["ok"]
        wait_for(lambda victim=victim: len(hub.worker_pids()) == 2 and victim not in hub.worker_pids())
        with clients(hub) as everybody:
            assert {one.connected["ping"] for one in everybody} == {wanted}


def test_a_signal_before_it_is_ready_is_done_afterwards() -> None:
    """Not the end of a hub that boots."""
    with HubProcess() as hub:
        hub.stop()
        before = hub.process.pid

        def signal_soon() -> None:
            while True:
                try:
                    if (pid := hub.process.pid) != before and status.read(pid):
                        return os.kill(pid, signal.SIGHUP)
                except HubError:
                    pass  # it shows no record yet
                time.sleep(0.001)  # nothing else tells it, long before its workers are ready

        thread = threading.Thread(target=signal_soon, daemon=True)
        thread.start()
        hub.start()
        thread.join(20.0)
        wait_for(lambda: status.read(hub.pid)["ended"] == 1)
        assert status.read(hub.pid)["last"]["ok"]
        hub.logged("SIGHUP: the settings are read anew after what goes on now")


def test_a_signal_while_it_stops_changes_nothing() -> None:
    """It ends in order, with 0."""
    with HubProcess({"drain_window_s": 1}) as own:
        with connect(own.ws_url, proxy=None):
            os.kill(own.pid, signal.SIGTERM)
            os.kill(own.pid, signal.SIGHUP)
            assert own.process.wait(20) == 0
        assert "the hub stops, so its settings are not read anew" in own.stderr


def test_a_terminal_that_closes_is_the_end_and_one_that_stands_is_not() -> None:
    """The same signal: from an operator, and from a kernel whose terminal was hung up."""
    ours, theirs = os.openpty()
    hub = HubProcess({"workers": 1})
    command = [sys.executable, "-m", "hub", "serve", "--config", str(hub.config_path)]
    with contextlib.closing(Running(hub)), (hub.directory / "stderr").open("ab") as stderr:
        hub.process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=stderr)
        os.close(theirs)
        assert hub.process.stdout is not None and hub.process.stdout.readline()
        assert hub.reload({"client": {"ping_interval_s": 99}})["ok"]
        os.close(ours)
        os.kill(hub.pid, signal.SIGHUP)
        assert hub.process.wait(20) == 0
        assert "SIGHUP: stopping" in hub.stderr
