"""An application in a real hub of four workers, with the stock Python Socket.IO client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import socketio

from hub.errors import EXIT_BOOT, EXIT_USAGE
from tests.e2e import nodejs
from tests.eventsource import Stream, request
from tests.hubs import HubFailed, HubProcess, run_hub
from tests.support import async_test

APP = """
import os
from hub.app import App, Reject
from words import GREETING

app = App()


@app.on_connect("/custom")
async def connect(client, data):
    if not data:
        raise Reject("who are you?")
    return {"user": data["name"]}


@app.on_connected()
async def connected(client, data):
    await client.emit("auth", {"greeting": GREETING, "pid": os.getpid()})


@app.on("message", namespace="/custom")
async def message(client, *args):
    await client.emit("message-back", *args)


@app.on("message-with-ack", namespace="/custom")
def message_with_ack(client, *args):
    return args


@app.on("enter", namespace="/custom")
def enter(client, room):
    client.join(room)


@app.on("say", namespace="/custom")
async def say(client, room, text):
    await app.emit("said", client.user, text, to=room, skip=client)
    await client.emit("sent", text)


app.on_rpc("enter")(lambda client, room: client.join(room))
app.on_rpc("exit")(lambda client, room: client.leave(room))


@app.on_rpc("say")
async def say_by_rpc(client, data):
    await app.emit("said", data["text"], to=data["room"])


@app.on("me", namespace="/custom")
async def me(client):
    return client.id


@app.on("whisper", namespace="/custom")
async def whisper(client, to, data):
    await app.emit("whispered", data, to=to)
    return await app.call(to, "question", data)


@app.on("all", namespace="/custom")
async def everyone(client, text):
    await app.emit("heard", text, namespace="/custom")


@app.on_disconnect("/custom")
async def gone(client):
    await app.emit("gone", client.user, namespace="/custom")
"""
SETTINGS = {
    "workers": 4,
    "app": {"module": "chat:app"},
    "namespaces": {"room": {"mode": "stream", "subscribe": "nobody"}},
}


def with_app(text: str, settings: dict | None = None) -> HubProcess:
    """A hub that has yet to start, with its application beside its settings."""
    hub = HubProcess(settings or SETTINGS)
    (hub.directory / "chat.py").write_text(text)
    (hub.directory / "words.py").write_text("GREETING = 'hello'\n")
    return hub


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with with_app(APP) as hub:
        yield hub


class Stock:
    """One stock client in `/custom`, and what it heard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.io = socketio.AsyncClient(reconnection=False)
        self.heard: asyncio.Queue = asyncio.Queue()
        self.io.on("*", self._note, namespace="/custom")

    async def _note(self, event: str, *args: object) -> None:
        self.heard.put_nowait([event, *args])

    async def next(self) -> list:
        return await asyncio.wait_for(self.heard.get(), 10)

    async def connect(self, hub: HubProcess, transport: str) -> int:
        """Returns the pid of the worker that it is in."""
        url = hub.ws_url.replace("ws://", "http://").rpartition("/connection/")[0]
        await self.io.connect(url, transports=[transport], namespaces=["/custom"], auth={"name": self.name})
        event, body = await self.next()
        assert (event, body["greeting"]) == ("auth", "hello")
        return body["pid"]

    async def call(self, event: str, *args: object) -> object:
        return await self.io.call(event, args, namespace="/custom", timeout=10)


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@async_test
async def test_the_stock_client_talks_to_handlers_of_all_workers(hub, transport):
    """Events, acks, attachments, rooms across workers without the sender, everyone, and who is gone."""
    clients, pids = [Stock(f"c{number}") for number in range(8)], set()
    try:
        for one in clients:
            pids.add(await one.connect(hub, transport))
            assert await one.call("enter", "room:a") in (None, [])
        assert len(pids) > 1
        first, others = clients[0], clients[1:]
        await first.io.emit("message", (1, b"\x01\x02", {"a": [b"\x03"]}), namespace="/custom")
        assert await first.next() == ["message-back", 1, b"\x01\x02", {"a": [b"\x03"]}]
        assert await first.call("message-with-ack", 1, b"\x01") == (1, b"\x01")
        for text in ("one", "two"):
            await first.io.emit("say", ("room:a", text), namespace="/custom")
            assert await first.next() == ["sent", text]
        for one in others:
            assert [await one.next(), await one.next()] == [["said", "c0", "one"], ["said", "c0", "two"]]
        for one in others:
            one.io.on("question", lambda data: data + b"!", namespace="/custom")
            assert await first.call("whisper", await one.call("me"), b"\x01") == b"\x01!"
            assert await one.next() == ["whispered", b"\x01"]
        await first.io.emit("all", "hi", namespace="/custom")
        for one in clients:
            assert await one.next() == ["heard", "hi"]
        await first.io.disconnect()
        for one in others:
            assert await one.next() == ["gone", "c0"]
    finally:
        for one in clients:
            await one.io.shutdown()
            await one.io.disconnect()


ROOMS = """
from hub.app import App

app = App()


@app.on_connected()
async def connected(client, data):
    await client.emit("auth", {"recovered": client.recovered}, "text")


@app.on("enter")
async def enter(client, room):
    await client.join(room)


@app.on("say")
async def say(client, to, text):
    if to == "all":
        await app.emit("heard", text)
    else:
        await app.emit("said", text, to=to)
"""


@nodejs.NODE
@nodejs.PACKAGES
@pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
def test_the_stock_client_comes_back_to_its_rooms(transports):
    """By any worker: `socket.recovered`, and nothing of rooms or namespace is lost, doubled or out of order."""
    settings = {**SETTINGS, "socketio": {"recovery_ms": 60_000}}
    with with_app(ROOMS, settings) as hub:
        url = hub.ws_url.replace("ws://", "http://").rpartition("/connection/")[0]
        nodejs.run("socketio.mjs", "comesBackToRooms", url, transports, 6)


@nodejs.NODE
@nodejs.PACKAGES
def test_the_native_sdk_knows_rooms_as_server_side_subscriptions(hub):
    """`subscribed`, `publication` and `unsubscribed` of the client itself."""
    nodejs.run("centrifuge_js.mjs", "isLetIntoRooms", hub.ws_url, hub.token("ann"))


@async_test
async def test_the_stock_client_hears_why_it_is_refused(hub):
    """The words of the Reject."""
    io, heard = socketio.AsyncClient(reconnection=False), asyncio.Queue()
    io.on("connect_error", heard.put_nowait, namespace="/custom")
    url = hub.ws_url.replace("ws://", "http://").rpartition("/connection/")[0]
    with pytest.raises(socketio.exceptions.ConnectionError):
        await io.connect(url, namespaces=["/custom"], transports=["websocket"])
    assert (await asyncio.wait_for(heard.get(), 10))["message"] == "who are you?"
    await io.disconnect()


def test_a_hub_whose_application_is_broken_does_not_start() -> None:
    """One line, and the status of a boot that failed; `hub check` says the same before."""
    hub = with_app("from hub.app import App\napp = App()\napp.on('x')(nobody)\n", {**SETTINGS, "workers": 1})
    with pytest.raises(HubFailed) as caught, hub:
        pass
    assert caught.value.status == EXIT_BOOT
    assert "app.module: found 'chat:app'" in caught.value.text
    assert "NameError: name 'nobody' is not defined (chat.py, line 3)" in caught.value.text
    assert "Traceback" not in caught.value.text


def test_check_loads_the_application() -> None:
    """From the settings file's directory."""
    for text, status, words in ((APP, 0, "chat:app"), ("app = 1", EXIT_USAGE, "found no App named 'app' in chat")):
        hub = with_app(text)
        try:
            done = run_hub("check", "--config", str(hub.config_path))
        finally:
            hub._remove()
        assert (done.returncode, words in done.stdout + done.stderr) == (status, True), done


NOTING = """
import os
from pathlib import Path
from hub.app import App

app = App()
BOOK = Path(__file__).with_name("gone.txt")


@app.on_connect()
async def connect(client, data):
    return {"user": data["name"], "role": "guest"}


@app.on_connected()
async def connected(client, data):
    await client.emit("auth", {"greeting": "hello", "pid": os.getpid()})


@app.on_disconnect()
async def gone(client):
    try:
        await client.emit("too late")
        word = "nothing"
    except ConnectionError:
        word = "raises"
    with BOOK.open("a") as book:
        book.write(f"{client.user} {client.claims['role']} {client.namespace} {os.getpid()} {word}\\n")


app.on("x", "/custom")(lambda client: None)
"""


async def lines(path: Path, count: int) -> list[list[str]]:
    """What stands there once it is so much."""
    async with asyncio.timeout(20):
        while not path.exists() or len(path.read_text().splitlines()) < count:
            await asyncio.sleep(0.05)
    return [line.split() for line in path.read_text().splitlines()]


@async_test
async def test_clients_of_killed_workers_are_told_of_once_each() -> None:
    """kill -9 of one of four, then of all at once: each client's end is told once, by a worker that lives."""
    hub = with_app(NOTING)
    book = hub.directory / "gone.txt"
    with hub:
        clients = [Stock(f"c{number}") for number in range(24)]
        try:
            by_pid: dict[int, set[str]] = {}
            for one in clients:
                by_pid.setdefault(await one.connect(hub, "websocket"), set()).add(one.name)
            assert len(by_pid) > 1
            await clients[0].io.disconnect()
            assert [line[0] for line in await lines(book, 1)] == ["c0"]
            # Not its worker: killed just as the handler has ended, it could not have struck c0 off.
            killed, names = next((pid, names) for pid, names in by_pid.items() if "c0" not in names)
            os.kill(killed, signal.SIGKILL)
            told = (await lines(book, 1 + len(names)))[1:]
            assert sorted(line[0] for line in told) == sorted(names)
            for _, role, namespace, pid, word in told:
                assert (role, namespace, word) == ("guest", "/custom", "raises")
                assert int(pid) in hub.worker_pids()
            for pid in hub.worker_pids():
                os.kill(pid, signal.SIGKILL)
            whole = await lines(book, len(clients))
            assert sorted(line[0] for line in whole) == sorted(one.name for one in clients)
        finally:
            for one in clients:
                await one.io.shutdown()
                await one.io.disconnect()


@async_test
async def test_an_orderly_end_tells_of_each_client_once() -> None:
    """Those of a hub that stops, before it does; the next one has nothing left to tell."""
    hub = with_app(NOTING)
    book = hub.directory / "gone.txt"
    with hub:
        clients = [Stock(f"c{number}") for number in range(8)]
        try:
            for one in clients:
                await one.connect(hub, "websocket")
            await asyncio.to_thread(hub.stop)
            names = sorted(line[0] for line in await lines(book, len(clients)))
            assert names == sorted(one.name for one in clients)
        finally:
            for one in clients:
                await one.io.shutdown()
                await one.io.disconnect()
        hub.start()
        newcomer = Stock("late")
        try:
            await newcomer.connect(hub, "websocket")
            for pid in hub.worker_pids():
                os.kill(pid, signal.SIGKILL)
            told = await lines(book, len(clients) + 1)
            assert [line[0] for line in told[len(clients) :]] == ["late"]
        finally:
            await newcomer.io.shutdown()
            await newcomer.io.disconnect()


PLAIN_HTTP = """
import os
from pathlib import Path
from hub.app import App, Reject

app = App()
BOOK = Path(__file__).with_name("gone.txt")


@app.on_connect()
async def connect(client, data):
    if not client.user:
        raise Reject("who are you?")


@app.on_publish()
async def publish(client, channel, data):
    return {"from": client.user, "text": data}


@app.on_connected()
async def connected(client, data):
    await client.emit("pid", os.getpid())


@app.on_disconnect()
async def gone(client):
    with BOOK.open("a") as book:
        book.write(f"{client.user} {os.getpid()}\\n")
"""


@async_test
async def test_plain_http_asks_the_application_in_every_worker() -> None:
    """Strangers come in nowhere; event streams of killed workers are told of, and other requests never are."""
    rules = {"room": {"subscribe": "anyone", "publish": "anyone"}}
    hub = with_app(PLAIN_HTTP, {**SETTINGS, "namespaces": rules})
    with hub, contextlib.ExitStack() as stack:
        port = urlsplit(hub.ws_url).port
        body = b'{"channel":"room:a","data":"hi"}'
        for method, target, sent in (
            ("POST", "/publish", body),
            ("GET", "/poll?channel=room:a&wait=0", b""),
            ("GET", "/sse?channel=room:a", b""),
        ):
            answer = await request(port, method, target, sent)
            assert (answer.status, answer.json["error"]["message"]) == (403, "who are you?")
        by_pid: dict[int, set[str]] = {}
        listeners = []
        for number in range(16):
            one = Stream(*await asyncio.open_connection("127.0.0.1", port))
            stack.callback(one.writer.close)
            one.writer.write(
                f"GET /sse?channel=room:a&token={hub.token(f'c{number}')} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            )
            await one.begin()
            pid = (await one.next("notice")).json["data"]["data"]
            by_pid.setdefault(pid, set()).add(f"c{number}")
            listeners.append(one)
        assert len(by_pid) > 1
        assert (await request(port, "POST", f"/publish?token={hub.token('eve')}", body)).status == 200
        for one in listeners:
            assert (await one.next()).json["pub"]["data"] == {"from": "eve", "text": "hi"}
        killed, names = next(iter(by_pid.items()))
        os.kill(killed, signal.SIGKILL)
        told = await lines(hub.directory / "gone.txt", len(names))
        assert sorted(name for name, _ in told) == sorted(names)
        assert all(int(pid) in hub.worker_pids() for _, pid in told)
