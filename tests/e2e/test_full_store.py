"""A client that may publish where things are kept tries to fill the store: the hub's own keys have room."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import client
from tests.stores import BINARIES, server
from tests.support import async_test

MAXMEMORY = 8 << 20
SETTINGS: dict[str, Any] = {
    "workers": 2,
    "limits": {"bytes_per_s": 0},
    "namespaces": {
        "board": {"mode": "latest", "subscribe": "anyone", "publish": "anyone"},
        "chat": {"mode": "stream", "subscribe": "anyone", "publish": "anyone"},
        "room": {"subscribe": "anyone", "publish": "anyone", "presence": "anyone"},
    },
}
FULL = {"code": 100, "message": "the store is full; try again", "temporary": True}


def call(hub: HubProcess, method: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-API-Key": hub.key, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{hub.api_url}/{method}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def page(hub: HubProcess, path: str) -> str:
    with urllib.request.urlopen(f"{hub.api_url.removesuffix('/api')}/{path}", timeout=10) as answer:
        return answer.read().decode()


def refused(hub: HubProcess) -> float:
    """For want of room, by all workers."""
    name = 'hub_refused_total{reason="store"} '
    return sum(float(line.removeprefix(name)) for line in page(hub, "metrics").splitlines() if line.startswith(name))


@pytest.mark.parametrize("kind", ["board", "chat"])
@async_test
async def test_a_client_cannot_fill_the_store(kind):
    """It is told so; who is blocked goes, who comes is let in and seen, and all that is not kept goes on."""
    with (
        server(BINARIES[0].values[0], "--maxmemory", str(MAXMEMORY), "--maxmemory-policy", "noeviction") as store,
        HubProcess({**SETTINGS, "redis": {"url": store.url}}) as hub,
    ):
        call(hub, "publish", {"channel": "board:KNOWN", "data": 1})
        async with client(hub.ws_url) as mallory, client(hub.ws_url, hub.token("bad")) as bad:
            big, number, reply = "x" * 60_000, 0, {}
            while "error" not in reply and number < 2 * MAXMEMORY // len(big):
                number += 1
                reply = await mallory.command(publish={"channel": f"{kind}:{number}", "data": big})
            assert reply.get("error") == FULL
            # Each worker counts what itself has stored since it last asked.
            for number in range(2 * MAXMEMORY // len(big)):
                answer = call(hub, "publish", {"channel": f"board:NEW-{number}", "data": big})
                if "error" in answer:
                    break
            assert answer == {"status": 503, "error": FULL}
            with store.commands() as commands:
                assert commands.info("memory")["used_memory"] < MAXMEMORY
            assert call(hub, "block_user", {"user": "bad"})["result"] is not None
            with pytest.raises(Exception, match="3507"):
                while True:
                    await bad.push()
            assert call(hub, "ticket", {"user": "ann"})["result"]["ticket"]
            assert call(hub, "publish", {"channel": "board:KNOWN", "data": 2})["result"] == {}
            async with client(hub.ws_url, hub.token("ann")) as ann:
                await ann.subscribe("room:a")
                assert "publish" in await mallory.command(publish={"channel": "room:a", "data": 1})
                assert (await ann.push())["pub"]["data"] == 1
                assert len((await ann.command(presence={"channel": "room:a"}))["presence"]["presence"]) == 1
            assert json.loads(page(hub, "readyz"))["status"] == "ok"
            await until(lambda: refused(hub) >= 2)  # workers write their metrics once a second
            hub.logged("the store is full", "redis.full_percent")
