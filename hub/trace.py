"""Trace: watch the frames of one user, one client or one channel for a while, on this worker.

Does: tap the connections that are meant, those that come later too; gather rows and hand them on a few times a second;
end by itself.
Does not: read frames (tap), ask other workers or know who may look (admin): each worker has the same order, and its
rows go to the channel of the trace.
Called by: registry, from the control channel (`trace`); admin reads the channel.
Never break: without a trace nothing of this is reached; a trace that is not asked for again ends after LEASE_MOST_S;
what it costs is bounded: MAX_TRACES, MAX_TAPPED connections each, MAX_ROWS in FLUSH_S, and what is beyond is counted.

    trace   {"id":"6f1c…","kind":"user","name":"ann","payloads":false,"for_s":5}    begin, or go on for so long; 0: end
              -> {"tapped":2}: connections here, or subscribers of a channel; -1: too many traces

Of a user or client each frame is told as it is queued for its connection, or as it came. A channel's rows are what the
fan-out takes up, with how many subscribers there are here. Polls (/poll) are answers of their own, and not traced.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import orjson

from .fanout import Fanout
from .message import Publication
from .tap import Row, Tap, shown
from .tasks import settled
from .users import Member, Users

MAX_TRACES = 8
MAX_TAPPED = 100
"""Connections of one user; of more, the first."""
MAX_ROWS = 100
"""In one piece; what comes beyond is counted as `cut`."""
FLUSH_S = 0.25
LEASE_MOST_S = 10.0
ID = re.compile(r"[0-9a-f]{32}")
KINDS = ("user", "client", "channel")
MAX_NAME_LENGTH = 255

Params = dict[str, Any]
Answer = dict[str, Any]
Publish = Callable[[str, dict[str, Any]], None]
"""Takes a trace's id and a piece of it: {"rows":[…],"cut":0}. Never waits, never raises."""


class CallLater(Protocol):
    """As asyncio's."""

    def __call__(self, delay_s: float, call: Callable[[], None], /) -> asyncio.TimerHandle: ...


class Trace:
    """One trace on this worker."""

    def __init__(
        self, kind: str, name: str, payloads: bool, call_later: CallLater, publish: Callable[[Row], None]
    ) -> None:
        self.kind = kind
        self.name = name
        self.payloads = payloads
        self.until = 0.0
        self.tapped: set[Any] = set()
        """Connections."""
        self._rows: list[Row] = []
        self._cut = 0
        self._call_later = call_later
        self._publish = publish
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """As tap.Listener has it."""
        if len(self._rows) < MAX_ROWS:
            return True
        self._cut += 1
        return False

    def take(self, row: Row) -> None:
        """One more, for which there is room."""
        self._rows.append(row)
        if self._timer is None:
            self._timer = self._call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand on what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._rows = self._rows, []
        cut, self._cut = self._cut, 0
        if rows:
            self._publish({"rows": rows, "cut": cut})


class Tracer:
    """The traces of one worker."""

    def __init__(
        self,
        users: Users,
        fanout: Fanout,
        publish: Publish,
        call_later: CallLater,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._users = users
        self._fanout = fanout
        self._publish = publish
        self._call_later = call_later
        self._clock = clock
        self._wall_clock = wall_clock
        self._traces: dict[str, Trace] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._traces)

    def order(self, params: Params) -> Awaitable[Answer]:
        """What the registry calls. Raises ValueError."""
        return settled(self.trace(params))

    def trace(self, params: Params) -> Answer:
        """Begin, go on, or end. Raises ValueError."""
        trace_id, kind, name = params.get("id"), params.get("kind"), params.get("name")
        for_s: Any = params.get("for_s")
        if not isinstance(trace_id, str) or not ID.fullmatch(trace_id) or kind not in KINDS:
            raise ValueError("a trace with something else for an id or a kind")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise ValueError("a trace with something else for a name")
        if type(for_s) not in (int, float) or not 0 <= for_s <= LEASE_MOST_S:
            raise ValueError("a trace with something else for a time")
        if not for_s:
            self._end(trace_id)
            return {"tapped": 0}
        trace = self._traces.get(trace_id)
        if trace is None:
            if len(self._traces) >= MAX_TRACES:
                return {"tapped": -1}
            payloads = params.get("payloads") is True
            trace = Trace(kind, name, payloads, self._call_later, lambda piece: self._publish(trace_id, piece))
            self._traces[trace_id] = trace
            self._begin(trace_id, trace)
        trace.until = self._clock() + for_s
        self._arm()
        return {"tapped": self._fanout.lines.audience_size(name) if kind == "channel" else len(trace.tapped)}

    def close(self) -> None:
        """End all."""
        for trace_id in list(self._traces):
            self._end(trace_id)

    # One trace.

    def _begin(self, trace_id: str, trace: Trace) -> None:
        if trace.kind == "user":
            for member in list(self._users.of(trace.name)):
                self._tap(trace_id, trace, member)
        elif trace.kind == "client" and (found := self._users.find(trace.name)) is not None:
            self._tap(trace_id, trace, found)
        self._look()

    def _look(self) -> None:
        """Have the hooks that the traces of now need, and no other."""
        kinds = {trace.kind for trace in self._traces.values()}
        self._users.on_enter = self._entered if "user" in kinds else None
        self._fanout.on_deliver = self._delivered if "channel" in kinds else None

    def _end(self, trace_id: str) -> None:
        trace = self._traces.pop(trace_id, None)
        if trace is None:
            return
        for connection in trace.tapped:
            tap = connection.trace
            tap.remove(trace_id)
            if not tap:
                connection.trace = None
                connection.reactor.batches.replace(connection)
        trace.tapped = set()
        trace.flush()
        self._look()

    def _arm(self) -> None:
        if self._timer is None and self._traces:
            left_s = min(trace.until for trace in self._traces.values()) - self._clock()
            self._timer = self._call_later(max(0.0, left_s), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock()
        for trace_id in [trace_id for trace_id, trace in self._traces.items() if trace.until <= now]:
            self._end(trace_id)
        self._arm()

    # Connections.

    def _entered(self, member: Member) -> None:
        for trace_id, trace in self._traces.items():
            if trace.kind == "user" and trace.name == member.user:
                self._tap(trace_id, trace, member)

    def _tap(self, trace_id: str, trace: Trace, member: Member) -> None:
        connection = member.socket
        if len(trace.tapped) >= MAX_TAPPED or not connection.open:
            return
        if connection.trace is None:
            gone = lambda: self._gone(connection)  # noqa: E731 - of this connection
            connection.trace = Tap(member.client, member.user, member.kind, self._wall_clock, gone)
            # Its frames come one by one from now on, and no sweep writes past its outbox.
            connection.reactor.batches.replace(connection)
        connection.trace.add(trace_id, trace)
        trace.tapped.add(connection)

    def _gone(self, connection: Any) -> None:
        for trace in self._traces.values():
            trace.tapped.discard(connection)
        connection.trace = None

    # Channels.

    def _delivered(self, publications: Iterable[Publication]) -> None:
        for trace in list(self._traces.values()):
            if trace.kind != "channel":
                continue
            for channel, body in publications:
                if channel == trace.name and trace.has_room():
                    trace.take(self._row(channel, body, trace.payloads))

    def _row(self, channel: str, body: bytes, payloads: bool) -> Row:
        row: Row = {
            "t": int(self._wall_clock() * 1000),
            "dir": "out",
            "what": "publication",
            "channel": channel,
            "bytes": len(body),
            "subscribers": self._fanout.lines.audience_size(channel),
            **_publisher(body),
        }
        return row | {"payload": shown(body)} if payloads else row


def _publisher(body: bytes) -> dict[str, str]:
    """Who published it, where it says so."""
    try:
        info = orjson.loads(body).get("info")
    except (orjson.JSONDecodeError, AttributeError):
        return {}  # another program has put it into Redis
    if not isinstance(info, dict):
        return {}
    return {name: str(info.get(name, ""))[:MAX_NAME_LENGTH] for name in ("client", "user")}
