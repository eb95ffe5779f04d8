"""Store: how this hub reaches its Redis or Valkey, by URL or through Sentinel, and where its keys are.

Does: make the command client (redis-py), find the address for the subscriber connection, name every key and Redis
channel.
Does not: run commands of its own; broker publishes, ingest subscribes, ticker and registry keep their leases.
Called by: worker (builds it), broker, ingest, ticker, registry.
Never break: a key's hash tag is the channel or namespace it belongs to, so that a script's keys share a Cluster slot;
no retry inside the client: a publish that is sent again after a broken connection could be delivered twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .config import RedisSettings
from .errors import BrokerUnavailable

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

    def channel(self, channel: str) -> str:
        """The Redis channel that carries one channel of a `none` namespace."""
        return f"{self.prefix}:pub:{{{channel}}}"

    def feed(self, namespace: str) -> str:
        """The Redis channel that carries all channels of a `latest` namespace."""
        return f"{self.prefix}:feed:{{{namespace}}}"

    def last(self, namespace: str, channel: str) -> str:
        """The newest body of one channel of a `latest` namespace: `hub:last:{ticker}:ACME`."""
        return f"{self.prefix}:last:{{{namespace}}}:{channel.removeprefix(namespace + ':')}"

    def lease(self, namespace: str) -> str:
        """Who runs the ticker's source: a hash of owner and fencing token; expires with its holder."""
        return f"{self.prefix}:lease:{{{namespace}}}"

    def source(self, namespace: str) -> str:
        """How far the ticker's source has been read, and the last fencing token; outlives the lease."""
        return f"{self.prefix}:source:{{{namespace}}}"

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
        self.keys = Keys(settings.prefix)

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
            return client
        # Not Redis' own pool, which raises when all its connections are taken.
        pool = BlockingConnectionPool.from_url(self._url, max_connections=MAX_CONNECTIONS, timeout=wait_s, **options)
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
