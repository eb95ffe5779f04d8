"""Backup: mailboxes and history out of one Redis into an archive.

Does: read each channel and each mailbox in one step, while hubs go on.
Does not: know the file's format (archive), find the Redis, speak to people (saving), or put anything back (restore).
Called by: saving. What Redis does not do is raised as redis-py raises it: RedisError or OSError.
Never break: SCAN and pages, never KEYS or a whole keyspace at once; what is read fits each other: a channel's
publications end at the offset that its meta says, and the keys of one mailbox are of one moment.

Not kept: the newest values of `latest` channels and the ticker's place, which come again; who is present, who leads;
idempotency keys, which live for minutes; when a mailbox is due, which a restore finds anew.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.asyncio import Redis

from .archive import KEY_TYPES, Channel, Key, MorePublications, MoreValues, Writer, units
from .errors import HubError
from .scripts import Command, Scripts
from .store import Keys

MAILBOX_KINDS = ("mail", "box", "flight", "wait")
"""First parts of the names of one mailbox's keys, in the order in which they may be restored."""
PAGE_BYTES = 131_072
"""Of one channel's bodies in one step, which then is well under a millisecond of Redis."""
CHANNELS_AT_ONCE = 64
"""In one round trip: with PAGE_BYTES 8 MiB."""
LARGE_BYTES = 8_388_608
"""A key beyond this is read page by page, and so not in one step."""
GROUPS_AT_ONCE = 8
MAX_NAMES = 200_000
"""Of mailbox keys in memory, some 40 MB; of more than that, a part is collected in each of several scans."""
SCAN_COUNT = 1000
ATTEMPTS = 5
"""To read a long channel while its publications are trimmed or its store fails over."""
PAGE_VALUES = 1000
"""Of one key in one record."""

Item = TypeVar("Item")


class _Page(NamedTuple):
    meta: dict[bytes, bytes]
    meta_ttl_ms: int
    ttl_ms: int
    publications: list[tuple[int, bytes]]
    more: bool


async def generation_number(redis: Redis, keys: Keys) -> int:
    """The number of the store's generation; 0 before the first."""
    return int(await redis.hget(keys.generation, "number") or 0)


async def save(redis: Redis, keys: Keys, writer: Writer, on_progress: Callable[[], None] = lambda: None) -> None:
    """Write what the writer's header announces: all channels and mailboxes, or these alone.

    The writer is the caller's to close.
    Raises HubError when a channel changes faster than it can be read, or a key is of a type that no archive has.
    """
    source = _Source(redis, keys, writer)
    if writer.header.contents == "all":
        async for names in in_chunks(scan(redis, f"{keys.prefix}:meta:*"), CHANNELS_AT_ONCE):
            await source.write_channels(names)
            on_progress()
    async for groups in in_chunks(_groups(redis, keys.prefix), GROUPS_AT_ONCE):
        await source.write_keys(groups)
        on_progress()


class _Source:
    def __init__(self, redis: Redis, keys: Keys, writer: Writer) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer
        self._scripts = Scripts("backup_channel", "backup_keys")

    async def write_channels(self, names: Sequence[str]) -> None:
        """names: of metas, 'hub:meta:{chat:room}'."""
        start = len(self._keys.meta("")) - 1
        channels = [name[start:-1] for name in names]
        pages = await self._read([self._channel_command(channel) for channel in channels])
        for channel, page in zip(channels, pages, strict=True):
            await self._write_channel(channel, _page(page))

    def _channel_command(self, channel: str, start: str = "-") -> Command:
        keys = [self._keys.meta(channel), self._keys.stream(channel)]
        return self._scripts.call("backup_channel", keys, [start, PAGE_BYTES])

    async def _read(self, commands: list[Command]) -> list[Any]:
        replies = await self._scripts.execute(self._redis, commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _write_channel(self, channel: str, page: _Page) -> None:
        before: _Page | None = None
        for _ in range(ATTEMPTS):
            if not page.meta:
                if before is not None:
                    # It has vanished meanwhile: what was written of it does not reach up to its offset, so none of it.
                    self._writer.write(Channel(channel, before.meta, before.meta_ttl_ms, -1, []))
                return
            self._writer.write(Channel(channel, *page[:4]))
            if await self._write_rest(channel, page):
                return
            before, page = page, _page((await self._read([self._channel_command(channel)]))[0])
        raise HubError(f"channel {channel} changed {ATTEMPTS} times while it was read; try again")

    async def _write_rest(self, channel: str, first: _Page) -> bool:
        """The publications after the first page, up to the offset of its meta; False when they no longer fit it."""
        page, top = first, int(first.meta[b"o"])
        last = first.publications[-1][0] if first.publications else top
        while page.more and last < top:
            # The last one comes again. If it is gone, so may be others behind it: there would be a gap.
            page = _page((await self._read([self._channel_command(channel, f"{last}-0")]))[0])
            if page.meta.get(b"e") != first.meta[b"e"] or not page.publications or page.publications[0][0] != last:
                return False
            fresh = [one for one in page.publications[1:] if one[0] <= top]
            if fresh:
                self._writer.write(MorePublications(fresh))
                last = fresh[-1][0]
            if len(fresh) < len(page.publications) - 1:
                break  # the others came after the first page was read
        return True

    async def write_keys(self, groups: Sequence[Sequence[str]]) -> None:
        """groups: names of keys that are read in one step."""
        replies = await self._read([self._scripts.call("backup_keys", names, [LARGE_BYTES]) for names in groups])
        for group, reply in zip(groups, replies, strict=True):
            for name, (kind, ttl_ms, large, values) in zip(group, reply, strict=True):
                await self._write_key(name, kind.decode(), ttl_ms, bool(large), values)

    async def _write_key(self, name: str, kind: str, ttl_ms: int, large: bool, values: list[bytes]) -> None:
        if kind == "none":
            return  # it has expired since the scan
        own = name[len(self._keys.prefix) + 1 :]
        if kind != (wanted := KEY_TYPES[own.partition(":")[0]]):
            raise HubError(f"key {name}: found a {kind}; allowed: a {wanted}; is it another hub's?")
        pages = _pages(kind, values)
        self._writer.write(Key(own, kind, _known(ttl_ms), next(pages, [])))
        for more in pages:
            self._writer.write(MoreValues(more))
        if large:
            async for page in _read_pages(self._redis, kind, name):
                for more in _pages(kind, page):
                    self._writer.write(MoreValues(more))


def _page(reply: list[Any]) -> _Page:
    fields, meta_ttl_ms, ttl_ms, entries, more = reply
    meta = dict(zip(fields[::2], fields[1::2], strict=True))
    publications = [(int(entry.partition(b"-")[0]), body) for entry, (_, body) in entries]
    if not (meta.get(b"o") and meta.get(b"e")):
        meta = {}  # it has no position, so it is no channel yet
    return _Page(meta, _known(meta_ttl_ms), _known(ttl_ms), publications, bool(more))


def _known(ttl_ms: int) -> int:
    """-1 for a key without a time to live, and for none."""
    return max(ttl_ms, -1)


async def scan(redis: Redis, pattern: str) -> AsyncIterator[str]:
    """Names of all keys that are there from beginning to end; some may come twice."""
    async for name in redis.scan_iter(pattern, count=SCAN_COUNT):
        yield name.decode(errors="replace")  # ours are ASCII, and the archive takes no other


async def _groups(redis: Redis, prefix: str) -> AsyncIterator[list[str]]:
    """Names of the keys of each mailbox, in the order of MAILBOX_KINDS; those for all mailboxes at last.

    Last, so that a message which becomes a dead letter meanwhile is kept twice rather than not at all.
    """
    patterns = [f"{prefix}:{kind}:*" for kind in MAILBOX_KINDS]
    found = 0
    for pattern in patterns:
        async for _ in scan(redis, pattern):
            found += 1
    parts = found // MAX_NAMES + 1
    for part in range(parts):
        groups: dict[str, dict[str, None]] = defaultdict(dict)
        for pattern in patterns:
            async for name in scan(redis, pattern):
                tag = _hash_tag(name)
                if zlib.crc32(tag.encode()) % parts == part:
                    groups[tag][name] = None
        for names in groups.values():
            yield list(names)
    yield [f"{prefix}:{kind}" for kind in ("dead", "mailboxes")]


def _hash_tag(name: str) -> str:
    """'hub:mail:{inbox:#42}' -> 'inbox:#42'; the whole name without a tag."""
    return name.partition("{")[2].rpartition("}")[0] or name


async def _read_pages(redis: Redis, kind: str, name: str) -> AsyncIterator[list[bytes]]:
    """The values of a large key, page by page; some perhaps twice, but those of a stream."""
    call: Callable[..., Awaitable[Any]] = redis.execute_command
    cursor: Any = 0
    start = "-"
    while kind == "stream":
        entries = await call("XRANGE", name, start, "+", "COUNT", SCAN_COUNT)
        if not entries:
            return
        for entry, fields in entries:
            yield [entry, b"%d" % (2 * len(fields)), *_flat(fields.items())]
        start = f"({entries[-1][0].decode()}"
    while True:
        cursor, page = await call("HSCAN" if kind == "hash" else "ZSCAN", name, cursor, "COUNT", SCAN_COUNT)
        # repr is the shortest text that reads as the same number.
        yield _flat(page.items() if kind == "hash" else ((member, repr(score).encode()) for member, score in page))
        if not int(cursor):
            return


def _flat(pairs: Iterable[Iterable[Item]]) -> list[Item]:
    return [each for pair in pairs for each in pair]


def _pages(kind: str, values: list[bytes]) -> Iterator[list[bytes]]:
    """Values by PAGE_VALUES and about PAGE_BYTES; what belongs together stays so."""
    page: list[bytes] = []
    size = 0
    for unit in units(kind, values):
        page += unit
        size += sum(map(len, unit))
        if len(page) >= PAGE_VALUES or size >= PAGE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


async def in_chunks(values: AsyncIterator[Item], size: int) -> AsyncIterator[list[Item]]:
    chunk: list[Item] = []
    async for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
