"""What a worker says of itself, against what real clients did."""

from __future__ import annotations

import asyncio
import contextlib
import os

import orjson
import pytest
from websockets.asyncio.client import connect

from hub import figures
from hub.channels import Namespace
from hub.figures import Rooms, current
from hub.lag import Lag
from hub.loopback import Loopback
from hub.message import Publication, PublishOptions
from tests.emulated import http, opening
from tests.nodes import until
from tests.plane import Plane, client, plane
from tests.support import async_test


def rooms_of(hub: Plane) -> Rooms:
    """Those of a plane, as the worker has them."""

    async def probe(token: str) -> str:
        loopback.heard(token.encode())
        return "1.a"

    loopback = Loopback(hub.ingest, probe, lambda: None, "a1", on_heard=hub.fanout.ride)
    return Rooms(
        slot=3,
        generation=7,
        reactor=hub.reactor,
        fanout=hub.fanout,
        broker=hub.broker,
        streams=hub.streams,
        ingest=hub.ingest,
        loopback=loopback,
        registry=hub.registry,
        users=hub.services.users,
        refusals=hub.services.quotas.refusals,
        polls=hub.polls,
        lag=Lag(0.05, hub.reactor.clock),
        began_at=hub.reactor.clock(),
    )


@async_test
async def test_the_figures_are_what_clients_did(valkey_url, prefix):
    """Three come, two subscribe, one publishes twice and is refused once, and one goes."""
    async with plane(valkey_url, prefix) as hub:
        rooms = rooms_of(hub)
        before = current(rooms)
        async with client(hub.url) as one, client(hub.url) as two:
            async with client(hub.url):
                await one.subscribe("open:a")
                await two.subscribe("open:a")
                for number in range(2):
                    assert "publish" in await one.command(publish={"channel": "open:a", "data": number})
                    await one.push()
                    await two.push()
                assert "error" in await one.command(publish={"channel": "closed:a", "data": 1})
                now = current(rooms)
                assert now["connections"]["open"]["websocket"] == 3
            await until(lambda: hub.reactor.tally.open["websocket"] == 2)
            now, fds = current(rooms), len(os.listdir("/proc/self/fd"))
        assert orjson.loads(orjson.dumps(now)) == now
        assert (now["slot"], now["generation"], now["pid"]) == (3, 7, os.getpid())
        assert now["connections"]["opened"]["websocket"] == 3 and now["connections"]["handshake_s"]["counts"]
        assert sum(now["connections"]["handshake_s"]["counts"]) == 3
        assert now["connections"]["closed"]["1000"] == 1 and sum(now["connections"]["closed"].values()) == 1
        assert (now["sessions"], now["subscriptions"], now["channels"]) == (2, 2, 1)
        assert now["delivery"]["deliveries"] - before["delivery"]["deliveries"] == 4
        assert now["publishes"]["taken"] == 2 and sum(now["publishes"].values()) == 2
        assert sum(now["redis"]["command_s"]["counts"]) >= 1
        assert now["redis"]["subscriber_up"] and now["redis"]["commands_up"] and now["redis"]["links"] == 1
        assert 5e6 < now["process"]["memory_bytes"] < 2e9
        assert now["process"]["fds"] in (fds - 1, 2), "listing them takes one; an old Linux says nothing"


@async_test
async def test_a_client_is_counted_once_by_its_wire(valkey_url, prefix):
    """Whoever polls, too, whose requests come and go; when all have gone nobody is left."""
    commands = b'{"id":1,"connect":{}}'
    async with plane(valkey_url, prefix) as hub, contextlib.AsyncExitStack() as stack:
        tally, port = hub.reactor.tally, hub.port
        openings = {
            "http_stream": opening("lines", commands),
            "sse": opening("events", commands),
            "event_stream": http("GET", "/sse?channel=open:a"),
        }
        for wire, request in openings.items():
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(request)
            await until(lambda wire=wire: tally.open[wire] == 1)
        url = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
        await stack.enter_async_context(connect(url, proxy=None))
        await stack.enter_async_context(connect(hub.url, proxy=None))
        await until(lambda: tally.open["socketio"] == tally.open["websocket"] == 1)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(http("GET", "/socket.io/?EIO=4&transport=polling"))
        await until(lambda: tally.open["socketio"] == 2)
        assert sum(tally.opened.values()) == sum(tally.open.values()) == 6
        writer.close()
        await stack.aclose()
        await until(lambda: sum(tally.open.values()) == 1)
        hub.reactor.connections[min(hub.reactor.connections)].abort()
        assert sum(tally.open.values()) == 0 and sum(tally.closed.values()) == 6


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_handshake_is_timed_whoever_answers_it(valkey_url, prefix, fast):
    async with plane(valkey_url, prefix, fast=fast) as hub, connect(hub.url, proxy=None):
        await until(lambda: hub.reactor.tally.handshakes.count == 1)


@async_test
async def test_what_is_published_is_counted_by_what_became_of_it(valkey_url, prefix):
    """A batch of `latest` as what it holds; a key that was used; one for which there was no room; a mailbox's."""
    async with plane(valkey_url, prefix) as hub:
        verdicts: list = []
        latest, stream = Namespace(mode="latest"), Namespace(mode="stream")
        batch = [Publication("t:a", b"{}"), Publication("t:b", b"{}")]
        hub.broker.publish(latest, "t", batch, verdicts.append)
        for _ in range(2):
            hub.publisher.publish("chat:a", stream, 1, verdicts.append, options=PublishOptions("k"))
        inbox = hub.services.channels.resolve("inbox:#42")
        hub.publisher.publish("inbox:#42", inbox, 1, verdicts.append)
        await until(lambda: len(verdicts) == 4)
        hub.broker._lane.most_waiting = 0
        hub.broker.publish(latest, "t", batch, verdicts.append)
        await until(lambda: len(verdicts) == 5)
        assert hub.broker.outcomes == {"taken": 4, "duplicate": 1, "refused": 2, "unconfirmed": 0, "unavailable": 0}
        assert current(rooms_of(hub))["waiting"]["redis"] == 0


@async_test
async def test_a_probe_measures_until_the_last_write_of_its_batch(valkey_url, prefix):
    """Also where nothing was published with it; and one probe at a time."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        rooms = rooms_of(hub)
        await one.subscribe("open:a")
        await rooms.loopback._step()
        await until(lambda: hub.fanout.latency.count == 1)
        assert rooms.loopback.lag.count == 1 and rooms.loopback.lag_s >= 0
        hub.fanout.deliver([Publication("open:a", b'{"data":1}')])
        hub.fanout.ride(hub.reactor.clock() - 3.0)
        hub.fanout.ride(hub.reactor.clock() - 100.0)
        await one.push()
        await until(lambda: hub.fanout.latency.count == 2)
        assert 3.0 <= hub.fanout.latency.sum < 60.0 and hub.fanout.sweeps.count == 1


@async_test
async def test_the_cost_of_asking_does_not_grow_with_the_clients(valkey_url, prefix):
    """Nothing is asked of a connection."""
    async with plane(valkey_url, prefix) as hub, connect(hub.url, proxy=None):
        await until(lambda: hub.reactor.tally.open["websocket"] == 1)
        rooms = rooms_of(hub)
        (fd,) = [fd for fd in hub.reactor.connections if fd >= 0]
        hub.reactor.connections[fd], real = None, hub.reactor.connections[fd]
        try:
            assert current(rooms)["connections"]["open"]["websocket"] == 1
        finally:
            hub.reactor.connections[fd] = real


@async_test
async def test_each_count_stands_under_its_own_name(valkey_url, prefix):
    """Those that are alike, and that a quiet worker has none of."""
    async with plane(valkey_url, prefix) as hub:
        rooms, backlog, fanout, streams = rooms_of(hub), hub.reactor.backlog, hub.fanout, hub.streams
        backlog.conflated, backlog.dropped, backlog.slow, backlog.bytes = 1, 2, 3, 4
        fanout.deliveries, fanout.conflated, fanout.dropped = 5, 6, 7
        streams.gaps, streams.duplicates, streams.displacements = 8, 9, 10
        streams.recovered, streams.lost, streams.recovered_publications = 11, 12, 13
        found = current(rooms)
        delivery, waiting = found["delivery"], found["waiting"]
        assert (delivery["conflated"], delivery["dropped"]) == ({"slow": 1, "behind": 6}, {"slow": 2, "behind": 7})
        assert (delivery["slow_closed"], waiting["outboxes"], delivery["deliveries"]) == (3, 4, 5)
        names = ("gaps", "duplicates", "displaced", "recovered", "lost", "recovered_publications")
        assert [found["streams"][name] for name in names] == [8, 9, 10, 11, 12, 13]
        backlog.bytes = 0


def test_memory_of_a_process_that_is_gone_is_nothing():
    assert figures.memory_bytes(2**22 + 1) == 0 and figures.memory_bytes(os.getpid()) > 0


def test_descriptors_are_those_that_are_open():
    """The directory's size is the kernel's own count; where it says nothing, connections stand for them."""
    if os.stat("/proc/self/fd").st_size == 0:
        pytest.skip("before Linux 6.2")
    before = figures.open_fds(0)
    reader, writer = os.pipe()
    try:
        assert figures.open_fds(0) == before + 2
    finally:
        os.close(reader)
        os.close(writer)
