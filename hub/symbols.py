"""Symbols: which channels of a `latest` namespace have a newest value, for those who watch all that begin so.

Does: keep the names of a namespace's symbols while somebody here has patterns there; say at once who is new.
Does not: keep values (fanout), or decide what a list takes in (patterns).
Called by: subscribe (heard, check_all), patterns (watch, want, matching); asks Redis through broker.
Never break: what `matching` leaves out, `appeared` tells of, just before the symbol's first value is delivered; where
something may have been missed between the two, `recheck` follows.

They are read from Redis by SCAN, once for each namespace, behind the feed's confirmation: SCAN returns whatever was
there when it began, and what came later has come by the feed. Whoever has no patterns pays nothing for it, and no
publisher does: an index in Redis would cost every tick. With patterns each tick costs one look into a set.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from . import errors
from .channels import NAMESPACE_NAME, Namespace, namespace_of
from .errors import CommandError, HubError
from .log import Brake
from .message import Publication
from .store import Keys

logger = logging.getLogger(__name__)

Ready = Callable[[HubError | None], None]
MAX_SYMBOLS = 100_000
"""Of one namespace, as many as a ticker has; beyond, it has no patterns: 106."""
SCAN_COUNT = 1000
"""Keys that Redis looks at in one go, some hundred microseconds; of the whole store, whatever they are."""
LINGER_S = 30.0
"""So long a namespace is kept after the last list with patterns: polls come and go."""
OVERFULL_S = 60.0
"""So long a namespace that was found to have too many is refused without a look. They hardly ever become fewer, and
whoever asks again and again would have all of Redis read each time."""
RETRY_S = 1.0
"""After a SCAN that Redis has refused, while somebody has patterns."""
APPEAR_AT_ONCE = 256
"""Lists that take in new symbols before these are delivered, in one read from Redis: some milliseconds' work. Others
follow in slices, by the newest value; lists in mode raw never do."""
RECHECK_AT_ONCE = 64
"""Lists in one slice."""
END = "\U0010ffff"
"""Behind all characters of symbols."""


class Runner(Protocol):
    """Who talks to Redis; broker.Broker."""

    def command(self, command: tuple[Any, ...], size: int, replied: Callable[[Any], None]) -> None: ...


class Feeds(Protocol):
    """Who holds Redis channels; subscribe.Subscriptions."""

    def hold(self, channel: str, namespace: Namespace, ready: Ready) -> None: ...
    def release(self, channel: str, namespace: Namespace) -> None: ...


class Watcher(Protocol):
    """A list with patterns. None of these raises or waits."""

    @property
    def raw(self) -> bool:
        """It wants every value."""

    def appeared(self, symbol: str) -> None:
        """A symbol's first value is about to be delivered."""

    def recheck(self) -> None:
        """There may be more symbols than it was told of."""

    def overfull(self) -> None:
        """There are too many to know them any longer."""


class _Book:
    """What is known of one namespace."""

    __slots__ = (
        "feed",
        "found",
        "generation",
        "held",
        "loaded",
        "name",
        "order",
        "prefixes",
        "rules",
        "timer",
        "waiting",
        "watchers",
    )

    def __init__(self, name: str, rules: Namespace) -> None:
        self.name = name
        self.rules = rules
        self.feed = f"{name}:"
        """Any channel's name there; they share one Redis channel."""
        self.held = False
        self.loaded = False
        self.generation = 0
        """Of SCANs, as one that was overtaken may still be answered."""
        self.order: list[str] = []
        """The symbols, sorted."""
        self.found: list[str] = []
        """Those that came since SCAN began, or by it."""
        self.watchers: dict[Watcher, None] = {}
        self.prefixes: dict[str, dict[Watcher, None]] = {}
        self.waiting: dict[Watcher, Ready] = {}
        self.timer: asyncio.TimerHandle | None = None
        """Without watchers it lingers, with some it waits for another SCAN; None: neither."""


class Symbols:
    """The symbols of one worker's namespaces with patterns."""

    def __init__(self, runner: Runner, keys: Keys, call_later: Callable[..., asyncio.TimerHandle]) -> None:
        self._runner = runner
        self._keys = keys
        self._call_later = call_later
        self.feeds: Feeds
        """Set by subscribe."""
        self._books: dict[str, _Book] = {}
        self._known: set[str] = set()
        """Channels of all books."""
        self._too_many: dict[str, asyncio.TimerHandle] = {}
        """Namespaces that have more than `MAX_SYMBOLS`, until they are looked at again; they have no book."""
        self._rechecks: dict[Watcher, None] = {}
        self._trouble = Brake()

    @property
    def listening(self) -> bool:
        """`heard` has to be told what comes."""
        return bool(self._books)

    def watch(self, name: str, rules: Namespace, watcher: Watcher, ready: Ready) -> None:
        """Know the symbols of a namespace for a list. `ready` once it is so, perhaps at once.

        `ready(BrokerUnavailable)` where Redis does not answer now, CommandError 106 for a namespace with too many; the
        list is not a watcher then.
        """
        if name in self._too_many:
            ready(_verdict())
            return
        book = self._books.get(name)
        if book is None:
            book = self._books[name] = _Book(name, rules)
            book.watchers[watcher], book.waiting[watcher] = None, ready
            self.feeds.hold(book.feed, rules, partial(self._held, book))
            return
        if book.timer is not None and not book.watchers:
            book.timer.cancel()
            book.timer = None
        book.watchers[watcher] = None
        if book.loaded:
            ready(None)
        else:
            book.waiting[watcher] = ready

    def unwatch(self, name: str, watcher: Watcher) -> None:
        """The list has no more patterns, and has said `unwant` for each; its `ready` is not called any more."""
        self._rechecks.pop(watcher, None)
        book = self._books.get(name)
        if book is None or watcher not in book.watchers:
            return
        del book.watchers[watcher]
        book.waiting.pop(watcher, None)
        if book.watchers:
            return
        if book.timer is not None:  # Redis has refused, and nobody waits any more
            self._forget(book)
        else:
            book.timer = self._call_later(LINGER_S, self._drop, book)

    def want(self, name: str, watcher: Watcher, prefix: str) -> None:
        """From now on, a watcher is told of new symbols that begin so."""
        self._books[name].prefixes.setdefault(prefix, {})[watcher] = None

    def unwant(self, name: str, watcher: Watcher, prefix: str) -> None:
        """The opposite of a `want` before."""
        book = self._books.get(name)
        watchers = book.prefixes.get(prefix, {}) if book is not None else {}
        watchers.pop(watcher, None)
        if book is not None and not watchers:
            book.prefixes.pop(prefix, None)

    def knows(self, name: str, symbol: str) -> bool:
        """The symbol has a newest value."""
        return f"{name}:{symbol}" in self._known

    def count(self, name: str, prefix: str) -> int:
        """How many symbols begin so, those included that came while all are read anew: `knows` has them, too."""
        first, behind = self._span(name, prefix)
        return behind - first + sum(symbol.startswith(prefix) for symbol in self._books[name].found)

    def matching(self, name: str, prefix: str, most: int) -> list[str]:
        """The first of the symbols that begin so, in alphabetical order."""
        first, behind = self._span(name, prefix)
        return self._books[name].order[first : min(behind, first + most)]

    def heard(self, publications: Iterable[Publication]) -> None:
        """What comes from Redis, while `listening`, just before it is delivered."""
        known, left = self._known, APPEAR_AT_ONCE
        for channel, _ in publications:
            if channel not in known:
                left -= self._new(channel, left)

    def check_all(self) -> None:
        """What was published may not have arrived: read all anew."""
        for book in list(self._books.values()):
            if book.held:
                self._load(book)

    def close(self) -> None:
        """Ask no more; who waits is not answered, as the worker ends."""
        books, self._books = self._books, {}
        too_many, self._too_many = self._too_many, {}
        self._rechecks = {}
        for timer in (*too_many.values(), *(book.timer for book in books.values())):
            if timer is not None:
                timer.cancel()

    def _span(self, name: str, prefix: str) -> tuple[int, int]:
        order = self._books[name].order
        first = bisect_left(order, prefix)
        return first, bisect_left(order, prefix + END, first)

    # Newcomers.

    def _new(self, channel: str, left: int) -> int:
        """A channel that is not known has a value. Returns how many lists have taken it in at once."""
        book = self._books.get(namespace_of(channel))
        if book is None or not book.held:
            return 0
        symbol = channel[len(book.feed) :]
        if not channel.startswith(book.feed) or not NAMESPACE_NAME.fullmatch(symbol):
            return 0  # no list can hold it
        if not self._note(book, symbol) or not book.loaded:
            return 0
        taken = 0
        for watcher in self._who_wants(book, symbol):
            if taken < left or watcher.raw:
                watcher.appeared(symbol)
                taken += 1
            else:
                self._recheck(watcher)
        return taken

    def _note(self, book: _Book, symbol: str) -> bool:
        """Know one more. False: there are too many."""
        if len(book.order) + len(book.found) >= MAX_SYMBOLS:
            self._overfull(book)
            return False
        self._known.add(book.feed + symbol)
        if book.loaded:
            insort(book.order, symbol)
        else:
            book.found.append(symbol)
        return True

    def _who_wants(self, book: _Book, symbol: str) -> Iterable[Watcher]:
        """Each once, in no order that counts."""
        found: dict[Watcher, None] = {}
        for length in range(len(symbol) + 1):
            watchers = book.prefixes.get(symbol[:length])
            if watchers:
                found |= watchers
        return found

    def _overfull(self, book: _Book) -> None:
        self._trouble.warning(logger, "namespace %s has more than %d symbols, so no patterns", book.name, MAX_SYMBOLS)
        waiting, watchers = book.waiting, [one for one in book.watchers if one not in book.waiting]
        self._forget(book)
        self._too_many[book.name] = self._call_later(OVERFULL_S, self._too_many.pop, book.name)
        for ready in waiting.values():
            ready(_verdict())
        for watcher in watchers:
            watcher.overfull()

    def _recheck(self, watcher: Watcher) -> None:
        if not self._rechecks:
            asyncio.get_running_loop().call_soon(self._recheck_some)
        self._rechecks[watcher] = None

    def _recheck_some(self) -> None:
        for watcher in list(self._rechecks)[:RECHECK_AT_ONCE]:
            # One of them may have ended another.
            if watcher in self._rechecks:
                del self._rechecks[watcher]
                watcher.recheck()
        if self._rechecks:
            asyncio.get_running_loop().call_soon(self._recheck_some)

    # The life of a book.

    def _held(self, book: _Book, error: HubError | None) -> None:
        if self._books.get(book.name) is not book:
            if error is None:
                self.feeds.release(book.feed, book.rules)
        elif error is None:
            book.held = True
            self._load(book)
        else:
            waiting = book.waiting
            self._forget(book)
            for ready in waiting.values():
                ready(error)

    def _load(self, book: _Book) -> None:
        book.generation += 1
        book.loaded = False
        self._scan(book, book.generation, 0)

    def _scan(self, book: _Book, generation: int, cursor: int) -> None:
        # Neither prefix nor namespace can have characters that mean something in a pattern of Redis.
        pattern = self._keys.last(book.name, book.feed + "*")
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
        self._runner.command(command, 0, partial(self._scanned, book, generation))

    def _scanned(self, book: _Book, generation: int, reply: Any) -> None:
        if self._books.get(book.name) is not book or book.generation != generation:
            return
        if isinstance(reply, HubError):
            self._refused(book, reply)
            return
        cursor, keys = reply
        head = len(self._keys.last(book.name, book.feed))
        for key in keys:
            symbol = key.decode("ascii", "replace")[head:]
            if not NAMESPACE_NAME.fullmatch(symbol) or book.feed + symbol in self._known:
                continue
            if not self._note(book, symbol):
                return
        if int(cursor):
            self._scan(book, generation, int(cursor))
        else:
            self._loaded(book)

    def _refused(self, book: _Book, error: HubError) -> None:
        """Who has just come is told to try again; for the others it is tried again here."""
        waiting, book.waiting = book.waiting, {}
        for watcher, ready in waiting.items():
            book.watchers.pop(watcher, None)
            ready(error)
        if not book.watchers:
            self._forget(book)
        elif book.timer is None:
            book.timer = self._call_later(RETRY_S, self._retry, book)

    def _retry(self, book: _Book) -> None:
        book.timer = None
        if not book.loaded:
            self._load(book)

    def _loaded(self, book: _Book) -> None:
        book.order = sorted([*book.order, *book.found])
        book.found = []
        book.loaded = True
        waiting, book.waiting = book.waiting, {}
        for watcher in book.watchers:
            if watcher not in waiting:
                self._recheck(watcher)
        for watcher, ready in waiting.items():
            if watcher in book.watchers:  # one of them may have ended another
                ready(None)

    def _drop(self, book: _Book) -> None:
        book.timer = None
        self._forget(book)

    def _forget(self, book: _Book) -> None:
        del self._books[book.name]
        if book.timer is not None:
            book.timer.cancel()
        self._known.difference_update([book.feed + symbol for symbol in (*book.order, *book.found)])
        for watcher in book.watchers:
            self._rechecks.pop(watcher, None)
        if book.held:
            self.feeds.release(book.feed, book.rules)


def _verdict() -> CommandError:
    return CommandError(errors.LIMIT_EXCEEDED, f"patterns: allowed in namespaces of up to {MAX_SYMBOLS} symbols")
