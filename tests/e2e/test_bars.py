"""Bars as a chart sees them: its history, then what follows, without a gap, also when leaders are killed."""

from __future__ import annotations

import json
import os
import signal

import cent
from redis import Redis

from tests.hubs import HubProcess
from tests.nodes import own_valkey, until
from tests.plane import client
from tests.support import async_test

SETTINGS = {
    "workers": 3,
    "namespaces": {"bars": {"mode": "stream", "subscribe": "anyone", "history": "anyone", "history_size": 1000}},
    "ticker": {
        "source": "simulate",
        "symbols": ["ACME", "APEX"],
        "rate_hz": 200.0,
        "share": 1.0,
        "bars": ["1s"],
        "lease_ttl_s": 0.5,
    },
}
SECOND = 10**9


@async_test
async def test_a_chart_loads_and_follows_and_no_bar_is_missing_or_wrong_over_killed_leaders():
    """Two leaders are killed within the bars of its history; each bar is that of the ticks that were published."""
    with own_valkey() as valkey, Redis.from_url(valkey.url, socket_timeout=30) as redis, redis.pubsub() as feed:
        feed.subscribe("hub:feed:{ticker}")
        await until(lambda: feed.get_message() is not None)

        def leader() -> int:
            owner = redis.hget("hub:lease:{ticker}", "owner")
            return int(owner.decode().split(":")[-2]) if owner else 0

        with HubProcess({**SETTINGS, "redis": {"url": valkey.url}}) as hub:
            await until(lambda: redis.xlen("hub:stream:{bars:1s:ACME}") >= 2, 10)
            for _ in range(2):
                killed = leader()
                os.kill(killed, signal.SIGKILL)
                await until(lambda killed=killed: leader() not in (0, killed), 10)
                bars = redis.xlen("hub:stream:{bars:1s:ACME}")
                await until(lambda bars=bars: redis.xlen("hub:stream:{bars:1s:ACME}") >= bars + 2, 10)
            async with client(hub.ws_url) as chart:
                reply = await chart.command(subscribe={"channel": "bars:1s:ACME"})
                top = reply["subscribe"]["offset"]
                async with cent.AsyncClient(hub.api_url, hub.key) as api:
                    page = await api.history(cent.HistoryRequest(channel="bars:1s:ACME", limit=1000))
                loaded = [(one.offset, one.data) for one in page.publications if one.offset <= top]
                followed = [(await chart.push())["pub"] for _ in range(2)]
        numbered = loaded + [(pub["offset"], pub["data"]) for pub in followed]
        assert [offset for offset, _ in numbered] == list(range(1, len(numbered) + 1))
        ticks: dict[int, list[dict]] = {}
        while message := feed.get_message(ignore_subscribe_messages=True, timeout=2):
            for line in message["data"].split(b"\n")[2::2]:
                tick = json.loads(line)["data"]
                if tick["symbol"] == "ACME":
                    ticks.setdefault(int(tick["time_ns"]) // SECOND, []).append(tick)
    starts = [int(bar["time_ns"]) // SECOND for _, bar in numbered]
    assert starts == [start for start in sorted(ticks) if start <= starts[-1]]
    for (_, bar), start in zip(numbered, starts, strict=True):
        prices = [tick["price"] for tick in ticks[start]]
        assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (prices[0], max(prices), min(prices), prices[-1])
        assert (bar["count"], bar["volume"]) == (len(prices), sum(tick["volume"] for tick in ticks[start]))
        assert bar["final"] is True and "partial" not in bar
