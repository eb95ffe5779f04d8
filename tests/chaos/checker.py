"""Checker: what the logs add up to, and whether anything was lost without a word.

Does: follow each client's place in each channel through the events; at the end of each round compare it with what the
store has then; count.
Does not: talk to the hub, or use a line of it: it reads epochs by itself.
Called by: rig, which feeds it round by round; its own tests; `python -m tests.chaos.checker FILE`.
Never break: a verdict that can be wrong is not given. What can't be judged is counted as `unjudged`, never left out.

A client's *stretch* of a channel begins at its first subscribe reply, and anew at each that does not say `recovered`
although the client had a place; within one the hub answers for every message. What is counted:

    published          messages that a publisher sent, however often it tried
    acked              of them, those that the hub said it has
    delivered          messages that clients' applications received
    silent loss        within a stretch, a client did not receive a message of the store although it received a later
                       one, or the round ended without it; or it keeps one that the store has lost, and was not told;
                       or a message was acked and is not in the store although nothing happened to the store
    signalled loss     stretches that ended by a reply without `recovered`, but for false alarms
    false alarm        such an end, although the client's last message and all after it were in the store, and no more
                       than a reply may bring
    unjudged           such an end where the logs do not say which message the client's place was
    lost by the store  acked messages that are not in the store, by a fault that may lose some: the promise was `memory`
    duplicate          the application received a message twice within one stretch
    reorder            it received one with an offset not above an earlier one's, or late; or the store has an acked
                       message of one publisher before one that the same publisher had acked earlier
    phantom            a message that nobody published, or not in this channel, or not the one the store has there
    leak               a Level that ended above its first value by more than its slack
    stuck              a client's channel that was not subscribed when the round ended
    strangers          connections that ended though the fault was not about them and the client did not ask

`failed` is what must be zero: silent loss, false alarm, reorder, phantom, leak, stuck.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .events import (
    Acked,
    Event,
    Failed,
    Fault,
    Gone,
    Kept,
    Level,
    Published,
    Received,
    Settled,
    Subscribed,
    Unsubscribed,
    parse,
)

RECOVERY_PUBLICATIONS = 300
"""The hub's default of client.recovery_publications: a reply brings no more, and who missed more is told."""
MOST_FINDINGS = 50
"""Kept in words, for each kind; all are counted."""
FAILING = ("silent_loss", "false_alarm", "reorder", "phantom", "leak", "stuck")


@dataclass
class Figures:
    """Counts of one fault, over its rounds; times in s."""

    rounds: int = 0
    published: int = 0
    acked: int = 0
    attempts_failed: int = 0
    delivered: int = 0
    silent_loss: int = 0
    signalled_loss: int = 0
    false_alarm: int = 0
    unjudged: int = 0
    lost_by_store: int = 0
    duplicate: int = 0
    reorder: int = 0
    phantom: int = 0
    leak: int = 0
    stuck: int = 0
    disconnects: int = 0
    strangers: int = 0
    resubscribes: int = 0
    back_s: list[float] = field(default_factory=list)
    """From a disconnect, or a 2500, until all channels of the client were subscribed again."""
    error_windows_s: list[float] = field(default_factory=list)
    """From the first failed attempt to publish to the last one; one for each round that had any."""

    def add(self, other: Figures) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def failed(self) -> bool:
        return any(getattr(self, name) for name in FAILING)


@dataclass(slots=True)
class _Place:
    """Where one client is in one channel."""

    epoch: str
    offset: int
    online: bool = True
    ids: dict[int, str] = field(default_factory=dict)
    """What it received in this stretch since the last round, by offset, and the last one before."""
    missing: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Alarm:
    """The end of a stretch, to be judged when the round ends. id: of the message at `offset`, '' if not known."""

    client: str
    channel: str
    epoch: str
    offset: int
    id: str
    top: int


@dataclass(slots=True)
class _Client:
    """away: channels to be subscribed again, since `since`."""

    channels: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    since: float = 0.0
    port: int = 0


class Checker:
    """Feed it events; `faults` has the figures by fault, `total` their sum, `findings` what is wrong in words."""

    def __init__(self, recovery_publications: int = RECOVERY_PUBLICATIONS) -> None:
        self._most = recovery_publications
        self.faults: dict[str, Figures] = {}
        self.findings: list[str] = []
        self._said: dict[str, int] = {}
        self._figures = self.faults.setdefault("start", Figures())
        self._fault = Fault(0.0, "start", True, [])
        self._victims: set[int] = set()
        self._origin: dict[str, str] = {}
        """Channel by message id."""
        self._places: dict[tuple[str, str], _Place] = {}
        self._clients: dict[str, _Client] = {}
        self._acks: list[Acked] = []
        self._known: dict[tuple[str, str, int], str] = {}
        """Message id by channel, generation and offset, of this round's acks and receipts."""
        self._alarms: list[_Alarm] = []
        self._kept: dict[str, Kept] = {}
        self._failures: list[float] = []
        self._levels: dict[str, float] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Published: self._on_published,
            Acked: self._on_acked,
            Failed: self._on_failed,
            Gone: self._on_gone,
            Subscribed: self._on_subscribed,
            Unsubscribed: self._on_unsubscribed,
            Received: self._on_received,
            Fault: self._on_fault,
            Kept: self._on_kept,
            Settled: self._on_settled,
            Level: self._on_level,
        }

    @property
    def total(self) -> Figures:
        total = Figures()
        for figures in self.faults.values():
            total.add(figures)
        return total

    def feed(self, events: Iterable[Event]) -> None:
        """One round's events of all logs: each log in its order, the rig's own last, as it has the ends of rounds."""
        for event in events:
            if handler := self._handlers.get(type(event)):
                handler(event)
            else:
                self._client(event.client).port = event.port  # Connected, the one that is left

    # Publishers.

    def _on_published(self, event: Published) -> None:
        self._figures.published += 1
        self._origin[event.id] = event.channel

    def _on_acked(self, event: Acked) -> None:
        self._figures.acked += 1
        self._acks.append(event)
        if event.offset:
            self._known[event.channel, owner(event.epoch, event.offset), event.offset] = event.id

    def _on_failed(self, event: Failed) -> None:
        self._figures.attempts_failed += 1
        self._failures.append(event.t)

    # Clients.

    def _client(self, name: str) -> _Client:
        return self._clients.setdefault(name, _Client())

    def _on_gone(self, event: Gone) -> None:
        client = self._client(event.client)
        self._figures.disconnects += 1
        # An SDK that hides its port may be a victim of a fault that has any.
        if not event.asked and client.port not in self._victims and (client.port or not self._victims):
            self._figures.strangers += 1
        for channel in client.channels:
            self._places[event.client, channel].online = False
        self._left(client, client.channels, event.t)

    def _on_unsubscribed(self, event: Unsubscribed) -> None:
        self._figures.resubscribes += 1
        if place := self._places.get((event.client, event.channel)):
            place.online = False
            self._left(self._client(event.client), {event.channel}, event.t)

    def _left(self, client: _Client, channels: set[str], t: float) -> None:
        if not client.away:
            client.since = t
        client.away |= channels

    def _on_subscribed(self, event: Subscribed) -> None:
        client = self._client(event.client)
        client.channels.add(event.channel)
        if client.away:
            client.away.discard(event.channel)
            if not client.away:
                self._figures.back_s.append(event.t - client.since)
        place = self._places.get((event.client, event.channel))
        if place is None:
            self._places[event.client, event.channel] = _Place(event.epoch, event.offset)
        elif event.recovered:
            place.online, place.epoch = True, event.epoch
            if event.offset < place.offset:
                where = f"{event.client} in {event.channel}"
                self._say("silent_loss", f"{where} was at {place.offset} and 'recovered' to {event.offset}")
                self._places[event.client, event.channel] = _Place(event.epoch, event.offset)
        else:
            last = place.ids.get(place.offset, "")
            self._alarms.append(_Alarm(event.client, event.channel, place.epoch, place.offset, last, event.offset))
            # What the old stretch missed before is still missed.
            self._count_missing(place, event.client, event.channel)
            self._places[event.client, event.channel] = _Place(event.epoch, event.offset)

    def _on_received(self, event: Received) -> None:
        self._figures.delivered += 1
        place = self._places.get((event.client, event.channel))
        where = f"{event.client} in {event.channel}"
        if place is None:
            self._say("phantom", f"{where} received {event.id} before it had subscribed")
            return
        offset = event.offset
        if self._origin.get(event.id, event.channel) != event.channel:
            self._say("phantom", f"{where} received {event.id}, which was published in {self._origin[event.id]}")
        elif place.ids.get(offset) == event.id:
            self._say("duplicate", f"{where} received {event.id} at {offset} twice")
        elif offset <= place.offset:
            place.missing.discard(offset)
            self._say("reorder", f"{where} received {event.id} at {offset} after {place.offset}")
        else:
            place.missing.update(range(place.offset + 1, offset))
            place.offset = offset
            place.ids[offset] = event.id

    # The rig.

    def _on_fault(self, event: Fault) -> None:
        self._fault = event
        self._victims = set(event.victims)
        self._figures = self.faults.setdefault(event.name, Figures())

    def _on_kept(self, event: Kept) -> None:
        self._kept[event.channel] = event

    def _on_level(self, event: Level) -> None:
        first = self._levels.setdefault(event.name, event.value)
        if event.value > first + event.slack:
            self._say(
                "leak", f"{event.name}: {first:g} at first, {event.value:g} now; allowed are {event.slack:g} more"
            )
            self._levels[event.name] = event.value  # said once

    def _on_settled(self, event: Settled) -> None:
        self._figures.rounds += 1
        if self._failures:
            self._figures.error_windows_s.append(max(self._failures) - min(self._failures))
        acks: dict[str, list[Acked]] = {}
        for ack in self._acks:
            acks.setdefault(ack.channel, []).append(ack)
        for channel, kept in self._kept.items():
            self._judge_store(channel, kept, acks.get(channel, []))
        for alarm in self._alarms:
            self._judge_alarm(alarm)
        for (client, channel), place in self._places.items():
            self._judge_place(client, channel, place)
        self._judge_order()
        self._acks, self._alarms, self._failures = [], [], []
        self._known = {
            (channel, owner(kept.epoch, offset), offset): message
            for channel, kept in self._kept.items()
            for offset, message in kept.publications
        }
        self._kept = {}

    # Verdicts.

    def _judge_store(self, channel: str, kept: Kept, acks: list[Acked]) -> None:
        """What the store has against what was published and acked."""
        ids = {message: offset for offset, message in kept.publications}
        for message in ids:
            if self._origin.get(message) != channel:
                self._say("phantom", f"the store has {message!r} in {channel}, where nobody published it")
        first = kept.publications[0][0] if kept.publications else 0
        for ack in acks:
            # Without an offset, as clients' publishes are acked: a round is shorter than a history, so it was kept.
            if ack.id not in ids and (ack.offset >= first or not ack.offset):
                self._figures.lost_by_store += 1
                if self._fault.lossless:
                    self._say(
                        "silent_loss", f"{ack.id} was acked as {ack.offset} of {channel}, and is not in the store"
                    )

    def _judge_alarm(self, alarm: _Alarm) -> None:
        kept = self._kept.get(alarm.channel)
        generation = owner(alarm.epoch, alarm.offset)
        if kept is None:
            self._figures.unjudged += 1
            return
        kept_ids = dict(kept.publications)
        whole = all(offset in kept_ids for offset in range(alarm.offset + 1, min(alarm.top, kept.offset) + 1))
        told_rightly = (
            alarm.offset > kept.offset
            or alarm.top - alarm.offset > self._most
            or not whole
            or owner(kept.epoch, alarm.offset) != generation
        )
        message = alarm.id or self._known.get((alarm.channel, generation, alarm.offset), "")
        here = kept_ids.get(alarm.offset, "")
        if told_rightly or (message and here and message != here):
            self._figures.signalled_loss += 1
        elif alarm.offset and not (message and here):
            self._figures.unjudged += 1
        else:
            self._say(
                "false_alarm",
                f"{alarm.client} was told to have lost {alarm.channel} at {alarm.offset} of {alarm.epoch!r}; "
                f"the store is at {kept.offset} of {kept.epoch!r} and has it",
            )

    def _judge_place(self, client: str, channel: str, place: _Place) -> None:
        """Has this client, now that all is quiet, what the store has?"""
        kept = self._kept.get(channel)
        if kept is None:
            return
        where = f"{client} in {channel}"
        if not place.online:
            self._say("stuck", f"{where} is not subscribed")
        self._count_missing(place, client, channel)
        kept_ids = dict(kept.publications)
        for message in place.ids.values():
            if self._origin.get(message) != channel:
                self._say("phantom", f"{where} received {message!r}, which nobody published there")
        repeated = len(place.ids) - len(set(place.ids.values()))
        if repeated:
            self._say("duplicate", f"{where} received {repeated} messages again with another offset", repeated)
        if place.online:
            self._judge_top(where, place, kept, kept_ids)
            # From here on it is where the store is: nothing is counted twice.
            place.epoch, place.offset = kept.epoch, kept.offset
        place.ids = {offset: message for offset, message in place.ids.items() if offset == place.offset}

    def _judge_top(self, where: str, place: _Place, kept: Kept, kept_ids: dict[int, str]) -> None:
        disowned = [o for o, message in place.ids.items() if o > kept.offset or kept_ids.get(o, message) != message]
        unseen = self._known.get((where.partition(" in ")[2], owner(place.epoch, place.offset), place.offset), "")
        if disowned:
            message = place.ids[disowned[0]]
            self._say(
                "silent_loss", f"{where} keeps {message} as {disowned[0]}, which the store has not", len(disowned)
            )
        elif place.offset > kept.offset or (unseen and kept_ids.get(place.offset, unseen) != unseen):
            self._say("silent_loss", f"{where} is at {place.offset} of {place.epoch!r}, which the store has lost")
        elif place.offset < kept.offset:
            missed = kept.offset - place.offset
            self._say("silent_loss", f"{where} is at {place.offset}, the store at {kept.offset}", missed)

    def _count_missing(self, place: _Place, client: str, channel: str) -> None:
        if place.missing:
            offsets = sorted(place.missing)
            self._say("silent_loss", f"{client} in {channel} never received {offsets[0]} … {offsets[-1]}", len(offsets))
            place.missing = set()

    def _judge_order(self) -> None:
        """Acks of one publisher, which waits for each before it sends the next, against the offsets in the store."""
        last: dict[tuple[str, str], tuple[int, str]] = {}
        offsets = {channel: {message: o for o, message in kept.publications} for channel, kept in self._kept.items()}
        for ack in self._acks:
            offset = offsets.get(ack.channel, {}).get(ack.id)
            if offset is None:
                continue
            publisher = (ack.channel, ack.id.rpartition("-")[0])
            before, message = last.get(publisher, (0, ""))
            if offset < before:
                self._say("reorder", f"the store has {ack.id} of {ack.channel} before {message}, acked earlier")
            last[publisher] = (offset, ack.id)

    def _say(self, kind: str, text: str, count: int = 1) -> None:
        setattr(self._figures, kind, getattr(self._figures, kind) + count)
        self._said[kind] = self._said.get(kind, 0) + 1
        if self._said[kind] <= MOST_FINDINGS:
            self.findings.append(f"{self._fault.name}: {kind.replace('_', ' ')}: {text}")


def owner(epoch: str, offset: int) -> str:
    """The generation to which `offset` belongs: '4.x@17,5.y', 17 -> '4.x'; 18 -> '5.y'.

    Tokens are minted at random for each channel and store, so two positions with the same offset and owner are one.
    """
    for element in epoch.split(","):
        token, _, end = element.partition("@")
        if not end or offset <= int(end):
            return token
    return ""


def main(words: list[str]) -> int:
    """Judge a run again from the one file in which the rig kept it; exit status 1 if anything failed."""
    checker = Checker()
    with Path(words[0]).open("rb") as file:
        checker.feed(map(parse, file))
    print(*checker.findings, sep="\n")
    print(checker.total)
    return 1 if checker.total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
