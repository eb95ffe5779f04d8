"""Orders: what the server API has every worker do to its own connections: end, move, list and judge them.

Does: find whom an order means, carry it out in slices, say how many it met.
Does not: send orders or gather answers (registry), read requests (api_control), know wires: each connection knows how
it ends.
Called by: registry, from the control channel; worker (judge_all).
Never break: an order begins when it comes and never waits for Redis, so that it holds at once; one turn of the loop
acts on ACTS_AT_ONCE connections at most. Whoever reaches Redis can write orders: what is malformed is a ValueError.

    disconnect    target, "code", "reason", "whitelist"    subscribe, unsubscribe   target, "channel"
    refresh       target, "expire_at" or null: now          revoke                   as revocation.Entry
    connections   target, "address", "channel", "after", "limit"

target: "user", "client" and "session", '' where it does not matter; `connections` takes all where none matters.
A new order needs a row in `answers`, and its request in api_control.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import orjson

from . import errors, revocation
from .auth import Claims
from .channels import Channels, Namespace, namespace_of
from .errors import Close, CommandError, HubError, ProtocolError
from .grants import Grant, is_time
from .revocation import Revocations
from .users import Member, Users

logger = logging.getLogger(__name__)

ACTS_AT_ONCE = 100
LOOKS_AT_ONCE = 2000
"""Connections in one turn of the loop: of those that are ended or moved, and of those that are only looked at."""
MAX_LIMIT = 1000
"""Connections in one answer to `connections`."""
MAX_PAGE_BYTES = 2_097_152
"""Of one worker's; then the page ends early, and says so."""
MAX_LISTED = 100
"""Channels that are named of one connection."""
CODES = range(3000, 5000)
MAX_REASON_BYTES = 120
"""A close frame holds no more (RFC 6455 §5.5.1)."""
MAX_WHITELIST = 1000

Params = dict[str, Any]
Answer = dict[str, Any]


class Connection(Member, Protocol):
    """A client of this worker, on whatever wire."""

    client: str
    claims: Claims
    grants: dict[str, Grant] | None

    @property
    def open(self) -> bool:
        """Its end has not begun."""

    @property
    def kind(self) -> str:
        """Of its wire: 'websocket'."""

    @property
    def address(self) -> str: ...
    @property
    def age_s(self) -> float: ...
    @property
    def waiting_bytes(self) -> int:
        """In its outbox."""

    def channels(self) -> Iterable[str]:
        """Those that it holds, or is about to."""

    def end_by(self, close: Close) -> None:
        """End it, and none of another user."""

    def expire(self, at: float) -> None:
        """Its token is to end then, in seconds since 1970."""

    def lapse(self, channel: str) -> None:
        """Its channel token for this channel is good no more."""

    def leave(self, channel: str) -> None:
        """Out of a channel, and its client is told."""

    def join(self, channel: str, namespace: Namespace, done: Callable[[HubError | None], None]) -> None:
        """Into a channel, whatever the rules say."""


class Sessionless(Protocol):
    """Who is here without a session: a poll that waits, a client of an application's bare messages."""

    @property
    def user(self) -> str: ...
    @property
    def claims(self) -> Claims: ...
    def holds(self, channel: str) -> bool: ...
    def channels(self) -> Iterable[str]:
        """Those that it waits for."""

    def send_back(self) -> None:
        """Have it come anew; a poll is answered with what there is."""

    def turn_away(self, error: HubError) -> None:
        """Tell it so, and have it gone."""


class Row(NamedTuple):
    """One connection, as `connections` tells of it."""

    client: str
    user: str
    transport: str
    address: str
    age_s: float
    channels: list[str]
    num_channels: int
    outbox_bytes: int


class Target(NamedTuple):
    """Whom an order means: those of whom all hold that are not ''."""

    user: str
    client: str
    session: str


class Orders:
    """The orders that one worker carries out."""

    def __init__(
        self,
        users: Users,
        channels: Channels,
        revocations: Revocations,
        others: Callable[[], Iterable[Sessionless]] = lambda: (),
    ) -> None:
        """others: those without a session who are here now."""
        self._users = users
        self._channels = channels
        self._revocations = revocations
        self._others = others
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Go on with nothing that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def answers(self) -> Mapping[str, Callable[[Params], Awaitable[Answer]]]:
        """By name; what each gives is begun already. They raise ValueError."""
        return {
            "disconnect": self.disconnect,
            "subscribe": self.subscribe,
            "unsubscribe": self.unsubscribe,
            "refresh": self.refresh,
            "revoke": self.revoke,
            "connections": self.connections,
        }

    # What it can be told.

    def disconnect(self, params: Params) -> Awaitable[Answer]:
        """End connections. Who has no session is told to come again, or with a final code refused."""
        target, whitelist = _target(params), params.get("whitelist", [])
        close = Close(params.get("code", 0), _text(params, "reason"))
        if type(close.code) is not int or close.code not in CODES or len(close.reason.encode()) > MAX_REASON_BYTES:
            raise ValueError("a disconnect with something else for a code or a reason")
        if not isinstance(whitelist, list) or not all(isinstance(one, str) for one in whitelist):
            raise ValueError("a disconnect with something else for a whitelist")
        kept = frozenset(whitelist)
        others = self._others_of(target)
        for other in others:
            if close.reconnect:
                other.send_back()
            else:
                other.turn_away(CommandError(errors.PERMISSION_DENIED, close.reason))
        found = [one for one in self._find(target) if one.client not in kept]
        return self._begin(self._each(found, lambda one: one.end_by(close), len(others)))

    def unsubscribe(self, params: Params) -> Awaitable[Answer]:
        """Out of a channel those who are in it."""
        target, channel = _target(params), _text(params, "channel")
        others = [other for other in self._others_of(target) if other.holds(channel)]
        for other in others:
            other.send_back()
        found = [one for one in self._find(target) if channel in one.channels()]
        return self._begin(self._each(found, lambda one: one.leave(channel), len(others)))

    def close_namespaces(self, names: Collection[str]) -> None:
        """There are no channels of these any more: out of them all who are in one, in slices."""
        for other in list(self._others()):
            if any(namespace_of(channel) in names for channel in other.channels()):
                other.send_back()

        def leave(one: Connection) -> bool:
            left = [channel for channel in one.channels() if namespace_of(channel) in names]
            for channel in left:
                one.leave(channel)
            return bool(left)

        self._begin(self._each(list(self._users.everybody()), leave, at_once=LOOKS_AT_ONCE))

    def subscribe(self, params: Params) -> Awaitable[Answer]:
        """Into a channel; those whom it can't take are counted as `refused`."""
        target, channel = _target(params), _text(params, "channel")
        try:
            namespace = self._channels.resolve(channel)
        except CommandError:
            raise ValueError("a channel of a namespace that is not known here") from None
        return self._begin(self._join(self._find(target), channel, namespace))

    def refresh(self, params: Params) -> Awaitable[Answer]:
        """Another end for their tokens, or this very moment."""
        target, expire_at = _target(params), params.get("expire_at")
        found = self._find(target)
        if expire_at is None:
            return self._begin(self._each(found, lambda one: one.end_by(errors.CLOSE_EXPIRED)))
        if not is_time(expire_at):
            raise ValueError("a refresh with something else for a time")
        return self._begin(self._each(found, lambda one: one.expire(float(expire_at))))

    def revoke(self, params: Params) -> Awaitable[Answer]:
        """Take up an entry, and end those who are on the list now."""
        entry = revocation.parse(params)
        self._revocations.learn(entry)
        if entry.gone:
            return self._begin(self._each([], self._judge))
        # Of a token, nobody knows who has shown it.
        found = self._users.everybody() if entry.kind == revocation.TOKEN else self._users.meant(entry.name)
        return self._begin(self._judge_some(list(found)))

    def judge_all(self) -> None:
        """The list has been read anew."""
        if len(self._revocations):
            self._begin(self._judge_some(list(self._users.everybody())))

    def connections(self, params: Params) -> Awaitable[Answer]:
        """{"connections":[Row,…],"cut":false}: the first behind `after`, by client id."""
        target, channel, after = _target(params, anybody=True), _text(params, "channel"), _text(params, "after")
        address, limit = _text(params, "address"), params.get("limit")
        if type(limit) is not int or not 0 < limit <= MAX_LIMIT:
            raise ValueError("connections with something else for a limit")
        found = self._find(target) if any(target) else list(self._users.everybody())
        return self._begin(self._list(found, address, channel, after, limit))

    # Carrying out.

    def _begin(self, work: Coroutine[Any, Any, Answer]) -> Awaitable[Answer]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _each(
        self, found: Iterable[Any], act: Callable[[Any], object], met: int = 0, at_once: int = ACTS_AT_ONCE
    ) -> Answer:
        """Do it to all who are still here; those to whom it was done count. False: it was not."""
        for number, one in enumerate(found, 1):
            try:
                met += one.connected and one.open and act(one) is not False
            except Exception:
                # The border of one connection: a fault of ours in its end must not keep the others here.
                logger.exception("an order failed, client %s", one.client)
            if not number % at_once:
                await asyncio.sleep(0)
        return {"met": met}

    async def _join(self, found: list[Any], channel: str, namespace: Namespace) -> Answer:
        refused = 0

        def join(one: Connection) -> bool:
            nonlocal refused
            told: list[HubError | None] = []
            one.join(channel, namespace, told.append)
            if told and told[0] is not None:
                refused += 1
                return False
            return True

        return {**await self._each(found, join), "refused": refused}

    async def _judge_some(self, found: list[Any]) -> Answer:
        refused = 0
        for other in list(self._others()):
            try:
                self._revocations.check(other.user, other.claims)
            except ProtocolError as error:
                other.turn_away(error)
                refused += 1
        return await self._each(found, self._judge, refused, LOOKS_AT_ONCE)

    def _judge(self, one: Connection) -> bool:
        """End it if it is on the list. True: it was."""
        try:
            self._revocations.check(one.user, one.claims)
        except ProtocolError as error:
            one.end_by(error.close)
            return True
        lapsed = [channel for channel, grant in (one.grants or {}).items() if self._is_revoked(one, grant)]
        for channel in lapsed:
            one.lapse(channel)
        return bool(lapsed)

    def _is_revoked(self, one: Connection, grant: Grant) -> bool:
        try:
            self._revocations.check_token(one.user, grant.jti, grant.issued_at)
        except ProtocolError:
            return True
        return False

    async def _list(self, found: list[Any], address: str, channel: str, after: str, limit: int) -> Answer:
        chosen: list[Connection] = []
        for number, one in enumerate(found, 1):
            here = one.connected and one.open and one.client > after and (not address or one.address == address)
            if here and (not channel or channel in one.channels()):
                chosen.append(one)
            if not number % LOOKS_AT_ONCE:
                chosen = _first(chosen, limit + 1)
                await asyncio.sleep(0)
        rows: list[list[Any]] = []
        size = 0
        chosen = _first(chosen, limit + 1)
        for one in chosen[:limit]:
            rows.append(list(_row(one)))
            size += len(orjson.dumps(rows[-1]))
            if size > MAX_PAGE_BYTES:
                break
        return {"connections": rows, "cut": len(rows) < len(chosen)}

    # Finding.

    def _find(self, target: Target) -> list[Any]:
        if target.client or target.session:
            one = self._users.find(target.client or target.session)
            if one is None or (target.client and target.session and self._users.find(target.session) is not one):
                return []
            return [one] if not target.user or one.user == target.user else []
        return list(self._users.of(target.user))

    def _others_of(self, target: Target) -> list[Sessionless]:
        if target.client or target.session:
            return []
        return [other for other in self._others() if other.user == target.user]


def _first(found: list[Connection], count: int) -> list[Connection]:
    return heapq.nsmallest(count, found, key=lambda one: one.client)


def _row(one: Connection) -> Row:
    channels = list(one.channels())
    listed = list(islice(channels, MAX_LISTED))
    return Row(
        one.client, one.user, one.kind, one.address, round(one.age_s, 3), listed, len(channels), one.waiting_bytes
    )


def _text(params: Params, name: str) -> str:
    text = params.get(name, "")
    if not isinstance(text, str):
        raise ValueError(f"{name} is not a text")
    return text


def _target(params: Params, anybody: bool = False) -> Target:
    target = Target(*(_text(params, name) for name in Target._fields))
    if not any(target) and not anybody:
        raise ValueError("an order for nobody in particular")
    return target


def parse_rows(answer: Answer) -> tuple[list[Row], bool]:
    """What another worker answered to `connections`, and whether it has more. Raises ValueError."""
    rows, cut = answer.get("connections"), answer.get("cut")
    if not isinstance(rows, list) or not isinstance(cut, bool):
        raise ValueError("an answer without connections")
    return list(map(_parse_row, rows)), cut


KINDS_OF_ROW = (str, str, str, str, (int, float), list, int, int)


def _parse_row(found: object) -> Row:
    if not isinstance(found, list) or len(found) != len(KINDS_OF_ROW):
        raise ValueError("a connection that is none")
    if not all(isinstance(value, kind) for value, kind in zip(found, KINDS_OF_ROW, strict=True)):  # type: ignore[arg-type]
        raise ValueError("a connection with something else for a field")
    return Row(*found)


def parse_met(answer: Answer) -> tuple[int, int]:
    """How many connections an order met, and how many it could not be done to. Raises ValueError."""
    met, refused = answer.get("met"), answer.get("refused", 0)
    if type(met) is not int or type(refused) is not int or min(met, refused) < 0:
        raise ValueError("an answer without counts")
    return met, refused
