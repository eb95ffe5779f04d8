"""Fan-out: the one door out. Publications in, frames to everybody who is subscribed.

Does: keep who is subscribed to what in this worker, encode a publication once for each wire form, gather what is
published until the end of the loop turn into one batch, and have it swept.
Does not: know sessions, rules, Redis or sockets. `subscribe` decides who joins and when; `sweep` writes.
Called by: ingest (deliver, announce), subscribe (join, leave), attendance (watch, unwatch), reactor
(begin and sweep at the end of each turn).
Never break: `deliver` is plain calls, no await, log call or exception for each recipient; who joins receives what is
delivered after the call, and nothing of before it.

What is delivered while a batch is being swept gathers in the next one; who joins a channel in the middle of it gets
what comes behind through its own outbox, and stands in a group from the next batch on.
A new wire brings its own WireForm; nothing here changes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping

from .audience import (
    ELSEWHERE,
    Audience,
    Board,
    Group,
    Line,
    Mergeable,
    Stand,
    Subscriber,
    Terms,
    Volatile,
    replacing,
)
from .channels import Namespace
from .lines import Lines
from .message import Arrival, Publication
from .pace import Pace, Paces
from .sweep import Sweep

SLICE_S = 0.002
"""How long one slice of a sweep may hold the loop."""


WATCHING = Namespace.model_validate({})
"""The rules by which arrivals are told: as they come."""


class Fanout:
    """The audiences of one worker, and what is on its way to them."""

    def __init__(
        self,
        members: Mapping[int, Subscriber],
        arm: Callable[[], None],
        clock: Callable[[], float],
        call_later: Callable[..., asyncio.TimerHandle],
        max_bytes: int = 67_108_864,
        new_mark: Callable[[], int] = lambda: random.getrandbits(64),
    ) -> None:
        """members: the plane's connections by descriptor; arm: asks for the end-of-turn call; call_later: the loop's.

        max_bytes: what may wait for the sweep, all channels together; the newest value of a `latest` channel always
        may.
        """
        self._arm = arm
        self._call_later = call_later
        self._clock = clock
        self._max_bytes = max_bytes
        self._board = Board()
        self.lines = Lines(self._board, new_mark, clock)
        self._watchers = Lines(self._board, new_mark, clock)
        """Who is told of arrivals; audiences of their own, for a subscriber may have a channel without them."""
        self._groups: dict[int, Group] = {}
        self._moves: dict[Subscriber, dict[Audience, bool]] = {}
        """Who joins (True) or leaves (False) what, before the batch that is being gathered."""
        self._batch: dict[Audience, list[bytes]] = {}
        self._late: dict[Subscriber, dict[Audience, int]] = {}
        """Who joins what behind so many of its frames in that batch, `_replaced` ones included."""
        self._stands: dict[tuple[Subscriber, Audience], Stand] = {}
        """How much of the channel those have been served by then who want marks."""
        self._skipped: dict[Subscriber, dict[Audience, set[int]]] = {}
        """Who is passed over by which frames of that batch, counted likewise."""
        self._replaced: dict[Audience, int] = {}
        """How many frames of an audience that batch has lost to newer ones."""
        self._dirty: list[Audience] = []
        self._paused: dict[Audience, tuple[list[bytes], asyncio.TimerHandle]] = {}
        self.on_full: Callable[[str], None] = lambda channel: None
        """Called when a `stream` channel's audience can't be given the next publication, and so none behind it: it has
        to be dissolved. Never waits; set by streams."""
        self.paces = Paces(self._on_pace, clock, call_later)
        self.sweep = Sweep(members, clock, self._board.ready)
        self.turn = 0
        """Batches begun, since the start: the number of the one that is being gathered."""
        self.subscriptions = 0
        """Of all subscribers to all channels, now."""
        self.deliveries = 0
        """Frames on their way to subscribers, since the start."""
        self.waiting_bytes = 0
        """Of frames that wait for the sweep, each counted once."""
        self.conflated = 0
        self.dropped = 0
        """Publications that no subscriber got because the worker was behind, since the start."""

    def join(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: Subscriber,
        terms: Terms | None = None,
        stand: Stand | None = None,
        newest: bytes | None = None,
    ) -> None:
        """From the next `deliver` on, `subscriber` receives the channel.

        terms: of a `latest` channel; None: every value in its wire form, the newest where its socket is behind.
        stand: how much of the channel it has been served, None for all; what came behind is told by one value.
        newest: the newest body, for a channel of which none has come yet.
        """
        line, audience = self.lines.audience(channel, namespace, subscriber.wire, terms, newest)
        self.subscriptions += 1
        if audience.pace is not None:
            audience.size += 1
            audience.pace.arrive(subscriber, audience, stand or line.stand)
            if stand is not None and stand.number != line.number:
                audience.pace.touch(audience)
            return
        if stand is not None:
            self._tell(subscriber, audience, line, stand)
        if audience in self._paused:
            self._end_pause(audience)
        audience.size += 1
        self._let_in(audience, subscriber)

    def deliver_past(self, publication: Publication, subscriber: Subscriber) -> None:
        """Deliver a publication to everybody but one of its channel's subscribers.

        The batch goes through that one's outbox, in order, and it stands aside from its group for so long.
        """
        audience = self.lines.by_channel[publication.channel].audiences[subscriber.wire]
        before = self._taken_up(audience)
        Fanout.deliver(self, [publication])
        if audience in self._paused:
            self._end_pause(audience)
        after = self._taken_up(audience)
        if after > before:  # the worker is not so far behind that nobody gets it
            self._skipped.setdefault(subscriber, {}).setdefault(audience, set()).add(after - 1)
            self._late.setdefault(subscriber, {}).setdefault(audience, 0)
            self._moves.setdefault(subscriber, {})[audience] = False

    def holds(self, channel: str, subscriber: Subscriber) -> bool:
        """Whether the subscriber receives what is delivered to the channel now, without wishes of its own."""
        line = self.lines.by_channel.get(channel)
        audience = line.audiences.get(subscriber.wire) if line is not None else None
        if audience is None:
            return False
        if audience in self._late.get(subscriber, {}):
            return True
        moves = self._moves.get(subscriber, {}).get(audience)
        return moves if moves is not None else subscriber.group is not None and audience in subscriber.group.audiences

    def _taken_up(self, audience: Audience) -> int:
        """Frames of an audience in the batch that is being gathered, those included that newer ones replaced."""
        waiting = self._paused[audience][0] if audience in self._paused else ()
        return self._replaced.get(audience, 0) + len(self._batch.get(audience, ())) + len(waiting)

    def watch(self, channel: str, subscriber: Subscriber) -> None:
        """From the next `announce` on, `subscriber` is told who comes to the channel and goes."""
        _, audience = self._watchers.audience(channel, WATCHING, subscriber.wire)
        audience.size += 1
        self._let_in(audience, subscriber)

    def _let_in(self, audience: Audience, subscriber: Subscriber) -> None:
        frames = self._batch.get(audience)
        if frames is None:
            self._moves.setdefault(subscriber, {})[audience] = True
        else:
            self._late.setdefault(subscriber, {})[audience] = self._replaced.get(audience, 0) + len(frames)
            if audience.line is not None:
                self._stands[subscriber, audience] = audience.line.stand
        self._arm()

    def change(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: Subscriber,
        old: Terms | None,
        new: Terms | None,
        told: bool = False,
    ) -> None:
        """Go on with a channel that it holds on `old` terms on `new` ones: nothing is lost, and nothing comes twice.

        told: it has been served all that there is, by the caller.
        """
        line = self.lines.by_channel[channel]
        audience = line.audiences[old or subscriber.wire]
        if old == new:
            if told and audience.pace is not None:
                audience.pace.told(subscriber, audience, line.stand)
            return
        stand = self._stop(audience, subscriber)
        if told or not audience.apart:
            stand = line.stand
        self._serve_gathered(audience, subscriber)
        self.join(channel, namespace, subscriber, new, stand)
        self.subscriptions -= 1
        self._let_out(self.lines, line, audience, subscriber)

    def leave(self, channel: str, subscriber: Subscriber, terms: Terms | None = None) -> None:
        """No more of the channel for `subscriber`, who had joined it so: nothing of it is queued after this call."""
        self.subscriptions -= 1
        line = self.lines.by_channel[channel]
        audience = line.audiences[terms or subscriber.wire]
        self._stop(audience, subscriber)
        self._let_out(self.lines, line, audience, subscriber)

    def _stop(self, audience: Audience, subscriber: Subscriber) -> Stand:
        """Its pace does not wait for it any more. Returns up to what it has been served, or taken up for."""
        stand = audience.pace.leave(subscriber, audience) if audience.pace is not None else None
        return stand if stand is not None else audience.sent

    def _serve_gathered(self, audience: Audience, subscriber: Subscriber) -> None:
        """Of what is being gathered it gets its part now."""
        paused = self._paused[audience][0] if audience in self._paused else ()
        frames = [*self._batch.get(audience, ()), *paused]
        if frames:
            self.sweep.serve_now(subscriber)
            before, first = self._late.get(subscriber, {}).get(audience, 0), self._replaced.get(audience, 0)
            if first >= before:
                frames[0] = self._from(frames[0], self._stands.get((subscriber, audience)))
            for frame in frames[max(0, before - first) :]:
                subscriber.offer(audience, frame)

    def _from(self, frame: bytes, stand: Stand | None) -> bytes:
        """A frame that others of before were replaced by, for somebody who had been served some of those."""
        return frame.since(stand) if isinstance(frame, Mergeable) and stand is not None else frame

    def unwatch(self, channel: str, subscriber: Subscriber) -> None:
        """The opposite of a `watch` before."""
        line = self._watchers.by_channel[channel]
        self._let_out(self._watchers, line, line.audiences[subscriber.wire], subscriber)

    def _let_out(self, lines: Lines, line: Line, audience: Audience, subscriber: Subscriber) -> None:
        audience.size -= 1
        if not audience.size:
            lines.drop(line, audience)
        self._late.get(subscriber, {}).pop(audience, None)
        self._moves.setdefault(subscriber, {})[audience] = False
        # Of the batch under way it gets its part now, so that nothing comes behind whatever it is told next.
        self.sweep.serve_now(subscriber)
        subscriber.left(audience)
        self._arm()

    def deliver(self, publications: Iterable[Publication]) -> None:
        """Take publications up for the batch of this turn, in order."""
        lines, batch = self.lines.by_channel, self._batch
        for channel, body in publications:
            line = lines.get(channel)
            if line is None:
                continue
            if line.keeps:
                line.newest = body
                line.number += 1
                if line.marked:
                    line.note(self.lines.numbering(body), self._clock())
            for audience in line.audiences.values():
                if audience.apart:
                    self._deliver_apart(line, audience)
                    continue
                frame = audience.wire.encode_publication(channel, body)
                if audience.pause_s:
                    self._pause(audience, frame)
                    continue
                frames = batch.get(audience)
                if frames is None:
                    frames = batch[audience] = []
                self._add(audience, frames, frame)
        if batch:
            self._arm()

    # Subscriptions with wishes.

    def check_silence(self) -> None:
        """Tell those who want marks whose source is silent; that it is heard again comes with its next value."""
        for line in self.lines.silent(self._clock()):
            line.stale = True
            for audience in line.audiences.values():
                if audience.view is not None and audience.view.marks:
                    self._deliver_apart(line, audience)
            self._arm()

    def _deliver_apart(self, line: Line, audience: Audience) -> None:
        if audience.pace is not None:
            audience.pace.touch(audience)
            return
        frame = self._next_frame(line, audience)
        if frame is None:
            return
        if audience.pause_s:
            self._pause(audience, frame)
        else:
            self._add(audience, self._batch.setdefault(audience, []), frame)

    def _next_frame(self, line: Line, audience: Audience) -> bytes | None:
        """What its settled members have not been told; None: nothing."""
        view = audience.view
        update = line.update(audience.sent, view is not None and view.marks)
        audience.sent = line.stand
        return view.encode_update(audience.channel, update) if update is not None and view is not None else None

    def _tell(self, subscriber: Subscriber, audience: Audience, line: Line, stand: Stand) -> None:
        """One subscriber, what it has not been served."""
        view = audience.view
        update = line.update(stand, view.marks) if view is not None else None
        if update is not None and view is not None:
            subscriber.offer(audience, view.encode_update(audience.channel, update))

    def _on_pace(self, pace: Pace) -> None:
        """The moment of a rate: what is new goes to all, and who came since goes in."""
        waiting, pace.waiting = pace.waiting, {}
        arrivals, pace.arrivals = pace.arrivals, {}
        for audience in waiting:
            line = audience.line
            if line is None or not audience.size:
                continue
            frame = self._next_frame(line, audience) if audience.size > audience.arriving else None
            if frame is not None:
                self._add(audience, self._batch.setdefault(audience, []), frame)
            audience.sent = line.stand
        for subscriber, stands in arrivals.items():
            for audience, stand in stands.items():
                if audience.line is not None:
                    self._tell(subscriber, audience, audience.line, stand)
                audience.arriving -= 1
                self._let_in(audience, subscriber)
        self._arm()

    def announce(self, arrivals: Iterable[Arrival]) -> None:
        """Take up who came and went, for those who watch, in order; they leave in the same writes as publications.

        Which of the two comes first there is not promised.
        """
        for channel, body in arrivals:
            line = self._watchers.by_channel.get(channel)
            for audience in line.audiences.values() if line is not None else ():
                frame = audience.wire.encode_arrival(channel, body)
                self._add(audience, self._batch.setdefault(audience, []), frame)
        if self._batch:
            self._arm()

    def _add(self, audience: Audience, frames: list[bytes], frame: bytes) -> None:
        """Take one frame up, while what waits for the sweep is within its bound."""
        if audience.full or (self.waiting_bytes and self.waiting_bytes + len(frame) > self._max_bytes):
            # The hub itself is behind, so this is the same for all: the newest value, or none. So beyond the bound
            # there is one value for each `latest` channel at the most.
            if audience.mode != "latest":
                self.dropped += 1
                if audience.mode != "none" and not audience.full:
                    audience.full = True
                    self._on_overflow(audience)
                return
            for older in reversed(frames):
                frame = replacing(frame, older)
            if frames is self._batch.get(audience):
                self._replaced[audience] = self._replaced.get(audience, 0) + len(frames)
            self.conflated += len(frames)
            self.waiting_bytes -= sum(map(len, frames))
            self.deliveries -= len(frames) * audience.size
            frames.clear()
        frames.append(frame)
        self.waiting_bytes += len(frame)
        self.deliveries += audience.size

    def _on_overflow(self, audience: Audience) -> None:
        if audience.mode == "stream":
            self.on_full(audience.channel)
            return
        # Every value was asked for, and one can't be had: they come back, and get the newest.
        for group in list(audience.groups):
            for subscriber in group.members():
                self._call_later(0, subscriber.too_slow)

    def _pause(self, audience: Audience, frame: bytes) -> None:
        """Let a frame of a namespace with flush_ms wait for others; the first one sets the time."""
        paused = self._paused.get(audience)
        if paused is None:
            paused = self._paused[audience] = ([], self._call_later(audience.pause_s, self._end_pause, audience))
        self._add(audience, paused[0], frame)

    def _end_pause(self, audience: Audience) -> None:
        frames, timer = self._paused.pop(audience)
        timer.cancel()  # somebody who joins ends a pause before its time
        self._batch.setdefault(audience, []).extend(frames)
        self._arm()

    # What the reactor calls at the end of a turn: begin, then everybody's own bytes, then run.

    def begin(self) -> None:
        """Start the next batch, unless one is still being swept; let those who moved settle before it."""
        if self.sweep.running:
            return
        self.turn += 1
        moves, self._moves = self._moves, {}
        batch, self._batch = self._batch, {}
        late, self._late = self._late, {}
        replaced, self._replaced = self._replaced, {}
        skipped, self._skipped = self._skipped, {}
        stands, self._stands = self._stands, {}
        self._settle(moves)
        self._start(batch)
        for subscriber, joins in late.items():
            self._catch_up(subscriber, joins, replaced, skipped.get(subscriber, {}), stands)

    def _catch_up(
        self,
        subscriber: Subscriber,
        joins: dict[Audience, int],
        replaced: dict[Audience, int],
        skipped: dict[Audience, set[int]],
        stands: dict[tuple[Subscriber, Audience], Stand],
    ) -> None:
        """Somebody joined in the middle of this batch, or is passed over by a part of it.

        It gets what came behind, or the rest, and is inside from the next one on.
        """
        for audience, before in joins.items():
            first, over = replaced.get(audience, 0), skipped.get(audience, ())
            for at in range(max(0, before - first), len(audience.frames)):
                if first + at in over:
                    continue
                frame = audience.frames[at]
                if not at and first >= before:
                    frame = self._from(frame, stands.get((subscriber, audience)))
                if type(frame) is Volatile:
                    subscriber.offer(audience, frame)
                else:
                    subscriber.put(frame)
            self._moves.setdefault(subscriber, {})[audience] = True

    def take_for(self, connection: Subscriber) -> bytes:
        """The batch's bytes for a connection that writes something of its own now: both leave in one write."""
        return self.sweep.take_for(connection) if self.sweep.running else b""

    def run(self) -> None:
        """Sweep a slice; asks for another turn while something is left."""
        if self.sweep.running and self.sweep.run(SLICE_S):
            ready = self._board.ready
            for audience in self._dirty:
                audience.frames = []
                ready[audience.slot] = b""
            self._dirty = []
        if self.busy:
            self._arm()

    @property
    def busy(self) -> bool:
        """Something is on its way, or somebody is about to move."""
        return bool(self.sweep.running or self._batch or self._moves)

    def forget(self, connection: Subscriber) -> None:
        """The connection ends: nothing more is written to it from here. Its channels are left by `leave`, later."""
        if connection.group is not None:
            self.sweep.departs(connection)
            self._take_out(connection, connection.group)

    def serve_now(self, connection: Subscriber) -> None:
        """Its part of the batch under way goes into its outbox now."""
        self.sweep.serve_now(connection)

    def replace(self, connection: Subscriber) -> None:
        """The connection began or ceased to be direct."""
        group = connection.group
        if group is None:
            return
        if connection.place != ELSEWHERE:
            self.sweep.departs(connection)
        # What it was offered may have been too much for it: then it is in no group any more.
        if connection.group is group:
            group.replace(connection)

    def _start(self, batch: dict[Audience, list[bytes]]) -> None:
        if not batch:
            return
        ready = self._board.ready
        for audience, frames in batch.items():
            audience.frames = frames
            piece = frames[0] if len(frames) == 1 else b"".join(frames)
            self.waiting_bytes -= len(piece)
            # Whom everybody has left since may have given its slot back, and another one has it.
            if audience.groups:
                ready[audience.slot] = piece
        self._dirty = list(batch)
        self.sweep.begin(self._dirty, self._concerned())

    def _concerned(self) -> Iterable[Group]:
        """The groups that hold any audience of the batch."""
        if len(self._dirty) == 1:
            return self._dirty[0].groups
        if sum(len(audience.groups) for audience in self._dirty) > len(self._groups):
            return list(self._groups.values())
        return set().union(*[audience.groups for audience in self._dirty])

    def _settle(self, moves: dict[Subscriber, dict[Audience, bool]]) -> None:
        for subscriber, changes in moves.items():
            old = subscriber.group
            key, audiences = (old.key, set(old.audiences)) if old is not None else (0, set())
            for audience, joins in changes.items():
                if joins != (audience in audiences):
                    key ^= audience.mark
                    (audiences.add if joins else audiences.discard)(audience)
            if old is not None:
                self._take_out(subscriber, old)
            if audiences and subscriber.open:
                self._group(key, audiences).add(subscriber)

    def _group(self, key: int, audiences: set[Audience]) -> Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, audiences)
            for audience in audiences:
                audience.groups.add(group)
        return group

    def _take_out(self, subscriber: Subscriber, group: Group) -> None:
        group.remove(subscriber)
        if not len(group):
            del self._groups[group.key]
            for audience in group.audiences:
                audience.groups.discard(group)
                if not audience.groups and not audience.size:
                    self._board.give_back(audience.slot)
