"""Benching: `hub bench` as it is typed, against real hubs: good ones, and one that loses something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hub import benching, cli
from hub.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from hub.remote import EXIT_INTERRUPTED
from hub.urls import Endpoint

from .hubs import KEY, HubProcess, clean_environment, run_hub

STREAMS = {"s": {"mode": "stream", "subscribe": "anyone", "publish": "anyone"}}


@pytest.fixture(scope="module")
def running() -> Iterator[HubProcess]:
    """One hub of two workers."""
    with HubProcess({"workers": 2, "namespaces": STREAMS}) as hub:
        yield hub


def command(hub: HubProcess, *arguments: str) -> list[str]:
    where = ["--url", hub.ws_url, "--api-url", hub.api_url, "--key", KEY]
    return ["bench", *where, "--clients", "60", "--seconds", "0.5", "--json", *arguments]


def bench(hub: HubProcess, *arguments: str) -> tuple[int, dict]:
    """Exit status and what it found."""
    found = run_hub(*command(hub, "--config", str(hub.config_path), *arguments), timeout_s=50)
    assert not found.stderr, found.stderr
    return found.returncode, json.loads(found.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--wire", "sse"],
        ["--channel", "s:b", "--channels", "5", "--per-client", "2", "--size", "2000"],
        ["--publish", "client", "--processes", "3"],
        ["--channel", "members:b", "--user", "bench-{n}"],
    ],
)
def test_everything_arrives_once(running: HubProcess, arguments: list[str]):
    """On both wires, by one or many channels, published by the API or by clients, from one or several processes."""
    status, found = bench(running, "--rate", "40", *arguments)
    assert (status, found["ok"], found["errors"]) == (EXIT_OK, True, {}), found
    assert found["clients"] == {"wanted": 60, "ready": 60, "refused": 0, "closed": 0}
    assert found["published"]["acknowledged"] == found["published"]["wanted"] == 20
    subscribers = 60 * (2 if "--per-client" in arguments else 1) / (5 if "--channels" in arguments else 1)
    assert found["deliveries"]["received"] == 20 * subscribers
    assert found["deliveries"]["lost"] == found["deliveries"]["duplicates"] == 0
    quantiles = list(found["latency_ms"].values())
    assert quantiles[0] > 0 and quantiles == sorted(quantiles)
    assert found["connects_per_s"] > 0 and 0 < found["cpu"]["busiest_load_process"] < 1.5


def test_refused_clients_are_told_by_reason(running: HubProcess):
    """And nothing is published for nobody."""
    status, found = bench(running, "--channel", "nowhere:b")
    assert (status, found["errors"]) == (EXIT_FAILED, {"subscribe: error 102: unknown channel": 60})
    assert (found["clients"]["refused"], found["published"]["wanted"]) == (60, 0)
    status, found = bench(running, "--token", "x.y.z")
    assert (status, found["errors"]) == (EXIT_FAILED, {"closed with 3500: invalid token": 60})


def test_a_hub_that_loses_something_is_found_out():
    """One publication in fifty is passed over in a stream; --lossy is for where that is no fault."""
    with HubProcess({"workers": 1, "namespaces": STREAMS}, module="tests.chaos.lossy_hub") as hub:
        arguments = ["--channel", "s:b", "--rate", "200"]
        status, found = bench(hub, *arguments)
        assert status == EXIT_FAILED and found["deliveries"]["lost"] > 0 and not found["ok"]
        status, found = bench(hub, "--lossy", *arguments)
        assert status == EXIT_OK and found["deliveries"]["lost"] > 0


def test_a_worker_that_dies_is_found_out():
    """Its clients are closed, and what they miss is lost."""
    with HubProcess({"workers": 2}) as hub:
        words = [sys.executable, "-m", "hub", *command(hub, "--rate", "50", "--seconds", "3")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=clean_environment()) as process:
            wait_until_subscribed(hub)
            os.kill(hub.worker_pids()[0], signal.SIGKILL)
            out, _ = process.communicate(timeout=60)
    found = json.loads(out)
    assert process.returncode == EXIT_FAILED
    assert found["clients"]["closed"] > 0 and found["errors"]["connection lost"] == found["clients"]["closed"]


def test_ctrl_c_prints_what_was_found_so_far(running: HubProcess):
    """With 130, and what was still under way is not called lost."""
    words = [sys.executable, "-m", "hub", *command(running, "--rate", "50", "--seconds", "600")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        wait_until_subscribed(running)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    found = json.loads(out)
    assert (process.returncode, err, found["interrupted"]) == (EXIT_INTERRUPTED, b"", True)
    assert found["clients"]["ready"] == 60 and found["deliveries"]["lost"] == 0


def wait_until_subscribed(hub: HubProcess) -> None:
    """Return once all 60 are, as the hub has it."""
    while True:
        listed = run_hub("channels", "chat:bench", "--json", "--url", hub.api_url, "--key", KEY).stdout
        if listed and json.loads(listed)["num_clients"] == 60:
            return


def test_people_read_lines(running: HubProcess):
    """Without --json; all latencies on one of them."""
    arguments = [word for word in command(running, "--rate", "20") if word != "--json"]
    found = run_hub(*arguments, timeout_s=50)
    assert found.returncode == EXIT_OK
    lines = dict(line.split(maxsplit=1) for line in found.stdout.splitlines() if not line.startswith("warning"))
    assert list(lines) == ["clients", "connect", "published", "deliveries", "latency", "CPU"]
    assert lines["deliveries"].startswith("600, ") and "p99.9" in lines["latency"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--channel", "a b"], "found 'a b'; allowed: a channel's name"),
        (["--token", "t", "--user", "u"], "--token and --user: give one of the two"),
        (["--wire", "smoke"], "'smoke' is not one of 'websocket', 'sse'"),
        (["--clients", "0"], "0 is not in the range"),
        (["--clients", "1000000", "--processes", "1"], "hub: --clients: found 1000000 for a process; allowed: what"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    where = ["--url", "ws://127.0.0.1:9", "--api-url", "http://127.0.0.1:9", "--key", "k"]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("hub.bench_crew.raise_open_files", lambda needed: needed < 10**6)
        assert cli.run(["bench", *where, *arguments]) == EXIT_USAGE
    assert text in capsys.readouterr().err.replace("\n", " ")


def test_nobody_there_is_a_failure(capfd: pytest.CaptureFixture[str]):
    """Each client is told of."""
    where = ["--url", "ws://127.0.0.1:9", "--api-url", "http://127.0.0.1:9", "--key", "k", "--clients", "3"]
    assert cli.run(["bench", *where, "--json"]) == EXIT_FAILED
    assert json.loads(capfd.readouterr().out)["errors"] == {"Connection refused": 3}


def test_clients_are_divided_and_have_addresses_enough():
    """No process has more than its share; loopback gives an address for each 500 clients and each 50 a second."""
    shape = {"channel": "chat:b", "channels": 2, "per_client": 1, "ramp": 500.0, "processes": None}
    endpoint = Endpoint("ws://127.0.0.1:1/connection/websocket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hub.bench_crew.raise_open_files", lambda needed: True)
        plans = benching._plans(endpoint, "websocket", 50_001, [str(i) for i in range(50_001)], **shape)
    assert [plan.clients for plan in plans] == [16_667] * 3
    assert [plan.first for plan in plans] == [0, 16_667, 33_334]
    assert [token for plan in plans for token in plan.tokens] == [str(i) for i in range(50_001)]
    assert sum(plan.ramp_hz for plan in plans) == pytest.approx(500.0)
    assert plans[0].channels == ["chat:b-0", "chat:b-1"] and {plan.sources for plan in plans} == {101}
    assert benching._sources(endpoint, 10, 500.0) == 1 and benching._sources(endpoint, 400, 500.0) == 8
    for elsewhere in (Endpoint("ws://10.0.0.1:1/x"), Endpoint("ws://[::1]:1/x"), Endpoint("ws://localhost/x", "/s")):
        assert benching._sources(elsewhere, 5000, 500.0) == 0
