"""Streams: where each `stream` channel of this worker stands, and that everybody inside gets all of it in order.

Does: follow a channel from its first subscriber until a while after its last; pass publications on only where they
are contiguous; fill gaps from Redis, once for all subscribers; serve who comes back from a ring of recent publications.
Does not: talk to Redis (ingest receives, catchup reads), judge positions (recovery) or encode and write (fanout).
Called by: subscribe (subscribe, unsubscribe), ingest (receive), fanout (overloaded), worker (check_all, tick).
Never break: the audience of a channel gets its publications contiguous and of one epoch. Whoever can't be given the
next one is taken out of the audience before another is passed on, and is told to subscribe anew with its position.

The life of a channel here: the Redis channel is subscribed to (`opened`), its position is read (`epoch`), then it is
`live`. It is not while something is missing (`gap`) or while all who are inside are being taken out (`leaving`): then
what arrives is held, and who comes waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

from .channels import Namespace
from .errors import BrokerUnavailable, HubError
from .fanout import Fanout
from .history import Asked, Page
from .ingest import Ingest
from .message import Publication, StreamPublication
from .position import Position, survives
from .recovery import Joined, Verdict, judge
from .ring import Budget, Ring
from .store import Keys
from .stream import GIVEN_UP, Done, Joiner, Stream, StreamSubscriber

MAX_HELD = 4096
"""Publications held while a position is read, of one channel; beyond, they are forgotten and read afterwards."""
MAX_HELD_BYTES = 4_194_304
"""The same in bytes of their bodies."""
PAGE = 512
"""Publications in one read that fills a gap."""
MAX_READS = 64
"""In a row for one gap; a channel that is written faster than it can be read lets its subscribers start anew."""
LET_IN_AT_ONCE = 64
"""Subscribers answered in one go; with hundreds of missed publications in each answer, a few milliseconds' work."""
LEAVE_AT_ONCE = 512
"""Subscribers taken out of an audience in one go, about a millisecond's work."""
CHECK_S = 30.0
"""A channel on which nothing came for so long has its position checked, on average; each 20 to 40 s."""
CHECK_AT_ONCE = 1024
"""Channels whose reads are asked for in one go, about ten milliseconds' work: where all are due, so many each tick."""
TICK_S = 0.05
"""Between two steps of what is paced."""


class Reader(Protocol):
    """Who reads positions and publications; catchup.Catchup."""

    def read(self, asked: Asked, done: Callable[[Page | HubError], None]) -> None:
        """`done` is called later, never from within this call."""


class Streams:
    """The `stream` channels of one worker."""

    def __init__(
        self,
        fanout: Fanout,
        ingest: Ingest,
        reader: Reader,
        keys: Keys,
        clock: Callable[[], float],
        call_soon: Callable[..., object],
        *,
        most: int = 300,
        most_bytes: int = 524_288,
        ring_bytes: int = 67_108_864,
        linger_s: float = 5.0,
        displaced_per_s: int = 2000,
    ) -> None:
        """call_soon: the loop's. most, most_bytes: publications in one recovery. The others: see [worker]."""
        self._fanout = fanout
        self._ingest = ingest
        self._reader = reader
        self._keys = keys
        self._clock = clock
        self._call_soon = call_soon
        self._current: Callable[[str], Namespace | None] = lambda channel: None
        self._most = most
        self._most_bytes = most_bytes
        self._weighed: tuple[Sequence[bytes], int] = ((), 0)
        """What was handed out last, and its size; in a storm thousands get the same list."""
        self._budget = Budget(ring_bytes)
        self._linger_s = linger_s
        self._displaced_per_tick = max(1, round(displaced_per_s * TICK_S))
        self._streams: dict[str, Stream] = {}
        self._displaced: OrderedDict[tuple[str, StreamSubscriber], None] = OrderedDict()
        """Out of their audiences, and not told yet; first come, first told."""
        self._empty: deque[tuple[float, Stream]] = deque()
        """When who was left by its last subscriber; in the order of time."""
        self._round: deque[Stream] = deque()
        """Whose check comes next."""
        self._share = 0.0
        """Of the next check of the round that is due by now."""
        self._due: deque[Stream] = deque()
        """Whose position has to be read: the last read has failed, or something may have been missed."""
        self._out: list[Publication] = []
        """What goes to the fan-out with the batch at hand."""
        self.gaps = 0
        """Times that something was missing on the way from Redis, since the start."""
        self.duplicates = 0
        self.displacements = 0
        """Subscribers taken out who have to come back, since the start."""
        self.recovered = 0
        self.lost = 0
        """Positions of those who came back, since the start."""
        self.recovered_publications = 0
        """What they were given in one go, since the start."""
        self.checks = {"ok": 0, "behind": 0, "lost": 0}
        """What reads of a followed channel's position have found, since the start. behind: something had not come;
        lost: it can't be had any more, or the channel's life is another one."""

    def retune(
        self,
        current: Callable[[str], Namespace | None],
        *,
        most: int,
        most_bytes: int,
        ring_bytes: int,
        linger_s: float,
        displaced_per_s: int,
    ) -> None:
        """As the constructor has them, from now on; a ring that is there keeps its length, but not its part of all.

        current: the rules of a channel, None where its namespace is gone.
        """
        self._current = current
        self._most, self._most_bytes, self._budget.most = most, most_bytes, ring_bytes
        self._linger_s = linger_s
        self._displaced_per_tick = max(1, round(displaced_per_s * TICK_S))

    def _rules(self, stream: Stream) -> Namespace:
        """Those of now, as how long a position is kept is told with each read."""
        return self._current(stream.channel) or stream.namespace

    def __len__(self) -> int:
        """Channels that are followed."""
        return len(self._streams)

    @property
    def ring_bytes(self) -> int:
        """Held in rings, all channels together."""
        return self._budget.used

    # What subscribe calls.

    def epoch(self, channel: str) -> str:
        """Of the publications that a followed channel passes on now; for its audience it does not change."""
        return self._streams[channel].epoch

    def subscribe(
        self, channel: str, namespace: Namespace, subscriber: StreamSubscriber, since: Position | None, done: Done
    ) -> None:
        """Let `subscriber` in behind `since`, perhaps at once; None: from now on. `done(BrokerUnavailable)` if not."""
        joiner = Joiner(subscriber, since, done)
        stream = self._streams.get(channel)
        if stream is not None and subscriber in stream.joiners:
            # Were it let in for both, being taken out for the first would take it out for good.
            stream.joiners.pop(subscriber).done(GIVEN_UP)
        if stream is None:
            stream = self._streams[channel] = Stream(channel, namespace, Ring(self._budget, self._most))
            self._round.append(stream)
            stream.joiners[subscriber] = joiner
            self._ingest.hold(self._keys.channel(channel), partial(self._confirmed, stream))
        elif stream.opened and not self._ingest.connected:
            # It is held again after the reconnect, but what others publish until then is not known.
            done(BrokerUnavailable("the subscriber connection to Redis is down"))
        elif not stream.live:
            stream.joiners[subscriber] = joiner
        elif not self._let_in(stream, joiner):
            stream.joiners[subscriber] = joiner
            self._read(stream)

    def unsubscribe(self, channel: str, subscriber: StreamSubscriber) -> None:
        """Take out a subscriber that was let in, unless it is out already and waits to be told."""
        if (channel, subscriber) in self._displaced:
            del self._displaced[channel, subscriber]
            return
        stream = self._streams[channel]
        del stream.members[subscriber]
        self._fanout.leave(channel, subscriber)
        self._linger(stream)

    # What ingest calls.

    def receive(self, publications: Iterable[StreamPublication]) -> None:
        """Everything that one read from Redis brought, in order."""
        streams, now = self._streams, self._clock()
        for publication in publications:
            stream = streams.get(publication.channel)
            if stream is not None:
                stream.checked_at = now
                self._arrived(stream, publication)
        self._pass_on()

    def _arrived(self, stream: Stream, publication: StreamPublication) -> None:
        top = stream.ring.top
        if stream.live and publication.epoch == stream.epoch:
            if publication.offset == top + 1:
                self._advance(stream, publication.body)
                return
            if publication.offset <= top:
                self.duplicates += 1
                return
        if stream.live:
            self.gaps += 1
        stream.gap = True
        stream.held_bytes += len(publication.body)
        if len(stream.held) >= MAX_HELD or stream.held_bytes > MAX_HELD_BYTES:
            # Forgotten here, and read.
            stream.held.clear()
            stream.held_bytes = len(publication.body)
            stream.held_before = 0
            stream.again = True
        stream.held.append(publication)
        if stream.epoch and not stream.leaving:
            self._read(stream)

    def _advance(self, stream: Stream, body: bytes) -> None:
        stream.ring.append(body)
        if stream.recent is not None:
            stream.recent.append(body)
        if stream.members and not stream.leaving:
            self._out.append(Publication(stream.channel, body))

    def _pass_on(self) -> None:
        out, self._out = self._out, []
        if out:
            self._fanout.deliver(out)

    def check_all(self) -> None:
        """Something may have been missed on every channel: the link was down, or the store is another one."""
        for stream in self._streams.values():
            stream.again = stream.again or stream.reading
        self._due = deque(self._streams.values())
        self._read_due()

    def _read_due(self) -> None:
        for _ in range(min(CHECK_AT_ONCE, len(self._due))):
            stream = self._due.popleft()
            # Without an epoch its first read, which shows all, is on its way or yet to be asked for.
            if stream.epoch and self._streams.get(stream.channel) is stream:
                self._read(stream)

    def overloaded(self, channel: str) -> None:
        """The fan-out could not take up a publication; it gives this audience no more."""
        stream = self._streams.get(channel)
        if stream is not None:
            # Later, as the fan-out is at work now.
            self._call_soon(self._start_anew, stream)

    def _start_anew(self, stream: Stream) -> None:
        self._displace(stream)
        self._continue(stream)

    # Reading.

    def _confirmed(self, stream: Stream, error: HubError | None) -> None:
        if error is not None:
            self._fail(stream, error)
        else:
            stream.opened = True
            self._read(stream)

    def _read(self, stream: Stream) -> None:
        if stream.reading:
            return
        stream.reading = True
        stream.again = False
        stream.reads += 1
        stream.floor = stream.ring.top
        stream.held_before = len(stream.held)
        stream.anew = not stream.epoch or stream.reads > MAX_READS
        returning = any(joiner.since is not None for joiner in stream.joiners.values())
        stream.newest = stream.anew or (returning and not stream.gap)
        if stream.newest:
            for joiner in stream.joiners.values():
                joiner.asked = True
            asked = Asked(stream.channel, self._rules(stream), limit=self._most if returning else 0, newest=True)
        else:
            # First what those inside are missing; who comes back is served by a read after it.
            asked = Asked(stream.channel, self._rules(stream), stream.ring.top, PAGE)
        self._reader.read(asked, partial(self._page_came, stream))

    def _page_came(self, stream: Stream, page: Page | HubError) -> None:
        stream.reading = False
        if self._streams.get(stream.channel) is not stream:
            return  # released meanwhile
        stream.checked_at = self._clock()
        if isinstance(page, HubError):
            self._unread(stream, page)
            return
        stream.turn.clear()
        for joiner in stream.joiners.values():
            joiner.fresh = joiner.asked
        self._take(stream, page)
        self._pass_on()
        self._continue(stream)

    def _unread(self, stream: Stream, error: HubError) -> None:
        """Redis did not answer. Who waits is told; who is inside stays, and a tick reads again."""
        if not stream.epoch:
            self._fail(stream, error)
            return
        stream.held_bytes = 0
        stream.held.clear()  # they are behind a gap, and will be read
        self._due.append(stream)
        self._refuse(stream, error)
        self._linger(stream)

    def _fail(self, stream: Stream, error: HubError) -> None:
        """The channel can't be followed now; the next subscriber tries again."""
        self._release(stream)
        self._refuse(stream, error)

    def _refuse(self, stream: Stream, error: HubError) -> None:
        joiners, stream.joiners = stream.joiners, {}
        stream.turn.clear()
        for joiner in joiners.values():
            joiner.done(error)

    def _take(self, stream: Stream, page: Page) -> None:
        """Bring the stream to where the page is, or as far as it goes."""
        ring = stream.ring
        bodies = [body for _, body in page.publications]
        first = page.publications[0][0] if bodies else page.offset + 1
        last = first + len(bodies) - 1
        stream.recent = None
        same_life = page.epoch == stream.epoch and page.offset >= stream.floor and not stream.anew
        if not same_life:
            self.checks["lost"] += bool(stream.epoch)  # not where this is the first that is known of it
            intact = bool(stream.epoch) and survives(Position(stream.epoch, ring.top), page.epoch, page.offset)
            self._displace(stream)
            stream.epoch = page.epoch
            if not intact or stream.anew:
                self._restart(stream, page.offset, bodies if last == page.offset else [])
                return
        if page.offset <= ring.top:
            self.checks["ok"] += same_life
            stream.gap = False
        elif first <= ring.top + 1 <= last:
            for body in bodies[ring.top + 1 - first :]:
                self._advance(stream, body)
            stream.gap = last < page.offset
            self.checks["behind"] += same_life
        elif stream.newest and same_life:
            self.checks["behind"] += 1
            stream.gap = True  # more than a recovery's worth is missing: read on from `ring.top`
        else:
            # What is missing is not kept any more.
            self.checks["lost"] += same_life
            self._displace(stream)
            self._restart(stream, page.offset, bodies if last == page.offset else [])
            return
        if stream.newest and not stream.gap:
            self._extend(stream, page.offset, bodies)

    def _restart(self, stream: Stream, top: int, bodies: list[bytes]) -> None:
        stream.gap = False
        stream.ring.restart(top, bodies)
        stream.recent = bodies if stream.newest else None

    def _extend(self, stream: Stream, offset: int, bodies: list[bytes]) -> None:
        """Let the ring reach back as far as the newest publications that were read; they end at `offset`."""
        ring = stream.ring
        behind = ring.since(offset) if ring.top > offset else []
        if behind is None:
            return  # forgotten already, by a ring that may hold nothing: whoever waits for them reads again
        stream.recent = [*bodies, *behind]
        if len(stream.recent) > len(ring):
            ring.restart(ring.top, stream.recent)

    def _continue(self, stream: Stream) -> None:
        """After a read, or after all have left: what arrived meanwhile, then those who wait; or another read."""
        if stream.reading or stream.leaving or not stream.epoch or self._streams.get(stream.channel) is not stream:
            return
        self._replay(stream)
        if stream.gap or stream.again:
            self._read(stream)
        else:
            stream.reads = 0
            self._settle(stream)

    def _replay(self, stream: Stream) -> None:
        """Pass on what was held, as far as it follows."""
        held, stream.held, stream.held_bytes = stream.held, [], 0
        for at, publication in enumerate(held):
            if publication.epoch != stream.epoch:
                # Of an earlier life of the channel if it came before the read was asked for, else perhaps of the next.
                stream.again = stream.again or at >= stream.held_before
            elif publication.offset == stream.ring.top + 1 and not stream.gap:
                self._advance(stream, publication.body)
            elif publication.offset > stream.ring.top:
                stream.held, stream.gap = held[at:], True
                stream.held_bytes = sum(len(each.body) for each in stream.held)
                break
        self._pass_on()

    # Letting in.

    def _settle(self, stream: Stream) -> None:
        joiners, turn = stream.joiners, stream.turn
        turn.extend(joiners.values() if not turn else ())
        let_in = 0
        while turn and let_in < LET_IN_AT_ONCE:
            joiner = turn.popleft()
            if joiners.get(joiner.subscriber) is joiner:  # and has not given up, or got in, before its turn came
                let_in += self._let_in(stream, joiner)
        if turn:
            self._call_soon(self._continue, stream)
            return
        stream.recent = None
        if stream.joiners:
            self._read(stream)
        else:
            self._linger(stream)

    def _let_in(self, stream: Stream, joiner: Joiner) -> bool:
        """False: Redis has to be asked first."""
        answer = self._answer(stream, joiner)
        if answer is None:
            return False
        stream.joiners.pop(joiner.subscriber, None)
        stream.members[joiner.subscriber] = None
        self._fanout.join(stream.channel, stream.namespace, joiner.subscriber)
        joiner.done(answer)
        return True

    def _answer(self, stream: Stream, joiner: Joiner) -> Joined | None:
        """What a joiner is told; None: Redis has to be asked first."""
        top = stream.ring.top
        if joiner.since is None:
            return Joined(True, True, stream.epoch, top)
        verdict, missed = judge(joiner.since, stream.epoch, stream.ring, self._most)
        if verdict in (Verdict.OLDER, Verdict.UNKNOWN) and not joiner.fresh:
            return None
        if verdict is Verdict.OLDER:
            if stream.recent is None:
                joiner.asked = joiner.fresh = False  # served by a read that filled a gap only
                return None
            count = top - joiner.since.offset
            if count <= len(stream.recent):
                verdict, missed = Verdict.RECOVERED, stream.recent[len(stream.recent) - count :]
        if verdict is Verdict.RECOVERED and self._fits(missed):
            self.recovered += 1
            self.recovered_publications += len(missed)
            return Joined(True, True, stream.epoch, top, True, missed)
        self.lost += 1
        return Joined(True, True, stream.epoch, top, False)

    def _fits(self, missed: Sequence[bytes]) -> bool:
        """Whether one reply may bring it; one publication may come whatever its size.

        Who reads slowly would be closed for what comes behind too large a reply, and ask for the same again for ever.
        """
        if len(missed) <= 1:
            return True
        if missed is not self._weighed[0]:
            self._weighed = (missed, sum(map(len, missed)))
        return self._weighed[1] <= self._most_bytes

    # Taking out.

    def _displace(self, stream: Stream) -> None:
        """Take everybody out of the audience, in slices; they are told later, and come back with their positions."""
        if stream.members and not stream.leaving:
            stream.leaving = True
            self._leave_some(stream)

    def _leave_some(self, stream: Stream) -> None:
        for subscriber in list(islice(stream.members, LEAVE_AT_ONCE)):
            if subscriber in stream.members:
                del stream.members[subscriber]
                # Before it leaves: that may end its connection, which then unsubscribes.
                self._displaced[stream.channel, subscriber] = None
                self.displacements += 1
                self._fanout.leave(stream.channel, subscriber)
        if stream.members:
            self._call_soon(self._leave_on, stream)
        else:
            stream.leaving = False
            self._linger(stream)

    def _leave_on(self, stream: Stream) -> None:
        self._leave_some(stream)
        self._continue(stream)

    def _linger(self, stream: Stream) -> None:
        """Nobody is left: whoever comes back within a while finds the channel as it was."""
        if not stream.members and not stream.joiners:
            stream.emptied_at = self._clock()
            self._empty.append((stream.emptied_at, stream))

    def _release(self, stream: Stream) -> None:
        del self._streams[stream.channel]
        stream.ring.clear()
        if stream.opened:
            self._ingest.release(self._keys.channel(stream.channel))

    # What is paced.

    def tick(self) -> None:
        """To be called every TICK_S."""
        for _ in range(min(self._displaced_per_tick, len(self._displaced))):
            (channel, subscriber), _ = self._displaced.popitem(last=False)
            subscriber.displaced(channel)
        now = self._clock()
        while self._empty and self._empty[0][0] <= now - self._linger_s:
            emptied_at, stream = self._empty.popleft()
            alone = not stream.members and not stream.joiners and not stream.reading
            if alone and stream.emptied_at == emptied_at and self._streams.get(stream.channel) is stream:
                self._release(stream)
        if self._ingest.connected:
            self._check_some(now)

    def _check_some(self, now: float) -> None:
        self._read_due()
        self._share += len(self._round) * TICK_S / CHECK_S
        while self._share >= 1:
            self._share -= 1
            stream = self._round.popleft()
            if self._streams.get(stream.channel) is not stream:
                continue
            self._round.append(stream)
            if stream.live and stream.checked_at < now - CHECK_S * 2 / 3:
                self._read(stream)
