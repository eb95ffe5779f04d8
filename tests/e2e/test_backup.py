"""Backup and restore of a hub that runs, and of one that does not, with its private Valkey.

Its own doors publish; positions are judged as workers judge those of clients.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import cent
import pytest
import redis
from redis.asyncio import Redis

from hub.channels import Namespace
from hub.embedded import running_url
from hub.history import ALL, History, Page
from hub.position import Position, survives
from hub.sections import RedisSettings
from hub.store import Store
from tests.hubs import HubProcess, run_hub
from tests.plane import Client, client
from tests.support import async_test

ROOM = "room:a"
RULES: dict[str, Any] = {"mode": "stream", "history_size": 100, "subscribe": "anyone", "publish": "anyone"}


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    with HubProcess({"namespaces": {"room": RULES}}) as hub:
        yield hub


def command(hub: HubProcess, *arguments: str) -> str:
    """Run `hub ARGUMENTS` with this hub's settings; returns what it prints."""
    done = run_hub(*arguments, "--config", str(hub.config_path))
    assert done.returncode == 0, done.stderr
    assert "hub: " not in done.stderr  # a Valkey that was started for the command has lines of its own there
    return done.stdout


async def publish(hub: HubProcess, *texts: str) -> Position:
    """Publish by the server API; where the channel is afterwards."""
    async with cent.AsyncClient(hub.api_url, hub.key) as api:
        for text in texts:
            result = await api.publish(cent.PublishRequest(channel=ROOM, data={"text": text}))
    return Position(result.epoch, result.offset)


async def read(hub: HubProcess) -> Page:
    """The channel as a worker reads it."""
    history = History(Store(RedisSettings(), private(hub)))
    try:
        return await history.read(ROOM, Namespace(**RULES), limit=ALL)
    finally:
        await history.close()


def private(hub: HubProcess) -> str:
    url = running_url(hub.directory / "state")
    assert url
    return url


async def until_workers_know_the_store(hub: HubProcess) -> None:
    """Both have asked for its generation: each then hears of itself by its own Redis channel."""
    heard: set[bytes] = set()
    async with asyncio.timeout(10), Redis.from_url(private(hub)) as client, client.pubsub() as listening:
        await listening.psubscribe("hub:loop:*")
        while len(heard) < 2:
            message = await listening.get_message(ignore_subscribe_messages=True, timeout=1.0)
            heard |= {message["channel"]} if message else set()


def texts(page: Page) -> list[str]:
    return [body.decode().partition('"text":"')[2].partition('"')[0] for _, body in page.publications]


@async_test
async def test_a_running_hub_gets_back_what_it_had(hub):
    """After a loss of everything the channel goes on at its offset; who read on is told, who did not is not."""
    file = str(hub.directory / "backup.gz")
    kept = await publish(hub, "one", "two", "three")
    command(hub, "backup", file)
    lost = await publish(hub, "four")
    with redis.Redis.from_url(private(hub)) as client:
        client.flushall()
    assert texts(await read(hub)) == []
    assert "1 channel, 3 publications" in command(hub, "restore", file, "--replace")
    page = await read(hub)
    assert texts(page) == ["one", "two", "three"]
    assert survives(kept, page.epoch, page.offset)
    assert not survives(lost, page.epoch, page.offset)
    after = await publish(hub, "five")
    assert after.offset == lost.offset == 4
    assert survives(after, (page := await read(hub)).epoch, page.offset)
    assert not survives(lost, page.epoch, page.offset)
    assert survives(kept, page.epoch, page.offset)


@async_test
async def test_live_clients_are_moved_and_told_exactly(hub):
    """Both are told to subscribe anew: who has read beyond the backup hears of the loss, who has not gets what came."""
    file = str(hub.directory / "backup")
    kept = await publish(hub, "one", "two")
    command(hub, "backup", file)
    await until_workers_know_the_store(hub)
    async with client(hub.ws_url) as reader, client(hub.ws_url) as late:
        beyond = await publish(hub, "lost")
        for one in (reader, late):
            await one.subscribe(ROOM)
        command(hub, "restore", file, "--replace")
        for one in (reader, late):
            assert (await one.push())["unsubscribe"]["code"] == 2500
        await publish(hub, "three")
        told = await resume(reader, beyond)
        assert told["recovered"] is False
        assert not told.get("publications")
        told = await resume(late, kept)
        assert told["recovered"] is True
        assert [each["data"]["text"] for each in told["publications"]] == ["three"]
        for one in (reader, late):
            await publish(hub, "live")
            assert (await one.push())["pub"]["data"]["text"] == "live"


async def resume(one: Client, position: Position) -> dict[str, Any]:
    """Subscribe with a position; the reply."""
    reply = await one.command(subscribe={"channel": ROOM, "recover": True, **position._asdict()})
    return reply["subscribe"]


@async_test
async def test_a_new_machine_begins_with_the_backup(hub):
    """Made and restored while no hub runs: the next start serves it, and its first publication is numbered behind."""
    file = str(hub.directory / "backup")
    kept = await publish(hub, "one", "two")
    assert hub.stop() == 0
    command(hub, "backup", file)
    shutil.rmtree(hub.directory / "state")
    command(hub, "restore", file)
    hub.start()
    assert texts(await read(hub)) == ["one", "two"]
    after = await publish(hub, "three")
    assert after.offset == 3
    page = await read(hub)
    assert survives(kept, page.epoch, page.offset)
    assert not survives(Position(kept.epoch, 3), page.epoch, page.offset)
