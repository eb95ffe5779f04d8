"""Relay: workers of one hub, each with a relay of its own, on real Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.errors import OwnerFailed, OwnerGone, OwnerSlow
from hub.relay import ASK, FDS, HEADER, NEWCOMERS, Home, Limits, Owner, Relay, new_session_id, owner_of, parse_owner
from tests.nodes import until
from tests.support import async_test


@pytest.fixture
def home():
    made = Home.make({})
    yield made
    made.remove()


@contextlib.asynccontextmanager
async def relays(home: Home, count: int = 2, **limits: object) -> AsyncIterator[list[Relay]]:
    """Workers 0 … of generation 1 …, reachable."""
    made = [Relay(home, slot, slot + 1, Limits(**limits)) for slot in range(count)]
    for relay in made:
        await relay.start()
    try:
        yield made
    finally:
        for relay in made:
            await relay.close()


async def upper(payload: bytes) -> bytes:
    return payload.upper()


# Ids.


def test_an_id_names_its_owner_and_ends_in_chance():
    """owner_of is the way back; two ids of one owner differ in 128 bits."""
    owner = Owner("0123456789abcdef", 3, 17)
    one, other = new_session_id(owner), new_session_id(owner)
    assert str(owner) == "0123456789abcdef.3.17"
    assert owner_of(one) == owner_of(other) == parse_owner(str(owner)) == owner
    assert one != other and len(one.rpartition(".")[2]) == 32


BAD = ["", "x", None, 7, "0123456789abcdef.3", "0123456789abcdef.3.x", "0123456789abcdeg.3.1", "0123456789abcdef.-1.1"]


@pytest.mark.parametrize("text", [*BAD, "0123456789abcdef.12345.1", "0123456789abcdef.1.1\n", "../../../etc/pass.1.1"])
def test_what_is_no_owner_is_refused(text):
    """Ids come from clients, and end up in the path of a socket."""
    with pytest.raises(ValueError, match="not a"):
        parse_owner(text)
    with pytest.raises(ValueError, match="not a"):
        owner_of(f"{text}.{'0' * 32}" if isinstance(text, str) else text)


def test_an_id_without_its_secret_is_refused():
    with pytest.raises(ValueError, match="not a session"):
        owner_of("0123456789abcdef.3.17")


# Asking.


@async_test
async def test_another_worker_answers(home):
    """The owner's handler of that kind, and nobody else's; our own too, without a socket."""
    async with relays(home, 3) as (one, two, three):
        two.serve("loud", upper)
        three.serve("loud", lambda payload: asyncio.sleep(0, b"three"))
        assert await one.ask(two.owner, "loud", b"abc") == b"ABC"
        assert await one.ask(three.owner, "loud", b"abc") == b"three"
        assert await two.ask(two.owner, "loud", b"self") == b"SELF"


@async_test
async def test_many_requests_share_one_connection_and_each_gets_its_own_answer(home):
    """A slow answer holds up no other, and large ones arrive whole."""
    async with relays(home) as (one, two):
        gate = asyncio.Event()

        async def echo(payload: bytes) -> bytes:
            if payload.startswith(b"first"):
                await gate.wait()
            return payload

        two.serve("echo", echo)
        payloads = [b"first", *(b"%d " % number * (number * 200) for number in range(1, 120))]
        asked = [asyncio.create_task(one.ask(two.owner, "echo", payload)) for payload in payloads]
        assert await asyncio.gather(*asked[1:]) == payloads[1:]
        assert not asked[0].done()
        gate.set()
        assert await asked[0] == b"first"
        assert len(two._callers) == 1


@async_test
async def test_a_worker_that_never_was_is_gone(home):
    """Another slot, another generation of a living one, another hub: at once."""
    async with relays(home) as (one, two):
        for owner in (Owner(home.hub, 9, 1), Owner(home.hub, 1, 1), two.owner._replace(hub="f" * 16)):
            with pytest.raises(OwnerGone):
                await one.ask(owner, "loud", b"", timeout_s=30)


@async_test
async def test_an_owner_that_ends_is_gone_for_who_waits_and_for_who_asks_next(home):
    """And its handler is cancelled."""
    async with relays(home) as (one, two):
        asked = asyncio.Event()
        ended = asyncio.Event()

        async def hold(payload: bytes) -> bytes:
            asked.set()
            try:
                return await asyncio.Future()
            finally:
                ended.set()

        two.serve("hold", hold)
        waiting = asyncio.create_task(one.ask(two.owner, "hold", b""))
        await asked.wait()
        await two.close()
        with pytest.raises(OwnerGone):
            await waiting
        await asyncio.wait_for(ended.wait(), 5)
        with pytest.raises(OwnerGone):
            await one.ask(two.owner, "hold", b"")


@async_test
async def test_after_a_broken_connection_the_next_request_makes_another(home):
    """Such as one whose other end was overloaded and cut it."""
    async with relays(home) as (one, two):
        two.serve("loud", upper)
        assert await one.ask(two.owner, "loud", b"a") == b"A"
        for caller in list(two._callers):
            caller.abort()
        await until(lambda: not one._links)
        assert await one.ask(two.owner, "loud", b"b") == b"B"


@async_test
async def test_a_slow_owner_is_given_up_and_its_handler_cancelled(home):
    """After the time of the request, or that of the settings; also where we are the owner ourselves."""
    async with relays(home, timeout_s=0.05) as (one, two):
        ended = []

        async def hold(payload: bytes) -> bytes:
            try:
                return await asyncio.Future()
            finally:
                ended.append(payload)

        two.serve("hold", hold)
        one.serve("hold", hold)
        for owner, payload, timeout_s in ((two.owner, b"a", None), (two.owner, b"b", 0.01), (one.owner, b"c", 0.01)):
            with pytest.raises(OwnerSlow):
                await one.ask(owner, "hold", payload, timeout_s)
        await until(lambda: sorted(ended) == [b"a", b"b", b"c"])


@async_test
async def test_who_asked_and_goes_away_has_it_cancelled(home):
    """An aborted poll must not hold its session."""
    async with relays(home) as (one, two):
        asked, ended = asyncio.Event(), asyncio.Event()

        async def hold(payload: bytes) -> bytes:
            asked.set()
            try:
                return await asyncio.Future()
            finally:
                ended.set()

        two.serve("hold", hold)
        waiting = asyncio.create_task(one.ask(two.owner, "hold", b""))
        await asked.wait()
        waiting.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        assert not one._links[two.owner].result()._pending


@async_test
async def test_a_flood_is_refused_at_once_and_those_inside_are_served(home):
    """`pending` requests wait, the next one is OwnerSlow."""
    async with relays(home, pending=3) as (one, two):
        gate = asyncio.Event()

        async def hold(payload: bytes) -> bytes:
            await gate.wait()
            return payload

        two.serve("hold", hold)
        inside = [asyncio.create_task(one.ask(two.owner, "hold", b"%d" % number)) for number in range(3)]
        await until(lambda: two._callers and len(next(iter(two._callers))._running) == 3)
        with pytest.raises(OwnerSlow):
            await one.ask(two.owner, "hold", b"x", timeout_s=30)
        gate.set()
        assert await asyncio.gather(*inside) == [b"0", b"1", b"2"]


@async_test
async def test_too_large_is_refused_both_ways(home):
    """A request is not even sent; an answer is OwnerFailed. Others go on."""
    async with relays(home, message_bytes=1000) as (one, two):
        two.serve("loud", upper)
        two.serve("large", lambda payload: asyncio.sleep(0, b"x" * 1001))
        with pytest.raises(OwnerFailed, match="allowed: 1000"):
            await one.ask(two.owner, "loud", b"x" * 1000)
        with pytest.raises(OwnerFailed, match="1001"):
            await one.ask(two.owner, "large", b"")
        assert await one.ask(two.owner, "loud", b"x" * 900) == b"X" * 900


@pytest.mark.expects_log
@async_test
async def test_a_handler_that_fails_and_one_that_is_not_there_fail_one_request(home):
    """Told to whoever asked, here and there."""
    async with relays(home) as (one, two):

        async def broken(payload: bytes) -> bytes:
            raise ZeroDivisionError

        two.serve("broken", broken)
        two.serve("loud", upper)
        for relay in (one, two):
            with pytest.raises(OwnerFailed):
                await relay.ask(two.owner, "broken", b"")
            with pytest.raises(OwnerFailed):
                await relay.ask(two.owner, "nothing", b"")
            assert await relay.ask(two.owner, "loud", b"a") == b"A"


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\n\r\n", HEADER.pack(0, 1, ASK), HEADER.pack(2**31, 1, ASK), HEADER.pack(1, 1, 9) + b"x"],
)
@async_test
async def test_nonsense_ends_its_connection_only(home, nonsense):
    async with relays(home) as (one, two):
        two.serve("loud", upper)
        reader, writer = await asyncio.open_unix_connection(home.path(1, 2))
        writer.write(nonsense)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert await one.ask(two.owner, "loud", b"a") == b"A"


# Where the sockets lie.


@async_test
async def test_the_sockets_are_private_and_leave_nothing_behind(home):
    """0700 around, 0600 each; what a killed worker left is removed by the supervisor, and nobody else's with it."""
    for generation, kind in ((1, ""), (1, FDS), (1, NEWCOMERS), (12, "")):
        Path(home.path(1, generation, kind)).touch(0o600)
    home.clear(1, 1)
    assert os.listdir(home.directory) == ["1-12.sock"]
    home.clear(1, 12)
    async with relays(home):
        assert sorted(os.listdir(home.directory)) == ["0-1.sock", "1-2.sock"]
        assert stat.S_IMODE(os.stat(home.directory).st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in Path(home.directory).iterdir()} == {0o600}
    assert os.listdir(home.directory) == []


@pytest.fixture
def base():
    """A directory whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hub-test-", dir="/tmp") as directory:
        yield Path(directory)


def test_a_home_is_where_systemd_says_if_that_is_short_enough(base):
    """Otherwise in the directory for temporary files; no socket's path may be over 107 bytes."""
    for given, expected in ((str(base), str(base)), ("relative", "/tmp"), (f"{base}/{'x' * 70}", "/tmp"), ("", "/tmp")):
        made = Home.make({"RUNTIME_DIRECTORY": given})
        assert os.path.dirname(made.directory) == expected
        assert len(made.path(9999, 10**12 - 1)) <= 107
        made.remove()
        assert not os.path.exists(made.directory)


def test_a_new_home_removes_those_that_killed_hubs_have_left(base):
    """Not those of living ones, nor what is no directory of ours."""
    living, killed = (Home.make({"RUNTIME_DIRECTORY": str(base)}) for _ in range(2))
    os.close(killed.lock)
    Path(killed.path(0, 1)).touch()
    (base / "hub-relay-link").symlink_to("/tmp")
    (base / "hub-relay-file").touch()
    made = Home.make({"RUNTIME_DIRECTORY": str(base)})
    names = {Path(home.directory).name for home in (living, made)}
    assert set(os.listdir(base)) == names | {"hub-relay-link", "hub-relay-file"}
    assert stat.S_IMODE(os.stat(made.directory).st_mode) == 0o700
    for home in (living, made):
        home.remove()


OWNER_PROGRAM = """
import asyncio, json, sys
from hub.relay import Home, Limits, Relay

async def main():
    relay = Relay(Home(*json.loads(sys.argv[1])), 5, 6, Limits())
    asked = asyncio.Event()
    async def hold(payload):
        print("asked", flush=True)
        await asyncio.Future()
    relay.serve("hold", hold)
    await relay.start()
    print("ready", flush=True)
    await asyncio.Future()

asyncio.run(main())
"""


@pytest.fixture
def owner_process(home):
    """The program, once it is reachable."""
    command = [sys.executable, "-c", OWNER_PROGRAM, json.dumps(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@async_test
async def test_kill_9_of_the_owner_is_told_at_once(home, owner_process):
    """To who waits for its answer, and to who comes after; nobody waits for a time-out."""
    async with relays(home, 1, timeout_s=30) as (one,):
        owner = Owner(home.hub, 5, 6)
        waiting = asyncio.create_task(one.ask(owner, "hold", b""))
        assert await asyncio.to_thread(owner_process.stdout.readline) == b"asked\n"
        owner_process.send_signal(signal.SIGKILL)
        for ask in (waiting, one.ask(owner, "hold", b"")):
            with pytest.raises(OwnerGone):
                await asyncio.wait_for(ask, 10)
