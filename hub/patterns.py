"""Patterns: watch lists that hold `AC*`, every symbol of their namespace whose name begins so, besides names.

Does: take in the symbols that there are, and each that comes, by its first value; let go of what nothing holds.
Does not: know which symbols there are (symbols), or take one symbol in or out (watch).
Called by: membership and the plain wires (through `new_list`), symbols.
Never break: a list holds its names and, of the symbols that its patterns take in, as many as fit; a symbol stays as
long as a name or any pattern holds it.

A list that would outgrow the namespace's `watch` by a call is refused with 106, and the call has changed nothing. What
appears beyond it is left out, and whoever has the list is told how many are, 0 when all are in:

    {"hub":{"left_out":{"channel":"ticker:$watch","count":3,"allowed":100}}}

Those that are in stay in; where there is room again, others come in, in alphabetical order. One that comes back and
outgrew it before is told so too, and not refused: it has done nothing but stay.

What would outgrow the worker's own `limits.channels` is left out in the same way, and `allowed` is what the list has
then; it comes in by the list's next change, or as it comes back.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Protocol

from . import errors, protocol
from .audience import Terms, WireForm
from .channels import Namespace
from .errors import CommandError, HubError
from .stream import StreamSubscriber
from .subscribe import Subscriptions
from .wants import is_pattern
from .watch import Done, WatchList


class Holder(Protocol):
    """Whoever has a list, as it hears of what it has not asked for just now."""

    def told(self, bodies: list[bytes]) -> None:
        """Newest values of symbols that came in later."""

    def left_out(self, count: int, allowed: int) -> None:
        """So many symbols do not fit in now."""

    def failed(self) -> None:
        """Something that belongs in the list can't be had now: it has to come again."""


class Listener(Protocol):
    """A client that is written to at any time."""

    @property
    def wire(self) -> WireForm: ...
    def put(self, frame: bytes) -> None: ...


class Follower:
    """The holder that such a client is."""

    __slots__ = ("_again", "_channel", "_listener")

    def __init__(self, channel: str, listener: Listener, again: Callable[[], None]) -> None:
        """channel: the list's. again: has the client subscribe anew."""
        self._channel = channel
        self._listener = listener
        self._again = again

    def told(self, bodies: list[bytes]) -> None:
        for body in bodies:
            self._listener.put(self._listener.wire.encode_publication(self._channel, body))

    def left_out(self, count: int, allowed: int) -> None:
        notice = {"hub": {"left_out": {"channel": self._channel, "count": count, "allowed": allowed}}}
        self._listener.put(self._listener.wire.encode_message(protocol.encode_message(notice)))

    def failed(self) -> None:
        self._again()


def new_list(
    subscriptions: Subscriptions,
    name: str,
    namespace: Namespace,
    subscriber: StreamSubscriber,
    terms: Terms,
    holder: Holder,
    lenient: bool,
    most: int = 0,
) -> WatchList:
    """A list, with patterns where the namespace has them.

    name: of the namespace. lenient: what does not fit at first is left out, too. most: symbols, where that is less
    than the namespace allows; 0: it is not.
    """
    if not namespace.watch_prefixes:
        return WatchList(subscriptions, name, namespace, subscriber, terms)
    return PatternList(subscriptions, name, namespace, subscriber, terms, holder, lenient, most)


class _Call(NamedTuple):
    """One change that a client asks for."""

    add: tuple[str, ...]
    remove: frozenset[str]
    done: Done


class PatternList(WatchList):
    """A list of names and patterns."""

    __slots__ = (
        "_calls",
        "_closed",
        "_entries",
        "_going_on",
        "_holder",
        "_left_out",
        "_lenient",
        "_most",
        "_opened",
        "_opening",
        "_telling",
        "_told_left_out",
        "_watching",
    )

    def __init__(
        self,
        subscriptions: Subscriptions,
        name: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        terms: Terms,
        holder: Holder,
        lenient: bool,
        most: int,
    ) -> None:
        super().__init__(subscriptions, name, namespace, subscriber, terms)
        self._holder = holder
        self._lenient = lenient
        self._most = min(most or namespace.watch, namespace.watch)
        self._entries: dict[str, _Call | None] = {}
        """Names and patterns, as asked for; the call that added each, until that is answered."""
        self._calls: list[_Call] = []
        """Those that wait until the symbols are known; as many as a client may have commands under way."""
        self._watching = self._opening = self._opened = self._closed = False
        """The symbols are known, or asked for; the first call has been answered; the list is over."""
        self._going_on = False
        self._left_out = self._told_left_out = 0
        self._telling = False

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def asked_count(self) -> int:
        return len(self._entries)

    @property
    def left_out(self) -> int:
        return self._left_out

    @property
    def raw(self) -> bool:
        return self.terms.raw

    def alter(self, add: Iterable[str], remove: Iterable[str], done: Done) -> None:
        """As a list of names has it. `done(CommandError)` 106 for more symbols than it may hold."""
        self._calls.append(_Call(tuple(dict.fromkeys(add)), frozenset(remove), done))
        self._go_on()

    def close(self) -> None:
        self._closed = True
        self._take_over({})
        calls, self._calls = self._calls, []
        if self._opening:
            self._subscriptions.symbols.unwatch(self._name, self)
        super().close()
        for call in calls:
            call.done([])  # whoever asked is gone, or has left meanwhile, and answers for that

    # What is asked for.

    def _go_on(self) -> None:
        """Calls in their order; those behind one for which the symbols have to be asked for wait with it."""
        if self._going_on:
            return  # answered at once: hundreds of calls, each within the one before, would be too deep
        self._going_on = True
        try:
            while self._calls and not self._opening:
                if self._watching or not any(map(is_pattern, self._calls[0].add)):
                    self._carry_out()
                else:
                    self._opening = True
                    self._subscriptions.symbols.watch(self._name, self._namespace, self, self._known)
        finally:
            self._going_on = False

    def _known(self, error: HubError | None) -> None:
        """Which symbols there are is known, or can't be."""
        self._opening, self._watching = False, error is None
        if error is not None:
            self._calls.pop(0).done(error)
        self._go_on()

    def _carry_out(self) -> None:
        call = self._calls.pop(0)
        entries = {entry: owner for entry, owner in self._entries.items() if entry not in call.remove}
        new = [entry for entry in call.add if entry not in entries]
        entries |= dict.fromkeys(new, call)
        wanted, total = self._choose(entries)
        if new and total > self._most and not (self._lenient and not self._opened):
            self._stop_if_idle()
            call.done(
                CommandError(
                    errors.LIMIT_EXCEEDED, f"symbols: found {total} by names and patterns; allowed: {self._most}"
                )
            )
            return
        self._take_over(entries)
        missing = self._let_go(wanted, total)
        if self._lenient and not self._opened:
            missing = self._fitting(missing)
        self.add(missing, partial(self._added, call))

    def _added(self, call: _Call, outcome: list[bytes] | HubError) -> None:
        """What a call has added is in, or can't be had."""
        for entry in [entry for entry, owner in self._entries.items() if owner is call]:
            if isinstance(outcome, HubError):
                del self._entries[entry]
                self._unwant(entry)
            else:
                self._entries[entry] = None
        if isinstance(outcome, HubError):
            self._stop_if_idle()
            if self._opened:
                self._fill()
        call.done(outcome)
        if not self._opened and not self._closed and not isinstance(outcome, HubError):
            # From now on it may be sent something. What has come in the meantime comes now.
            self._opened = True
            self._fill()

    def _choose(self, entries: Iterable[str]) -> tuple[dict[str, None], int]:
        """What a list of these holds, and how many that would be if all fitted."""
        wanted = {entry: None for entry in entries if not is_pattern(entry)}
        prefixes: list[str] = []
        for prefix in sorted(entry[:-1] for entry in entries if is_pattern(entry)):
            if not prefixes or not prefix.startswith(prefixes[-1]):
                prefixes.append(prefix)  # so no symbol begins with two of them
        if not prefixes or not self._watching:
            return wanted, len(wanted)
        symbols, name = self._subscriptions.symbols, self._name
        total = len(wanted) + sum(symbols.count(name, prefix) for prefix in prefixes)
        total -= sum(_is_among(prefixes, one) and symbols.knows(name, one) for one in wanted)
        for one in self._symbols:
            # Names may have taken the room of what patterns hold, while it was not known which symbols there are.
            if len(wanted) < self._most and _is_among(prefixes, one) and symbols.knows(name, one):
                wanted[one] = None
        for prefix in prefixes:
            for symbol in symbols.matching(name, prefix, self._most + len(wanted)):
                if len(wanted) >= self._most:
                    return wanted, total
                wanted[symbol] = None
        return wanted, total

    def _take_over(self, entries: dict[str, _Call | None]) -> None:
        old, self._entries = self._entries, entries
        for entry in old:
            if entry not in entries:
                self._unwant(entry)
        for entry in entries:
            if is_pattern(entry) and entry not in old:
                self._subscriptions.symbols.want(self._name, self, entry[:-1])
        self._stop_if_idle()

    def _let_go(self, wanted: dict[str, None], total: int) -> list[str]:
        """Out with what nothing holds any more. Returns what is yet to come in."""
        self.remove([symbol for symbol in self._symbols if symbol not in wanted])
        self._note_left_out(max(0, total - len(wanted)))
        return [symbol for symbol in wanted if symbol not in self._symbols]

    def _fitting(self, symbols: list[str]) -> list[str]:
        """Those of them that the worker may have; the others are left out."""
        found = self._subscriptions.fitting([self._channel(symbol) for symbol in symbols])
        if len(found) == len(symbols):
            return symbols
        self._note_left_out(self._left_out + len(symbols) - len(found))
        head = len(self._channel(""))
        return [channel[head:] for channel in found]

    def _unwant(self, entry: str) -> None:
        if is_pattern(entry):
            self._subscriptions.symbols.unwant(self._name, self, entry[:-1])

    def _stop_if_idle(self) -> None:
        if self._watching and not any(map(is_pattern, self._entries)):
            self._watching = False
            self._subscriptions.symbols.unwatch(self._name, self)

    # What comes by itself.

    def appeared(self, symbol: str) -> None:
        if not self._opened or symbol in self._symbols:
            return  # it will be asked for, or is already
        if len(self._symbols) >= self._most:
            self._note_left_out(self._left_out + 1)
        elif self._fitting([symbol]):
            self.appear(symbol)

    def recheck(self) -> None:
        if self._opened:
            self._fill()

    def overfull(self) -> None:
        self._watching = False
        self._holder.failed()

    def _fill(self) -> None:
        """What belongs in comes in."""
        missing = self._fitting(self._let_go(*self._choose(self._entries)))
        if missing:
            self.add(missing, self._filled)

    def _filled(self, outcome: list[bytes] | HubError) -> None:
        if self._closed:
            return
        if isinstance(outcome, HubError):
            self._holder.failed()
        else:
            self._holder.told(outcome)

    def _note_left_out(self, count: int) -> None:
        self._left_out = count
        if count != self._told_left_out and not self._telling:
            # Once for all of a turn.
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_left_out)

    def _tell_left_out(self) -> None:
        self._telling = False
        if self._opened and not self._closed and self._left_out != self._told_left_out:
            self._told_left_out = self._left_out
            # Less than the namespace allows where the worker has no more room.
            allowed = min(self._most, len(self._symbols)) if self._left_out else self._most
            self._holder.left_out(self._left_out, allowed)


def _is_among(prefixes: list[str], symbol: str) -> bool:
    """Whether a symbol begins with one of these, which are sorted, and of which none begins with another.

    Then it can only be the last one that is not behind it, and a list of thousands need not be tried one by one.
    """
    at = bisect_right(prefixes, symbol)
    return at > 0 and symbol.startswith(prefixes[at - 1])
