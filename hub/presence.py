"""Presence: Redis and the watchers hear of who is subscribed where, and whoever may know is answered.

Does: send what attendance notes in batches, keep the worker's lease, clear up after dead workers, tell leaves that were
held back, answer who is there.
Does not: keep this worker's own clients (attendance), word commands (roll), check rules (session, asking), push (the
scripts publish, fanout delivers).
Called by: session (enter, exit), asking and api (ask), building, worker (start, close).
Never break: `enter` and `exit` are plain calls that never fail, whatever becomes of Redis; one Task sends everything,
one batch at a time, so that who asks sees all that this worker noted before.

What others see is right within a round trip, and soft: nothing is kept but leases and keys that expire. This worker's
clients are told to Redis again, under a new uid, whenever the lease had ended (the worker was hung, or the store was
flushed) or another Redis process answers (a restart, a failover); what stood under the old uid goes with its lease.
Channels are touched now and then, and entered again where entries are missing.

Pushes. A `join` when a client enters a channel, a `leave` when it is out again, both with its user and client id:

 - A client that unsubscribes: the leave is told at once.
 - A client that was lost, with its connection or its worker: the leave waits for `grace_s`. If meanwhile the same user
   enters the channel by another connection, on whatever worker, neither that leave nor that join is told; to watchers
   the new one goes on under the old one's client id, which its own leave will carry.
 - A user whose new connection enters before the old one is known to be lost, because its worker was killed or its
   network changed, has two for a while: watchers are told of the join at once and of the old one's leave later, so that
   nobody ever takes the user for away.
 - The anonymous user '' has no grace, for nobody can know who came back.
 - Presence itself never waits: who is asked lists the clients of this moment with their own ids.

Pushes are sent at most once, like publications of mode `none`: who must be certain asks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from typing import Any

from redis.exceptions import RedisError

from . import errors
from .attendance import MAX_CHANNELS, MAX_CLIENTS, Attendance, Batch
from .audience import Subscriber
from .channels import Channels, Namespace
from .errors import BrokerUnavailable, CommandError, HubError
from .fanout import Fanout
from .log import Brake
from .message import ClientInfo
from .roll import LEASE_S, MAX_DEPARTURES, Entry, Roll, Rolls, is_in_the_way, parse_roll, parse_scan, parse_term
from .scripts import Command
from .store import Store

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 8
"""A dead worker is noticed an eighth of a lease after its end at the latest: 4.5 s after its last sign in all."""
TOUCH_S = 20.0
"""All channels are touched once in about this time; three of it fit into a roll's life."""
RETRY_S = 1.0
"""Pause after Redis failed, jittered by half of it either way."""
DEPARTURE_STEP_S = 0.25
"""Held leaves of a channel are told together, up to so much late."""
MAX_CLEARED = 64
"""Channels of a dead worker in one step."""
MAX_ASKS = 10_000
"""Questions that wait for the next batch; more are refused. Equal ones count once and share their answer."""

Answered = Callable[[Roll | HubError], None]


class Presence:
    """The presence of one worker's clients."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        channels: Channels,
        grace_s: float = 5.0,
        most_clients: int = 1000,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        """grace_s: how long a lost client's leave push waits; most_clients: in one answer."""
        self._rolls = Rolls(store, lease_s)
        self._renew_s = lease_s / RENEWALS_PER_LEASE
        self._topic = store.keys.topic
        self._channels = channels
        self._grace_s = grace_s
        self._most_clients = most_clients
        self._clock = clock
        self._jitter = jitter
        self._new_uid = new_uid
        self.uid = new_uid()
        self._identity = b""
        self._attendance = Attendance(fanout)
        self._asks: dict[tuple[str, int], list[Answered]] = {}
        self._noted: set[str] = set()
        """Channels that stand in Redis as those where is to clear up after us."""
        self._departures: deque[tuple[float, str]] = deque()
        """When to tell the held leaves of a channel."""
        self._last_departure: dict[str, float] = {}
        self._dead: dict[str, None] = {}
        """Workers to clear up after."""
        self._touching: deque[str] = deque()
        self._touch_count = 0
        self._touch_at = 0.0
        self._renew_at = 0.0
        self._down: BrokerUnavailable | None = None
        """Why Redis failed last; until the next attempt nobody need wait for it."""
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._trouble = Brake()

    def start(self) -> None:
        """Keep the lease and send what is noted, until `close`; again without effect."""
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    def retune(self, grace_s: float, most_clients: int) -> None:
        """As the constructor has them, from now on."""
        self._grace_s, self._most_clients = grace_s, most_clients

    async def close(self) -> None:
        """Send what is noted, as far as Redis takes it; another worker tells the leaves that are held back."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner
            with suppress(BrokerUnavailable):  # then the lease's end does it
                while self._attendance.dirty:
                    await self._flush()
                cleared = self._rolls.cleared(self.uid)
                await self._rolls.run([self._rolls.retire(self.uid)] if self._noted else cleared)
        self._refuse(BrokerUnavailable("the worker ends"))
        await self._rolls.close()

    # What sessions call.

    def enter(
        self, channel: str, namespace: Namespace, info: ClientInfo, subscriber: Subscriber, watch: bool = False
    ) -> None:
        """A client is subscribed. watch: it is told who comes and goes from now on."""
        if namespace.presence != "off":
            self._attendance.enter(channel, namespace, info, subscriber if watch else None)
            self._wake.set()

    def exit(self, channel: str, client: str, hold: bool) -> None:
        """A client that may have entered is subscribed no more. hold: it was lost, and its user may come back."""
        self._attendance.exit(channel, client, hold)
        self._wake.set()

    def ask(self, channel: str, full: bool, done: Answered) -> None:
        """Who is in a channel, of all workers. full: each client, not the counts alone.

        `done` is called later with a Roll, BrokerUnavailable, or CommandError: 106 for more clients than fit in an
        answer, 111 when too much is being asked.
        """
        error: HubError | None = self._down
        key = (channel, self._most_clients if full else 0)
        if error is None and len(self._asks) >= MAX_ASKS and key not in self._asks:
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many questions wait for Redis")
        if error is not None:
            asyncio.get_running_loop().call_soon(done, error)
            return
        self._asks.setdefault(key, []).append(done)
        self._wake.set()

    # The one background task.

    async def _run(self) -> None:
        while not self._closing:
            try:
                await self._step()
            except BrokerUnavailable as error:
                self._trouble.warning(logger, "presence: %s", error)
                await self._pause(error)
            except Exception:
                # A fault of ours in one step must not cost this worker's clients their presence.
                logger.exception("presence: a step failed")
                await self._pause(BrokerUnavailable("presence failed"))

    async def _pause(self, error: BrokerUnavailable) -> None:
        """Let Redis recover; the lease comes first then, for it may have ended meanwhile."""
        self._down = error
        self._refuse(error)
        self._renew_at = 0.0
        stop_at = self._clock() + RETRY_S * (0.5 + self._jitter())
        while not self._closing and (left_s := stop_at - self._clock()) > 0:
            await self._sleep(left_s)
        self._down = None

    async def _step(self) -> None:
        """A little of all that is to be done, or wait for something."""
        now = self._clock()
        if now >= self._renew_at:
            self._renew_at = now + self._renew_s
            await self._renew()
            await self._touch()
        if self._attendance.dirty or self._attendance.moved or self._asks:
            await self._flush()
        if self._departures and self._departures[0][0] <= now:
            await self._depart(now)
        if self._dead:
            await self._clear_up(next(iter(self._dead)))
        elif not (self._attendance.dirty or self._asks):
            due = min(self._renew_at, self._departures[0][0] if self._departures else self._renew_at)
            await self._sleep(due - self._clock())

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):  # time for the next step
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        self._wake.clear()

    # Sending.

    async def _flush(self) -> None:
        """One batch: where there is to clear up after us, who left and entered, what is asked."""
        batches = self._attendance.take()
        asks, self._asks = self._asks, {}
        moved, self._attendance.moved = self._attendance.moved, set()
        needed = {channel for channel in moved if self._is_needed(channel)}
        new, over = needed - self._noted, (moved - needed) & self._noted
        commands = self._rolls.attend(self.uid, sorted(new)) if new else []
        first = len(commands)
        changes = [command for batch in batches for command in self._commands(batch)]
        questions = [self._rolls.read(channel, most) for channel, most in asks]
        commands += changes
        # Behind the changes: they are the last ones of a channel that is over.
        commands += [self._rolls.unattend(self.uid, sorted(over))] if over else []
        try:
            answers = await self._rolls.run(commands + questions) if commands or questions else []
            self._check(answers[: len(commands)])
        except BrokerUnavailable as error:
            self._attendance.put_back(batches)
            self._attendance.moved |= moved
            self._refuse(error, asks)
            raise
        self._noted = self._noted - over | new
        # Some have moved again while this was under way.
        self._attendance.moved |= {channel for channel in over if self._is_needed(channel)}
        for ((_, most), dones), answer in zip(asks.items(), answers[len(commands) :], strict=True):
            self._tell(dones, self._verdict(answer, most))
        self._settle(batches, iter(answers[first:]))

    def _is_needed(self, channel: str) -> bool:
        """Should this worker die, there is something to clear up in the channel."""
        return channel in self._attendance.rooms or channel in self._last_departure

    def _commands(self, batch: Batch) -> list[Command]:
        """Leaves first, so that a user whose old connection ended just as the new one came has not been away."""
        channel, topic = batch.channel, self._push_topic(batch.channel, batch.room.namespace)
        commands = []
        if batch.leaves:
            leaves = [(change.member.info, change.hold) for change in batch.leaves]
            commands.append(self._rolls.leave(channel, topic, self.uid, self._grace_s, leaves))
        if batch.joins:
            entries = [Entry(change.member.info, change.member.name) for change in batch.joins]
            commands.append(self._rolls.join(channel, topic, self.uid, entries))
        return commands

    def _push_topic(self, channel: str, namespace: Namespace) -> str:
        return self._topic(channel, namespace.mode) if namespace.join_leave else ""

    def _settle(self, batches: list[Batch], answers: Iterator[Any]) -> None:
        for batch in batches:
            if batch.leaves:
                next(answers)
                if batch.room.namespace.join_leave and any(change.hold for change in batch.leaves):
                    self._schedule(batch.channel)
            names = next(answers) if batch.joins else []
            if isinstance(names, RedisError):
                names = [b""] * len(batch.joins)
            self._attendance.settle(batch, [name.decode() for name in names])

    # Held leaves.

    def _schedule(self, channel: str) -> None:
        """Tell the leaves that are held back now when their time has come."""
        due = ceil((self._clock() + self._grace_s) / DEPARTURE_STEP_S + 0.2) * DEPARTURE_STEP_S
        if self._last_departure.get(channel) != due:
            self._last_departure[channel] = due
            self._departures.append((due, channel))
            self._attendance.moved.add(channel)

    async def _depart(self, now: float) -> None:
        due: list[tuple[float, str]] = []
        while self._departures and self._departures[0][0] <= now and len(due) < MAX_CHANNELS:
            due.append(self._departures.popleft())
        try:
            answers = await self._rolls.run([self._depart_command(channel) for _, channel in due])
            self._check(answers)
        except BrokerUnavailable:
            self._departures.extendleft(reversed(due))
            raise
        for (when, channel), count in zip(due, answers, strict=True):
            if count == MAX_DEPARTURES:
                self._departures.appendleft((when, channel))
            elif self._last_departure.get(channel) == when:
                del self._last_departure[channel]
                self._attendance.moved.add(channel)

    def _depart_command(self, channel: str) -> Command:
        return self._rolls.depart(channel, self._topic(channel, self._channels.resolve(channel).mode))

    # The lease, and what stands in Redis.

    async def _renew(self) -> None:
        term = parse_term(await self._one(self._rolls.renew(self.uid)))
        anew = bool(self._identity) and (not term.held or term.identity != self._identity)
        self._identity = term.identity
        self._dead.update(dict.fromkeys(term.dead))
        if anew:
            await self._begin_anew("the lease had ended, or the store is another one")

    async def _begin_anew(self, reason: str) -> None:
        """Enter everybody again under a new uid; whatever stands under the old one goes with its lease."""
        logger.info("presence: all clients are entered again: %s", reason)
        self.uid = self._new_uid()
        self._attendance.enter_again(list(self._attendance.rooms))
        self._noted, self._attendance.moved = set(), {*self._attendance.rooms, *self._last_departure}
        await self._one(self._rolls.renew(self.uid))

    async def _touch(self) -> None:
        """Keep the next part of the rolls alive; in a random order, so that workers don't go in step."""
        now, rooms = self._clock(), self._attendance.rooms
        if not self._touching and now >= self._touch_at:
            self._touch_at = now + TOUCH_S / 2 * (1 + self._jitter())
            self._touching.extend(sorted(rooms, key=lambda channel: self._jitter()))
            self._touch_count = ceil(len(rooms) * self._renew_s / (TOUCH_S / 2))
        count = min(self._touch_count, len(self._touching))
        for size in [MAX_CHANNELS] * (count // MAX_CHANNELS) + [count % MAX_CHANNELS]:
            batch = [self._touching.popleft() for _ in range(size)]
            # Whose changes are on the way is kept alive by them.
            await self._touch_now({c: len(rooms[c].members) for c in batch if c in rooms and not rooms[c].changes})

    async def _touch_now(self, expected: dict[str, int]) -> None:
        """expected: how many clients of this worker stand in each roll, if nothing of it is lost."""
        if not expected:
            return
        answers = await self._rolls.run([self._rolls.touch(channel, self.uid) for channel in expected])
        self._check(answers)
        pairs = zip(expected, answers, strict=True)
        found = {channel: answer for channel, answer in pairs if not isinstance(answer, RedisError)}
        if any(count > expected[channel] for channel, count in found.items()):
            await self._begin_anew("clients that are gone were still in a roll")
            return
        lost = [c for c, count in found.items() if count < expected[c] and c in self._attendance.rooms]
        if lost:
            logger.info("presence: clients were missing in the rolls of %d channels", len(lost))
            self._attendance.enter_again(lost)

    async def _clear_up(self, uid: str) -> None:
        """One step of taking out the clients of a worker that is no more."""
        channels = [name.decode() for name in await self._one(self._rolls.attended(uid, MAX_CLEARED))]
        if not channels:
            await self._rolls.run(self._rolls.cleared(uid))
            self._dead.pop(uid, None)
            return
        cursors = dict.fromkeys(channels, 0)
        while cursors:
            answers = await self._rolls.run([self._rolls.scan(c, cursor) for c, cursor in cursors.items()])
            self._check(answers)
            pairs = [(c, one) for c, one in zip(cursors, answers, strict=True) if not isinstance(one, RedisError)]
            found = {c: parse_scan(answer, uid) for c, answer in pairs}
            commands = [command for c, (_, gone) in found.items() for command in self._removals(c, uid, gone)]
            self._check(await self._rolls.run(commands) if commands else [])
            cursors = {c: cursor for c, (cursor, _) in found.items() if cursor}
        # What it held back is ours to tell, and noted as ours before it is forgotten there.
        held = [channel for channel in channels if self._has_pushes(channel)]
        for channel in held:
            self._schedule(channel)
        await self._flush()
        await self._one(self._rolls.unattend(uid, channels))

    def _removals(self, channel: str, uid: str, gone: list[ClientInfo]) -> list[Command]:
        topic = self._push_topic(channel, self._channels.resolve(channel)) if self._has_pushes(channel) else ""
        return [
            self._rolls.leave(channel, topic, uid, self._grace_s, [(info, True) for info in gone[i : i + MAX_CLIENTS]])
            for i in range(0, len(gone), MAX_CLIENTS)
        ]

    def _has_pushes(self, channel: str) -> bool:
        try:
            return self._channels.resolve(channel).join_leave
        except CommandError:
            return False  # a namespace that another version of the settings had

    # Small parts.

    async def _one(self, command: Command) -> Any:
        answers = await self._rolls.run([command])
        self._check(answers)
        if isinstance(answers[0], RedisError):
            raise self._rolls.unavailable(answers[0])
        return answers[0]

    def _check(self, answers: list[Any]) -> None:
        """Raise BrokerUnavailable for a command that Redis refused: out of memory, read-only, loading.

        What is in the way of one channel's roll costs that channel its presence, and no other; once it is gone, a touch
        finds the clients missing and enters them.
        """
        for answer in answers:
            if isinstance(answer, RedisError):
                if not is_in_the_way(answer):
                    raise self._rolls.unavailable(answer)
                self._trouble.warning(logger, "presence: the key of a roll is something else: %s", answer)

    def _verdict(self, answer: Any, most: int) -> Roll | HubError:
        if isinstance(answer, RedisError):
            return self._rolls.unavailable(answer)
        roll = parse_roll(answer, most)
        if most and roll.body is None:
            text = f"{roll.clients} clients; allowed in one answer: {most}, presence_stats has the numbers"
            return CommandError(errors.LIMIT_EXCEEDED, text)
        return roll

    def _refuse(self, error: BrokerUnavailable, asks: dict[tuple[str, int], list[Answered]] | None = None) -> None:
        if asks is None:
            asks, self._asks = self._asks, {}
        for dones in asks.values():
            self._tell(dones, error)

    def _tell(self, dones: list[Answered], verdict: Roll | HubError) -> None:
        for done in dones:
            try:
                done(verdict)
            except Exception:
                # One asker's fault must not keep the answers from all others.
                logger.exception("presence: an answer could not be handed on")
