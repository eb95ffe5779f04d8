"""Publishing to `stream` namespaces and reading their history over the server API, with good and bad requests."""

from __future__ import annotations

import cent
import orjson
import pytest

from hub import api, pages
from hub.position import MAX_EPOCH_LENGTH, MAX_OFFSET
from tests.apis import Hub, hub
from tests.support import async_test


async def fill(one: Hub, count: int) -> str:
    """Publish 1, 2, … to chat:a, which keeps 5; returns the epoch."""
    for n in range(1, count + 1):
        result = (await one.ask("publish", {"channel": "chat:a", "data": n}))["result"]
        assert result == {"ack": "memory", "offset": n, "epoch": result["epoch"]}
    return result["epoch"]


async def read(one: Hub, **params: object) -> dict:
    return await one.ask("history", {"channel": "chat:a", **params})


@async_test
async def test_history_in_every_way(valkey_url, prefix):
    """The position alone, the oldest, the newest, behind a position, before one; publications as they were sent."""
    async with hub(valkey_url, prefix) as one:
        epoch = await fill(one, 7)
        since = {"offset": 5, "epoch": epoch}
        for params, offsets in [
            ({}, []),
            ({"limit": 0}, []),
            ({"limit": 2}, [3, 4]),
            ({"limit": 2, "reverse": True}, [7, 6]),
            ({"limit": -1}, [3, 4, 5, 6, 7]),
            ({"limit": 10**9}, [3, 4, 5, 6, 7]),
            ({"limit": -1, "since": since}, [6, 7]),
            ({"limit": 1, "since": since, "reverse": False}, [6]),
            ({"limit": -1, "since": since, "reverse": True}, [4, 3]),
            ({"limit": -1, "since": {"offset": 6}}, [7]),
            ({"limit": -1, "since": {"offset": 0, "epoch": ""}}, [3, 4, 5, 6, 7]),
            ({"limit": -1, "since": {"offset": 7, "epoch": epoch}}, []),
            ({"limit": None, "since": None, "reverse": None}, []),
        ]:
            publications = [{"offset": offset, "data": offset} for offset in offsets]
            expected = {"publications": publications, "offset": 7, "epoch": epoch}
            assert await read(one, **params) == {"result": expected}, params


@async_test
async def test_a_page_is_bounded(valkey_url, prefix, monkeypatch):
    """More than MAX_HISTORY are asked for page by page, -1 too."""
    monkeypatch.setattr(api, "MAX_HISTORY", 2)
    async with hub(valkey_url, prefix) as one:
        epoch = await fill(one, 5)
        for limit in (-1, 3):
            found, since = [], {"offset": 0, "epoch": epoch}
            while page := (await read(one, limit=limit, since=since))["result"]["publications"]:
                assert len(page) <= 2
                found += [publication["data"] for publication in page]
                since["offset"] = page[-1]["offset"]
            assert found == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"channel": ""}, 107),
        ({"channel": "nowhere:a"}, 102),
        ({"channel": "closed:a"}, 108),
        ({"channel": "ticker:a"}, 108),
        ({"limit": -2}, 107),
        ({"limit": 1.5}, 107),
        ({"limit": "1"}, 107),
        ({"limit": True}, 107),
        ({"limit": [1]}, 107),
        ({"reverse": 1}, 107),
        ({"reverse": "yes"}, 107),
        ({"since": 5}, 107),
        ({"since": []}, 107),
        ({"since": {"offset": -1}}, 107),
        ({"since": {"offset": True}}, 107),
        ({"since": {"offset": 1.5}}, 107),
        ({"since": {"offset": "1"}}, 107),
        ({"since": {"offset": MAX_OFFSET + 1}}, 107),
        ({"since": {"offset": 1, "epoch": 4}}, 107),
        ({"since": {"offset": 1, "epoch": "e" * (MAX_EPOCH_LENGTH + 1)}}, 107),
        ({"since": {"offset": 1, "epoch": "another"}}, 112),
        ({"since": {"offset": 0, "epoch": "another"}}, 112),
        ({"since": {"offset": 4}}, 112),
        ({"since": {"offset": MAX_OFFSET}, "limit": -1, "reverse": True}, 112),
    ],
)
@async_test
async def test_a_history_that_can_not_be_given_is_refused(params, code, valkey_url, prefix):
    """By the protocol's own codes, and the channel is as it was."""
    async with hub(valkey_url, prefix) as one:
        epoch = await fill(one, 3)
        assert (await read(one, **params))["error"]["code"] == code
        assert (await read(one))["result"] == {"publications": [], "offset": 3, "epoch": epoch}


@async_test
async def test_what_was_removed_is_gone_and_its_numbers_are_not_given_again(valkey_url, prefix):
    """history_remove is {}; the same refusals as for history."""
    async with hub(valkey_url, prefix) as one:
        epoch = await fill(one, 3)
        assert await one.ask("history_remove", {"channel": "chat:a"}) == {"result": {}}
        assert (await read(one, limit=-1))["result"] == {"publications": [], "offset": 3, "epoch": epoch}
        assert (await one.ask("publish", {"channel": "chat:a", "data": 4}))["result"]["offset"] == 4
        for channel, code in [("", 107), ("nowhere:a", 102), ("closed:a", 108), ("ticker:a", 108)]:
            assert (await one.ask("history_remove", {"channel": channel}))["error"]["code"] == code


@async_test
async def test_options_of_a_publication_are_honoured(valkey_url, prefix):
    """A key once for each channel of a broadcast, versions in order, and past the history on demand."""
    async with hub(valkey_url, prefix) as one:
        many = {"channels": ["chat:a", "chat:b", "closed:c"], "data": 1, "idempotency_key": "k"}
        first = (await one.ask("broadcast", many))["result"]["responses"]
        again = (await one.ask("broadcast", many))["result"]["responses"]
        assert again == [{"result": {**response["result"], "duplicate": True}} for response in first]
        assert [response["result"].get("offset") for response in first] == [1, 1, None]
        for version, offset in [(5, 2), (4, 2), (6, 3)]:
            params = {"channel": "chat:a", "data": version, "version": version, "version_epoch": "v"}
            assert (await one.ask("publish", params))["result"]["offset"] == offset
        params = {"channel": "chat:a", "data": "passing", "skip_history": True}
        async with one.hearing(f"{prefix}:pub:{{chat:a}}") as hear:
            assert await one.ask("publish", params) == {"result": {}}
            assert await hear() == ("chat:a", {"data": "passing"})
        kept = (await read(one, limit=-1))["result"]["publications"]
        assert [publication["data"] for publication in kept] == [1, 5, 6]


@async_test
async def test_cent_reads_what_it_published(valkey_url, prefix):
    """Its own models, unchanged: publications with tags, positions, its own error for a foreign epoch."""
    async with hub(valkey_url, prefix, key="k") as one, cent.AsyncClient(one.url, "k") as client:
        request = cent.PublishRequest(channel="chat:a", data={"n": 1}, tags={"t": "x"}, idempotency_key="once")
        sent, again = await client.publish(request), await client.publish(request)
        assert sent.offset == again.offset == 1 and sent.epoch == again.epoch
        await client.publish(cent.PublishRequest(channel="chat:a", data=2, skip_history=False))
        since = cent.StreamPosition(offset=0, epoch=sent.epoch)
        page = await client.history(cent.HistoryRequest(channel="chat:a", limit=10, since=since))
        assert [(p.offset, p.data, p.tags) for p in page.publications] == [(1, {"n": 1}, {"t": "x"}), (2, 2, None)]
        assert (page.offset, page.epoch) == (2, sent.epoch)
        with pytest.raises(cent.CentApiResponseError) as refused:
            foreign = cent.StreamPosition(offset=1, epoch="another")
            await client.history(cent.HistoryRequest(channel="chat:a", since=foreign))
        assert refused.value.code == 112
        await client.history_remove(cent.HistoryRemoveRequest(channel="chat:a"))
        assert (await client.history(cent.HistoryRequest(channel="chat:a", limit=10))).publications == []


def test_a_body_carries_the_bytes_that_were_published():
    """No decode and encode on the way: numbers keep their digits."""
    page = pages.Page("e", 1, [(1, b'{"offset":1,"data":1.10}')])
    written = orjson.dumps(pages.body(page))
    assert written == b'{"publications":[{"offset":1,"data":1.10}],"offset":1,"epoch":"e"}'
