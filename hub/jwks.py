"""JWKS: the keys of an identity provider, fetched from one URL of the settings (RFC 7517 §5).

Does: fetch the set every now and then, and sooner where a token names a key that is not known; hand the authenticator
what it has found.
Does not: judge tokens (auth) or keys (keys).
Called by: worker (start, close), auth through `missing`.
Never break: the URL is the settings' own, and nothing of a token gets into it (CVE-2026-32301); whatever tokens say, at
most one fetch begins in MISSING_S; a fetch that fails leaves the keys as they were. Nobody waits for a fetch: who needs
its keys is told to come back.

Anybody can make up names of keys, so those must not hold up a real new key: a name that no fetch has looked for yet is
always told to come back, and the next fetch looks for all of them at once. One that was not found is refused, and
nothing is fetched for it, for ABSENT_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

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
MISSING_S = 6.0
"""Between two fetches for keys that tokens name and nobody knows: any client can name one. Ten a minute are what other
clients of such servers allow themselves (jwks-rsa's jwksRequestsPerMinute).
"""
ABSENT_S = 60.0
"""So long a name that a fetch did not find is not looked for again."""
MAX_NAMES = 10_000
"""Names that are remembered of those, and of those to be looked for; beyond, the oldest is forgotten."""
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
        self._sought: set[int] = set()
        """Hashes of names that the next fetch looks for; each is as long as its token would like it to be."""
        self._absent: dict[int, float] = {}
        """Of those that a fetch has not found, and when; the oldest first."""
        self._retry_s = FIRST_RETRY_S
        self._failed = Brake()
        self.fetches = 0
        """Begun, since the start."""
        self.loaded = False
        """There has been a set."""
        self._found: Sequence[Key] = ()
        """Of the last set."""
        authenticator.expects_keys = True
        authenticator.missing = self.miss

    async def start(self) -> None:
        """Fetch the set for the first time; returns after TIMEOUT_S at the latest, with it or without."""
        await self._begin()

    def miss(self, kid: str | None) -> bool:
        """No key is known for a token: whether one that may be it is being fetched, or soon will be.

        kid: as the token names its key. Until there has been a set it may be any: a provider that is away must cost
        clients patience and no more.
        """
        if self.loaded:
            if kid is None or self._is_absent(hash(kid)):
                return False
            if len(self._sought) < MAX_NAMES:
                self._sought.add(hash(kid))
        now = self._clock()
        if self._fetching is None and (self._missed_at is None or now - self._missed_at >= MISSING_S):
            self._missed_at = now
            self._begin()
        return True

    def _is_absent(self, name: int) -> bool:
        found_at = self._absent.get(name)
        return found_at is not None and self._clock() - found_at < ABSENT_S

    def _note_absent(self, names: Iterable[int]) -> None:
        """A fetch that began after these were asked for has ended. Those that it found are never asked for again."""
        now = self._clock()
        for name in names:
            self._absent.pop(name, None)
            self._absent[name] = now
        while len(self._absent) > MAX_NAMES:
            del self._absent[next(iter(self._absent))]

    def retune(self, own: Sequence[Key], algorithms: Sequence[str], refresh_s: float) -> None:
        """Another period from the next fetch on, other keys besides those of the set, which stays as it is."""
        self._own, self._algorithms, self._refresh_s = own, algorithms, refresh_s
        self._authenticator.expects_keys = True
        self._authenticator.renew(KeyRing([*own, *self._found], algorithms))

    def stop(self) -> None:
        """Fetch no more; what is being fetched counts for nothing. `close` is still to come."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._fetching is not None:
            self._fetching.cancel()

    async def close(self) -> None:
        """Fetch no more."""
        self.stop()
        if self._fetching is not None:
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
        sought, self._sought = self._sought, set()
        try:
            found = read(await self._fetch())
        except Exception as error:
            # The server is somebody else's: whatever it does, the last good keys hold, and it is tried again.
            self._failed.warning(logger, "auth.jwks_url: no keys: %s; the last good ones hold", error)
        else:
            self._found, self.loaded = found, True
            self._authenticator.renew(KeyRing([*self._own, *found], self._algorithms))
            self._note_absent(sought)
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
