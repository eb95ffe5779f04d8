"""PyPI `cent` against a whole hub: what its users publish reaches clients, what they ask covers all workers.

The single methods, their errors and the bad requests are in tests/test_api.py, against one worker's API.
"""

from __future__ import annotations

from collections.abc import Iterator

import cent
import pytest
from cent import (
    BatchRequest,
    BroadcastRequest,
    ChannelsRequest,
    HistoryRemoveRequest,
    HistoryRequest,
    InfoRequest,
    PresenceRequest,
    PublishRequest,
    StreamPosition,
)

from hub import __version__
from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import client
from tests.support import async_test

WORKERS = 2


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """Nobody may publish but by the API."""
    with HubProcess(
        {
            "workers": WORKERS,
            "namespaces": {"chat": {"publish": "nobody"}, "room": {"mode": "stream", "history_size": 3}},
        }
    ) as hub:
        yield hub


@async_test
async def test_publish_broadcast_and_batch_reach_a_client(hub):
    """Each publication arrives, with data and tags, in the order of the requests."""
    async with cent.AsyncClient(hub.api_url, hub.key) as api, client(hub.ws_url) as one:
        for channel in ("chat:a", "chat:b"):
            await one.subscribe(channel)
        await api.publish(PublishRequest(channel="chat:a", data={"n": 1}, tags={"from": "cent"}))
        assert await one.push() == {"channel": "chat:a", "pub": {"data": {"n": 1}, "tags": {"from": "cent"}}}
        sent = await api.broadcast(BroadcastRequest(channels=["chat:a", "no:where", "chat:b"], data=2))
        assert [response.error.code if response.error else 0 for response in sent.responses] == [0, 102, 0]
        assert {(push["channel"], push["pub"]["data"]) for push in [await one.push(), await one.push()]} == {
            ("chat:a", 2),
            ("chat:b", 2),
        }
        await api.batch(BatchRequest(requests=[PublishRequest(channel="chat:b", data=n) for n in (3, 4, 5)]))
        assert [(await one.push())["pub"]["data"] for _ in range(3)] == [3, 4, 5]


@async_test
async def test_history_is_the_same_from_every_worker(hub):
    """Numbered whichever worker took it, once for each key; read in order, backwards and behind a position; removed."""
    for n in range(1, 6):
        # A new client for each: the listener gives its connection to whichever worker.
        async with cent.AsyncClient(hub.api_url, hub.key) as api:
            for _ in range(2):
                sent = await api.publish(PublishRequest(channel="room:a", data=n, idempotency_key=f"key {n}"))
                assert sent.offset == n
    async with cent.AsyncClient(hub.api_url, hub.key) as api:

        async def read(**options: object) -> list[int]:
            page = await api.history(HistoryRequest(channel="room:a", **options))
            assert (page.offset, page.epoch) == (5, sent.epoch)
            assert all(publication.offset == publication.data for publication in page.publications)
            return [publication.data for publication in page.publications]

        assert await read() == []
        assert await read(limit=10) == [3, 4, 5]
        assert await read(limit=2, reverse=True) == [5, 4]
        assert await read(limit=10, since=StreamPosition(offset=4, epoch=sent.epoch)) == [5]
        await api.history_remove(HistoryRemoveRequest(channel="room:a"))
        assert await read(limit=10) == []


@async_test
async def test_channels_and_info_cover_all_workers(hub):
    """Subscribers are summed over the workers of all of them; each worker is a node."""
    async with cent.AsyncClient(hub.api_url, hub.key) as api:
        async with client(hub.ws_url) as one, client(hub.ws_url) as two, client(hub.ws_url) as three:
            for each in (one, two, three):
                await each.subscribe("chat:counted")
            found = (await api.channels(ChannelsRequest(pattern="chat:counted"))).channels
            assert {channel: info.num_clients for channel, info in found.items()} == {"chat:counted": 3}
            nodes = (await api.info(InfoRequest())).nodes
            assert len({node.uid for node in nodes}) == WORKERS
            assert {node.version for node in nodes} == {__version__}

        async def nobody_is_left() -> bool:
            return not (await api.channels(ChannelsRequest(pattern="chat:counted"))).channels

        await until(nobody_is_left)


@async_test
async def test_a_refusal_is_cents_own_error(hub):
    """102 and 108 as errors of the API, a wrong key as an unauthorized one; the hub goes on for others."""
    async with cent.AsyncClient(hub.api_url, hub.key) as api:
        refused = {
            102: api.publish(PublishRequest(channel="no:where", data=1)),
            107: api.publish(PublishRequest(channel="not a name", data=1)),
            108: api.history(HistoryRequest(channel="chat:a")),
        }
        for code, request in refused.items():
            with pytest.raises(cent.CentApiResponseError) as found:
                await request
            assert found.value.code == code
        with pytest.raises(cent.CentApiResponseError):
            await api.presence(PresenceRequest(channel="chat:a"))
        async with cent.AsyncClient(hub.api_url, "another key") as stranger:
            with pytest.raises(cent.CentUnauthorizedError):
                await stranger.info(InfoRequest())
        await api.info(InfoRequest())
