"""Serve: what is checked before a start, what a start takes and gives back, and the line that says where the hub is."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hub import serve
from hub.config import Settings
from hub.errors import EXIT_BOOT, EXIT_OK, EXIT_USAGE, ConfigError
from hub.listeners import Listeners
from hub.state import lock_state_dir

from .hubs import KEY, HubProcess, clean_environment, run_hub, to_toml
from .test_activation import activated

LOOPBACK: dict[str, Any] = {"workers": 1, "listen": ["127.0.0.1:0"], "internal": ["127.0.0.1:0"], "demo": True}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Not tmp_path: its names outgrow the 107 bytes that a Unix socket path may have."""
    with tempfile.TemporaryDirectory(prefix="hub-t-") as directory:
        yield Path(directory)


# What is checked


def test_without_demo_and_secret_a_hub_does_not_start() -> None:
    """The line names both keys; one of them, or demo = true, is enough."""
    with pytest.raises(
        ConfigError, match=r"^auth\.hmac_secret, api\.key: found neither; allowed: at least one of them"
    ):
        serve.check(Settings())
    for enough in ({"demo": True}, {"api": {"key": KEY}}, {"auth": {"hmac_secret": "x" * 32}}):
        serve.check(Settings(**enough))


@pytest.mark.parametrize("address", ["0.0.0.0:8001", "[::]:8001", "10.0.0.5:8001", "tls:192.168.1.1:443"])
def test_without_a_key_others_can_not_reach_the_internal_listener(address: str) -> None:
    """Also where clients connect to the same address, and in the demo; loopback and Unix sockets are fine."""
    line = (
        f"internal: found {address}, which other machines may reach; allowed without api.key: loopback or a Unix socket"
    )
    tls = {"certificates": [{"cert": "c", "key": "k"}]} if address.startswith("tls:") else {}
    for listen in ("127.0.0.1:8000", address):
        with pytest.raises(ConfigError) as caught:
            serve.check(Settings(demo=True, listen=[listen], internal=[address], tls=tls))
        assert str(caught.value) == line
        serve.check(Settings(listen=[listen], internal=[address], tls=tls, api={"key": KEY}))
    for good in ("127.0.0.2:8001", "[::1]:8001", "unix:/run/hub/api.sock", "systemd:api"):
        serve.check(Settings(demo=True, internal=[good]))


def test_an_unguarded_listener_of_systemd_is_found_once_it_is_there(short_dir: Path) -> None:
    """Its address is not in the settings; exit status 2 and one line all the same."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        path = short_dir / "hub.toml"
        path.write_text(to_toml({"state_dir": str(short_dir / "state"), **LOOPBACK, "internal": ["systemd:api"]}))
        command = [sys.executable, "-m", "hub", "serve", "--config", str(path)]
        with activated([sock], command, LISTEN_FDNAMES="api") as process:
            _, err = process.communicate(timeout=20)
    assert process.returncode == EXIT_USAGE
    assert re.fullmatch(r"hub: internal: found 0\.0\.0\.0:\d+, which other machines may reach; allowed .*\n", err)


def test_every_mistake_is_told_at_once() -> None:
    """A missing replay file and missing secrets are two lines of one error."""
    ticker = {"source": "replay", "file": "/nowhere/prices.csv"}
    with pytest.raises(ConfigError) as caught:
        serve.check(Settings(ticker=ticker, namespaces={"ticker": {"mode": "latest"}}))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "auth.hmac_secret, api.key",
        "ticker.file",
    ]


# The ready line


def ready_line(**values: Any) -> str:
    settings = Settings(**{**LOOPBACK, **values})
    listeners = Listeners.open(settings, settings.worker_count())
    try:
        return serve.ready_line(settings, listeners)
    finally:
        listeners.close()


def test_the_ready_line_has_the_actual_ports() -> None:
    """Port 0 is resolved, and nothing more than the line's parts is in it."""
    line = ready_line(workers=2, demo=False, api={"key": KEY})
    head, clients, api = line.split("; ")
    assert head.endswith(" ready: 2 workers")
    assert clients.startswith("clients ws://127.0.0.1:") and clients.endswith("/connection/websocket")
    assert api.startswith("server API http://127.0.0.1:") and api.endswith("/api")
    assert ":0/" not in line


def test_the_ready_line_knows_page_unix_listeners_and_several_addresses(short_dir: Path) -> None:
    """The page is there in the demo only; without a key the server API is said to be off."""
    path = f"unix:{short_dir}/a.sock"
    line = ready_line(listen=["127.0.0.1:0", path], internal=[])
    _, page, clients = line.split("; ")
    assert page.startswith("page http://127.0.0.1:") and page.endswith(f"/ {path}")
    assert clients.startswith("clients ws://127.0.0.1:") and clients.endswith(f"/connection/websocket {path}")
    assert ready_line().endswith("/api (off: no api.key)")


def test_an_address_in_both_settings_is_named_for_both() -> None:
    """One listener serves clients and the server API then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = ready_line(listen=[address], internal=[address], api={"key": KEY})
    assert f"clients ws://{address}/connection/websocket; server API http://{address}/api" in line


# The run


def serve_once(directory: Path, **values: Any) -> subprocess.CompletedProcess[str]:
    """A `hub serve` that is expected to end by itself."""
    path = directory / "hub.toml"
    path.write_text(to_toml({"state_dir": str(directory / "state"), **LOOPBACK, **values}))
    return run_hub("serve", "--config", str(path))


def test_with_a_configured_redis_the_state_directory_is_left_alone(short_dir: Path) -> None:
    """Two hubs of one machine may share a Redis: nothing is stored here, so nothing is locked or made."""
    ended = serve_once(short_dir, redis={"url": f"unix://{short_dir}/nobody", "start_timeout_s": 0.1})
    assert ended.returncode == EXIT_BOOT
    assert not (short_dir / "state").exists()
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("hub: ") and "redis.start_timeout_s" in last


def test_the_embedded_valkey_has_its_state_directory_to_itself() -> None:
    """A second hub is refused with the first one's pid; once that has ended, the directory is free."""
    with HubProcess({"workers": 1}) as hub:
        ended = run_hub("serve", "--config", str(hub.config_path))
        assert ended.returncode == EXIT_BOOT
        assert f"state_dir {hub.settings['state_dir']} is in use by another hub (pid {hub.pid})" in ended.stderr
        hub.stop()
        lock_state_dir(Path(hub.settings["state_dir"]), wait_s=0.0).close()


def test_a_port_in_use_leaves_nothing_behind(short_dir: Path) -> None:
    """One line names the address; the listeners that were open already are closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = serve_once(short_dir, listen=[f"unix:{short_dir}/a.sock", address])
    assert ended.returncode == EXIT_BOOT
    assert ended.stderr == f"hub: cannot listen on {address}: the address is in use by another process\n"
    assert ended.stdout == ""
    assert not (short_dir / "a.sock").exists()
    lock_state_dir(short_dir / "state", wait_s=0.0).close()


def test_a_hub_says_once_that_it_is_ready_and_ends_with_0() -> None:
    """The ready line is all of standard output, from the start to the end by SIGTERM."""
    with HubProcess({"workers": 2, "demo": True}) as hub:
        assert hub.ready_line.startswith("hub ") and " ready: 2 workers; page http://" in hub.ready_line
        assert len(hub.worker_pids()) == 2
        hub.process.terminate()
        assert hub.process.stdout is not None
        assert hub.process.stdout.read() == b""
        assert hub.stop() == EXIT_OK


def test_a_hub_whose_ready_line_nobody_reads_serves_and_replaces_its_workers(short_dir: Path) -> None:
    """A closed pipe on standard output is no reason to stop, nor does it stand in the way of a later fork."""
    path = short_dir / "hub.toml"
    path.write_text(to_toml({"state_dir": str(short_dir / "state"), **LOOPBACK}))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hub", "serve", "--config", str(path)]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, env=clean_environment()) as process:
        os.close(writer)
        try:
            started = read_until(process, b"all 1 workers are ready")
            pid = re.search(rb"worker 0 started, pid (\d+)", started)
            assert pid is not None
            os.kill(int(pid[1]), signal.SIGKILL)
            read_until(process, b"worker 0 started")
            process.terminate()
            assert process.wait(10) == EXIT_OK
        finally:
            process.kill()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What comes on standard error until `text` has come."""
    assert process.stderr is not None
    found, deadline = b"", time.monotonic() + 15
    while text not in found:
        assert select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0], found
        chunk = os.read(process.stderr.fileno(), 65_536)
        assert chunk, found
        found += chunk
    return found


def test_before_a_stop_readyz_says_no_while_everybody_is_let_in() -> None:
    """With shutdown_delay_s; the second SIGTERM ends the wait."""
    with HubProcess({"workers": 2, "shutdown_delay_s": 3600}) as hub:
        ready = hub.api_url.removesuffix("/api") + "/readyz"
        with urllib.request.urlopen(ready, timeout=10) as answer:
            assert answer.status == 200
        hub.process.terminate()
        hub.logged("/readyz answers 503, and the hub serves on for 3600 s")
        for _ in range(4):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(ready, timeout=10)
            assert refused.value.code == 503
            assert "draining" in json.loads(refused.value.read())["reasons"]
            host, port = hub.ws_url.removeprefix("ws://").partition("/")[0].split(":")
            with socket.create_connection((host, int(port)), timeout=10) as newcomer:
                newcomer.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert newcomer.recv(100).startswith(b"HTTP/1.1 ")
        assert hub.stop() == EXIT_OK


SPOILED = """
import os, pathlib, sys
from hub import cli, inheritance
if sys.argv[1] == "serve" and inheritance.VARIABLE in os.environ:
    for path in map(pathlib.Path, sys.argv[3:]):
        path.write_text("nonsense")
        path.with_name("key.pem").unlink()
sys.exit(cli.run(sys.argv[1:]))
"""


def test_a_deploy_goes_by_what_was_checked_and_not_by_files_that_turn_bad(short_dir: Path) -> None:
    """In the half second after the check: the settings file and a key that it names are no good any more."""
    program = short_dir / "program.py"
    program.write_text(SPOILED)
    with HubProcess({"workers": 1}, program=[sys.executable, str(program)]) as hub:
        key = hub.directory / "key.pem"
        public = Ed25519PrivateKey.generate().public_key()
        key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        auth = {**hub.settings["auth"], "keys": [f"a={key}"]}
        hub.config_path.write_text(to_toml({**hub.settings, "auth": auth, "drain_window_s": 0.1}))
        done = run_hub("deploy", "--config", str(hub.config_path))
        assert done.returncode == 0, done.stderr + hub.stderr
        assert hub.config_path.read_text() == "nonsense" and not key.exists()
        assert "deployed version" in hub.logged("the last worker of the old generation has gone")
        # Its settings hold, and a file that is good again is compared with them.
        changed = hub.reload({"limits": {"connections": 7}})["changed"]
        assert changed == ["drain_window_s", "auth.keys", "limits.connections"]
        assert hub.process.poll() is None


# The summary


def test_the_summary_shows_no_secret() -> None:
    """Redis URLs hold passwords, so they are not repeated."""
    secrets = {
        "auth": {"hmac_secret": "s3cret" * 6},
        "api": {"key": "k3y-k3y-k3y-k3y-"},
        "redis": {"url": "redis://:passw0rd@r/0"},
    }
    text = str(serve.summary(Settings(**secrets), {}))
    assert not [word for word in ("s3cret", "k3y", "passw0rd") if word in text]
    assert "configured by redis.url" in text
    sentinel = {"sentinels": ["10.0.0.1:26379"], "master": "main"}
    assert serve.summary(Settings(redis=sentinel), {})["redis"] == "main by Sentinel"
    assert serve.summary(Settings(internal=[]), {"STATE_DIRECTORY": "/var/lib/hub"}) | {"workers": ""} == {
        "workers": "",
        "clients": "ws://127.0.0.1:8000/connection/websocket",
        "server_api": "off: internal = []",
        "redis": "embedded, in /var/lib/hub",
        "namespaces": "",
        "app": "none",
        "ticker": "off",
    }


# The application


def test_pages_need_an_index_and_are_named_in_the_ready_line(tmp_path: Path) -> None:
    wanted = Settings(demo=True, app={"pages": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"^app\.pages: found .*; allowed: a directory with an index\.html$"):
        serve.check(wanted)
    (tmp_path / "index.html").write_text("<p>")
    serve.check(wanted)
    assert "; page http://127.0.0.1:" in ready_line(demo=False, api={"key": KEY}, app={"pages": str(tmp_path)})


def test_a_check_loads_the_application_and_names_what_is_wrong(tmp_path) -> None:
    """As a mistake in the settings, in one line; a start leaves it to the workers."""
    (tmp_path / "checked_app.py").write_text("from hub.app import App\napp = App()\n")
    settings = Settings(demo=True, app={"module": "checked_app:app", "directory": str(tmp_path)})
    serve.check_application(settings)
    assert serve.summary(settings, {"STATE_DIRECTORY": "/var/lib/hub"})["app"] == "checked_app:app"
    wrong = Settings(demo=True, app={"module": "checked_app:nothing", "directory": str(tmp_path)})
    serve.check(wrong)
    with pytest.raises(ConfigError, match=r"^app\.module: found no App named 'nothing' in checked_app; allowed: .*$"):
        serve.check_application(wrong)
    serve.check_application(Settings(demo=True))
