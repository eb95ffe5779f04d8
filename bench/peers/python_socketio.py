"""PyPI python-socketio on aiohttp: one `emit` to everybody.

Called by: bench/rig/peers.py.  At its fastest: uvloop, WebSocket alone, orjson, no compression, no log.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import lines
import orjson
import socketio
import uvloop
from aiohttp import web


class Fast:
    """orjson in the shape of the json module, which python-socketio asks for."""

    JSONDecodeError = json.JSONDecodeError
    loads = staticmethod(orjson.loads)

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return orjson.dumps(value).decode()


async def main() -> None:
    server = socketio.AsyncServer(
        async_mode="aiohttp",
        transports=["websocket"],
        http_compression=False,
        monitor_clients=False,
        json=Fast,
    )
    application = web.Application()
    server.attach(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    waiting: asyncio.Queue[bytes] = asyncio.Queue()

    async def emit() -> None:
        while True:
            await server.emit("m", orjson.loads(await waiting.get()))

    emitter = asyncio.create_task(emit())
    await lines.serve(runner.addresses[0][1], waiting.put_nowait)
    emitter.cancel()


if __name__ == "__main__":
    uvloop.run(main())
