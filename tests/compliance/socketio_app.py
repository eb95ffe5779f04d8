"""Compliance: an application under which the test suites of Engine.IO 4 and Socket.IO 5 themselves can be run.

    hub serve --config tests/compliance/socketio_app.toml

`/engine.io/` echoes messages. Namespaces `/` and `/custom` emit `auth` with what the client sent along; on `/`,
`message` comes back as `message-back`, and `message-with-ack` is acked, with the same arguments.
"""

from __future__ import annotations

import asyncio

from hub.app import App, Client

READ_ALONE_S = 0.05
"""The suites begin to listen for a message when they have read the one before, and lose one that comes with it."""

app = App()


@app.on_message("/engine.io/")
async def echo(client: Client, data: str | bytes) -> None:
    await client.send(data)


async def tell(client: Client, auth: dict) -> None:
    await asyncio.sleep(READ_ALONE_S)
    await client.emit("auth", auth)


app.on_connected("/")(tell)
app.on_connected("/custom")(tell)


@app.on("message")
async def message(client: Client, *args: object) -> None:
    await client.emit("message-back", *args)


@app.on("message-with-ack")
async def message_with_ack(client: Client, *args: object) -> tuple[object, ...]:
    return args
