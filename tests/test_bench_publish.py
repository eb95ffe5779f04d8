"""Bench publish: order, counts and bounds of what publishes, against a server API that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tornado import netutil, web
from tornado.httpserver import HTTPServer

from hub import bench_publish
from hub.bench_figures import Outcome
from hub.bench_publish import ApiPublisher, Wanted
from hub.urls import Endpoint

from .support import async_test
from .test_bench_crew import plan


class Api(web.RequestHandler):
    """Answers a batch: each publication as `verdicts` says, in turn; the last one goes on."""

    verdicts: list[dict]
    seen: list[Any]

    def post(self) -> None:
        commands = json.loads(self.request.body)["commands"]
        self.seen += [(self.request.headers["X-API-Key"], command["publish"]) for command in commands]
        replies = [self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0] for _ in commands]
        self.finish({"replies": replies})


async def published(verdicts: list[dict], messages: list[tuple[int, int, int]]) -> tuple[Outcome, list[Any]]:
    """What becomes of messages of `plan`'s channels, and what the API has seen."""
    handler = type("ThisApi", (Api,), {"verdicts": verdicts, "seen": []})
    server = HTTPServer(web.Application([("/api/batch", handler)], log_function=lambda _: None))
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    wanted = Wanted(
        [plan()], 10.0, 1.0, 80, False, Endpoint(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/api"), "k"
    )
    outcome = Outcome(2, 10.0)
    publisher = ApiPublisher(wanted, outcome)
    try:
        await publisher.start()
        assert all(publisher.put(*message) for message in messages)
        async with asyncio.timeout(10):
            while publisher.busy:
                await asyncio.sleep(0.005)
    finally:
        await publisher.close()
        server.stop()
        await server.close_all_connections()
    return outcome, handler.seen


@async_test
async def test_messages_of_a_channel_stay_in_order_and_are_counted_as_they_are_answered():
    """With key, size and numbers; what is refused is told by its code."""
    refused = {"error": {"code": 102, "message": "unknown channel"}}
    messages = [(channel, number, 5) for number in range(1, 101) for channel in range(3)]
    outcome, seen = await published([refused, {"publish": {}}], messages)
    assert (outcome.published, outcome.unpublished) == (299, 1)
    assert outcome.publish_errors == {"publish: error 102: unknown channel": 1}
    for channel, name in enumerate("abc"):
        own = [body["data"]["hub_bench"] for key, body in seen if body["channel"] == name and key == "k"]
        assert own == [[77, channel, number, 5] for number in range(1, 101)]
    assert {len(json.dumps(body["data"], separators=(",", ":"))) for _, body in seen} == {80}


@async_test
async def test_a_hub_that_is_not_there_fails_each_message():
    """It goes on with the next ones, which may find it again."""
    wanted = Wanted([plan()], 10.0, 1.0, 80, False, Endpoint("http://127.0.0.1:9/api"), "k")
    outcome = Outcome(2, 10.0)
    publisher = ApiPublisher(wanted, outcome)
    await publisher.start()
    for number in (1, 2):
        assert publisher.put(0, number, 5)
        async with asyncio.timeout(10):
            while publisher.busy or outcome.unpublished < number:
                await asyncio.sleep(0.005)
    await publisher.close()
    [(reason, number)] = outcome.publish_errors.items()
    assert reason.startswith("publish: ConnectionRefusedError ") and number == outcome.unpublished == 2


@async_test
async def test_what_waits_to_be_sent_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """A rate that the hub does not take must not fill the memory."""
    monkeypatch.setattr(bench_publish, "MAX_DUE", 6)
    publisher = ApiPublisher(
        Wanted([plan()], 1.0, 1.0, 1, False, Endpoint("http://127.0.0.1:9/api"), "k"), Outcome(1, 1.0)
    )
    assert [publisher.put(0, number, 0) for number in range(4)] == [True, True, False, False]
    assert publisher.put(1, 1, 0)
