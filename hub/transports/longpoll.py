"""Long polling: `GET /poll?channel=…&since=CURSOR&wait=25`, the hub for whoever has only requests.

Does: subscribe for the time of one request, answer with what was missed or with what comes, several messages at once.
Does not: keep anything between two requests: any worker answers the next one by its cursor (cursor). Nor gather
what the answer holds (poll_answer), check requests (plain) or read Redis (streams has the ring, catchup the history).
Called by: worker (routes, close), Tornado.
Never break: a cursor in an answer claims what is in this answer and those before, nothing else; however a request ends,
its subscriptions end with it.

    200 {"messages":[{"channel":"chat:a","pub":{"offset":17,"data":…}}],"cursor":"1~…"}       also as Hub-Cursor
        with "lost":["chat:a"] where something is missing that can't be had: reload; the cursor goes on behind it
        with "left_out":{"ticker:$watch":3} where so many symbols of a watch list do not fit
        where that is all that there is to say, "messages":[]: a 204 has no body to say it in
    204 nothing within `wait` seconds; Hub-Cursor is the one to come back with
    400, 401, 403, 404, 503 as plain has them

What is between two requests: in `stream` channels nothing is lost, for as long as the history has it, and pages follow
each other however much it is. Of `latest` channels the newest value comes, unless the client has it. Messages of `none`
channels that nobody waits for are gone, as the mode says. Who begins without a cursor begins now: the first answer has
one, with wait=0 at once. A poller is in no presence: it would come and go with each request. An application is asked
about each poll: `on_connect`, then `on_subscribe` for each channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial
from math import isfinite
from typing import Any

import orjson

from .. import cursor, errors
from ..audience import ELSEWHERE, Audience, Group, new_number
from ..auth import Claims
from ..channels import Namespace
from ..cursor import NOWHERE
from ..errors import BrokerUnavailable, Close, CommandError, HubError
from ..history import Asked, Page
from ..position import Position, survives
from ..recovery import Joined
from ..refusals import Refusals
from ..services import Services
from ..wants import EVERY
from ..wants import PLAIN as WANTS_NOTHING
from .market import Holdings, slowest_s
from .plain import BUSY, CURSOR_HEADER, ChannelError, PlainHandler, Wish
from .poll_answer import FORM, Answer
from .websocket import Door

PATH = "/poll"
DEFAULT_WAIT_S = 25.0
"""Below the 30 to 60 s at which proxies give up on a silent answer."""
MAX_WAIT_S = 60.0
JOIN_S = 5.0
"""For Redis to let a poll in, besides its wait; then 503."""
FROM_THE_START = Position("", 0)


class Poll(Answer):
    """One request while it waits: a subscriber without a socket of its own, whose frames are gathered.

    Never `direct`, so the fan-out offers it each frame; where it stands moves with those that it takes.
    """

    __slots__ = (
        "_channels",
        "_holdings",
        "_pending",
        "_services",
        "error",
        "fd",
        "group",
        "omitted",
        "over",
        "pause_s",
        "place",
        "settled",
    )

    wire = FORM
    direct = sealed = False

    def __init__(self, services: Services, wish: Wish) -> None:
        super().__init__(wish, services.outbox.max_bytes)
        self.fd = new_number()
        self.group: Group | None = None
        self.place = ELSEWHERE
        self._services = services
        self._channels: dict[str, Namespace] = {}
        """Those that it is in."""
        self._pending = len(wish.channels)
        wanted = {channel: one._replace(hz=EVERY) for channel, one in wish.wants.items()}
        wanted = {channel: one for channel, one in wanted.items() if one != WANTS_NOTHING}
        self._holdings = Holdings(services, self, wanted, most_symbols(wish)) if wanted else None
        self.settled = asyncio.Event()
        """All channels have let it in, or one can't."""
        self.over = asyncio.Event()
        """Nothing more will come."""
        self.omitted: dict[str, int] = {}
        """At its end: symbols that did not fit into its watch list."""
        self.error: HubError | None = None
        self.pause_s = slowest_s(wish.wants) if wish.since is not NOWHERE else 0.0
        """What it is answered with is held back for so long since it was asked for."""

    def begin(self) -> None:
        """Ask for all channels."""
        for channel, namespace in self._wish.channels.items():
            since = FROM_THE_START if namespace.mode == "latest" else self._wish.since.position(channel)
            done = partial(self._joined, channel, namespace, since)
            if self._holdings is not None and channel in self._holdings:
                self._holdings.subscribe(channel, namespace, lambda: self, done)
            else:
                self._services.subscriptions.subscribe(channel, namespace, self, done, since)

    def end(self) -> None:
        """Leave all channels; once or more often. Whoever waits is woken."""
        self._finished = True
        if self._holdings is not None and self._channels:
            self.omitted = self._holdings.left_out
        channels, self._channels = self._channels, {}
        for channel, namespace in channels.items():
            self._leave(channel, namespace)
        self.settled.set()
        self.ready.set()
        self.over.set()

    def close(self, close: Close) -> None:
        """Be sent away: answered with what there is, and asked again elsewhere."""
        self.end()

    def _leave(self, channel: str, namespace: Namespace) -> None:
        if self._holdings is not None and channel in self._holdings:
            self._holdings.unsubscribe(channel, namespace)
        else:
            self._services.subscriptions.unsubscribe(channel, namespace, self)

    # What orders ask and do.

    @property
    def user(self) -> str:
        return self._wish.caller.user

    @property
    def claims(self) -> Claims:
        return self._wish.shown

    def holds(self, channel: str) -> bool:
        """It waits for this channel, among others."""
        return channel in self._wish.channels

    def channels(self) -> Iterable[str]:
        """Those that it waits for."""
        return self._wish.channels

    def send_back(self) -> None:
        """Answer it with what has come."""
        self.end()

    def turn_away(self, error: HubError) -> None:
        """Answer it so, whatever has come."""
        self.error = error
        self.end()

    def _joined(self, channel: str, namespace: Namespace, since: Position | None, outcome: Joined | HubError) -> None:
        if isinstance(outcome, HubError):
            self.error = self.error or outcome
            self._settle()
        elif self._finished:
            self._leave(channel, namespace)
        else:
            self._channels[channel] = namespace
            self._caught_up(channel, namespace, since, outcome)

    def _caught_up(self, channel: str, namespace: Namespace, since: Position | None, joined: Joined) -> None:
        now = Position(joined.epoch, joined.offset)
        if namespace.mode == "stream" and since is not None and not joined.recovered:
            # More is missing than a recovery may bring, or it is lost. The history tells, from `since` on; what comes
            # meanwhile is behind that.
            self._full.add(channel)
            histories = self._services.histories
            # All channels together bring no more than one answer may have, however many of them are far behind.
            most_bytes = max(1, histories.most_bytes // len(self._wish.channels))
            asked = Asked(channel, namespace, since.offset, histories.most, most_bytes=most_bytes)
            histories.read(asked, partial(self._page_came, channel, since, now))
            return
        if namespace.mode == "stream":
            self.positions[channel] = Position(now.epoch, now.offset if since is None else since.offset)
        for body in joined.publications:
            if namespace.mode != "latest" or self._is_news(channel, body):
                self._take(FORM.encode_publication(channel, body))
        self._settle()

    def _page_came(self, channel: str, since: Position, now: Position, page: Page | HubError) -> None:
        if isinstance(page, HubError):
            self.error = self.error or page
        elif not self._finished:
            numbers = [offset for offset, _ in page.publications]
            follows = numbers[0] == since.offset + 1 if numbers else page.offset == since.offset
            if follows and survives(since, page.epoch, page.offset):
                self.positions[channel] = Position(page.epoch, since.offset)
                self._full.discard(channel)
                for _, body in page.publications:
                    self._take(FORM.encode_publication(channel, body))
                self._full.add(channel)
            else:
                self.lost.append(channel)
                self.positions[channel] = now
        self._settle()

    def _settle(self) -> None:
        """One channel less is waited for."""
        self._pending -= 1
        if not self._pending or self.error is not None:
            self.settled.set()
        self._tell()

    # What a watch list tells.

    def told(self, bodies: list[bytes]) -> None:
        """Values of symbols that came in later."""
        for channel, one in self._wish.wants.items():
            for body in bodies if one.symbols else ():
                if self._is_news(channel, body):
                    self._take(FORM.encode_publication(channel, body))

    def left_out(self, count: int, allowed: int) -> None:
        """The answer says it."""

    def failed(self) -> None:
        """Answer 503."""
        self.error = self.error or BrokerUnavailable("a symbol of a watch list can't be had now")
        self.settled.set()
        self.ready.set()

    # What the fan-out calls.

    @property
    def open(self) -> bool:
        return not self._finished

    def put(self, frame: bytes) -> None:
        self._take(frame)

    def offer(self, audience: Audience, frame: bytes) -> None:
        self._take(frame)

    def left(self, *audiences: Audience) -> None:
        """Nothing that waits here is ever replaced."""

    def write_past(self, data: bytes) -> int:
        raise NotImplementedError  # it is never direct, so nothing is written past it

    def torn(self, rest: bytes) -> None:
        raise NotImplementedError  # as `write_past`

    def broken(self) -> None:
        raise NotImplementedError  # as `write_past`

    def too_slow(self) -> None:
        raise NotImplementedError  # it asks for no `raw`

    def displaced(self, channel: str) -> None:
        """What streams calls: answer with what there is; the next request is recovered, or told of the loss."""
        self._channels.pop(channel, None)
        self.ready.set()


def most_symbols(wish: Wish) -> int:
    """So many symbols of a watch list, besides the other channels, fit into one cursor."""
    return cursor.MAX_CHANNELS - len(wish.channels) + 1


class Polls:
    """The requests of one worker that wait, within their bound."""

    def __init__(self, most: int, refusals: Refusals | None = None) -> None:
        self.most = most
        self._refusals = refusals or Refusals()
        self._waiting: set[Poll] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Poll]:
        return iter(self._waiting)

    def enter(self, poll: Poll) -> None:
        """One more. Raises CommandError 111 where there are too many."""
        if len(self._waiting) >= self.most:
            self._refusals.count("polls")
            raise CommandError(errors.TOO_MANY_REQUESTS, "too many polls wait in this process")
        self._waiting.add(poll)

    def leave(self, poll: Poll) -> None:
        """It waits no more; once or more often."""
        self._waiting.discard(poll)

    def close(self) -> None:
        """The worker ends: all are answered now, and come back to another one."""
        for poll in list(self._waiting):
            poll.end()


class PollHandler(PlainHandler):
    """GET /poll."""

    def initialize(self, door: Door, polls: Polls) -> None:  # type: ignore[override]
        super().initialize(door)
        self._polls = polls
        self._poll: Poll | None = None

    def wish(self, caller: Claims) -> Wish:
        """As all plain requests have it, with no longer a list than a cursor has room for. Raises HubError."""
        wish = super().wish(caller)
        most, lists = most_symbols(wish), 0
        for index, channel in enumerate(wish.channels):
            count = len(wish.wants[channel].symbols) if channel in wish.wants else 0
            lists += count > 0
            text = f"symbols: found {count}; allowed over polls: {most}, more over an event stream"
            if lists > 1:
                text = "channel: found several watch lists; allowed over polls: one"
            if count > most or (lists > 1 and count):
                raise ChannelError(CommandError(errors.LIMIT_EXCEEDED, text), index)
        return wish

    async def get(self) -> None:
        try:
            gate, caller = self._door.services.gate, await self.caller()
            if gate is None:
                wish, wait_s = self.wish(caller), self._wait_s()
            else:
                wait_s = self._wait_s()
            if gate is not None:
                _, wish = await self.ask(gate, self.granted(gate, caller))
                entrance = self._door.entrance
                if entrance.draining() or entrance.quotas.no_room(self.visitor.address):
                    raise CommandError(BUSY)
            wait_s = min(wait_s, self._left_s(caller), max(0.0, wish.ends_at - self._door.services.wall_clock()))
            poll = self._poll = Poll(self._door.services, wish)
            self._polls.enter(poll)
        except HubError as error:
            self.fail(error)
            return
        meter = self._door.services.quotas.open(self.visitor.address)  # a connection, while it waits
        try:
            await self._wait(poll, wait_s)
        except HubError as error:
            poll.error = error
        finally:
            meter.close()
            poll.end()
            self._polls.leave(poll)
        if not self._gone:
            self._answer(poll)

    async def _wait(self, poll: Poll, wait_s: float) -> None:
        """Return when there is something to answer, or it is time. Raises BrokerUnavailable."""
        begun_at = asyncio.get_running_loop().time()
        poll.begin()
        try:
            async with asyncio.timeout(JOIN_S):
                await poll.settled.wait()
        except TimeoutError:
            raise BrokerUnavailable("Redis has not let a poll in in time") from None
        if poll.error is not None:
            return
        try:
            async with asyncio.timeout(wait_s):
                await poll.ready.wait()
            if poll.pause_s:
                async with asyncio.timeout_at(begun_at + poll.pause_s):
                    await poll.over.wait()
        except TimeoutError:
            pass  # an answer as well: nothing has come, or nothing more in time

    def _answer(self, poll: Poll) -> None:
        if poll.error is not None:
            self.fail(poll.error)
            return
        text = poll.cursor
        if text:
            self.set_header(CURSOR_HEADER, text)
        if not (poll.messages or poll.lost or poll.omitted):
            self.set_header("Cache-Control", "no-store")
            self.set_status(204)
            self.finish()
            return
        body: dict[str, Any] = {"messages": orjson.Fragment(b"[%b]" % b",".join(poll.messages)), "cursor": text}
        if poll.lost:
            body["lost"] = poll.lost
        if poll.omitted:
            body["left_out"] = poll.omitted
        self.answer(200, body)

    def _left_s(self, caller: Claims) -> float:
        """No poll is held for a token that has ended and had its grace; the next one is told 401."""
        services = self._door.services
        return max(0.0, caller.expires_at + services.authenticator.grace_s - services.wall_clock())

    def _wait_s(self) -> float:
        text = self.parameter("wait", str(DEFAULT_WAIT_S))
        try:
            wait_s = float(text)
        except ValueError:
            wait_s = -1.0
        if not isfinite(wait_s) or not 0 <= wait_s <= MAX_WAIT_S:
            raise CommandError(errors.BAD_REQUEST, f"wait: allowed are seconds from 0 to {MAX_WAIT_S:g}")
        return wait_s

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._poll is not None:
            self._poll.end()
