"""Groups: who stands with whom, and who moves before the next batch.

Does: note who joins and leaves which audiences, one by one or a whole list at once, and have all of them settle in the
groups where they belong then.
Does not: know channels, or what is on its way (fanout, gathering); what a group is stands in audience.
Called by: gathering; fanout (swap).
Never break: nobody moves but in `settle`, or out in `take_out`; a group is known by its audiences, and stands in the
`groups` of each, for as long as it has members.

A watch list that goes to another rate leaves fifty audiences and joins fifty others. That is one note and one step, not
a hundred: its Bundle says both what the list holds and, of a client with nothing else, what its group is known by.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .audience import Audience, Group, Line, Subscriber, Terms

NONE: frozenset[Audience] = frozenset()


class Bundle:
    """What one subscriber holds of many channels on the same terms: the audiences of a watch list.

    Good for as long as it holds all of them, as an audience with a member is not over.
    """

    __slots__ = ("audiences", "lines", "terms", "together")

    def __init__(self, terms: Terms, lines: list[Line], audiences: list[Audience] | None = None) -> None:
        """lines: of the channels, in the holder's order; audiences: theirs on these terms, where they are at hand."""
        self.terms = terms
        self.lines = lines
        self.audiences = [line.audiences[terms] for line in lines] if audiences is None else audiences
        self.together = frozenset(self.audiences)

    def without(self, some: Collection[Audience]) -> Bundle:
        """The others."""
        left = [(line, one) for line, one in zip(self.lines, self.audiences, strict=True) if one not in some]
        return Bundle(self.terms, [line for line, _ in left], [one for _, one in left])

    @property
    def distinct(self) -> list[Audience]:
        """Those whose `groups` are sets of their own: all of a pace have the same one."""
        return self.audiences if self.terms.pace is None else self.audiences[:1]


class Groups:
    """All groups of one worker."""

    def __init__(self) -> None:
        self._known: dict[frozenset[Audience], Group] = {}
        self._moves: dict[Subscriber, dict[Audience, bool]] = {}
        """Who joins (True) or leaves (False) what."""
        self._swaps: dict[Subscriber, tuple[Bundle, Bundle]] = {}
        """Who leaves all of one bundle for all of another, before whatever stands in `_moves` of it."""

    def __len__(self) -> int:
        return len(self._known)

    def concerned(self, dirty: list[Audience]) -> Iterable[Group]:
        """Those that hold any audience of a batch, and some that hold none."""
        # Each set once: those of a pace are the same one.
        holders = list({id(audience.groups): audience.groups for audience in dirty}.values())
        if len(holders) == 1:
            return holders[0]
        if sum(map(len, holders)) > len(self._known):
            return list(self._known.values())
        return set().union(*holders)

    # Who is about to move.

    @property
    def moving(self) -> bool:
        """Somebody is."""
        return bool(self._moves or self._swaps)

    def move(self, subscriber: Subscriber, audience: Audience, joins: bool) -> None:
        """It joins, or leaves."""
        self._moves.setdefault(subscriber, {})[audience] = joins

    def swap(self, subscriber: Subscriber, old: Bundle, new: Bundle) -> None:
        """It leaves all of `old`, which it holds, and joins all of `new`."""
        if subscriber not in self._moves and subscriber not in self._swaps:
            self._swaps[subscriber] = (old, new)
        else:
            self._moves.setdefault(subscriber, {}).update(_changes(old, new))

    def holds(self, subscriber: Subscriber, audience: Audience) -> bool:
        """Whether it does when all have settled."""
        changes = self._moves.get(subscriber, {})
        if subscriber in self._swaps:
            changes = _changes(*self._swaps[subscriber]) | changes
        joins = changes.get(audience)
        return joins if joins is not None else audience in _held(subscriber)

    # Who moves.

    def settle(self) -> None:
        """Everybody to where they belong."""
        moves, self._moves = self._moves, {}
        swaps, self._swaps = self._swaps, {}
        for subscriber, (old, new) in swaps.items():
            held = _held(subscriber)
            if held is old.together or held == old.together:
                self._settle(subscriber, new.together, old.distinct, new.distinct, ())
            else:
                moves[subscriber] = _changes(old, new) | moves.get(subscriber, {})
        for subscriber, changes in moves.items():
            held = _held(subscriber)
            goes = [audience for audience, joins in changes.items() if not joins and audience in held]
            comes = [audience for audience, joins in changes.items() if joins and audience not in held]
            if goes or comes:
                audiences = held.difference(goes).union(comes)
                self._settle(subscriber, audiences, goes, comes, audiences)

    def _settle(
        self,
        subscriber: Subscriber,
        audiences: frozenset[Audience],
        goes: Iterable[Audience],
        comes: Iterable[Audience],
        stays: Collection[Audience],
    ) -> None:
        """One of them, to where these are held. goes, comes, stays: as `_rearrange` has them."""
        group = subscriber.group
        if not audiences or not subscriber.open:
            if group is not None:
                self.take_out(subscriber, group)
        elif group is not None and len(group) == 1 and audiences not in self._known:
            self._rearrange(group, audiences, goes, comes, stays)
        else:
            if group is not None:
                self.take_out(subscriber, group)
            self._group(audiences).add(subscriber)

    def _group(self, audiences: frozenset[Audience]) -> Group:
        group = self._known.get(audiences)
        if group is None:
            group = self._known[audiences] = Group(audiences)
            for audience in audiences:
                audience.groups.add(group)
        return group

    def _rearrange(
        self,
        group: Group,
        audiences: frozenset[Audience],
        goes: Iterable[Audience],
        comes: Iterable[Audience],
        stays: Collection[Audience],
    ) -> None:
        """A group of one goes with its member: a list of fifty that loses one need not be left fifty times.

        goes, comes: the difference, one of those with the same `groups` at least; stays: among which those that it
        keeps are.
        """
        del self._known[group.audiences]
        self._known[audiences] = group
        group.arrange(audiences)
        for groups in {id(audience.groups): audience.groups for audience in goes}.values():
            groups.discard(group)
            # What a pace's audiences have in common is left with the last of them.
            if any(one.groups is groups for one in stays):
                groups.add(group)
        for audience in comes:
            audience.groups.add(group)

    def take_out(self, subscriber: Subscriber, group: Group) -> None:
        """It is served no more."""
        group.remove(subscriber)
        if not len(group):
            del self._known[group.audiences]
            for audience in group.audiences:
                audience.groups.discard(group)


def _held(subscriber: Subscriber) -> frozenset[Audience]:
    return subscriber.group.audiences if subscriber.group is not None else NONE


def _changes(old: Bundle, new: Bundle) -> dict[Audience, bool]:
    return dict.fromkeys(old.audiences, False) | dict.fromkeys(new.audiences, True)
