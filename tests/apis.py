"""Apis: one worker's server API on a free port, without its plane, for tests of what backends ask."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.netutil import bind_sockets

from hub import api, httpd
from hub.auth import Authenticator
from hub.broker import Broker
from hub.channels import Channels, Namespace
from hub.history import History
from hub.mailbox import Mailboxes
from hub.message import unpack
from hub.orders import Orders
from hub.presence import Presence
from hub.publish import Publisher
from hub.registry import Registry
from hub.revocation import Revocations
from hub.sections import HttpSettings, MailboxSettings, RedisSettings
from hub.store import Store
from hub.tickets import Tickets
from hub.users import Users
from tests.nodes import node
from tests.support import serving

KEY = "a key for tests, ключ"
NAMESPACES = {
    "closed": Namespace(subscribe="nobody", publish="nobody"),
    "ticker": Namespace(mode="latest", subscribe="anyone"),
    "chat": Namespace(mode="stream", history_size=5),
    "room": Namespace(presence="nobody"),
}
MOST_COMMANDS = 10
MOST_CLIENTS = 3


@dataclass
class Hub:
    """One worker's API, with a plain HTTP client and an ear on Redis."""

    url: str
    registry: Registry
    presence: Presence
    mailboxes: Mailboxes
    redis: Redis
    tickets: Tickets
    counts: dict[str, int] = field(default_factory=dict)

    async def post(self, path: str, body: object = None, **headers: str) -> HTTPResponse:
        """body: JSON to be, or bytes as they are; the key goes along unless a header says otherwise."""
        raw = body if isinstance(body, bytes) else orjson.dumps({} if body is None else body)
        return await self.request(
            "POST", path, body=raw, headers={"X-API-Key": KEY.encode().decode("latin-1")} | headers
        )

    async def request(self, method: str, path: str, **options: Any) -> HTTPResponse:
        return await AsyncHTTPClient().fetch(
            f"{self.url}/{path}", method=method, raise_error=False, allow_nonstandard_methods=True, **options
        )

    async def ask(self, method: str, body: object = None) -> dict:
        """The body of a 200."""
        response = await self.post(method, body)
        assert response.code == 200, response.body
        assert response.headers["Content-Type"] == "application/json"
        return orjson.loads(response.body)

    @contextlib.asynccontextmanager
    async def hearing(self, *topics: str) -> AsyncIterator[Callable]:
        """Listen to Redis channels; gives a coroutine function for the next publication, as channel and body."""
        async with self.redis.pubsub() as ear:
            await ear.subscribe(*topics)
            for _ in topics:
                await ear.get_message(timeout=5)
            waiting: list[tuple[str, dict]] = []

            async def hear() -> tuple[str, dict]:
                while not waiting:
                    message = await ear.get_message(timeout=5)
                    assert message is not None, "nothing was published"
                    waiting.extend((channel, orjson.loads(body)) for channel, body in unpack(message["data"]))
                return waiting.pop(0)

            yield hear


@contextlib.asynccontextmanager
async def hub(
    url: str, prefix: str, key: str = KEY, most_waiting: int = 1000, namespaces: dict | None = None, **http: object
) -> AsyncIterator[Hub]:
    """Serve the API on a free port of loopback."""
    counts: dict[str, int] = {}
    store = Store(RedisSettings(prefix=prefix), url)
    broker, history = Broker(store, most_waiting), History(store)
    channels, users = Channels({**NAMESPACES, **(namespaces or {})}), Users()
    revocations = Revocations(store)
    orders = Orders(users, channels, revocations)
    stats = {"num_clients": 5, "num_users": 2}
    async with node(url, prefix, counts=lambda: counts, stats=lambda: stats, orders=orders.answers) as registry:
        mailboxes = Mailboxes(broker, store.keys, MailboxSettings(), 1_048_576)
        publisher = Publisher(broker, 32, mailboxes)
        presence = Presence(store, None, channels, most_clients=MOST_CLIENTS)
        presence.start()
        tickets = Tickets(store, Authenticator("", time.time))
        rooms = api.Api(
            key,
            channels,
            publisher,
            history,
            registry,
            presence,
            MOST_COMMANDS,
            mailboxes,
            "inbox",
            revocations,
            tickets,
        )
        routes = api.routes(rooms)
        server = httpd.Server(httpd.application(routes), HttpSettings(**http))
        sockets = bind_sockets(0, "127.0.0.1", socket.AF_INET)
        async with serving(server, sockets), Redis.from_url(url) as redis:
            try:
                yield Hub(
                    f"http://127.0.0.1:{sockets[0].getsockname()[1]}/api",
                    registry,
                    presence,
                    mailboxes,
                    redis,
                    tickets,
                    counts,
                )
            finally:
                await orders.close()
                await revocations.close()
                await presence.close()
                await broker.close()
                await history.close()
                await tickets.close()


def topic(prefix: str, channel: str) -> str:
    return f"{prefix}:pub:{{{channel}}}"


def error_of(response: HTTPResponse) -> dict:
    assert response.headers["Content-Type"] == "application/json"
    return orjson.loads(response.body)["error"]
