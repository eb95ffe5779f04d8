"""Fan-out: the one door out. Publications in, frames to everybody who is subscribed.

Does: keep who is subscribed to what in this worker, on which terms, and encode a publication once for each wire form
and view.
Does not: know sessions, rules, Redis or sockets. `subscribe` decides who joins and when; gathering, on which this is
built, makes batches of frames, and `sweep` writes.
Called by: ingest (deliver, announce), subscribe (join, change, leave), attendance (watch, unwatch), worker
(check_silence).
Never break: `deliver` is plain calls, no await, log call or exception for each recipient; who joins receives what is
delivered after the call, and nothing of before it.

A new wire brings its own WireForm; nothing here changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from .audience import Audience, Line, Rate, Stand, Subscriber, Terms
from .channels import Namespace
from .gathering import Gathering
from .groups import Bundle
from .lines import Lines
from .message import Arrival, Publication
from .pace import Pace, Paces

WATCHING = Namespace.model_validate({})
"""The rules by which arrivals are told: as they come."""


class Fanout(Gathering):
    """The audiences of one worker, and what is on its way to them."""

    def __init__(
        self,
        members: Mapping[int, Subscriber],
        arm: Callable[[], None],
        clock: Callable[[], float],
        call_later: Callable[..., asyncio.TimerHandle],
        max_bytes: int = 67_108_864,
    ) -> None:
        """As Gathering has them."""
        super().__init__(members, arm, clock, call_later, max_bytes)
        self.lines = Lines(self._board, clock)
        self._watchers = Lines(self._board, clock)
        """Who is told of arrivals; audiences of their own, for a subscriber may have a channel without them."""
        self.paces = Paces(self._on_pace, clock, call_later)
        self.on_deliver: Callable[[Iterable[Publication]], None] | None = None
        """Sees what is delivered, before it is, while a channel is traced."""
        self.subscriptions = 0
        """Of all subscribers to all channels, now."""

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
        self._come(line, audience, subscriber, stand)

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

    def bundle(self, channels: Iterable[str], terms: Terms) -> Bundle:
        """Of channels that somebody holds on these terms; good for as long as that one holds them all."""
        return Bundle(terms, [self.lines.by_channel[channel] for channel in channels])

    def change_all(self, bundle: Bundle, namespace: Namespace, subscriber: Subscriber, new: Terms) -> Bundle:
        """`change` for many channels that it holds on the same terms; what does not depend on the channel is done once.

        A list of fifty whose client moves a slider is changed some times a second. Returns the same channels on the
        `new` terms, in the same order.
        """
        if bundle.terms == new:
            return bundle
        # Of the batch under way it gets its part now, so that nothing comes behind whatever it is told next.
        self.sweep.serve_now(subscriber)
        found = self._move_at_once(bundle, namespace, subscriber, new)
        if found is None:
            moving, taken_up = bundle, self._taken_up_of(bundle)
            if taken_up:
                moving = bundle.without(taken_up)
                for audience in taken_up:
                    self.change(audience.channel, namespace, subscriber, bundle.terms, new)
            self._groups.swap(subscriber, moving, self._move_each(moving, namespace, subscriber, new))
            found = Bundle(new, bundle.lines)
        subscriber.left(*bundle.audiences)
        self._arm()
        return found

    def _move_at_once(self, bundle: Bundle, namespace: Namespace, subscriber: Subscriber, new: Terms) -> Bundle | None:
        """The usual case: since the last moments of both rates nothing has come, or the same for both. None: it has."""
        pace, batch, audiences = bundle.terms.pace, self._batch, bundle.audiences
        if pace is None or subscriber in pace.arrivals or new.pace is None or not new.pace.period_s:
            return None
        make = self.lines.new
        others = [line.audiences.get(new) or make(line, namespace, subscriber.wire, new) for line in bundle.lines]
        # What does not wait at a rate has been told there, to all who are settled.
        if (pace.waiting or new.pace.waiting) and [one.sent for one in audiences] != [one.sent for one in others]:
            return None
        if batch and (
            subscriber in self._late
            or [batch.get(audience) for audience in audiences] != [batch.get(audience) for audience in others]
        ):
            return None
        for audience in others:
            audience.size += 1
        for audience in audiences:
            audience.size -= 1
            if not audience.size and audience.line is not None:
                self.lines.drop(audience.line, audience)
        found = Bundle(new, bundle.lines, others)
        self._groups.swap(subscriber, bundle, found)
        return found

    def _taken_up_of(self, bundle: Bundle) -> Collection[Audience]:
        """Those for which something is being gathered."""
        together, batch, paused = bundle.together, self._batch.keys(), self._paused.keys()
        if batch.isdisjoint(together) and paused.isdisjoint(together):
            return ()
        return (batch & together) | (paused & together)

    def _move_each(self, bundle: Bundle, namespace: Namespace, subscriber: Subscriber, new: Terms) -> Bundle:
        """Out of audiences for which nothing is being gathered, and into those on `new` terms.

        Returns those where it is inside at once. Of the others it is told what it has not been, and let in when it can
        be.
        """
        pace, inside = bundle.terms.pace, []
        stop = pace.leave if pace is not None and subscriber in pace.arrivals else None
        lets_in = new.pace is not None and new.pace.period_s
        for line, audience in zip(bundle.lines, bundle.audiences, strict=True):
            other = line.audiences.get(new) or self.lines.new(line, namespace, subscriber.wire, new)
            own = stop(subscriber, audience) if stop is not None else None
            stand = own or (audience.sent if audience.apart else line.stand)
            audience.size -= 1
            if not audience.size:
                self.lines.drop(line, audience)
            if lets_in and stand == other.sent and other not in self._batch:
                # What `_come` would do: most channels have nothing new since the last moment.
                other.size += 1
                inside.append(line)
            else:
                self._come(line, other, subscriber, stand)
        return Bundle(new, inside)

    def _come(self, line: Line, audience: Audience, subscriber: Subscriber, stand: Stand | None) -> None:
        """One more for an audience, who has been served up to `stand`; None: all."""
        audience.size += 1
        if audience.pace is not None:
            self._come_paced(audience.pace, line, audience, subscriber, stand or line.stand)
            return
        if stand is not None:
            self._tell(subscriber, audience, line, stand)
        if audience in self._paused:
            self._end_pause(audience)
        self._let_in(audience, subscriber)

    def _come_paced(self, pace: Rate, line: Line, audience: Audience, subscriber: Subscriber, stand: Stand) -> None:
        is_behind = stand.number != line.number or stand.stale != line.stale
        if pace.period_s:
            if audience.size - audience.arriving == 1:
                # Nobody else is settled, so what it has been served is what all have.
                audience.sent = stand
                if is_behind:
                    pace.touch(audience)
            if stand == audience.sent:
                self._let_in(audience, subscriber)
                return
        # Let in at the next moment, with a frame of its own.
        pace.arrive(subscriber, audience, stand)
        if is_behind:
            pace.rouse()

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

    def _let_out(self, lines: Lines, line: Line, audience: Audience, subscriber: Subscriber) -> None:
        audience.size -= 1
        if not audience.size:
            lines.drop(line, audience)
        self._move_out(audience, subscriber)

    def holds(self, channel: str, subscriber: Subscriber) -> bool:
        """Whether the subscriber receives what is delivered to the channel now, without wishes of its own."""
        line = self.lines.by_channel.get(channel)
        audience = line.audiences.get(subscriber.wire) if line is not None else None
        return audience is not None and self._is_in(audience, subscriber)

    def deliver(self, publications: Iterable[Publication]) -> None:
        """Take publications up for the batch of this turn, in order."""
        lines, batch = self.lines.by_channel, self._batch
        if self.on_deliver is not None:
            publications = list(publications)
            self.on_deliver(publications)
        for channel, body in publications:
            line = lines.get(channel)
            if line is None:
                continue
            if line.keeps:
                line.newest = body
                line.number += 1
                if line.marked:
                    line.note(self.lines.numbering(body), self._clock())
                elif line.stale_s:
                    line.heard_at = self._clock()
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

    def deliver_past(self, publication: Publication, subscriber: Subscriber) -> None:
        """Deliver a publication to everybody but one of its channel's subscribers.

        The batch goes through that one's outbox, in order, and it stands aside from its group for so long.
        """
        audience = self.lines.by_channel[publication.channel].audiences[subscriber.wire]
        before = self._taken_up(audience)
        Fanout.deliver(self, [publication])
        if audience in self._paused:
            self._end_pause(audience)
        if self._taken_up(audience) > before:  # the worker is not so far behind that nobody gets it
            self._pass_over(audience, subscriber)

    # Who comes and goes.

    def watch(self, channel: str, subscriber: Subscriber) -> None:
        """From the next `announce` on, `subscriber` is told who comes to the channel and goes."""
        _, audience = self._watchers.audience(channel, WATCHING, subscriber.wire)
        audience.size += 1
        self._let_in(audience, subscriber)

    def unwatch(self, channel: str, subscriber: Subscriber) -> None:
        """The opposite of a `watch` before."""
        line = self._watchers.by_channel[channel]
        self._let_out(self._watchers, line, line.audiences[subscriber.wire], subscriber)

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

    # Subscriptions with wishes.

    def missed(self, channel: str) -> None:
        """Values of a `latest` channel did not come here: whoever asked for every one is ended as a slow reader is."""
        line = self.lines.by_channel.get(channel)
        for audience in line.audiences.values() if line is not None else ():
            if audience.mode == "raw":
                self._send_away(audience)

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
