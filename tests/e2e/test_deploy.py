"""New code in a running hub: two releases of the package behind a link that is switched, and clients on every wire."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import hub as package
from hub.inheritance import FORMAT
from tests.chaos.deploys import SHORT, deploys
from tests.hubs import KEY, HubProcess, clean_environment
from tests.plane import client
from tests.speakers import WIRES, origin, request
from tests.support import async_test

SCRIPT = """#!{python}
import sys
sys.path.insert(0, {release!r})
from hub.cli import main
main()
"""
WINDOW_S = 3.0
SETTINGS = {
    "workers": 2,
    "drain_window_s": WINDOW_S,
    "namespaces": {"news": {"mode": "stream", "subscribe": "anyone", "publish": "anyone"}},
    "socketio": {"ping_interval_ms": 5000},
}


class Releases:
    """Copies of the package, each with a script `hub` of its own; `current` leads to one of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.current = directory / "current"

    def make(self, version: str, change: Callable[[Path], None] = lambda _: None) -> None:
        release = self._directory / version
        shutil.copytree(Path(package.__file__).parent, release / "hub", ignore=shutil.ignore_patterns("__pycache__"))
        init = release / "hub" / "__init__.py"
        init.write_text(re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', init.read_text(), flags=re.M))
        (release / "bin").mkdir()
        script = release / "bin" / "hub"
        script.write_text(SCRIPT.format(python=sys.executable, release=str(release)))
        script.chmod(0o755)
        change(release / "hub")

    def switch(self, version: str) -> None:
        """As install.sh does it: at once, for whoever looks."""
        link = self._directory / "next"
        link.symlink_to(self._directory / version)
        link.replace(self.current)

    @property
    def program(self) -> str:
        return str(self.current / "bin" / "hub")

    def deploy(self, hub: HubProcess, *options: str) -> subprocess.CompletedProcess[str]:
        """`hub deploy`, of the version that `current` leads to, whatever that can do."""
        command = [sys.executable, "-m", "hub", "deploy", "--config", str(hub.config_path), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    made = Releases(tmp_path)
    made.make("1.0.0")
    made.switch("1.0.0")
    return made


@pytest.fixture
def hub(releases: Releases) -> Iterator[HubProcess]:
    """One of release 1.0.0."""
    with HubProcess(SETTINGS, program=[releases.program], env={"PYTHONPATH": ""}) as running:
        yield running


def ask(hub: HubProcess, method: str, **body: Any) -> dict[str, Any]:
    """One request to the server API."""
    headers = {"X-API-Key": KEY}
    with urllib.request.urlopen(
        urllib.request.Request(f"{hub.api_url}/{method}", json.dumps(body).encode(), headers), timeout=20
    ) as answer:
        return json.load(answer)["result"]


def versions(hub: HubProcess) -> list[str]:
    return [node["version"] for node in ask(hub, "info")["nodes"]]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)  # processes give no other sign


def valkey_of(hub: HubProcess) -> int:
    """The pid of its private Valkey."""
    [pid] = {*children(hub.pid)} - {*hub.worker_pids()}
    return pid


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@async_test
async def test_a_new_version_takes_over_and_each_wire_hears_it_in_its_own_words(releases, hub):
    """The process, its Valkey and what is stored there stay; nothing is lost; who is connected comes back once."""
    releases.make("2.0.0")
    releases.switch("2.0.0")
    before = hub.pid, await asyncio.to_thread(valkey_of, hub)
    old = hub.worker_pids()
    stream = await asyncio.open_connection(*origin(hub).split(":"))
    stream[1].write(f"GET /sse?channel=news:a HTTP/1.1\r\nHost: {origin(hub)}\r\n\r\n".encode())
    assert b" 200 " in await stream[0].readuntil(b"\r\n\r\n")
    poll = await asyncio.open_connection(*origin(hub).split(":"))
    poll[1].write(f"GET /poll?channel=news:quiet&wait=25 HTTP/1.1\r\nHost: {origin(hub)}\r\n\r\n".encode())
    async with client(hub.ws_url) as one:
        joined = await one.command(subscribe={"channel": "news:a", "recoverable": True, "positioned": True})
        position = joined["subscribe"]
        done = await asyncio.to_thread(releases.deploy, hub, "--json")
        assert done.returncode == 0, done.stderr + hub.stderr
        assert json.loads(done.stdout) == {"ok": True, "pid": hub.pid, "from": "1.0.0", "version": "2.0.0"}
        await asyncio.to_thread(ask, hub, "publish", channel="news:a", data="meanwhile")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await asyncio.wait_for(one.socket.recv(), 20)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3001, "shutdown")
    last = (await asyncio.wait_for(stream[0].read(), 20)).decode()
    assert re.search(r"retry: \d+\n\nevent: closed\n", last) and "meanwhile" in last
    answer = (await asyncio.wait_for(poll[0].readuntil(b"\r\n\r\n"), 20)).decode()
    assert answer.startswith("HTTP/1.1 204 ") and "\r\nConnection: close\r\n" in answer
    for _, writer in (stream, poll):
        writer.close()
    # Back again, with what was missed: the same store in the same generation.
    async with client(hub.ws_url) as one:
        since = {"recover": True, "epoch": position["epoch"], "offset": position.get("offset", 0)}
        again = (await one.command(subscribe={"channel": "news:a", "recoverable": True, **since}))["subscribe"]
        assert again["recovered"] and [pub["data"] for pub in again["publications"]] == ["meanwhile"]
    await asyncio.to_thread(wait_until, lambda: not set(old) & set(hub.worker_pids()), hub.stderr)
    assert (hub.pid, await asyncio.to_thread(valkey_of, hub)) == before
    assert await asyncio.to_thread(versions, hub) == ["2.0.0", "2.0.0"]
    for speak in WIRES.values():
        await asyncio.to_thread(speak, hub, hub.token("ann"), "hello")
    assert await asyncio.to_thread(hub.stop) == 0
    assert "Traceback" not in hub.stderr


def get(hub: HubProcess, path: str) -> tuple[int, bytes]:
    with request(hub, "GET", path) as answer:
        return answer.status, answer.read()


def test_sessions_of_the_old_workers_go_on_while_those_drain(releases: Releases, hub: HubProcess) -> None:
    """A session by polls lives in an old worker; its requests come to new ones and are answered, to its last packet."""
    path = "/socket.io/?EIO=4&transport=polling"
    sids = [json.loads(get(hub, path)[1][1:])["sid"] for _ in range(6)]
    old = hub.worker_pids()
    done = releases.deploy(hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"version 1.0.0 serves in place of 1.0.0, pid {hub.pid}\n"
    answered = 0
    for sid in sids:
        with request(hub, "POST", f"{path}&sid={sid}", "40" + json.dumps({"token": hub.token("ann")})) as answer:
            answered += answer.status == 200
    # Some have been sent away by now, none of those that are there is unknown.
    assert answered >= 1 and set(old) & set(hub.worker_pids())
    assert any(get(hub, f"{path}&sid={sid}")[0] == 200 for sid in sids)
    wait_until(lambda: not set(old) & set(hub.worker_pids()), hub.stderr)
    assert get(hub, f"{path}&sid={sids[0]}")[0] == 400


def test_a_kept_http_connection_is_given_back(hub: HubProcess, releases: Releases) -> None:
    """A proxy's: its next request is served by the old worker, with word to open another connection."""
    connection = http.client.HTTPConnection(origin(hub), timeout=10)
    connection.request("GET", "/")
    with connection.getresponse() as answer:
        assert (answer.read(), answer.getheader("Connection")) and answer.getheader("Connection") != "close"
    assert releases.deploy(hub).returncode == 0
    connection.request("GET", "/")
    with connection.getresponse() as answer:
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
    connection.close()


def break_syntax(hub: Path) -> None:
    (hub / "worker.py").write_text("def main(:\n")


def break_boot(hub: Path) -> None:
    path, line = hub / "building.py", "        self._build_plane()\n"
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, f"{line}        1 / 0\n"))


def leave_another_format(hub: Path) -> None:
    path = hub / "inheritance.py"
    text = path.read_text()
    assert f"\nFORMAT = {FORMAT}\n" in text
    path.write_text(text.replace(f"\nFORMAT = {FORMAT}\n", f"\nFORMAT = {FORMAT + 1}\n"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (break_syntax, r"…/2\.0\.0/hub/worker\.py, line 1: SyntaxError: .*"),
        (break_boot, r"…/2\.0\.0/hub/building\.py, line \d+: ZeroDivisionError: .*"),
        (
            leave_another_format,
            rf"the running hub leaves its workers in format {FORMAT}, this version reads {FORMAT + 1}: restart",
        ),
    ],
)
@async_test
async def test_a_release_that_is_no_good_changes_nothing(releases, hub, change, reason):
    """The command says why and exits with 1; workers, clients and the next, better release notice nothing."""
    releases.make("2.0.0", change)
    releases.switch("2.0.0")
    pids = hub.worker_pids()
    async with client(hub.ws_url) as one:
        done = await asyncio.to_thread(releases.deploy, hub)
        assert done.returncode == 1
        assert re.fullmatch(rf"hub: {reason}\nhub: version 1.0.0 goes on\n", done.stderr), done.stderr
        assert "rpc" in await one.command(rpc={"method": "hub.time"})
    assert hub.worker_pids() == pids and await asyncio.to_thread(versions, hub) == ["1.0.0", "1.0.0"]


def break_heir(hub: Path) -> None:
    path, line = hub / "supervisor.py", "        rising = [WorkerProcess("
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, f"        1 / 0\n{line}"))


def break_workers(hub: Path) -> None:
    """Not where they are built, which the check would see."""
    path = hub / "worker.py"
    path.write_text(f"{path.read_text()}\nimport sys\nif 'serve' in sys.argv:\n    Worker.run = None\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (break_heir, r"version 2.0.0 failed as it took over: supervisor.py, line \d+: ZeroDivisionError: .*"),
        (break_workers, r"worker \d \(pid \d+\) ended with status 1 after .* s, before all were ready"),
    ],
)
@async_test
async def test_a_release_that_fails_in_place_gives_way_to_the_one_before(releases, hub, change, reason):
    """After the exec, where no check helps: clients notice nothing, and who dies is replaced from the old release."""
    releases.make("2.0.0", change)
    releases.switch("2.0.0")
    pids, valkey = hub.worker_pids(), await asyncio.to_thread(valkey_of, hub)
    async with client(hub.ws_url) as one:
        done = await asyncio.to_thread(releases.deploy, hub)
        assert done.returncode == 1
        assert re.fullmatch(rf"hub: {reason}\nhub: version 1.0.0 goes on\n", done.stderr), done.stderr + hub.stderr
        await asyncio.to_thread(wait_until, lambda: "version 1.0.0 is back" in hub.stderr, hub.stderr)
        assert "rpc" in await one.command(rpc={"method": "hub.time"})
    assert hub.worker_pids() == pids and await asyncio.to_thread(valkey_of, hub) == valkey
    os.kill(pids[0], signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: pids[0] not in hub.worker_pids() and len(hub.worker_pids()) == 2, "")
    await asyncio.to_thread(wait_until, lambda: versions(hub) == ["1.0.0", "1.0.0"], hub.stderr)
    # And the next one is as good as any.
    releases.make("3.0.0")
    releases.switch("3.0.0")
    done = await asyncio.to_thread(releases.deploy, hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"version 3.0.0 serves in place of 1.0.0, pid {hub.pid}\n"
    assert await asyncio.to_thread(hub.stop) == 0


def test_what_needs_a_restart_is_refused_and_named(releases: Releases, hub: HubProcess) -> None:
    """New settings come with new code, but for addresses, the number of workers and the store."""
    text = hub.config_path.read_text()
    pids = hub.worker_pids()
    hub.config_path.write_text(text.replace("workers = 2", "workers = 3"))
    done = releases.deploy(hub, "--json")
    assert json.loads(done.stdout)["errors"] == ["workers: found changed (was 2, is 3); needs a restart"]
    hub.config_path.write_text(text.replace("drain_window_s = ", "drain_window_seconds = "))
    done = releases.deploy(hub)
    assert done.returncode == 1 and "drain_window_seconds: unknown setting" in done.stderr
    assert hub.worker_pids() == pids
    fresh = '[namespaces.fresh]\nsubscribe = "anyone"\n'
    hub.config_path.write_text(text.replace("[namespaces.news]", f"{fresh}[namespaces.news]"))
    assert releases.deploy(hub).returncode == 0
    with request(hub, "GET", "/poll?channel=fresh:a&wait=0") as answer:
        assert answer.status == 204


def test_deploys_under_load_cost_nobody_more_than_one_reconnect(tmp_path: Path) -> None:
    """Three of them: none refused, nothing lost, even load; `make chaos` has twenty with more of everything."""

    async def run() -> None:
        async with asyncio.timeout(150):
            found, rig = await deploys(SHORT, 3, tmp_path)
        assert not rig.checker.total.failed, "\n".join([*rig.checker.findings, *rig.late])
        assert not found.mistakes(), found
        assert (found.deploys, found.refused, found.reconnects) == (3, 0, [1, 1, 1])
        assert found.visits["served"] > 100
        # Everybody had to go, so it took place.
        assert rig.checker.total.disconnects >= 3 * (SHORT.clients + SHORT.sdks_js + SHORT.sdks_python)

    asyncio.run(run())


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_to_the_whole_service_harms_nobody(hub: HubProcess, number: signal.Signals) -> None:
    """`systemctl kill` sends it to workers and Valkey too: they leave it to the supervisor."""
    valkey, pids = valkey_of(hub), hub.worker_pids()
    for pid in (*pids, *([valkey] if number == signal.SIGUSR2 else [])):
        os.kill(pid, number)
    assert ask(hub, "info")["nodes"]
    assert (valkey_of(hub), hub.worker_pids()) == (valkey, pids)
