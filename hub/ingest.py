"""Ingest: the one connection on which a worker receives from Redis.

Does: hold Redis channels, read everything that comes, hand each read's publications on as one batch; reconnect,
resubscribe.
Does not: know audiences or sessions, or ever stop reading: a subscriber that stops is cut off by Redis.
Called by: subscribe and streams (hold, release), registry (the control channel), loopback (drop); calls what `worker`
gave it for each kind of message.
Never break: `ready` of `hold` means that every publication from now on arrives here; it is told before the first of
them.

redis-py's pub/sub costs tens of microseconds and several awaits for each message; this reads with hiredis alone (under
1 µs). RESP2, because a RESP3 push could not be told from a reply as cheaply, and hiredis before 3.5 leaks on them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from . import tasks
from .errors import BrokerUnavailable, HubError
from .log import Brake
from .message import (
    ARRIVAL_PREFIX,
    FEED_PREFIX,
    STREAM_PREFIX,
    Arrival,
    Publication,
    StreamPublication,
    unpack,
    unpack_arrivals,
    unpack_stream,
)
from .store import Endpoint, Store

logger = logging.getLogger(__name__)

Ready = Callable[[HubError | None], None]
RESUBSCRIBE_BATCH = 512
"""Channels in one SUBSCRIBE: keeps each command, and Redis' time for it, short."""
HOLD_S = 0.0003
"""Of the loop's time for one more channel, from the question to its end: measured with eight who only come and go."""
PING_INTERVAL_S = 2.0
PINGS = 3
"""A link on which none of so many is answered is dead, whatever TCP says."""
CONNECT_TIMEOUT_S = 6.0
BACKOFF_S = (0.05, 2.0)
"""First and longest pause between two attempts to connect; each is doubled and jittered."""


class Ingest:
    """The subscriber connection of one worker."""

    def __init__(
        self,
        store: Store,
        on_publications: Callable[[list[Publication]], None],
        on_control: Callable[[bytes], None],
        on_stream: Callable[[list[StreamPublication]], None] = lambda publications: None,
        on_connected: Callable[[], None] = lambda: None,
        on_arrivals: Callable[[list[Arrival]], None] = lambda arrivals: None,
    ) -> None:
        """on_publications, on_stream: what one read brought, without and with positions.

        on_connected: the link is up and everything that is held arrives again; what came in between does not.
        """
        self._store = store
        self._on_publications = on_publications
        self._on_stream = on_stream
        self._on_connected = on_connected
        self._on_arrivals = on_arrivals
        self._own: dict[bytes, Callable[[bytes], None]] = {store.keys.control.encode(): on_control}
        """Redis channels that carry no publications, and who gets their messages."""
        self._held: set[bytes] = set(self._own)
        self._confirming: dict[bytes, deque[list[Ready]]] = {}
        self._to_hold: list[bytes] = []
        """Asked for in this turn of the loop, and not sent yet."""
        self.on_cost: Callable[[float], None] = lambda work_s: None
        """Told what a question will cost the loop later, while the one who asks is being read; set by worker."""
        self._awaited = b""
        """The channel whose confirmation ends a resubscription."""
        self._link: _Link | None = None
        self._runner: asyncio.Task[None] | None = None
        self._malformed = Brake()
        self.links = 0
        """Times that the link came up, since the start."""
        self.connected = False
        """Redis answers on this link and all that is held has been asked for."""

    def start(self) -> None:
        """Connect, and stay connected until `close`."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Leave Redis."""
        if self._runner is not None:
            await tasks.end(self._runner)
            self._runner = None

    def listen(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """Receive a Redis channel that carries no publications; before `start`."""
        self._own[channel.encode()] = on_message
        self._held.add(channel.encode())

    def drop(self, reason: str) -> None:
        """The link is of no use any more, whatever TCP says: connect anew."""
        if self._link is not None and self.connected:
            self._link.fail(BrokerUnavailable(reason))

    def hold(self, channel: str, ready: Ready) -> None:
        """Receive a Redis channel.

        `ready(None)` once Redis has confirmed, `ready(BrokerUnavailable)` if it can't be had now.
        """
        name = channel.encode()
        link = self._link
        if link is None or not self.connected:
            asyncio.get_running_loop().call_soon(ready, BrokerUnavailable("the subscriber connection to Redis is down"))
            return
        self._held.add(name)
        self.on_cost(HOLD_S)
        # One list of callbacks for each SUBSCRIBE sent: after a release and a new hold, the first answer must not
        # confirm the second.
        self._confirming.setdefault(name, deque()).append([ready])
        # All that one turn asks for is one command: thousands may come back at once, each to a channel of their own.
        if not self._to_hold:
            asyncio.get_running_loop().call_soon(self._send_holds)
        self._to_hold.append(name)

    def release(self, channel: str) -> None:
        """No more of a channel that is held."""
        name = channel.encode()
        self._held.discard(name)
        if self._link is not None:
            self._send_holds()  # Redis has to hear both in this order
            self._link.send("UNSUBSCRIBE", name)

    def _send_holds(self) -> None:
        names, self._to_hold = self._to_hold, []
        if self._link is not None and names:
            self._subscribe(self._link, names)

    def _subscribe(self, link: _Link, names: list[bytes]) -> None:
        for i in range(0, len(names), RESUBSCRIBE_BATCH):
            link.send("SUBSCRIBE", *names[i : i + RESUBSCRIBE_BATCH])

    # What the link calls.

    def received(self, replies: list[Any]) -> None:
        """Everything that one read brought."""
        publications: list[Publication] = []
        numbered: list[StreamPublication] = []
        own = self._own
        for reply in replies:
            kind = reply[0] if isinstance(reply, list) and len(reply) == 3 else b""
            if kind == b"message":
                name, payload = reply[1], reply[2]
                # The usual kind first, and without a call for each: a worker takes hundreds of thousands a second.
                if payload[:2] == FEED_PREFIX and name not in own:
                    try:
                        publications += unpack(payload)
                    except ValueError as error:
                        self._ignore(name, error)
                else:
                    if name in own and publications:
                        # What belongs between publications has to find those before it delivered.
                        self._on_publications(publications)
                        publications = []
                    self._message(name, payload, numbered)
            elif kind == b"subscribe":
                self._confirmed(reply[1])
        if publications:
            self._on_publications(publications)
        if numbered:
            self._on_stream(numbered)

    def _message(self, name: bytes, payload: bytes, numbered: list[StreamPublication]) -> None:
        if name in self._own:
            self._own[name](payload)
            return
        try:
            if payload.startswith(STREAM_PREFIX):
                numbered += unpack_stream(payload)
            elif payload.startswith(ARRIVAL_PREFIX):
                self._on_arrivals(unpack_arrivals(payload))
            else:
                unpack(payload)  # of no version that there is: it says so
        except ValueError as error:
            self._ignore(name, error)

    def _ignore(self, name: bytes, error: ValueError) -> None:
        self._malformed.warning(logger, "dropped what somebody published on %r: %s", name, error)

    def _confirmed(self, name: bytes) -> None:
        if name == self._awaited and self._link is not None:
            self._awaited = b""
            self._link.resubscribed()
        queue = self._confirming[name]
        callbacks = queue.popleft()
        if not queue:
            del self._confirming[name]
        for ready in callbacks:
            try:
                ready(None)
            except Exception:
                # One subscriber's fault must not cost the others of this read their confirmations and publications.
                logger.exception("a subscription failed on its confirmation")

    # The life of the link.

    async def _run(self) -> None:
        pause_s = BACKOFF_S[0]
        while True:
            try:
                link = await self._connect()
                pause_s = BACKOFF_S[0]
                await self._serve(link)
            except (OSError, BrokerUnavailable, TimeoutError) as error:
                why = str(error) or f"not up within {CONNECT_TIMEOUT_S:g} s"  # of a TimeoutError
                logger.warning("subscriber connection to Redis at %s: %s", self._store.describe(), why)
            finally:
                self._down()
            # Full jitter, so that the workers of a machine don't come back in one beat.
            await asyncio.sleep(pause_s * random.random())
            pause_s = min(pause_s * 2, BACKOFF_S[1])

    async def _connect(self) -> _Link:
        endpoint = await self._store.endpoint()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            link = await _open(endpoint, self.received)
            self._link = link
            link.greet(endpoint)
            held = sorted(self._held)
            for name in held:
                # A place in the queue for each answer, though nobody waits for it: the next `hold` must not take it
                # for its own.
                self._confirming.setdefault(name, deque()).append([])
            # Redis answers in order, so the last one's answer says that all are held.
            self._awaited = held[-1]
            self._subscribe(link, held)
            await link.answered()
        self.connected = True
        self.links += 1
        logger.info("subscriber connection to Redis at %s is up, %d channels", self._store.describe(), len(held))
        self._on_connected()
        return link

    async def _serve(self, link: _Link) -> None:
        """Stay until the link is lost or silent; raises OSError or BrokerUnavailable with the cause."""
        unanswered, heard = 0, link.reads
        while True:
            try:
                async with asyncio.timeout(PING_INTERVAL_S):
                    await link.lost()
            except TimeoutError:
                # By PINGs and not by the clock: a worker that stood still for long sees its timers before it reads what
                # has come meanwhile, and publications are among that. Between two of these it has read.
                unanswered, heard = unanswered if link.reads == heard else 0, link.reads
                if unanswered >= PINGS:
                    raise BrokerUnavailable(f"no answer to {unanswered} PINGs") from None
                link.send("PING")
                unanswered += 1

    def _down(self) -> None:
        self.connected = False
        link, self._link = self._link, None
        if link is not None:
            link.close()
        waiting, self._confirming = self._confirming, {}
        self._to_hold = []
        for name, queue in waiting.items():
            if any(queue):
                # Nobody was told that it is held, so nobody will release it.
                self._held.discard(name)
            for callbacks in queue:
                for ready in callbacks:
                    ready(BrokerUnavailable("the subscriber connection to Redis was lost"))


async def _open(endpoint: Endpoint, received: Callable[[list[Any]], None]) -> _Link:
    loop = asyncio.get_running_loop()
    if endpoint.path:
        _, link = await loop.create_unix_connection(lambda: _Link(loop, received), endpoint.path)
        return link
    context = ssl.create_default_context(cafile=endpoint.ca_file or None) if endpoint.tls else None
    _, link = await loop.create_connection(lambda: _Link(loop, received), endpoint.host, endpoint.port, ssl=context)
    return link


class _Link(asyncio.Protocol):
    """One TCP or Unix connection: bytes to replies."""

    def __init__(self, loop: asyncio.AbstractEventLoop, received: Callable[[list[Any]], None]) -> None:
        self._received = received
        self._reader = hiredis.Reader()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._answered: asyncio.Future[None] = loop.create_future()
        self.reads = 0
        """Times that something came."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports only look like asyncio's, so the type can be promised but not checked.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        replies = []
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        except hiredis.ProtocolError as error:
            self._end(BrokerUnavailable(f"not RESP: {error}"))
            return
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                self._end(BrokerUnavailable(str(reply)))
                return
        try:
            self._received(replies)
        except Exception:
            # A fault of ours on one batch: the link and everybody behind it live on.
            logger.exception("a batch from Redis could not be delivered")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(OSError(str(error)) if error else OSError("closed by Redis"))

    def greet(self, endpoint: Endpoint) -> None:
        """Authenticate and choose the database, as the URL has it."""
        if endpoint.password:
            self.send("AUTH", *([endpoint.username] if endpoint.username else []), endpoint.password)
        if endpoint.db:
            self.send("SELECT", str(endpoint.db))

    def send(self, *command: str | bytes) -> None:
        if self._transport is not None:
            self._transport.write(hiredis.pack_command(cast(Any, command)))

    def resubscribed(self) -> None:
        """Everything that is held has been confirmed on this link."""
        if not self._answered.done():
            self._answered.set_result(None)

    async def answered(self) -> None:
        """Return once everything is held again, raise at the link's end."""
        await asyncio.wait([self._answered, self._lost], return_when=asyncio.FIRST_COMPLETED)
        if self._lost.done():
            self._lost.result()

    async def lost(self) -> None:
        """Raise when the link ends, with the cause."""
        await asyncio.shield(self._lost)

    def fail(self, error: Exception) -> None:
        """Let whoever waits for the link's end see this."""
        self._end(error)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(OSError("closed"))
        # Seen here, so that the loop does not report it as never retrieved.
        self._lost.exception()

    def _end(self, error: Exception) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
