"""The load's own client: what the protocols do not allow is noticed; what it is told to say goes out in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support import async_test
from tests.wires.engine import Client, ProtocolFault, Refused, Server

OPEN = '0{"sid":"abc","upgrades":["websocket"],"pingInterval":1000,"pingTimeout":1000,"maxPayload":24}'
JOINED = '40{"sid":"x"}'


class Script:
    """A server of which every answer is written beforehand. polls: in their order, behind the handshake's.

    posts: the last of them comes behind so many.
    """

    def __init__(self, polls: list[str], posts: int) -> None:
        self.bodies: list[str] = []
        """What was posted."""
        self.connections = 0
        self._polls = [OPEN, *polls]
        self._posts = posts
        self.done = asyncio.Event()
        """The last answer was asked for."""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield Server("127.0.0.1", server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert "\r\nConnection: close\r\n" in head
        if head.startswith("POST "):
            length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
            self.bodies.append((await reader.readexactly(length)).decode())
            self._answer(writer, "ok")
        elif self._polls:
            # The last answer comes behind so many posts: it is to something that was asked.
            while len(self._polls) == 1 and len(self.bodies) < self._posts:
                await asyncio.sleep(0)
            self._answer(writer, self._polls.pop(0))
        else:
            self.done.set()
            await reader.read()  # a poll that is held
        writer.close()

    def _answer(self, writer: asyncio.StreamWriter, body: str) -> None:
        status = "400 Bad Request" if body.startswith("{") else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@contextlib.asynccontextmanager
async def client(script: Script) -> AsyncIterator[tuple[Client, list, asyncio.Future[Exception]]]:
    """One that polls, what it hears, and why it was lost."""
    heard: list = []
    lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    async with script.serving() as server:
        one = Client(server, "polling", lambda *event: heard.append(event), lost.set_result)
        try:
            yield one, heard, lost
        finally:
            if one._life is not None:
                one._life.cancel()
                await asyncio.gather(one._life, return_exceptions=True)


@async_test
async def test_packets_leave_in_order_and_within_the_payload():
    """Several in one body, up to maxPayload; the next body when the one before was answered; each on its connection."""
    script = Script([JOINED, '42["a",1]\x1e6\x1e42["b"]', '431["x"]\x1e430[]'], posts=2)
    async with client(script) as (one, heard, _):
        await one.open()
        calls = [asyncio.create_task(one.call("n", number)) for number in range(4)]
        assert await calls[1] == ["x"]
        assert await calls[0] == []
        await script.done.wait()
        while len(script.bodies) < 3:
            await asyncio.sleep(0)
        for call in calls[2:]:
            call.cancel()
    assert heard == [("a", [1]), ("b", [])]
    assert script.bodies == ["40", '420["n",0]\x1e421["n",1]', '422["n",2]\x1e423["n",3]']
    assert all(len(body) <= 24 for body in script.bodies)
    assert script.connections == 8  # the handshake, four polls, three posts


@async_test
async def test_a_ping_is_answered():
    script = Script([JOINED, "2"], posts=1)
    async with client(script) as (one, _, _):
        await one.open()
        await script.done.wait()
        while "3" not in script.bodies:
            await asyncio.sleep(0)


def check_refused(error: Exception) -> None:
    assert isinstance(error, Refused)
    assert (error.status, error.code) == (400, 1)


def check_fault(error: Exception) -> None:
    assert isinstance(error, ProtocolFault) and not isinstance(error, Refused)


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        ('{"code":1,"message":"Session ID unknown"}', check_refused),
        ("1", check_fault),
        ("41", check_fault),
        ("", check_fault),
        (JOINED, check_fault),
        ('437["nobody asked"]', check_fault),
        ("bAQI=", check_fault),
        (OPEN, check_fault),
    ],
)
@async_test
async def test_what_is_out_of_place_ends_the_client(answer: str, check: Callable[[Exception], None]):
    """And whoever waits for an ack is told."""
    async with client(Script([JOINED, answer], posts=2)) as (one, _, lost):
        await one.open()
        call: Awaitable = asyncio.create_task(one.call("n"))
        with pytest.raises(ProtocolFault):
            await call
        check(await lost)


@pytest.mark.parametrize("opening", ["", "4hello", OPEN.replace('"websocket"', "")])
@async_test
async def test_a_handshake_that_is_none_is_refused(opening: str):
    script = Script([], posts=0)
    script._polls = [opening]
    async with client(script) as (one, _, _):
        with pytest.raises(ProtocolFault):
            await one.open()
