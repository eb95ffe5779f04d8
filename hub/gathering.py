"""Gathering: what is on its way to subscribers, taken up until the end of the loop turn and swept as one batch.

Does: gather frames by audience within a bound, begin a batch and have it swept; say when those who move settle; give
who joins or leaves in the middle of a batch its part through its own outbox.
Does not: know channels, terms or wishes, or encode (fanout, which is built on this); keep groups; write (sweep).
Called by: fanout, reactor (begin and run at the end of each turn), connection (take_for, serve_now, forget, replace).
Never break: whoever is served by a batch stands in a group before it begins, and in none that it has left; nothing here
waits, logs or raises for one recipient.

What is delivered while a batch is being swept gathers in the next one; who joins a channel in the middle of it gets
what comes behind through its own outbox, and stands in a group from the next batch on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from .audience import ELSEWHERE, Audience, Board, Mergeable, Stand, Subscriber, Volatile, replacing
from .groups import Groups
from .histogram import FAST_S, SLOW_S, Histogram
from .sweep import Sweep

SLICE_S = 0.002
"""How long one slice of a sweep may hold the loop."""
REST_FROM_S = 0.003
REST_MOST_S = 0.02
"""Behind a sweep that has taken so long there is a rest as long, and no longer than that. What comes meanwhile leaves
together: with 10,000 ticks a second to 2,000 watch lists the sweeps followed each other at once, each with a write for
two or three values, and what they left of the CPU was not enough for the feed itself."""


class Gathering:
    """The batch that is being gathered, the one that is being swept, and who stands in which group."""

    def __init__(
        self,
        members: Mapping[int, Subscriber],
        arm: Callable[[], None],
        clock: Callable[[], float],
        call_later: Callable[..., asyncio.TimerHandle],
        max_bytes: int,
    ) -> None:
        """members: the plane's connections by descriptor; arm: asks for the end-of-turn call; call_later: the loop's.

        max_bytes: what may wait for the sweep, all channels together; the newest value of a `latest` channel always
        may.
        """
        self._arm = arm
        self._call_later = call_later
        self._clock = clock
        self.max_bytes = max_bytes
        self._board = Board()
        self._groups = Groups()
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
        self.sweep = Sweep(members, clock, self._board.ready)
        self.began_at = float("-inf")
        """When the last sweep did."""
        self._rest: asyncio.TimerHandle | None = None
        """No sweep begins before it has ended."""
        self.turn = 0
        """Batches begun, since the start: the number of the one that is being gathered."""
        self.deliveries = 0
        """Frames on their way to subscribers, since the start."""
        self._probe: float | None = None
        """When something was published that came with what is being gathered; and the same of the batch at hand."""
        self._riding: float | None = None
        self.latency = Histogram(SLOW_S)
        """Seconds from the publication of such a probe to the last write of its batch."""
        self.sweeps = Histogram(FAST_S)
        """Seconds from the first write of a batch to its last."""
        self.waiting_bytes = 0
        """Of frames that wait for the sweep, each counted once."""
        self.conflated = 0
        self.dropped = 0
        """Publications that no subscriber got because the worker was behind, since the start."""

    # Who moves.

    def _let_in(self, audience: Audience, subscriber: Subscriber) -> None:
        frames = self._batch.get(audience)
        if frames is None:
            self._groups.move(subscriber, audience, True)
        else:
            self._late.setdefault(subscriber, {})[audience] = self._replaced.get(audience, 0) + len(frames)
            if audience.line is not None:
                self._stands[subscriber, audience] = audience.line.stand
        self._arm()

    def _move_out(self, audience: Audience, subscriber: Subscriber) -> None:
        self._late.get(subscriber, {}).pop(audience, None)
        self._groups.move(subscriber, audience, False)
        # Of the batch under way it gets its part now, so that nothing comes behind whatever it is told next.
        self.sweep.serve_now(subscriber)
        subscriber.left(audience)
        self._arm()

    def _is_in(self, audience: Audience, subscriber: Subscriber) -> bool:
        """Whether it is served what is taken up now."""
        return audience in self._late.get(subscriber, {}) or self._groups.holds(subscriber, audience)

    def _pass_over(self, audience: Audience, subscriber: Subscriber) -> None:
        """The frame that was taken up last is not for this one, who stands aside from its group for so long."""
        self._skipped.setdefault(subscriber, {}).setdefault(audience, set()).add(self._taken_up(audience) - 1)
        self._late.setdefault(subscriber, {}).setdefault(audience, 0)
        self._groups.move(subscriber, audience, False)

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

    # What is taken up.

    def _add(self, audience: Audience, frames: list[bytes], frame: bytes) -> None:
        """Take one frame up, while what waits for the sweep is within its bound."""
        if audience.full or (self.waiting_bytes and self.waiting_bytes + len(frame) > self.max_bytes):
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
        self._send_away(audience)

    def _send_away(self, audience: Audience) -> None:
        """Every value was asked for, and one can't be had: they come back, and get the newest."""
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

    def _taken_up(self, audience: Audience) -> int:
        """Frames of an audience in the batch that is being gathered, those included that newer ones replaced."""
        waiting = self._paused[audience][0] if audience in self._paused else ()
        return self._replaced.get(audience, 0) + len(self._batch.get(audience, ())) + len(waiting)

    def ride(self, since: float) -> None:
        """Something published at `since`, of the clock, came with what is being gathered: see `latency`.

        So what is measured is what a subscriber waits for, queues and sweep included, at no cost for each delivery.
        """
        if self._probe is None:
            self._probe = since
            self._arm()

    # What the reactor calls at the end of a turn: begin, then everybody's own bytes, then run.

    def begin(self) -> None:
        """Start the next batch, unless one is still being swept; let those who moved settle before it."""
        if self.sweep.running or self._rest is not None:
            return
        self.turn += 1
        batch, self._batch = self._batch, {}
        late, self._late = self._late, {}
        replaced, self._replaced = self._replaced, {}
        skipped, self._skipped = self._skipped, {}
        stands, self._stands = self._stands, {}
        self._riding, self._probe = self._probe, None
        self._groups.settle()
        self._board.release()
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
        # It may have been told of one just before it joined: a newer value in that one's place would come before these.
        subscriber.left(*joins)
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
            self._groups.move(subscriber, audience, True)

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
            took_s = self._clock() - self.began_at
            self.sweeps.observe(took_s)
            if took_s >= REST_FROM_S:
                self._rest = self._call_later(min(took_s / 2, REST_MOST_S), self._end_rest)
        if self._riding is not None and not self.sweep.running:
            self.latency.observe(max(0.0, self._clock() - self._riding))
            self._riding = None
        if self.busy and self._rest is None:
            self._arm()

    def _end_rest(self) -> None:
        self._rest = None
        if self.busy:
            self._arm()

    @property
    def busy(self) -> bool:
        """Something is on its way, or somebody is about to move."""
        return bool(self.sweep.running or self._batch or self._groups.moving or self._probe is not None)

    def forget(self, connection: Subscriber) -> None:
        """The connection ends: nothing more is written to it from here. Its channels are left by `leave`, later."""
        if connection.group is not None:
            self.sweep.departs(connection)
            self._groups.take_out(connection, connection.group)

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
            # Whom everybody has left has given its slot back, and another one may have it.
            if audience.size:
                ready[audience.slot] = piece
        self._dirty = list(batch)
        self.began_at = self._clock()
        self.sweep.begin(self._dirty, self._groups.concerned(self._dirty))
