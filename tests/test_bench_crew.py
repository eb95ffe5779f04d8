"""Bench crew: how clients are shared out, and what a load process counts of what they tell."""

from __future__ import annotations

import asyncio
import errno
import resource
import subprocess
import sys

import orjson
import pytest

from hub import bench_crew
from hub.bench_crew import Load, Plan, raise_open_files
from hub.bench_wires import Client

from .hubs import clean_environment
from .support import async_test


def plan(**changes: object) -> Plan:
    """Of two clients in three channels, two for each."""
    usual = {
        "run": 77,
        "wire": "websocket",
        "url": "ws://127.0.0.1:9/connection/websocket",
        "unix_path": "",
        "first": 0,
        "clients": 2,
        "ramp_hz": 1000.0,
        "channels": ["a", "b", "c"],
        "per_client": 2,
        "tokens": [],
        "sources": 0,
    }
    return Plan(**{**usual, **changes})


def test_channels_go_round():
    """Each client has the next ones, none of them twice, so that all have as many subscribers as the others."""
    assert [plan().numbers(i) for i in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]
    assert plan(per_client=5).numbers(1) == [2, 0, 1]


def test_clients_come_from_as_many_addresses_as_are_wanted():
    """All of them loopback's, none of them a network's first or last."""
    assert plan().source(3) is None
    found = [plan(sources=600).source(i)[0] for i in range(600)]
    assert len(set(found)) == 600
    assert all(address.startswith("127.0.") and 1 <= int(address.split(".")[3]) <= 250 for address in found)
    assert plan(sources=600).source(600) == plan(sources=600).source(0)


@async_test
async def test_what_is_passed_over_or_comes_twice_is_counted():
    """A gap when it shows, the rest at the end against what was sent; who was never ready misses nothing."""
    load = Load(plan())
    client = Client(load, ["a", "b"], [0, 1])
    load._clients += [client, Client(load, ["a"], [0])]
    client.be_ready()
    for channel, sequence in ((0, 1), (0, 2), (1, 1), (0, 5), (0, 5), (0, 4)):
        load.on_message(client, channel, sequence, due_ns=1_000_000, now_ns=3_500_000)
    found = load.final([7, 1, 0])
    assert (found.ready, found.received, found.duplicates, found.lost) == (1, 4, 2, 2 + 2)
    assert (found.latencies.count, found.latencies.quantile(1.0)) == (4, pytest.approx(2.5, rel=0.002))


@async_test
async def test_who_ends_before_and_after_it_was_ready_is_told_apart():
    """Refused and closed; each with its reason."""
    load = Load(plan())
    early, late = Client(load, [], []), Client(load, [], [])
    late.be_ready()
    early.fail("HTTP 503")
    late.fail("closed with 3001: shutdown")
    late.connection_lost(None)
    assert (load.found.failed, load.found.closed) == (1, 1)
    assert load.found.errors == {"HTTP 503": 1, "closed with 3001: shutdown": 1}


@async_test
async def test_nobody_there_is_a_reason():
    """Of each client; and all of them are begun, at the plan's rate."""
    load = Load(plan(clients=5, ramp_hz=200.0))
    began = asyncio.get_running_loop().time()
    await load.open_all()
    assert asyncio.get_running_loop().time() - began >= 4 / 200
    async with asyncio.timeout(10):
        while load.found.failed < 5:
            await asyncio.sleep(0.005)
    assert load.found.errors == {"Connection refused": 5}
    load.close()


def test_a_machine_without_ports_is_told_by_the_setting():
    assert "ip_local_port_range" in bench_crew._cause(OSError(errno.EADDRNOTAVAIL, "x"))


def test_descriptors_are_raised_as_far_as_they_go():
    """Beyond the hard limit is a no, and nothing is lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_open_files(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    if hard != resource.RLIM_INFINITY:
        assert not raise_open_files(hard + 1)


def test_it_ends_with_its_parent():
    """The end of standard input is the end of the process, whatever its clients do."""
    command = [sys.executable, "-m", "hub.bench_crew"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
    ) as process:
        process.stdin.write(orjson.dumps(vars(plan())) + b"\n")
        process.stdin.flush()
        assert orjson.loads(process.stdout.readline()).keys() == {"ready", "failed", "closed", "received"}
        process.stdin.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
