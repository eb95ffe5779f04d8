"""JWKS: the keys of an identity provider, fetched from one URL of the settings (RFC 7517 §5).

Does: fetch the set every now and then, and sooner where a token names a key that is not known; hand the authenticator
what it has found.
Does not: judge tokens (auth) or keys (keys).
Called by: worker (start, close), auth through `missing`.
Never break: the URL is the settings' own, and nothing of a token gets into it (CVE-2026-32301); whatever tokens say, at
most one fetch begins in MISSING_S; a fetch that fails leaves the keys as they were. Nobody waits for a fetch: who needs
its keys is told to come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import orjson
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from . import keys
from .auth import Authenticator
from .keys import Key, KeyRing
from .log import Brake

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
"""For a whole fetch."""
MAX_BYTES = 262_144
"""Of an answer."""
MAX_HEADER_BYTES = 16_384
MAX_KEYS = 100
"""Of one set; those behind them are not looked at."""
MISSING_S = 60.0
"""Between two fetches for keys that tokens name and nobody knows: any client can name one."""
FIRST_RETRY_S = 1.0
"""Until there is a first set; then twice as long each time, to the refresh interval."""


class Jwks:
    """The set of one URL, in one worker. Build it with a running loop."""

    def __init__(
        self,
        url: str,
        authenticator: Authenticator,
        own: Sequence[Key],
        algorithms: Sequence[str],
        refresh_s: float,
        ca_file: str = "",
        clock: Callable[[], float] | None = None,
    ) -> None:
        """own: keys that hold besides, before those of the set. algorithms: as KeyRing has them.

        ca_file: who may have signed the server's certificate, instead of those that the machine trusts. clock: in
        seconds, for the bounds; the loop's own by default.
        """
        self._url = url
        self._authenticator = authenticator
        self._own = own
        self._algorithms = algorithms
        self._refresh_s = refresh_s
        self._ca_file = ca_file or None
        self._clock = clock or asyncio.get_running_loop().time
        self._client = SimpleAsyncHTTPClient(
            force_instance=True, max_clients=1, max_header_size=MAX_HEADER_BYTES, max_body_size=MAX_BYTES
        )
        self._fetching: asyncio.Task[None] | None = None
        self._next: asyncio.TimerHandle | None = None
        self._missed_at: float | None = None
        """When a fetch for a missing key began last."""
        self._retry_s = FIRST_RETRY_S
        self._failed = Brake()
        self.fetches = 0
        """Begun, since the start."""
        self.loaded = False
        """There has been a set."""
        authenticator.expects_keys = True
        authenticator.missing = self.miss

    async def start(self) -> None:
        """Fetch the set for the first time; returns after TIMEOUT_S at the latest, with it or without."""
        await self._begin()

    def miss(self, named: bool) -> bool:
        """No key is known for a token: whether one that may be it is being fetched. named: the token names its key.

        Until there has been a set it may be any: a provider that is away must cost clients patience and no more.
        """
        wanted = named or not self.loaded
        if not wanted or self._fetching is not None:
            return wanted
        now = self._clock()
        if self._missed_at is not None and now - self._missed_at < MISSING_S:
            return not self.loaded
        self._missed_at = now
        self._begin()
        return True

    async def close(self) -> None:
        """Fetch no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        self._client.close()

    def _begin(self) -> asyncio.Task[None]:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._fetching is None:
            self.fetches += 1
            self._fetching = asyncio.ensure_future(self._renew())
        return self._fetching

    async def _renew(self) -> None:
        try:
            found = read(await self._fetch())
        except Exception as error:
            # The server is somebody else's: whatever it does, the last good keys hold, and it is tried again.
            self._failed.warning(logger, "auth.jwks_url: no keys: %s; the last good ones hold", error)
        else:
            self._authenticator.renew(KeyRing([*self._own, *found], self._algorithms))
            self.loaded = True
        finally:
            self._fetching = None
        self._next = asyncio.get_running_loop().call_later(self._wait_s(), self._begin)

    def _wait_s(self) -> float:
        if self.loaded:
            return self._refresh_s
        wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, self._refresh_s)
        return wait_s

    async def _fetch(self) -> bytes:
        request = HTTPRequest(
            self._url,
            connect_timeout=TIMEOUT_S,
            request_timeout=TIMEOUT_S,
            follow_redirects=False,  # where to, would be the server's choice
            decompress_response=False,  # small, and of no known size before
            ca_certs=self._ca_file,
            headers={"Accept": "application/jwk-set+json, application/json"},
        )
        async with asyncio.timeout(2 * TIMEOUT_S):  # the client's own bounds are enough, but for a resolver that hangs
            return (await self._client.fetch(request)).body


def read(body: bytes) -> list[Key]:
    """The keys of a set that check signatures. Raises ValueError where there is none, or for what is no set."""
    found = orjson.loads(body)
    jwks = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(jwks, list):
        raise ValueError("found no JSON Web Key Set")
    good: list[Key] = []
    for jwk in jwks[:MAX_KEYS]:
        try:
            good.append(keys.of_jwk(jwk))
        except ValueError as error:
            logger.debug("auth.jwks_url: a key of the set is left out; allowed: %s", error)
    if not any(key.uses for key in good):
        raise ValueError("found no key that checks signatures")
    return good
