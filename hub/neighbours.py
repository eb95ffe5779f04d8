"""Neighbours: workers on other machines, where each machine was given an internal URL (relay.url, relay.secret).

Does: keep in Redis where this hub's workers can be asked, carry a request to another hub's internal listener, take
theirs and hand them to the relay.
Does not: know what is asked, or answer it; relay finds the worker on its own machine.
Called by: links (builds it, start, close, routes), relay (`ask`, for an owner of another hub), tunnel.
Never break: without relay.url nothing here is reachable; a request goes to the owner's machine and from there nowhere
else, so that two of them can't send it in circles.

    POST /relay/3f9c2d11a0b4e875.2.17/emulation   X-Relay-Secret: …   X-Relay-Timeout: 5.0   body: what is asked

    200  the body is the answer      401  no secret or a wrong one      404  OwnerGone      500  OwnerFailed
    504  OwnerSlow

One TCP connection for each request: closing it is how whoever asked gives it up, and then the handler is cancelled.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from . import httpd, tasks
from .errors import OwnerFailed, OwnerGone, OwnerSlow, RelayError
from .limits import TokenBucket
from .log import Brake
from .relay import Owner, Relay, parse_owner
from .store import Store

logger = logging.getLogger(__name__)

LEASE_S = 30
"""How long an address stands in Redis after its hub's last word."""
RENEWALS_PER_LEASE = 3
KNOWN_S = 10.0
"""How long an address that was found is not looked up again."""
MAX_KNOWN = 1024
"""Addresses kept so; ids are the clients' words, but only those of living hubs get here."""
MISSED_S = 1.0
"""How long a hub that was not found is not looked up again."""
MAX_MISSED = 1024
LOOKUPS_PER_S = 500
"""Redis is asked so often at the most: whoever makes up ids must not have it asked about each of them."""
HEAD_BYTES = 16_384
MAX_TIMEOUT_S = 3600.0
NOWHERE = "no machine has the session's hub"
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
STATUSES: dict[type[RelayError], int] = {OwnerGone: 404, OwnerSlow: 504, OwnerFailed: 500}
ERRORS = {status: error for error, status in STATUSES.items()}


class Neighbours:
    """This hub among those of other machines. Build it with a running loop."""

    def __init__(
        self, store: Store, relay: Relay, url: str, secret: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """url: of this machine's internal listener, as the others reach it. secret: the same on all machines."""
        self._redis = store.commands()
        self._keys = store.keys
        self._describe = store.describe
        self.relay = relay
        self._url = url
        self.secret = secret
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}
        self._missed: dict[str, float] = {}
        self._lookups = TokenBucket(LOOKUPS_PER_S, clock)
        self._trouble = Brake()
        self._runner: asyncio.Task[None] | None = None
        relay.elsewhere = self.ask

    def start(self) -> None:
        """Say where we are, and go on doing so until `close`."""
        self._runner = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Say no more. The address stays until its lease ends, for our siblings may still serve."""
        if self._runner is not None:
            await tasks.end(self._runner)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self._redis.set(self._keys.neighbour(self.relay.owner.hub), self._url, ex=LEASE_S)
            except (RedisError, OSError) as error:
                self._trouble.warning(logger, "neighbours: Redis at %s: %s", self._describe(), error)
            await asyncio.sleep(LEASE_S / RENEWALS_PER_LEASE)

    # Asking.

    async def ask(self, owner: Owner, kind: str, payload: bytes, timeout_s: float) -> bytes:
        """What a worker of another hub answers; the deadline is the relay's. Raises RelayError."""
        url = await self.find(owner.hub)
        try:
            status, answer = await self._exchange(url, f"/relay/{owner}/{kind}", payload, timeout_s)
        except ConnectionRefusedError:
            raise OwnerGone("the session's hub does not serve") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            # Not gone: its clients may still reach it where we don't.
            raise OwnerSlow(f"the session's hub can't be reached: {error}") from None
        except (ValueError, asyncio.LimitOverrunError):
            raise OwnerFailed("the session's hub did not answer in HTTP") from None
        if status == 200:
            return answer
        if status == 401:
            self._trouble.warning(logger, "neighbours: %s refuses our relay.secret", url)
        raise ERRORS.get(status, OwnerFailed)(f"the session's hub answered {status}")

    async def find(self, hub: str) -> str:
        """Where a hub's workers can be asked. Raises OwnerGone, OwnerSlow."""
        url, until = self._known.get(hub, ("", 0.0))
        if self._clock() < until:
            return url
        if self._clock() < self._missed.get(hub, 0.0):
            raise OwnerGone(NOWHERE)
        if not self._lookups.take():
            if url:
                return url  # an old address is the better guess
            raise OwnerSlow("too many hubs are being looked for")
        try:
            found = await self._redis.get(self._keys.neighbour(hub))
        except (RedisError, OSError) as error:
            raise OwnerSlow(f"Redis: {error}") from None
        if found is None:
            self._known.pop(hub, None)
            if len(self._missed) >= MAX_MISSED:
                self._missed.clear()
            self._missed[hub] = self._clock() + MISSED_S
            raise OwnerGone(NOWHERE)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        url = str(found, errors="replace") if isinstance(found, bytes) else found
        self._known[hub] = (url, self._clock() + KNOWN_S)
        return url

    async def _exchange(self, url: str, path: str, payload: bytes, timeout_s: float) -> tuple[int, bytes]:
        """One request and its answer: status and body. Raises OSError, IncompleteReadError, ValueError."""
        parts = urlsplit(url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=HEAD_BYTES)
        try:
            head = [
                f"POST {path} HTTP/1.1",
                f"Host: {parts.netloc}",
                f"X-Relay-Secret: {self.secret}",
                f"X-Relay-Timeout: {timeout_s}",
                f"Content-Length: {len(payload)}",
                "Content-Type: application/octet-stream",
                "Connection: close",
            ]
            writer.write("\r\n".join([*head, "", ""]).encode() + payload)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(answer)
            size = int(length[1]) if length else 0
            if size > self.relay.limits.message_bytes:
                raise OwnerFailed(f"the answer has {size} bytes")
            return int(answer.split(b" ", 2)[1]), await reader.readexactly(size)
        except IndexError:
            raise ValueError("no status") from None
        finally:
            writer.transport.abort()  # also where we were cancelled: the other side gives up upon it

    # Being asked.

    def routes(self) -> httpd.Routes:
        """For the internal listener."""
        return [(r"/relay/([^/]+)/([a-z]{1,32})", NeighbourHandler, {"neighbours": self})]


class GuardedHandler(httpd.Handler):
    """An address for other machines only."""

    def initialize(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours

    def prepare(self) -> None:
        # Tornado reads headers as Latin-1, so this gives back the sender's bytes.
        offer = self.request.headers.get("X-Relay-Secret", "").encode("latin-1")
        if not hmac.compare_digest(offer, self._neighbours.secret.encode()):
            self.plain(401, "X-Relay-Secret: missing or wrong")


class NeighbourHandler(GuardedHandler):
    """POST /relay/OWNER/KIND."""

    def initialize(self, neighbours: Neighbours) -> None:
        super().initialize(neighbours)
        self._relay = neighbours.relay
        self._asked: asyncio.Task[bytes] | None = None

    async def post(self, name: str, kind: str) -> None:
        try:
            owner = parse_owner(name)
            timeout_s = float(self.request.headers.get("X-Relay-Timeout", self._relay.limits.timeout_s))
        except ValueError:
            self.plain(400, "allowed is /relay/HUB.SLOT.GENERATION/KIND, X-Relay-Timeout in seconds")
            return
        if owner.hub != self._relay.owner.hub:
            self.plain(404, "this is another hub")
            return
        # A NaN is no time either, and fails both comparisons.
        timeout_s = timeout_s if 0 < timeout_s < MAX_TIMEOUT_S else MAX_TIMEOUT_S
        self._asked = asyncio.create_task(self._relay.ask(owner, kind, self.request.body, timeout_s))
        try:
            answer = await self._asked
        except RelayError as error:
            self.plain(STATUSES.get(type(error), 500), "no answer")
        except asyncio.CancelledError:
            return  # whoever asked has gone
        else:
            self.set_header("Content-Type", "application/octet-stream")
            self.finish(answer)

    def on_connection_close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
