"""Broker: publications into Redis, for every worker of every machine.

Does: make of what is published the commands that store and spread it, by mode; read Redis' replies as receipts.
Does not: check rules or sizes (publish), send (lane), receive (ingest), or hold publications until Redis is back.
Called by: publish, term, barfeed.

The promise of `publish`: publications of one namespace and worker reach Redis in the order of the calls, each at most
once. `done(Receipt)` means that Redis has taken and spread it, and confirmed what the receipt's `ack` says;
`done(error)` that it may not have: after a lost connection nobody can know, and it is not sent again, because it could
then arrive twice. A publisher who gave an idempotency key may send it again.
Never break: all publications of one channel go through one lane, so that order holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from . import errors
from .channels import Namespace
from .errors import BrokerUnavailable, CommandError, HubError, StoreFull
from .histogram import SLOW_S, Histogram
from .lane import Lane
from .message import PLAIN, Publication, PublishOptions, pack
from .scripts import Command, Nonces, Outcome, Scripts
from .store import Keys, Store


class Receipt(NamedTuple):
    """What became of a publication that Redis took."""

    offset: int = 0
    """Its number in a `stream` channel; 0 in others."""
    epoch: str = ""
    duplicate: bool = False
    """Nothing was published now: this idempotency key had been, and the position is that of then."""
    ack: str = ""
    """What was waited for: 'memory', 'fsync' or 'replicas:N'; '' where nothing is kept."""
    id: str = ""
    """Of a message in a mailbox; '' elsewhere."""


TAKEN = Receipt()
"""One for all publications without a number."""
TAKEN_BEFORE = Receipt(duplicate=True)
Done = Callable[[Receipt | HubError], None]
Replied = Callable[[Any], None]
"""Hears what a script replied, or a HubError."""
MAILBOX_SCRIPTS = ("put", "open", "ack", "visit", "due", "stats", "dead", "requeue")
KNOWN_BYTES = 256
"""Of a value that takes an older one's place in a store that is nearly full, whatever the older one has."""
LEASE_LOST = "LEASELOST"
"""How publish_latest.lua and publish_ticks.lua begin the error for a lease that is not the newest."""
OUTCOMES = ("taken", "duplicate", "refused", "unconfirmed", "unavailable")
"""What may become of a publication, for figures. refused: for want of room, or of a lease; unconfirmed: stored, but not
as safely as the namespace asks for; unavailable: Redis did not take it, or nobody knows."""
MEMORY = "memory"
FSYNC = "fsync"


class BarWrites(NamedTuple):
    """What is stored of bars in one step with the ticks that they are made of; lua/publish_ticks.lua.

    closed: entries for the list of bars that are due. published: how many at that list's head are to go, because they
    have been published. forming: symbols and their forming bars, b'' for none. is_checkpoint: together with what is
    stored they say all; where not, these ticks go into the journal, from which they can be formed once more.
    """

    closed: Sequence[bytes]
    published: int
    forming: Sequence[tuple[str, bytes]]
    is_checkpoint: bool


class Lease(NamedTuple):
    """The right to publish a source's batches: its fencing token, and where the source stands after the batch."""

    token: str
    position: str
    bars: BarWrites | None = None


class Broker:
    """Publications of one worker on their way to Redis."""

    def __init__(self, store: Store, most_waiting: int, most_bytes: int = 67_108_864) -> None:
        self._store = store
        self._keys = store.keys
        self._bounds = (most_waiting, most_bytes)
        self._redis: Redis = store.commands()
        mailbox = [f"mailbox_{name}" for name in MAILBOX_SCRIPTS]
        self._scripts = Scripts(
            *("publish_latest", "publish_known", "publish_ticks", "publish_stream", "publish_once", "newest"), *mailbox
        )
        self._nonces = Nonces()
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        """Of publications, since the start."""
        self.seconds = Histogram(SLOW_S)
        """Of round trips to Redis."""
        self.on_full: Callable[[], None] = lambda: None
        """Redis has refused a write for want of memory."""
        self._lane = Lane(self._redis, self._scripts, *self._bounds, seconds=self.seconds)
        self._confirmed_lanes: dict[str, Lane] = {}

    @property
    def waiting_bytes(self) -> int:
        """Of publications that wait for Redis, or are on their way there."""
        return self._lane.bytes + sum(lane.bytes for lane in self._confirmed_lanes.values())

    def retune(self, most_waiting: int, most_bytes: int) -> None:
        """Other bounds from now on; what waits stays."""
        self._bounds = (most_waiting, most_bytes)
        for lane in (self._lane, *self._confirmed_lanes.values()):
            lane.most_waiting, lane.most_bytes = self._bounds

    async def ping(self) -> None:
        """Return if Redis answers and has the scripts. Raises BrokerUnavailable with the cause."""
        try:
            await self._redis.ping()
            await self._scripts.load(self._redis)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    async def close(self) -> None:
        """Send what waits, as far as Redis takes it, then let go of the connections."""
        for lane in (self._lane, *self._confirmed_lanes.values()):
            await lane.close()

    def publish(
        self,
        rules: Namespace,
        namespace: str,
        publications: Sequence[Publication],
        done: Done,
        lease: Lease | None = None,
        options: PublishOptions = PLAIN,
    ) -> None:
        """Send publications of one namespace; `latest`: all in one step, else each by itself and `done` once for each.

        lease: only in `latest`. options: not there; a version only in `stream`.
        `done` is called later, never from within this call, with a Receipt, BrokerUnavailable, or CommandError: 111
        when too many wait, 103 when `lease` is no longer the newest, 100 when it is stored but not confirmed in time,
        108 when it is stored and this store can't confirm what the namespace asks for.
        """
        lane = self._lane if rules.mode != "stream" or rules.ack == MEMORY else self._confirmed_lane(rules.ack)
        size = sum(len(publication.body) for publication in publications)
        if not lane.has_room(size):
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many publishes wait for Redis")
            self.outcomes["refused"] += len(publications)
            asyncio.get_running_loop().call_soon(done, error)
        elif rules.mode == "latest":
            tell = partial(self._tell, done, len(publications))
            lane.put(self._latest(namespace, publications, lease), size, tell)
        elif rules.mode == "stream" and not options.skip_history:
            tell = partial(self._tell_numbered, done, rules.ack)
            for publication in publications:
                command = stream_command(self._scripts, self._keys, rules, publication, options, self._nonces())
                lane.put(command, len(publication.body), tell)
        else:
            for publication in publications:
                lane.put(self._plain(rules, publication, options), len(publication.body), partial(self._tell, done, 1))

    def publish_known(self, namespace: str, publication: Publication, done: Done) -> None:
        """Send one of a `latest` namespace that takes the place of its channel's last value, and no more room.

        `done` as `publish` has it; StoreFull for a channel that has none yet, or a value that is longer, beyond
        KNOWN_BYTES.
        """
        size = len(publication.body)
        if not self._lane.has_room(size):
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many publishes wait for Redis")
            self.outcomes["refused"] += 1
            asyncio.get_running_loop().call_soon(done, error)
            return
        arguments = [self._keys.feed(namespace), pack([publication]), publication.body, KNOWN_BYTES]
        command = self._scripts.call("publish_known", [self._keys.last(namespace, publication.channel)], arguments)
        self._lane.put(command, size, partial(self._tell, done, 1))

    def script(
        self, name: str, keys: Sequence[str], arguments: Sequence[Any], replied: Replied, ack: str = MEMORY
    ) -> None:
        """Run a script of another room, in order with what is published under the same `ack`.

        `replied` is called later, never from within this call, with the script's reply, BrokerUnavailable, or
        CommandError: 111 when too many wait, 100 and 108 for an `ack` that was not confirmed, as `publish` has them.
        """
        lane = self._lane if ack == MEMORY else self._confirmed_lane(ack)
        size = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
        if lane.has_room(size):
            lane.put(self._scripts.call(name, keys, arguments), size, partial(self._tell_reply, replied, ack))
        else:
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many commands wait for Redis")
            asyncio.get_running_loop().call_soon(replied, error)

    def command(self, command: Command, size: int, replied: Replied) -> None:
        """Run one command of another room, in order with what is published; `replied` as `script` has it.

        size: its bytes, for the bound on what waits.
        """
        if self._lane.has_room(size):
            self._lane.put(command, size, partial(self._tell_reply, replied, MEMORY))
        else:
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many commands wait for Redis")
            asyncio.get_running_loop().call_soon(replied, error)

    async def last(self, namespace: str, channels: Sequence[str]) -> list[bytes | None]:
        """The newest bodies of channels of a `latest` namespace, None where there is none yet.

        Raises BrokerUnavailable.
        """
        try:
            names = [self._keys.last(namespace, channel) for channel in channels]
            return cast("list[bytes | None]", await self._redis.mget(names))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    def _confirmed_lane(self, ack: str) -> Lane:
        lane = self._confirmed_lanes.get(ack)
        if lane is None:
            wait_s = self._store.command_timeout_s
            _, _, replicas = ack.partition(":")
            confirm = ("WAIT", int(replicas), int(wait_s * 1000)) if replicas else ("WAITAOF", 1, 0, int(wait_s * 1000))
            # Twice: the wait, and then as long as any answer may take.
            redis = self._store.commands(2 * wait_s)
            lane = self._confirmed_lanes[ack] = Lane(redis, self._scripts, *self._bounds, confirm, self.seconds)
        return lane

    # Commands.

    def _latest(self, namespace: str, publications: Sequence[Publication], lease: Lease | None) -> Command:
        # One channel twice in a batch: the script writes both, and the later one stays.
        keys = [self._keys.lease(namespace), self._keys.source(namespace)]
        channels = [self._keys.last(namespace, publication.channel) for publication in publications]
        token, position, bars = lease or ("", "", None)
        arguments: list[Any] = [self._keys.feed(namespace), pack(publications), token, position]
        bodies = [publication.body for publication in publications]
        if bars is None:
            return self._scripts.call("publish_latest", [*keys, *channels], [*arguments, *bodies])
        keys += [self._keys.forming(namespace), self._keys.journal(namespace), self._keys.due_bars(namespace)]
        arguments += [bars.published, int(bars.is_checkpoint), len(bars.forming)]
        forming = [item for pair in bars.forming for item in pair]
        return self._scripts.call("publish_ticks", keys + channels, [*arguments, *bodies, *forming, *bars.closed])

    def _plain(self, rules: Namespace, publication: Publication, options: PublishOptions) -> Command:
        topic, payload, key = self._keys.channel(publication.channel), pack([publication]), options.idempotency_key
        if not key:
            return ("PUBLISH", topic, payload)
        remembered_ms = int(rules.idempotency_ttl_s * 1000)
        return self._scripts.call(
            "publish_once", [self._keys.once(publication.channel, key)], [topic, payload, remembered_ms]
        )

    # Verdicts.

    def count(self, outcome: Receipt | HubError, number: int = 1) -> None:
        """What became of so many publications."""
        if isinstance(outcome, Receipt):
            name = "duplicate" if outcome.duplicate else "taken"
        elif isinstance(outcome, StoreFull):
            name = "refused"
        elif isinstance(outcome, CommandError):
            name = "unconfirmed" if outcome.reply in (errors.INTERNAL, errors.NOT_AVAILABLE) else "refused"
        else:
            name = "unavailable"
        self.outcomes[name] += number

    def _settle(self, done: Done, outcome: Receipt | HubError, number: int = 1) -> None:
        self.count(outcome, number)
        done(outcome)

    def _tell(self, done: Done, number: int, outcome: Outcome) -> None:
        reply = outcome.reply
        if isinstance(reply, ResponseError) and str(reply).startswith(LEASE_LOST):
            lost = CommandError(errors.PERMISSION_DENIED, "the lease has passed to another worker")
            self._settle(done, lost, number)
        elif isinstance(reply, Exception):
            # Out of memory, read-only, loading, link lost: all of them may pass.
            self._settle(done, self._unavailable(reply), number)
        elif reply == b"full":
            self._settle(done, StoreFull("no room for a new value"), number)
        else:
            self._settle(done, TAKEN_BEFORE if reply == b"duplicate" else TAKEN, number)

    def _tell_numbered(self, done: Done, ack: str, outcome: Outcome) -> None:
        if isinstance(outcome.reply, Exception):
            self._settle(done, self._unavailable(outcome.reply))
        elif ack != MEMORY and (doubt := _doubt(ack, outcome.confirmed)):
            self._settle(done, doubt)
        else:
            offset, epoch, what = cast("tuple[bytes, bytes, bytes]", outcome.reply)
            self._settle(done, Receipt(int(offset), str(epoch, "ascii"), what == b"duplicate", ack))

    def _tell_reply(self, replied: Replied, ack: str, outcome: Outcome) -> None:
        if isinstance(outcome.reply, Exception):
            replied(self._unavailable(outcome.reply))
        else:
            replied((_doubt(ack, outcome.confirmed) if ack != MEMORY else None) or outcome.reply)

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        # Of a script in a Redis before 7 the error's name stands within its text.
        full = isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error)
        if full:
            self.on_full()
        return (StoreFull if full else BrokerUnavailable)(f"Redis at {self._store.describe()}: {error}")


def stream_command(
    scripts: Scripts, keys: Keys, rules: Namespace, publication: Publication, options: PublishOptions, nonce: str
) -> Command:
    """The command that numbers, keeps and spreads one publication; publish_stream.lua says what it answers."""
    channel, key = publication.channel, options.idempotency_key
    names = [keys.generation, keys.meta(channel), keys.stream(channel)]
    arguments: list[Any] = [
        keys.channel(channel),
        channel,
        publication.body,
        nonce,
        rules.history_size,
        int(rules.history_ttl_s * 1000),
        int(rules.history_meta_ttl_s * 1000),
    ]
    # Only where they are used: each costs Redis a string.
    if key or options.version:
        names.append(keys.once(channel, key))
        arguments += [int(rules.idempotency_ttl_s * 1000) if key else "", options.version or "", options.version_epoch]
    return scripts.call("publish_stream", names, arguments)


def _doubt(ack: str, confirmed: object) -> CommandError | None:
    """Why a stored publication can't be called confirmed, if so. confirmed: what WAIT or WAITAOF replied."""
    if isinstance(confirmed, ResponseError):
        # WAITAOF is not there before Redis 7.2, and fails where no append-only file is written.
        return CommandError(errors.NOT_AVAILABLE, f"stored, but this store can't confirm ack {ack!r}: {confirmed}")
    if ack == FSYNC:
        enough = isinstance(confirmed, list) and confirmed[0] >= 1
    else:
        enough = isinstance(confirmed, int) and confirmed >= int(ack.partition(":")[2])
    return None if enough else CommandError(errors.INTERNAL, f"stored, but not confirmed in time: ack {ack!r}")
