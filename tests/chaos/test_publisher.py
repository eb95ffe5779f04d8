"""Publishers against a server that answers as it is told: what is tried again, what is written down, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import orjson

from tests.chaos.events import Acked, Failed, Log, Published, Reader
from tests.chaos.publisher import ApiPublisher, Pace
from tests.nodes import until
from tests.support import async_test

OK = b'{"result":{"epoch":"1.a","offset":7}}'
BUSY = b'{"error":{"code":100,"message":"Redis is away","temporary":true}}'
DENIED = b'{"error":{"code":103,"message":"permission denied"}}'
DEATH = b""
"""The worker dies in the middle of its answer."""


class Server:
    """Gives the next of its answers to each request; the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.bodies: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(head.partition("Content-Length: ")[2].split("\r\n")[0])
                self.bodies.append(orjson.loads(await reader.readexactly(size)))
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                status = b"503 Service Unavailable" if answer is BUSY else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(answer) or 9, answer))
                if answer is DEATH:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def publisher(directory: Path, *answers: bytes) -> AsyncIterator[tuple[ApiPublisher, Server, Log]]:
    server, log = Server(*answers), Log(directory / "p.jsonl")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/api"
    one = ApiPublisher("a0", url, "key", ["s:1"], log, random.Random(1))
    try:
        yield one, server, log
    finally:
        one.close()
        listening.close()
        log.close()


def kinds(directory: Path) -> list[type]:
    reader = Reader(directory)
    found = [type(event) for event in reader.read()]
    reader.close()
    return found


@async_test
async def test_a_message_is_tried_again_with_its_key_until_it_is_acked(tmp_path):
    """Through a temporary error and a death in the middle; one Published, one Acked, and the failures between."""
    async with publisher(tmp_path, BUSY, DEATH, OK) as (one, server, log):
        await one.publish("s:1")
        log.flush()
    assert kinds(tmp_path) == [Published, Failed, Failed, Acked]
    assert [body["idempotency_key"] for body in server.bodies] == ["a0-1"] * 3
    assert {body["data"]["id"] for body in server.bodies} == {"a0-1"}
    assert not one.refused


@async_test
async def test_a_refusal_is_not_tried_again(tmp_path):
    """It says that the rig is wrong, and rounds check for it."""
    async with publisher(tmp_path, DENIED) as (one, server, log):
        await one.publish("s:1")
        log.flush()
    assert kinds(tmp_path) == [Published]
    assert len(server.bodies) == len(one.refused) == 1


@async_test
async def test_a_pause_waits_for_what_is_under_way(tmp_path):
    """Who is at it finishes; nobody begins."""
    async with publisher(tmp_path, OK) as (one, server, _):
        pace = Pace()
        running = asyncio.create_task(one.run(200.0, pace))
        await until(lambda: len(server.bodies) > 3)
        pace.running.clear()
        await until(lambda: not pace.busy)
        count = len(server.bodies)
        await asyncio.sleep(0.05)  # ten times as long as the pause between two
        assert len(server.bodies) == count
        pace.running.set()
        await until(lambda: len(server.bodies) > count)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
