"""An application of four workers under the stock clients.

npm `socket.io-client` and the `engine.io-client` under it, PyPI `python-socketio`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import socketio

from tests.e2e import nodejs
from tests.hubs import HubProcess
from tests.support import async_test

APP = """
import asyncio
from hub.app import App, Reject

app = App()


@app.middleware
async def guard(client, call, proceed):
    if call.kind == "connect" and (call.args[0] or {}).get("name") == "eve":
        raise Reject("not you", data={"until": "tomorrow", "tries": 3})
    if call.name == "forbidden":
        raise Reject("not that")
    return await proceed()


@app.on_connect()
async def connect(client, data):
    if not data:
        raise Reject("who are you?")
    client.state["notes"] = []
    return {"user": data["name"]}


@app.on("echo")
async def echo(client, *args):
    await client.emit("echoed", *args)
    return args


@app.on("ask")
async def ask(client, value):
    return await client.call("question", value)


@app.on("ask in vain")
async def ask_in_vain(client):
    try:
        await client.call("nothing", timeout_s=0.1)
    except TimeoutError:
        return "no ack"


@app.on("hang")
async def hang(client):
    await asyncio.Event().wait()


@app.on("fail")
async def fail(client):
    raise RuntimeError


@app.on("forbidden")
async def forbidden(client):
    return "never"


@app.on_connect("/engine.io/")
async def anybody(client, data):
    pass


@app.on_message("/engine.io/")
async def message(client, data):
    await client.send(data)


async def who(client):
    return f"{client.user} at {client.namespace}"


async def kick(client):
    await client.disconnect()


for namespace in ("/", "/admin"):
    app.on("who", namespace)(who)
    app.on("kick", namespace)(kick)


@app.on("note")
async def note(client, text):
    client.state["notes"].append(text)


@app.on("notes")
async def notes(client):
    return client.state["notes"]


@app.on("enter")
async def enter(client, room):
    await client.join(room)
    return "in"


@app.on("say")
async def say(client, room, line):
    await app.emit("said", line, to=room, skip=client)
    return "said"
"""
SETTINGS = {
    "workers": 4,
    "app": {"module": "stock:app"},
    "namespaces": {"room": {"mode": "stream", "subscribe": "nobody"}},
}
EACH_WAY = pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    hub = HubProcess(SETTINGS)
    (hub.directory / "stock.py").write_text(APP)
    with hub:
        yield hub.ws_url.replace("ws://", "http://").rpartition("/connection/")[0]


@EACH_WAY
@pytest.mark.parametrize(
    "scenario", ["echoes", "bursts", "asks", "hasNamespaces", "isRefused", "isVolatile", "meets", "echoesMessages"]
)
@nodejs.NODE
@nodejs.PACKAGES
def test_the_javascript_client(url: str, scenario: str, transports: str) -> None:
    """As socketio.mjs says at each scenario."""
    nodejs.run("socketio.mjs", scenario, url, transports)


@EACH_WAY
@async_test
async def test_the_python_client(url: str, transports: str) -> None:
    """Bytes and acks both ways, timeouts, namespaces, and the words of a refusal."""
    io, heard = socketio.AsyncClient(reconnection=False), asyncio.Queue()
    io.on("echoed", lambda *args: heard.put_nowait(args))
    io.on("nothing", asyncio.Event().wait)
    io.on("question", lambda value: {"value": value, "bytes": b"\x00\xff"})
    await io.connect(url, transports=transports.split(","), namespaces=["/", "/admin"], auth={"name": "ann"})
    try:
        args = (1, "2", {"deep": [b"\x00\xff", {"er": bytes(100_000)}]}, None)
        for _ in range(3):
            assert await io.call("echo", args, timeout=10) == args
            assert await asyncio.wait_for(heard.get(), 10) == args
        assert await io.call("ask", 7, timeout=10) == {"value": 7, "bytes": b"\x00\xff"}
        assert await io.call("ask in vain", timeout=10) == "no ack"
        with pytest.raises(socketio.exceptions.TimeoutError):
            await io.call("hang", timeout=0.1)
        for namespace in ("/", "/admin"):
            assert await io.call("who", namespace=namespace, timeout=10) == f"ann at {namespace}"
        assert (await io.call("forbidden", timeout=10))["error"] == {"code": 103, "message": "not that"}
    finally:
        await io.disconnect()


@EACH_WAY
@async_test
async def test_the_python_client_hears_why_it_is_refused(url: str, transports: str) -> None:
    """With the data of the middleware's Reject."""
    io, heard = socketio.AsyncClient(reconnection=False), asyncio.Queue()
    io.on("connect_error", heard.put_nowait)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await io.connect(url, transports=transports.split(","), auth={"name": "eve"})
    expected = {"message": "not you", "data": {"until": "tomorrow", "tries": 3}}
    assert await asyncio.wait_for(heard.get(), 10) == expected
    await io.disconnect()
