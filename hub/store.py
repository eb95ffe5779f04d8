"""Store: how this hub reaches its Redis or Valkey, by URL or through Sentinel, and where its keys are.

Does: make the command clients (redis-py), find the address for the subscriber connection, follow the primary that the
Sentinels name; name every key and Redis channel.
Does not: run commands of its own; broker publishes, ingest subscribes, ticker, registry and roll keep their leases.
Called by: building (builds it), broker, ingest, ticker, registry, roll.
Never break: a key's hash tag is the channel or namespace it belongs to, so that a script's keys share a Cluster slot,
but for those few that stand for the whole store (generation, mail_totals, dead_letters);
no retry inside the client: a publish that is sent again after a broken connection could be delivered twice.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple
from weakref import WeakSet

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from .channels import Mode, namespace_of
from .errors import BrokerUnavailable
from .sections import RedisSettings

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Of one command client; beyond this, commands wait for a free one."""
SENTINEL_CONNECTIONS = 1024
"""The same by Sentinel, where redis-py has no pool that waits: beyond this a command fails as temporary."""


class Endpoint(NamedTuple):
    """Where the subscriber connection goes: a Unix path, or host and port; then what to say first."""

    path: str
    host: str
    port: int
    tls: bool
    ca_file: str
    username: str
    password: str
    db: int


class Keys:
    """Names in Redis; all begin with the prefix. A hub and its workers share them, another hub takes another prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.control = f"{prefix}:control"
        self.nodes = f"{prefix}:nodes:{{nodes}}"
        self.leases = f"{prefix}:leases:{{nodes}}"
        self.attendance = f"{prefix}:attendance:{{nodes}}"
        """Leases of the workers on their clients' presence."""
        self.manifests = f"{prefix}:manifests:{{nodes}}"
        """Leases of the workers on their manifests."""
        self.census = f"{prefix}:census:{{nodes}}"
        """Connections by address and by user, on all workers."""
        self.census_leases = f"{prefix}:census_leases:{{nodes}}"
        """Leases of the workers on what they have told of those."""
        self.mail_totals = f"{prefix}:mailboxes"
        """How much all mailboxes hold: a hash, one for the whole store."""
        self.dead_letters = f"{prefix}:dead"
        """Messages that left their mailbox unacknowledged: a Redis stream, one for the whole store."""
        self.generation = f"{prefix}:generation"
        """The store's identity and generation: a hash, one for the whole store."""

    @property
    def revocations(self) -> list[str]:
        """Tokens and users that are revoked or blocked: when each entry ends, a sorted set, and the entries, a hash."""
        return [f"{self.prefix}:{part}:{{revoked}}" for part in ("revoked_until", "revoked")]

    def channel(self, channel: str) -> str:
        """The Redis channel that carries one channel of a `none` namespace."""
        return f"{self.prefix}:pub:{{{channel}}}"

    def feed(self, namespace: str) -> str:
        """The Redis channel that carries all channels of a `latest` namespace."""
        return f"{self.prefix}:feed:{{{namespace}}}"

    def last(self, namespace: str, channel: str) -> str:
        """The newest body of one channel of a `latest` namespace: `hub:last:{ticker}:ACME`."""
        return f"{self.prefix}:last:{{{namespace}}}:{channel.removeprefix(namespace + ':')}"

    def newest(self, uid: str) -> str:
        """The Redis channel on which one worker gets the newest values that it asked for."""
        return f"{self.prefix}:newest:{uid}"

    def wants(self, digest: str) -> str:
        """What one client asked of one channel, for when it comes back."""
        return f"{self.prefix}:wants:{digest}"

    def meta(self, channel: str) -> str:
        """Where a `stream` channel stands: a hash of top offset, epoch and version; outlives its publications."""
        return f"{self.prefix}:meta:{{{channel}}}"

    def stream(self, channel: str) -> str:
        """The newest publications of a `stream` channel: a Redis stream whose entry ids are the offsets."""
        return f"{self.prefix}:stream:{{{channel}}}"

    def restored(self, channel: str) -> str:
        """A stream that `hub restore` is still filling; it then takes the place of `stream(channel)`."""
        return f"{self.prefix}:restore:{{{channel}}}"

    def once(self, channel: str, key: str) -> str:
        """What became of the publication with this idempotency key."""
        return f"{self.prefix}:once:{{{channel}}}:{key}"

    def topic(self, channel: str, mode: Mode) -> str:
        """The Redis channel that carries what is published in one channel; all workers with a subscriber hold it."""
        return self.feed(namespace_of(channel)) if mode == "latest" else self.channel(channel)

    def roll(self, channel: str) -> str:
        """Who is subscribed to one channel: a hash; roll.py has its fields."""
        return f"{self.prefix}:roll:{{{channel}}}"

    def away(self, channel: str) -> str:
        """Leave pushes of one channel that are held back: a sorted set by the time at which they are due."""
        return f"{self.prefix}:away:{{{channel}}}"

    def attended(self, uid: str) -> str:
        """The channels in which one worker has to clear up: a set, for whoever has to do it in its place."""
        return f"{self.prefix}:attended:{{nodes}}:{uid}"

    def manifest(self, uid: str) -> str:
        """Clients of one worker of whose end the application wants to hear: a hash by client id."""
        return f"{self.prefix}:manifest:{{nodes}}:{uid}"

    def census_of(self, uid: str) -> str:
        """Connections by address and by user of one worker: a hash; '' for what all of these begin with."""
        return f"{self.prefix}:census:{{nodes}}:{uid}"

    def mailbox(self, channel: str) -> list[str]:
        """What one mailbox is made of: box, mail, wait, flight; lua/mailbox.lua has what they are."""
        return [f"{self.prefix}:{part}:{{{channel}}}" for part in ("box", "mail", "wait", "flight")]

    def due(self, namespace: str) -> str:
        """The mailboxes of a namespace by the time at which something in them is due."""
        return f"{self.prefix}:due:{{{namespace}}}"

    def lease(self, namespace: str) -> str:
        """Who runs the ticker's source: a hash of owner and fencing token; expires with its holder."""
        return f"{self.prefix}:lease:{{{namespace}}}"

    def source(self, namespace: str) -> str:
        """How far the ticker's source has been read, and the last fencing token; outlives the lease."""
        return f"{self.prefix}:source:{{{namespace}}}"

    def forming(self, namespace: str) -> str:
        """The ticker's bars that were not closed at the last checkpoint: a hash by symbol."""
        return f"{self.prefix}:forming:{{{namespace}}}"

    def journal(self, namespace: str) -> str:
        """What the ticker has published since that checkpoint: a list of packed batches."""
        return f"{self.prefix}:journal:{{{namespace}}}"

    def due_bars(self, namespace: str) -> str:
        """The ticker's bars that are closed and not known to be published: a list, the oldest first."""
        return f"{self.prefix}:bars:{{{namespace}}}"

    def ticket(self, digest: str) -> str:
        """Whom one ticket speaks for; expires, and is gone when it is used."""
        return f"{self.prefix}:ticket:{digest}"

    def socket(self, pid: str) -> str:
        """What is kept of a Socket.IO client that has gone; expires."""
        return f"{self.prefix}:socket:{{{pid}}}"

    def loop(self, uid: str) -> str:
        """The Redis channel on which one worker hears itself."""
        return f"{self.prefix}:loop:{uid}"

    def neighbour(self, hub: str) -> str:
        """The URL at which other machines reach the workers of one hub; expires with it."""
        return f"{self.prefix}:neighbour:{hub}"

    def answers(self, survey: str) -> str:
        """The list in which the asker of one survey finds the answers."""
        return f"{self.prefix}:answers:{{{survey}}}"


class Store:
    """The way to one Redis, by URL or Sentinel."""

    def __init__(self, settings: RedisSettings, url: str) -> None:
        """url: `settings.url`, or that of the embedded Valkey; unused where `settings` names Sentinels."""
        self._settings = settings
        self._url = url
        self._sentinel: Sentinel | None = None
        self._pools: WeakSet[Any] = WeakSet()
        """Of the clients by Sentinel."""
        self.keys = Keys(settings.prefix)

    @property
    def command_timeout_s(self) -> float:
        """After this a command has failed, unless `commands` was told otherwise."""
        return self._settings.command_timeout_s

    def commands(self, timeout_s: float | None = None) -> Redis:
        """A command client with its own pool.

        Every call fails after `timeout_s` (default: the setting) as a RedisError.
        """
        wait_s = timeout_s if timeout_s is not None else self._settings.command_timeout_s
        options: dict[str, Any] = {
            "socket_timeout": wait_s,
            "socket_connect_timeout": self._settings.command_timeout_s,
            "retry": Retry(NoBackoff(), 0),
            # RESP2: no pushes are wanted here, and old servers know it.
            "protocol": 2,
        }
        if self._settings.sentinels:
            client: Redis = self._find_sentinel().master_for(
                self._settings.master, max_connections=SENTINEL_CONNECTIONS, **options
            )
            pool = client.connection_pool
            pool.connection_class = _following(_failing_as_redis(pool.connection_class))
            self._pools.add(pool)
            return client
        # Not Redis' own pool, which raises when all its connections are taken.
        pool = BlockingConnectionPool.from_url(self._url, max_connections=MAX_CONNECTIONS, timeout=wait_s, **options)
        pool.connection_class = _failing_as_redis(pool.connection_class)
        return Redis.from_pool(pool)

    async def endpoint(self) -> Endpoint:
        """Where to subscribe now. Raises BrokerUnavailable when no Sentinel knows the primary."""
        if not self._settings.sentinels:
            return _endpoint(self._url)
        try:
            host, port = await self._find_sentinel().discover_master(self._settings.master)
        except RedisError as error:
            raise BrokerUnavailable(f"Sentinel: {error}") from None
        return Endpoint("", host, port, False, "", "", "", 0)

    async def follow(self) -> None:
        """Ask the Sentinels who is primary now; connections to another one are left before their next command.

        To be called every now and then: an old primary that lives takes writes until it is demoted, some 10 s after the
        failover, and then forgets them.
        """
        for pool in list(self._pools):
            try:
                await pool.get_master_address()
            except RedisError as error:
                # Those who were asked are away: the last answer holds.
                logger.debug("Sentinel: %s", error)

    def describe(self) -> str:
        """The address for a log line, without credentials."""
        if self._settings.sentinels:
            return f"primary {self._settings.master!r} by Sentinel {', '.join(self._settings.sentinels)}"
        endpoint = _endpoint(self._url)
        return f"unix:{endpoint.path}" if endpoint.path else f"{endpoint.host}:{endpoint.port}"

    def _find_sentinel(self) -> Sentinel:
        if self._sentinel is None:
            addresses = [_host_port(text) for text in self._settings.sentinels]
            timeout_s = self._settings.command_timeout_s
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                addresses, sentinel_kwargs={"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
            )
        return self._sentinel


def _failing_as_redis(kind: type[Any]) -> type[Any]:
    """A connection of this kind of redis-py's that fails as a RedisError also where its socket was reset.

    uvloop closes the transport of such a socket at once, and raises RuntimeError for a write to it, where asyncio's own
    loop keeps quiet. redis-py passes that on, and no caller expects it.

    It also packs commands with hiredis, as redis-py does on connections that are not asyncio's: 0.2 µs an argument, and
    not 1.5.
    """

    class FailingAsRedis(kind):  # type: ignore[misc]
        def pack_command(self, *args: Any) -> list[bytes]:
            # A name of two words, such as SCRIPT LOAD, is two arguments to Redis.
            return [hiredis.pack_command((*args[0].split(), *args[1:]))]

        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super().send_packed_command(*args, **kwargs)
            except RuntimeError as error:
                raise RedisConnectionError(f"the connection was reset: {error}") from error

    return FailingAsRedis


def _following(kind: type[Any]) -> type[Any]:
    """A Sentinel-managed connection of this kind that connects anew once its pool knows of another primary.

    The pool itself only ends those connections that are idle at that moment.
    """

    class Following(kind):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            if self.is_connected and (self.host, self.port) != self.connection_pool.master_address:
                await self.disconnect(nowait=True)
                await self.connect()  # asks the Sentinels, which reconnecting by itself does not
            await super().send_packed_command(*args, **kwargs)

    return Following


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _endpoint(url: str) -> Endpoint:
    parts: dict[str, Any] = dict(parse_url(url))
    return Endpoint(
        path=parts.get("path", ""),
        host=parts.get("host", "localhost"),
        port=parts.get("port", 6379),
        tls=url.startswith("rediss://"),
        ca_file=parts.get("ssl_ca_certs") or "",
        username=parts.get("username") or "",
        password=parts.get("password") or "",
        db=parts.get("db", 0),
    )
