"""Revocation: tokens that are good no more, and users who are blocked: in Redis, and in the memory of every worker.

Does: judge a token or user, keep the list in Redis for all, take up what other workers noted, read all of it at the
start and whenever the link to Redis is back.
Does not: end connections (orders does, of whom this says so), hear control messages (registry) or speak HTTP.
Called by: auth through the worker (judge), sessions (check), api_control (store), orders (learn, check).
Never break: `check` never waits and costs nothing where nothing is revoked. What Redis has is the truth: an entry that
is not there any more is forgotten with the next reading. Without Redis the list that was read last goes on to hold; a
worker that has never read it lets everybody in, and judges them again as soon as it has.

Three kinds of entries, each until it ends; no end is for ever, so `auth.revocations` bounds their number:

    token JTI     the token with this claim `jti`
    issued USER   all tokens of a user whose claim `iat` is before a time; one without `iat` was issued before any time
    user USER     the user, however it comes

A second entry takes the first one's place, but for `issued`: of two the later time and the later end hold, in whatever
order they come, as what was kept out once must not come in by a call for an earlier time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import orjson
from redis.exceptions import RedisError

from . import errors, tasks
from .auth import Claims
from .errors import CommandError, ProtocolError
from .grants import is_time
from .log import Brake
from .scripts import load_script
from .store import Store

logger = logging.getLogger(__name__)

TOKEN, ISSUED, USER = "token", "issued", "user"
KINDS = frozenset({TOKEN, ISSUED, USER})
MAX_NAME_LENGTH = 255
SCAN_COUNT = 1000
"""Entries of one reply while the list is read."""
RETRY_S = 0.5


class Entry(NamedTuple):
    """One of the list. Times are in seconds since 1970."""

    kind: str
    name: str
    expires_at: float = inf
    before: float = 0.0
    """Of ISSUED: tokens from before this time."""
    gone: bool = False
    """It is struck off."""

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    def params(self) -> dict[str, Any]:
        """As JSON, for a control message."""
        return {**self._asdict(), "expires_at": None if self.expires_at == inf else self.expires_at}


def parse(params: dict[str, Any]) -> Entry:
    """The opposite of `Entry.params`. Raises ValueError."""
    kind, name, gone = params.get("kind"), params.get("name"), params.get("gone", False)
    expires_at, before = params.get("expires_at"), params.get("before", 0)
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(name, str) or not isinstance(gone, bool):
        raise ValueError("a revocation of an unknown kind, or without a name")
    if not 0 < len(name) <= MAX_NAME_LENGTH or not is_time(before) or not (expires_at is None or is_time(expires_at)):
        raise ValueError("a revocation with something else for a name or a time")
    return Entry(kind, name, inf if expires_at is None else float(expires_at), float(before), gone)


class Revocations:
    """The list, as one worker has it."""

    def __init__(
        self,
        store: Store,
        most: int = 100_000,
        on_read: Callable[[], None] = lambda: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """most: entries at a time, of the whole hub. on_read: the list has been read; who is here may be on it."""
        self._redis = store.commands()
        self._keys = store.keys.revocations
        self._control = store.keys.control
        self._describe = store.describe
        self._revoke = self._redis.register_script(load_script("revoke"))
        self.most = most
        self.on_read = on_read
        self._clock = wall_clock
        self._entries: dict[str, Entry] = {}
        self._learned: list[Entry] | None = None
        """What came while the list is being read; it is newer."""
        self._wanted = asyncio.Event()
        self._read_once = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._trouble = Brake()

    def __len__(self) -> int:
        return len(self._entries)

    def start(self) -> None:
        """Read the list, and again whenever `reread` says so, until `close`."""
        self._wanted.set()
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def ready(self, most_s: float) -> None:
        """Return when the list has been read for the first time, or after so long."""
        try:
            async with asyncio.timeout(most_s):
                await self._read_once.wait()
        except TimeoutError:
            pass  # who comes meanwhile is judged when it has been

    async def close(self) -> None:
        """Read no more; what is known goes on to hold."""
        if self._runner is not None:
            await tasks.end(self._runner)
        await self._redis.aclose()

    # Judging.

    def check(self, user: str, claims: Claims) -> None:
        """Whether somebody may be here: as the user who it is, and with the token that it has shown.

        Raises ProtocolError 3507 for a blocked user, 3500 for a token that is revoked.
        """
        if self._entries:
            self._check_user(user)
            self.check_token(claims.user, claims.jti, claims.issued_at)

    def judge(self, claims: Claims) -> None:
        """The same of a token alone."""
        self.check_token(claims.user, claims.jti, claims.issued_at)

    def check_token(self, user: str, jti: str, issued_at: float) -> None:
        """The same by its claims, which are this."""
        if not self._entries:
            return
        self._check_user(user)
        entry = self._find(ISSUED, user)
        if self._find(TOKEN, jti) is not None or (entry is not None and issued_at < entry.before):
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "the token is revoked")

    def _check_user(self, user: str) -> None:
        if self._find(USER, user) is not None:
            raise ProtocolError(errors.CLOSE_PERMISSION_DENIED, "the user is blocked")

    def _find(self, kind: str, name: str) -> Entry | None:
        entry = self._entries.get(f"{kind} {name}") if name else None
        return entry if entry is not None and entry.expires_at > self._clock() else None

    # Changing.

    async def store(self, entry: Entry, message: bytes) -> int:
        """Note it for all, and tell the workers; how many heard `message`, a control message that has them `learn`.

        Raises CommandError 106 where there is no room; RedisError, OSError.
        """
        value = b"" if entry.gone else orjson.dumps(entry.params())
        ends = repr(entry.expires_at)  # 'inf' is what a sorted set calls it, too
        keep = "keep" if entry.kind == ISSUED else ""
        arguments: list[str | bytes] = [entry.key, value, ends, str(self.most), self._control, message, keep]
        heard = int(await self._revoke(keys=self._keys, args=arguments))
        if heard < 0:
            raise CommandError(errors.LIMIT_EXCEEDED, f"{self.most} revocations are noted (auth.revocations)")
        return heard

    def learn(self, entry: Entry) -> None:
        """Some worker has noted it."""
        if self._learned is not None:
            self._learned.append(entry)
        self._take(self._entries, entry)
        if len(self._entries) > self.most:
            self._entries = self._living(self._entries)

    def reread(self) -> None:
        """Something may have been noted that was not heard here."""
        self._wanted.set()

    def _take(self, entries: dict[str, Entry], entry: Entry) -> None:
        if entry.gone:
            entries.pop(entry.key, None)
            return
        old = entries.get(entry.key) if entry.kind == ISSUED else None
        if old is not None and old.expires_at > self._clock():
            ends, before = max(old.expires_at, entry.expires_at), max(old.before, entry.before)
            entry = entry._replace(expires_at=ends, before=before)
        entries[entry.key] = entry

    def _living(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        now = self._clock()
        return {key: entry for key, entry in entries.items() if entry.expires_at > now}

    # Reading.

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._read()
            except (RedisError, OSError) as error:
                self._trouble.warning(logger, "revocations: Redis at %s: %s", self._describe(), error)
                self._wanted.set()
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        """Read the whole list. An entry that stands in it throughout is seen (HSCAN), and newer ones are learned."""
        self._learned = []
        try:
            found: dict[str, Entry] = {}
            async for key, value in self._redis.hscan_iter(self._keys[1], count=SCAN_COUNT):
                try:
                    entry = parse(orjson.loads(value))
                except (ValueError, AttributeError):  # whoever reaches Redis can write there
                    self._trouble.warning(logger, "revocations: ignored an entry of %d bytes", len(value))
                    continue
                if entry.key.encode() == key:
                    found[entry.key] = entry
            for entry in self._learned:
                self._take(found, entry)
        finally:
            self._learned = None
        self._entries = self._living(found)
        self._read_once.set()
        self.on_read()
