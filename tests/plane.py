"""A worker's rooms without its process: the plane, the doors and a real Valkey on this test's own loop, on port 0."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import orjson
from tornado.netutil import bind_sockets
from websockets.asyncio.client import ClientConnection, connect

from hub import assets, httpd
from hub.acceptor import Acceptor
from hub.app import App
from hub.app_gate import Gate
from hub.app_runner import Runner
from hub.asking import ANSWER_SHARE, Histories
from hub.auth import Authenticator
from hub.broker import Broker
from hub.catchup import Catchup
from hub.certificates import Certificates
from hub.channels import Channels, Namespace
from hub.control import Errand
from hub.doors import outbox_limits
from hub.emission import EmittingFanout, everyone_rules
from hub.entrance import Entrance
from hub.fanout import Fanout
from hub.forwarded import Proxies
from hub.handover import Handover
from hub.history import History
from hub.ingest import Ingest
from hub.limits import TokenBucket
from hub.mailbox import Mailboxes
from hub.orders import Orders
from hub.origin import Origins
from hub.presence import Presence
from hub.publish import Publisher
from hub.quotas import UNLIMITED, Quotas
from hub.reactor import Reactor
from hub.recall import Recall
from hub.redelivery import Redelivery
from hub.registry import Registry
from hub.relay import Home, Relay
from hub.relay import Limits as RelayLimits
from hub.remembered import Remembered
from hub.revocation import Revocations
from hub.sections import ClientSettings, HttpSettings, MailboxSettings, RedisSettings, SocketIOSettings
from hub.services import Services
from hub.snapshots import Snapshots
from hub.store import Store
from hub.streams import TICK_S, Streams
from hub.subscribe import Subscriptions
from hub.symbols import Symbols
from hub.tickets import Tickets
from hub.transports import (
    emulation,
    engineio,
    engineio_raw,
    http_stream,
    longpoll,
    polling,
    publishing,
    socketio_session,
    sse,
    websocket,
)
from hub.transports import socketio as wire_socketio
from hub.users import Users
from hub.views import numbering

SECRET = "a secret for tests, of more than 32 bytes"
NAMESPACES = {
    "open": Namespace(subscribe="anyone", publish="anyone"),
    "users": Namespace(subscribe="user", publish="user"),
    "own": Namespace(subscribe="anyone", publish="subscriber"),
    "closed": Namespace(subscribe="nobody", publish="nobody"),
    "tokens": Namespace(subscribe="token", publish="token"),
    "vault": Namespace(mode="stream", subscribe="nobody", publish="nobody", history="nobody", presence="nobody"),
    "desk": Namespace(mode="latest", subscribe="nobody", watch=10),
    "chat": Namespace(mode="stream", subscribe="anyone", publish="anyone", history="anyone"),
    "paced": Namespace(mode="stream", subscribe="anyone", flush_ms=1),
    "log": Namespace(mode="stream", subscribe="anyone", publish="anyone"),
    "room": Namespace(subscribe="anyone", publish="anyone", presence="anyone", join_leave=True),
    "quiet": Namespace(subscribe="anyone", presence="subscriber"),
    "inbox": Namespace(mailbox=True, subscribe="user", publish="user", ack_timeout_s=0.5),
    "ticker": Namespace(mode="latest", subscribe="anyone", publish="anyone", watch=100),
    "fx": Namespace(mode="latest", subscribe="anyone", watch=5, watch_prefixes=True),
    "wide": Namespace(mode="latest", subscribe="anyone", watch=1000, watch_prefixes=True),
    "slow": Namespace(mode="latest", subscribe="anyone", publish="anyone", watch=3, max_hz=2),
    "silent": Namespace(mode="latest", subscribe="anyone", watch=3, stale_ms=200),
}


@dataclass
class Plane:
    """What a test holds of it."""

    port: int
    reactor: Reactor
    fanout: Fanout
    ingest: Ingest
    broker: Broker
    publisher: Publisher
    presence: Presence
    services: Services
    streams: Streams
    door: websocket.Door
    acceptor: Acceptor
    mailboxes: Mailboxes
    redelivery: Redelivery
    sessions: emulation.Sessions
    polls: longpoll.Polls
    engine: engineio.Engine
    s: str
    """Of wss and https."""
    registry: Registry
    revocations: Revocations
    tickets: Tickets
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"ws{self.s}://127.0.0.1:{self.port}/connection/websocket"

    @property
    def http_url(self) -> str:
        return f"http{self.s}://127.0.0.1:{self.port}"


async def tick(streams: Streams, fanout: Fanout) -> None:
    """What the worker's timer does."""
    while True:
        await asyncio.sleep(TICK_S)
        streams.tick()
        fanout.check_silence()


@contextlib.asynccontextmanager
async def plane(
    url: str,
    prefix: str,
    *,
    client: dict | None = None,
    http: dict | None = None,
    origins: tuple[str, ...] = (),
    fast: bool = True,
    handshakes_per_s: float = 0,
    stream_options: dict | None = None,
    batch_bytes: int = 67_108_864,
    grace_s: float = 0.0,
    mailbox: dict | None = None,
    most_polls: int = 100,
    proxies: Proxies | None = None,
    proxied: bool = False,
    limits: dict | None = None,
    census: object = None,
    socketio: dict | None = None,
    app: App | None = None,
    app_timeout_s: float = 5.0,
    certificates: Certificates | None = None,
    tls_handshakes: int = 1000,
    authenticator: Authenticator | None = None,
    cookie: str = "",
    **services: object,
) -> AsyncIterator[Plane]:
    """Build everything, wait for Redis, serve; take it down again. certificates: TLS is spoken."""
    store = Store(RedisSettings(prefix=prefix), url)
    settings = ClientSettings(**(client or {}))
    settings_of_engine = SocketIOSettings(**(socketio or {}))
    tick_s = engineio.tick_s(settings_of_engine)
    reactor = Reactor(asyncio.get_running_loop(), settings.close_timeout_s, 10**9, tick_s=tick_s)
    fanout = reactor.batches = (EmittingFanout if app else Fanout)(
        reactor.connections, reactor.arm_turn, reactor.clock, asyncio.get_running_loop().call_later, batch_bytes
    )
    fanout.lines.numbering = numbering
    broker = Broker(store, 1000)
    history = History(store)
    newest_channel = store.keys.newest(str(uuid.uuid4()))
    catchup, snapshots = Catchup(history), Snapshots(broker, store.keys, newest_channel)

    # Without those that are on by default: what holds for all wires alike is told by a test that asks for it.
    quotas = Quotas(UNLIMITED.model_copy(update=limits or {}), reactor.clock, proxies=proxies, census=census)

    def connected() -> None:
        revocations.reread()
        snapshots.lost()
        check_all()

    def check_all() -> None:
        streams.check_all()
        subscriptions.check_all()
        redelivery.check_all()

    def on_full(channel: str) -> None:
        streams.overloaded(channel)
        redelivery.overloaded(channel)

    def on_errand(errand: Errand) -> None:
        if gate is not None:
            gate.errands.on_errand(errand)

    channels = Channels(NAMESPACES)
    users, polls = Users(quotas.entered), longpoll.Polls(most_polls, quotas.refusals)
    revocations = Revocations(store)
    sessionless: set = set()
    orders = Orders(users, channels, revocations, lambda: [*polls, *sessionless])
    revocations.on_read = orders.judge_all
    registry = Registry(store, 0, dict, dict, on_errand=on_errand, orders=orders.answers)
    ingest = Ingest(
        store,
        lambda publications: redelivery.deliver(publications),
        registry.on_control,
        lambda publications: streams.receive(publications),
        connected,
        fanout.announce,
    )
    ingest.listen(newest_channel, snapshots.heard)
    mailboxes = Mailboxes(broker, store.keys, MailboxSettings(**(mailbox or {})), settings.outbox_bytes)
    publisher = Publisher(broker, settings.json_depth, mailboxes)
    loop = asyncio.get_running_loop()
    streams = Streams(fanout, ingest, catchup, store.keys, reactor.clock, loop.call_soon, **(stream_options or {}))
    symbols = Symbols(broker, store.keys, loop.call_later)
    subscriptions = Subscriptions(fanout, ingest, store.keys, streams, snapshots, symbols, quotas)
    presence = Presence(store, fanout, channels, grace_s, settings.presence_clients)
    redelivery = Redelivery(mailboxes, channels, subscriptions.deliver, fanout.lines.audience_size)
    fanout.on_full = on_full
    gate = None
    if app is not None:
        everyone = everyone_rules((socketio or {}).get("recovery_ms", 0), settings.recovery_publications)
        gate = Gate(
            Runner(app, app_timeout_s), channels, publisher, registry.send, settings.pending_commands, everyone=everyone
        )
        fanout.find = gate.find
    if authenticator is None:
        authenticator = Authenticator(SECRET, services.get("wall_clock", time.time))
    authenticator.judge = revocations.judge
    tickets = Tickets(store, authenticator)
    shared = Services(
        settings,
        outbox_limits(settings),
        authenticator,
        channels,
        publisher,
        subscriptions,
        presence,
        Histories(catchup.read, settings.history_publications, settings.outbox_bytes // ANSWER_SHARE),
        redelivery,
        Remembered(broker, store.keys),
        users=users,
        gate=gate,
        sessionless=sessionless,
        check_access=revocations.check,
        quotas=quotas,
        **services,
    )
    draining = asyncio.Event()
    handshakes = TokenBucket(handshakes_per_s, reactor.clock)
    entrance = Entrance(
        Origins(origins),
        authenticator,
        handshakes.take,
        draining.is_set,
        cookie=cookie,
        tickets=tickets,
        judges=app is None or authenticator.enabled,
        proxies=proxies,
        quotas=quotas,
    )
    door = websocket.Door(reactor, shared, entrance, websocket.deflated_forms(settings))
    relay = Relay(Home("0123456789abcdef", ""), 0, 1, RelayLimits())
    handover = Handover(Home("0123456789abcdef", ""), relay.owner)
    sessions = emulation.Sessions(relay.owner)
    relay.serve(emulation.KIND, sessions.answer)
    routes = [
        *assets.pages(demo=False),
        (r"/connection/websocket", websocket.WebSocketHandler, {"door": door}),
        *http_stream.routes(emulation.Emulation(reactor, shared, entrance, sessions, relay)),
        *sse.routes(door),
        (longpoll.PATH, longpoll.PollHandler, {"door": door, "polls": polls}),
        (publishing.PATH, publishing.PublishHandler, {"door": door}),
    ]
    recall = Recall(store, (socketio or {}).get("recovery_ms", 0))

    def turn() -> int:
        return fanout.turn

    socketio_door = wire_socketio.Door(
        shared, socketio_session.new_forms(settings_of_engine, turn, gate), entrance, recall, turn
    )
    engine = engineio.Engine(
        reactor,
        settings.model_copy(update={"message_bytes": settings_of_engine.max_payload_bytes}),
        outbox_limits(settings),
        settings_of_engine,
        relay.owner,
        quotas=quotas,
    )
    routes += polling.routes(
        polling.Address(engine, socketio_door, relay, handover), engineio_raw.makers(engineio_raw.addresses(shared))
    )
    server = httpd.Server(httpd.application(routes), HttpSettings(**(http or {})))
    sockets = bind_sockets(0, "127.0.0.1")
    for listener in sockets:  # inherited by accepted sockets; small, so that a slow reader shows soon
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    reactor.start()
    ingest.start()
    revocations.start()
    registry.start()
    redelivery.start()
    recall.start()
    ticking = asyncio.create_task(tick(streams, fanout))
    presence.start()
    for listener in sockets:
        listener.setblocking(False)
    acceptor = Acceptor(reactor, server, door, 1.0, fast=fast, certificates=certificates, tls_handshakes=tls_handshakes)
    (acceptor.listen_tls if certificates else acceptor.listen)(sockets, sockets if proxied else ())
    try:
        async with asyncio.timeout(5):
            while not ingest.connected:
                await asyncio.sleep(0.005)
        await broker.ping()  # its connection is there from now on, for tests that count descriptors
        yield Plane(
            sockets[0].getsockname()[1],
            reactor,
            fanout,
            ingest,
            broker,
            publisher,
            presence,
            shared,
            streams,
            door,
            acceptor,
            mailboxes,
            redelivery,
            sessions,
            polls,
            engine,
            "s" if certificates else "",
            registry,
            revocations,
            tickets,
            draining,
        )
    finally:
        handover.close()
        acceptor.stop()
        server.stop()
        reactor.stop()
        await server.close_all_connections()
        if gate is not None:
            await gate.close()
        ticking.cancel()
        await presence.close()
        await redelivery.close()
        await recall.close()
        await tickets.close()
        await registry.close()
        await orders.close()
        await revocations.close()
        await ingest.close()
        await catchup.close()
        snapshots.close()
        symbols.close()
        await history.close()
        await broker.close()


class Client:
    """A native client on PyPI `websockets`: sends commands, sorts what comes into replies by id and pushes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.id = ""
        """The hub's name for this connection."""
        self._next_id = 0
        self._lines: list[dict] = []

    async def command(self, **command: object) -> dict:
        """Send one command and return its reply."""
        self._next_id += 1
        await self.socket.send(orjson.dumps({"id": self._next_id, **command}).decode())
        return await self._first(lambda line: line.get("id") == self._next_id)

    async def push(self) -> dict:
        """The next push."""
        return (await self._first(lambda line: "push" in line))["push"]

    async def ping(self) -> None:
        """Wait for the hub's next ping."""
        await self._first(lambda line: line == {})

    async def subscribe(self, channel: str, **options: object) -> None:
        assert "subscribe" in (reply := await self.command(subscribe={"channel": channel, **options})), reply

    async def _first(self, wanted: object) -> dict:
        while True:
            for line in self._lines:
                if wanted(line):
                    self._lines.remove(line)
                    return line
            message = await asyncio.wait_for(self.socket.recv(), 5)
            self._lines += [orjson.loads(line) for line in message.split("\n")]


@contextlib.asynccontextmanager
async def client(url: str, token: str | None = None, **options: object) -> AsyncIterator[Client]:
    """A client that has connected."""
    async with connect(url, proxy=None, **options) as socket:
        one = Client(socket)
        reply = await one.command(connect={} if token is None else {"token": token})
        assert "connect" in reply, reply
        one.id = reply["connect"]["client"]
        yield one
