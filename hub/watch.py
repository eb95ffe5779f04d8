"""Watch lists: one subscription to many channels of a `latest` namespace.

Does: hold the channels of one list on the same terms, add to it and take away, change the terms of all.
Does not: read what clients ask (wants), reply (session), know channels' audiences (subscribe, fanout), or take in all
that begin so (patterns, whose lists stand on these).
Called by: session, rpc through it; patterns.
Never break: `done` is called once for each call that takes one; what was added while the list ends is left again; the
values that `done` has are newer than whatever came of their channels before it, and older than what comes behind it.

All channels' publications come on the list's own channel, 'ticker:$watch', and the tag `channel` says whose each is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from .audience import Terms
from .channels import Namespace
from .errors import HubError
from .groups import Bundle
from .recovery import Joined
from .stream import StreamSubscriber
from .subscribe import Subscriptions

Done = Callable[[list[bytes] | HubError], None]


class WatchList:
    """The list of one client in one namespace."""

    __slots__ = ("_adding", "_bundle", "_name", "_namespace", "_subscriber", "_subscriptions", "_symbols", "terms")

    def __init__(
        self, subscriptions: Subscriptions, name: str, namespace: Namespace, subscriber: StreamSubscriber, terms: Terms
    ) -> None:
        """name: of the namespace."""
        self._subscriptions = subscriptions
        self._name = name
        self._namespace = namespace
        self._subscriber = subscriber
        self.terms = terms
        self._symbols: dict[str, _Adding | None] = {}
        """None: it is in. Else it is on its way."""
        self._bundle: Bundle | None = None
        """Of all that are in, since the terms have changed; None: others have come or gone since."""
        self._adding = 0
        """Calls of `add` whose symbols are on their way."""

    def __len__(self) -> int:
        return len(self._symbols)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self._symbols)

    @property
    def asked(self) -> tuple[str, ...]:
        """What was asked for and holds, as it would be asked for again."""
        return tuple(self._symbols)

    @property
    def asked_count(self) -> int:
        """How many that are."""
        return len(self._symbols)

    @property
    def left_out(self) -> int:
        """So many symbols that belong in do not fit in; only with patterns."""
        return 0

    def alter(self, add: Iterable[str], remove: Iterable[str], done: Done) -> None:
        """Take away what the client names, and add. `done` as `add` has it."""
        self.remove(remove)
        self.add(add, done)

    def add(self, symbols: Iterable[str], done: Done) -> None:
        """`done`, perhaps at once, with publications: the newest values of those that are new here, or why none was
        added.
        """
        new = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self._symbols]
        channels = [self._channel(symbol) for symbol in new]
        # Where others are on their way, the same symbol might come in twice. At the entrance all are paused, so who is
        # paused anyway could be taken for one of those.
        subscriptions, paused = self._subscriptions, self._subscriptions.paused
        if not self._adding and self.terms.pace is not paused and subscriptions.knows(channels, self._namespace):
            self._symbols.update(dict.fromkeys(new))
            self._bundle = None
            values = [
                subscriptions.enter(channel, self._namespace, self._subscriber, self.terms) for channel in channels
            ]
            done([value for value in values if value is not None])
            return
        # Symbols come in one after the other as Redis tells their values; nothing is sent until all have.
        entrance = self.terms._replace(pace=paused)
        adding = _Adding(self, new, entrance, done)
        self._adding += 1
        self._symbols.update(dict.fromkeys(new, adding))
        for symbol, channel in zip(new, channels, strict=True):
            joined = partial(adding.joined, symbol)
            subscriptions.subscribe(channel, self._namespace, self._subscriber, joined, None, entrance)
        adding.step()

    def appear(self, symbol: str) -> None:
        """One comes in that is not in the list, and whose first value is about to be delivered."""
        self._symbols[symbol] = None
        self._bundle = None
        self._subscriptions.join_new(self._channel(symbol), self._namespace, self._subscriber, self.terms)

    def remove(self, symbols: Iterable[str]) -> None:
        """Those that are not in the list are passed over."""
        for symbol in symbols:
            if symbol in self._symbols and self._symbols.pop(symbol) is None:
                self._leave(symbol)

    def change(self, terms: Terms) -> None:
        """Go on with all on other terms."""
        old, self.terms = self.terms, terms
        if self._bundle is None:
            channels = [self._channel(symbol) for symbol, adding in self._symbols.items() if adding is None]
            self._bundle = self._subscriptions.bundle(channels, old)
        self._bundle = self._subscriptions.change_all(self._bundle, self._namespace, self._subscriber, terms)

    def close(self) -> None:
        """Leave all."""
        symbols, self._symbols = self._symbols, {}
        for symbol, adding in symbols.items():
            if adding is None:
                self._leave(symbol)

    def _channel(self, symbol: str) -> str:
        return f"{self._name}:{symbol}"

    def _leave(self, symbol: str) -> None:
        self._bundle = None
        self._subscriptions.unsubscribe(self._channel(symbol), self._namespace, self._subscriber, self.terms)

    def entered(self, adding: _Adding) -> list[bytes]:
        """All that were to be added are at the entrance: those that are still wanted go in, and are told now."""
        self._adding -= 1
        self._bundle = None
        bodies = []
        for symbol in adding.symbols:
            channel = self._channel(symbol)
            if self._symbols.get(symbol) is not adding:
                # Taken away again while Redis was asked.
                self._subscriptions.unsubscribe(channel, self._namespace, self._subscriber, adding.entrance)
                continue
            self._symbols[symbol] = None
            body = self._subscriptions.told(channel, self.terms)
            if body is not None:
                bodies.append(body)
            self._subscriptions.change(
                channel, self._namespace, self._subscriber, adding.entrance, self.terms, told=True
            )
        return bodies

    def failed(self, adding: _Adding) -> None:
        """What was to be added can't be."""
        self._adding -= 1
        for symbol in adding.inside:
            channel = self._channel(symbol)
            self._subscriptions.unsubscribe(channel, self._namespace, self._subscriber, adding.entrance)
        for symbol in adding.symbols:
            if self._symbols.get(symbol) is adding:
                del self._symbols[symbol]


class _Adding:
    """Symbols on their way into a list."""

    __slots__ = ("_done", "_error", "_left", "_list", "entrance", "inside", "symbols")

    def __init__(self, watch_list: WatchList, symbols: list[str], entrance: Terms, done: Done) -> None:
        self._list = watch_list
        self.symbols = symbols
        self.entrance = entrance
        self._done = done
        self._left = len(symbols) + 1
        self.inside: list[str] = []
        self._error: HubError | None = None

    def joined(self, symbol: str, outcome: Joined | HubError) -> None:
        """One of them has its answer."""
        if isinstance(outcome, HubError):
            self._error = outcome
        else:
            self.inside.append(symbol)
        self.step()

    def step(self) -> None:
        """One answer less is waited for."""
        self._left -= 1
        if self._left:
            return
        if self._error is not None:
            self._list.failed(self)
            self._done(self._error)
        else:
            self._done(self._list.entered(self))
