"""Testing: an application's handlers at work without a network, for the tests of its author.

Does: connect clients that exist only here, emit as them, keep what they are sent and what is published.
Does not: need Redis, sockets or settings, nor check the rules of namespaces, which the hub does besides the handlers.
Called by: tests of applications.
Never break: handlers run as in a hub, by the same runner; what they do is there when the call that made them returns.

    from hub.app_testing import Kit
    from chat import app

    async def test_a_line_reaches_the_room():
        async with Kit(app) as kit:
            ann, bob = await kit.connect("ann"), await kit.connect("bob")
            await bob.client.join("room:lobby")
            assert await ann.emit("say", "hi") == ["ok"]
            assert bob.received == [("said", "hi")]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import orjson

from . import app as apps
from . import emission
from .app import CLIENT_ID, App, Call, Client
from .app_runner import Runner
from .app_seat import check_event, departed
from .manifest import Entry


class Published(NamedTuple):
    """One publication."""

    channel: str
    data: Any
    tags: dict[str, str] | None = None


class TestClient:
    """One client. received: the events that it was sent, (name, *args), and messages, (data,).

    full: its socket takes no more for now.
    """

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(self, kit: Kit, client_id: str, user: str, namespace: str) -> None:
        self._kit = kit
        self.client = Client(kit.app, _Link(self, kit), client_id, user, namespace)
        self.received: list[tuple[Any, ...]] = []
        self.rooms: set[str] = set()
        self.connected = self.full = False
        self.answers: dict[str, Callable[..., Any]] = {}
        """What it acks an event with, by the event's name; one that is not here is never acked."""

    async def emit(self, name: str, *args: Any) -> list[Any]:
        """Emit an event, with bytes if it likes, and return the ack's values.

        Raises CommandError: what the client would be told; KeyError where there is no handler for it.
        """
        handler = self._kit.app.handler(apps.EVENT, self.client.namespace, name)
        if handler is None:
            raise KeyError(f"no handler of {name!r} in namespace {self.client.namespace!r}")
        result = await self._kit.runner.run(handler, self.client, Call(apps.EVENT, name, args))
        return [] if result is None else list(result) if isinstance(result, tuple) else [result]

    async def send(self, data: str | bytes) -> None:
        """Send a message, as a client of `on_message` at the path that is its namespace. Raises CommandError."""
        handler = self._kit.app.handler(apps.MESSAGE, "", self.client.namespace)
        if handler is None:
            raise KeyError(f"no on_message handler of {self.client.namespace!r}")
        await self._kit.runner.run(handler, self.client, Call(apps.MESSAGE, self.client.namespace, (data,)))

    async def subscribe(self, channel: str) -> None:
        """Ask the handler whether it may. Raises CommandError."""
        await self._run(apps.SUBSCRIBE, channel, channel)
        self.rooms.add(channel)

    async def publish(self, channel: str, data: Any) -> None:
        """Publish as the handler lets it. Raises CommandError."""
        result = await self._run(apps.PUBLISH, channel, channel, data)
        await self._kit.publish(channel, data if result is None else result, None)

    async def rpc(self, method: str, data: Any = None) -> Any:
        """Call a method. Raises CommandError, and KeyError where there is no handler for it."""
        handler = self._kit.app.handler(apps.RPC, self.client.namespace, method)
        if handler is None:
            raise KeyError(f"no handler of the method {method!r}")
        return await self._kit.runner.run(handler, self.client, Call(apps.RPC, method, (data,)))

    async def disconnect(self) -> None:
        """Go."""
        if self.connected:
            self.connected = False
            self._kit.clients.remove(self)
            await self._run(apps.DISCONNECT, "")

    async def kill(self) -> None:
        """Go with its worker, as by kill -9: the disconnect handler sees all of it that a hub has kept."""
        if self.connected:
            self.connected = False
            self._kit.clients.remove(self)
            claims = orjson.dumps(self.client.claims)
            entry = Entry(self.client.id, self.client.user, self.client.namespace, claims)
            self.client = departed(self._kit.app, entry)
            await self._run(apps.DISCONNECT, "")

    async def _run(self, kind: str, name: str, *args: Any) -> Any:
        handler = self._kit.app.handler(kind, self.client.namespace)
        if handler is None:
            return None
        return await self._kit.runner.run(handler, self.client, Call(kind, name, args))

    def receive(self, name: str, args: tuple[Any, ...], volatile: bool) -> None:
        """What it is sent, as it arrives."""
        if not volatile or not self.full:
            self.received.append((name, *emission.unmarked(orjson.loads(orjson.dumps(emission.marked(args)[0])))))

    async def come(self, data: Any, back: TestClient | None) -> None:
        """What `Kit.connect` does."""
        self.client.recovered = back is not None
        handler = self._kit.app.handler(apps.CONNECT, self.client.namespace)
        claims = await self._kit.runner.run(handler, self.client, Call(apps.CONNECT, "", (data,)))
        if claims is not None:
            self.client.claims = claims
            self.client.user = claims.get("user", self.client.user)
        self.client.recovered = back is not None and back.client.user == self.client.user
        if back is not None and self.client.recovered:
            self.rooms |= back.rooms
        self.connected = True
        self._kit.clients.append(self)
        await self._run(apps.CONNECTED, "", data)


class _Link:
    """The Client's way to its TestClient: its Peer."""

    def __init__(self, owner: TestClient, kit: Kit) -> None:
        self._owner = owner
        self._kit = kit

    def emit(self, name: str, args: tuple[Any, ...], volatile: bool = False) -> None:
        check_event(name)
        if not self._owner.connected:
            raise RuntimeError("the client is not connected yet; emit in a handler of on_connected")
        self._owner.receive(name, args, volatile)

    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        self.emit(name, args)
        answer = self._owner.answers.get(name)
        if answer is None:
            raise TimeoutError  # at once: a test need not wait for what does not come
        return answer(*args)

    async def enter(self, channel: str) -> None:
        self._owner.rooms.add(channel)

    async def exit(self, channel: str) -> None:
        self._owner.rooms.discard(channel)

    def send(self, data: str | bytes) -> None:
        self._owner.received.append((data,))

    def end(self) -> None:
        self._owner.connected = False
        if self._owner in self._kit.clients:
            self._kit.clients.remove(self._owner)


class Kit:
    """A hub of which only the application is real; an async context manager. published: in order.

    Entering it begins the application's background tasks, leaving it ends them.
    """

    def __init__(self, app: App, timeout_s: float = 5.0) -> None:
        self.app = app
        self.published: list[Published] = []
        self.clients: list[TestClient] = []
        self._timeout_s = timeout_s
        self._count = 0

    async def __aenter__(self) -> Self:
        self.runner = Runner(self.app, self._timeout_s)
        self.app.bind(self)
        self.runner.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.close()

    async def connect(
        self, user: str = "", data: Any = None, namespace: str = "/", back: TestClient | None = None
    ) -> TestClient:
        """A client that has come in; user: as its token says. Raises CommandError where the application refuses it.

        back: one that has gone, and comes back to its rooms without loss, if the application makes the same user of it.
        """
        self._count += 1
        client = TestClient(self, f"00000000-0000-4000-8000-{self._count:012d}", user, namespace)
        await client.come(data, back)
        return client

    # As the App's Hub.

    async def publish(self, channel: str, data: Any, tags: dict[str, str] | None) -> None:
        self.published.append(Published(channel, orjson.loads(orjson.dumps(data)), tags))

    async def emit(
        self, name: str, args: tuple[Any, ...], to: str, namespace: str, skip: str, volatile: bool = False
    ) -> None:
        check_event(name)
        for one in self.clients:
            if CLIENT_ID.fullmatch(to):
                inside = one.client.id == to
            else:
                inside = to in one.rooms if to else one.client.namespace == namespace
            if inside and one.client.id != skip:
                one.receive(name, args, volatile)

    async def call(self, client: str, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        for one in self.clients:
            if one.client.id == client:
                return await one.client.call(name, *args, timeout_s=timeout_s)
        raise TimeoutError  # at once, as with an answer that does not come

    async def disconnect(self, client: str) -> None:
        for one in list(self.clients):
            if one.client.id == client:
                await one.client.disconnect()
