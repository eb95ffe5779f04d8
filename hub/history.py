"""History: what `stream` channels keep, and where they stand.

Does: read positions and publications, one channel or many in a round trip; delete what is kept; probe the store.
Does not: publish (broker), judge positions (position), share reads among clients (streams) or know who may ask.
Called by: streams, session, api.
Never break: every read touches its channel, so its epoch is never empty and is of the generation that the store is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .channels import Namespace
from .errors import BrokerUnavailable
from .scripts import Command, Nonces, Scripts
from .store import Store

READS_AT_ONCE = 256
"""Of `read_many`, in one round trip: Redis serves nobody else while it answers them."""
ALL = -1
"""As a limit: everything that is kept."""


class Page(NamedTuple):
    """Where a channel stands now, and some of what it keeps."""

    epoch: str
    offset: int
    """The channel's newest; 0 before the first publication."""
    publications: list[tuple[int, bytes]]
    """Offset and body, as they were published; oldest first, unless `reverse` was asked for."""


class Asked(NamedTuple):
    """One read of many; see `History.read`."""

    channel: str
    rules: Namespace
    since: int | None = None
    limit: int = 0
    newest: bool = False
    """Not from the oldest kept on, but the newest `limit`; oldest of them first all the same."""
    most_bytes: int = 0
    """Of bodies, from where it begins; one comes whatever its size. 0: no bound."""


class History:
    """The histories of all `stream` channels, as one worker reads them."""

    def __init__(self, store: Store) -> None:
        self._describe = store.describe
        self._keys = store.keys
        self._redis: Redis = store.commands()
        self._scripts = Scripts("history", "history_remove", "loopback")
        self._nonces = Nonces()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def read(
        self, channel: str, rules: Namespace, since: int | None = None, limit: int = 0, reverse: bool = False
    ) -> Page:
        """Publications behind the offset `since`, oldest first, or from the oldest kept on.

        limit: 0 for the position only, ALL for everything kept. reverse: newest first, those before `since`, or from
        the newest kept on. Raises BrokerUnavailable.
        """
        return _page(await self._run(self._read(channel, rules, since, limit, reverse)))

    async def read_many(self, asked: Sequence[Asked]) -> list[Page | BrokerUnavailable]:
        """Many reads, oldest first each, pipelined; of one that Redis refuses the error, which is no other's.

        Raises BrokerUnavailable where none can be had.
        """
        pages: list[Page | BrokerUnavailable] = []
        for i in range(0, len(asked), READS_AT_ONCE):
            some = asked[i : i + READS_AT_ONCE]
            reads = [
                self._read(one.channel, one.rules, one.since, one.limit, one.newest, one.most_bytes) for one in some
            ]
            for one, reply in zip(some, await self._run_all(reads), strict=True):
                failed = isinstance(reply, Exception)
                pages.append(self._unavailable(reply) if failed else _oldest_first(_page(reply), one.newest))
        return pages

    async def newest(self, channel: str, rules: Namespace, limit: int) -> Page:
        """The newest `limit`, oldest of them first. Raises BrokerUnavailable."""
        return _oldest_first(await self.read(channel, rules, limit=limit, reverse=True), True)

    async def remove(self, channel: str, rules: Namespace) -> None:
        """Delete what a channel keeps; its offsets and epoch go on. Raises BrokerUnavailable."""
        await self._run(self._scripts.call("history_remove", self._names(channel), self._touch(rules)))

    async def probe(self, loop_channel: str, nonce: str) -> str:
        """Publish `nonce` to the Redis channel `loop_channel`; returns the token of the store's generation.

        nonce: of [A-Za-z0-9-], used once in all processes, as it names the generation if this call begins one.
        Raises BrokerUnavailable.
        """
        reply = await self._run(self._scripts.call("loopback", [self._keys.generation], [loop_channel, nonce]))
        return str(reply, "ascii")

    def _names(self, channel: str) -> list[str]:
        return [self._keys.generation, self._keys.meta(channel), self._keys.stream(channel)]

    def _touch(self, rules: Namespace) -> list[Any]:
        return [self._nonces(), int(rules.history_meta_ttl_s * 1000)]

    def _read(
        self, channel: str, rules: Namespace, since: int | None, limit: int, reverse: bool, most_bytes: int = 0
    ) -> Command:
        if since is None:
            begin = "+" if reverse else "-"
        elif reverse:
            # No id lies before 0-0: XREVRANGE refuses '(0-0', while '0' finds nothing.
            begin = f"({since}-0" if since else "0"
        else:
            begin = f"({since}-0"
        order = "XREVRANGE" if reverse else "XRANGE"
        arguments = [*self._touch(rules), limit, order, begin, most_bytes]
        return self._scripts.call("history", self._names(channel), arguments)

    async def _run(self, command: Command) -> Any:
        (reply,) = await self._run_all([command])
        if isinstance(reply, Exception):
            raise self._unavailable(reply)
        return reply

    async def _run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, errors of single commands among them. Raises BrokerUnavailable."""
        try:
            return await self._scripts.execute(self._redis, commands)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"Redis at {self._describe()}: {error}")


def _page(reply: Any) -> Page:
    offset, epoch, entries = reply
    publications = [(int(name.partition(b"-")[0]), fields[1]) for name, fields in entries]
    return Page(str(epoch, "ascii"), int(offset), publications)


def _oldest_first(page: Page, is_reversed: bool) -> Page:
    return page._replace(publications=page.publications[::-1]) if is_reversed else page
