"""Lines: the control connection of the Python peers.

Called by: tornado_stock, websockets_broadcast, python_socketio.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable


class Control(asyncio.Protocol):
    """Hands on each line without its newline."""

    def __init__(self, broadcast: Callable[[bytes], None]) -> None:
        self._broadcast = broadcast
        self._begun = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._broadcast(line)


async def serve(port: int, broadcast: Callable[[bytes], None]) -> None:
    """Say where clients (`port`) and lines go, {"port":P,"control":C}, and stay."""
    control = await asyncio.get_running_loop().create_server(lambda: Control(broadcast), "127.0.0.1", 0)
    print(json.dumps({"port": port, "control": control.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.Event().wait()
