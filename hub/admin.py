"""Admin: the page at /admin, and the connection that feeds it, on the internal listener.

Does: serve the page's files; let in whoever shows the API key; tell it once a second how all workers are; carry out
what it asks: lists, disconnects, a test publish, traces.
Does not: judge keys (admin_keys), look at frames (trace, tap), count (figures), or find and end connections: the
page has the server API's own methods for that.
Called by: worker (routes, and `orders` for its registry).
Never break: nothing but the key or a token made with it lets anybody in, and neither stands in an address; the channels
of RESERVED can be had nowhere else; without somebody who looks nothing here runs, on no worker.

The page speaks the native protocol to /admin/connection: the same frames, session and fan-out as all clients, in a
namespace that no setting can name and with commands of its own:

    → {"id":1,"connect":{"token":KEY}}
    → {"id":2,"subscribe":{"channel":"$hub:figures"}}    ← {"push":{"channel":"$hub:figures","pub":{"data":
                                                             {"t":…,"workers":[{"uid","name",…}],"silent":[]}}}}
    → {"id":3,"rpc":{"method":"connections","data":{"user":"ann"}}}              a method of METHODS, as the server API
    → {"id":4,"rpc":{"method":"trace","data":{"kind":"user","name":"ann"}}}      ← "channel":"$hub:trace:ID"; it begins
                                                             with the subscription to that, and ends with it

Figures are asked for, not published: while a page on this worker is subscribed, its worker asks all others each second,
as for any survey, and hands the answers to its own fan-out. So who does not look costs nothing, there is no lease to
forget, and a worker that does not answer is known by name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import heapq
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

from . import api, assets, control, entrance, errors, handshake, httpd, log
from .admin_keys import AdminKeys
from .api import Api
from .broker import Broker
from .channels import Channels, Namespace
from .entrance import Visitor
from .errors import CommandError, HubError, ProtocolError
from .fanout import Fanout
from .message import Publication, encode_body
from .mistakes import short
from .origin import Origins
from .protocol import Command
from .quotas import UNLIMITED, Quotas
from .reactor import Reactor
from .recovery import Joined
from .registry import Registry
from .services import Services
from .session import Session
from .tasks import settled
from .tls import Descriptor
from .trace import KINDS, MAX_NAME_LENGTH, Tracer
from .transports.websocket import WebSocketConnection, leave_tornado
from .users import Users

logger = logging.getLogger(__name__)

PATH = "/admin"
FILES = ("admin.css", "admin.js", "admin_chart.js", "admin_link.js", "favicon.svg")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
RESERVED = "$hub"
"""A namespace that can't be configured: its name has a character that theirs may not have."""
FIGURES = f"{RESERVED}:figures"
TRACES = f"{RESERVED}:trace:"
RULES = Namespace.model_validate({"subscribe": "anyone"})
CHANNELS = {RESERVED: RULES, "default": Namespace.model_validate({"subscribe": "nobody"})}
PERIOD_S = 1.0
MAX_SESSIONS = 16
"""On one worker."""
COMMANDS_PER_S = 50
TRACE_LEASE_S = 6.0
TRACE_RENEW_S = 2.0
TRACE_MOST_S = 300.0
"""Then a trace ends, and whoever still looks begins another one."""
MAX_TRACES = 4
"""Of one page."""
MAX_BUSIEST = 200
BUSIEST_OF_WORKER = 1000
"""So many of its channels each worker tells; beyond, the sum of one that is small everywhere may be too low."""
METHODS = ("info", "connections", "disconnect", "publish")
"""Of the server API, which the page may call."""
CHANGES = frozenset({"disconnect", "publish"})
"""Those that leave a line in the log."""

Params = dict[str, Any]
Result = dict[str, Any]


class Admin:
    """Of one worker."""

    def __init__(
        self,
        key: str,
        users: Users,
        fanout: Fanout,
        broker: Broker,
        figures: Callable[[], Result],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """key: of the server API. figures: of this worker, now."""
        self.keys = AdminKeys(key, clock, wall_clock)
        self._fanout = fanout
        self._broker = broker
        self._figures = figures
        self._clock = clock
        self._wall_clock = wall_clock
        loop = asyncio.get_running_loop()
        self._tracer = Tracer(users, fanout, self._publish_piece, loop.call_later, clock, wall_clock)
        self._registry: Registry | None = None
        self._api: Api | None = None
        self._door: Door | None = None
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def orders(self) -> Mapping[str, Callable[[Params], Awaitable[Result]]]:
        """What other workers' pages have this one do, for the registry."""
        return {
            "figures": lambda params: settled(self._tell_figures()),
            "busiest": lambda params: settled(self._tell_busiest(params)),
            "trace": self._tracer.order,
        }

    def routes(self, rooms: Api, reactor: Reactor, services: Services, entrance: entrance.Entrance) -> httpd.Routes:
        """Of the internal listeners. rooms: of the server API; services, entrance: of all clients."""
        self._api, self._registry = rooms, rooms.registry
        static = resources.files("hub").joinpath("static")
        door = self._door = Door(self, reactor, _own(services), entrance)
        return [
            (rf"{PATH}/?", AdminFile, {"file": static.joinpath("admin.html")}),
            *((rf"{PATH}/{re.escape(name)}", AdminFile, {"file": static.joinpath(name)}) for name in FILES),
            (rf"{PATH}/connection", AdminHandler, {"door": door}),
        ]

    def retune(self, services: Services) -> None:
        """Of all clients, with other settings: those hold for pages that come from now on."""
        if (door := self._door) is not None:
            door.services = dataclasses.replace(
                door.services,
                client=services.client,
                outbox=services.outbox,
                histories=services.histories,
                log_addresses=services.log_addresses,
            )

    async def close(self) -> None:
        """Ask for nothing more, trace nobody."""
        self._closing = True
        self._tracer.close()
        tasks = [task for task in (self._asking, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Figures.

    def look(self) -> None:
        """Somebody here looks at the figures."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        assert self._registry is not None
        due = self._clock()
        while self._fanout.lines.audience_size(FIGURES):
            body: Result = {"t": int(self._wall_clock() * 1000)}
            try:
                ordered = await self._registry.order("figures", {})
                body |= {"workers": ordered.answers, "silent": ordered.silent}
            except HubError as error:
                # Of this one there is something to see all the same.
                logger.debug("figures: %s", error)
                own = {"uid": self._registry.uid, **self._tell_figures()}
                body |= {"workers": [own], "silent": [], "trouble": "Redis does not answer: these are of one worker"}
            self._fanout.deliver([Publication(FIGURES, encode_body(body))])
            due = max(due + PERIOD_S, self._clock() + PERIOD_S / 10)
            await asyncio.sleep(due - self._clock())

    def _tell_figures(self) -> Result:
        name = self._registry.name if self._registry is not None else ""
        return {"name": name, "figures": self._figures()}

    # Channels.

    def _tell_busiest(self, params: Params) -> Result:
        """{"pattern"} -> {"channels":{"news":3},"total":17}: those of this worker with the most subscribers.

        Raises ValueError.
        """
        pattern = control.check_pattern(params.get("pattern", ""))
        match = re.compile(fnmatch.translate(pattern or "*")).match
        every = self._fanout.lines.counts()
        counts = {name: count for name, count in every.items() if match(name) and not name.startswith(RESERVED)}
        most = heapq.nlargest(BUSIEST_OF_WORKER, counts.items(), key=lambda item: item[1])
        return {"channels": dict(most), "total": len(counts)}

    async def busiest(self, params: Params) -> Result:
        """{"pattern"?} -> {"channels":[["news",3]],"total":17,"silent":[]}; total: at least so many there are."""
        assert self._registry is not None
        try:
            pattern = control.check_pattern(params.get("pattern") or "")
        except ValueError as error:
            raise CommandError(errors.BAD_REQUEST, str(error)) from None
        ordered = await self._registry.order("busiest", {"pattern": pattern})
        sums: Counter[str] = Counter()
        total = 0
        for counts, found in self._registry.readable(ordered.answers, _parse_busiest):
            sums.update(counts)
            total = max(total, found)
        most = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
        return {"channels": most[:MAX_BUSIEST], "total": max(total, len(sums)), "silent": ordered.silent}

    # What a page asks.

    def call(self, session: AdminSession, command: Command) -> None:
        """Answer one rpc command, later. Raises CommandError."""
        name, params = command.params.get("method", ""), command.params.get("data") or {}
        if not isinstance(params, dict):
            raise CommandError(errors.BAD_REQUEST, "data: allowed is an object")
        if name == "trace":
            session.reply(command.id, "rpc", {"data": session.new_trace(params)})
            return
        if name not in METHODS and name != "busiest":
            raise CommandError(errors.METHOD_NOT_FOUND)
        session.begin()
        self._start(self._answer(session, command.id, name, params))

    async def _answer(self, session: AdminSession, command_id: int, name: str, params: Params) -> None:
        assert self._api is not None
        if name in CHANGES:
            told = {key: params[key] for key in ("user", "client", "channel") if isinstance(params.get(key), str)}
            log.event(logger, logging.INFO, f"admin: {name}", by=session.client, **told)
        try:
            result = await (self.busiest(params) if name == "busiest" else api.METHODS[name](self._api, params))
        except HubError as error:
            session.fail(command_id, error)
        else:
            session.reply(command_id, "rpc", {"data": result})
        finally:
            session.end()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Traces.

    def check_channel(self, name: str) -> None:
        """Whether it may be traced. Raises CommandError 107, 102: of RESERVED, which would tell of what it tells."""
        assert self._api is not None
        self._api.channels.resolve(name)

    def keep_trace(self, trace_id: str, wish: Params) -> asyncio.Task[None]:
        """Have all workers trace until the task is cancelled, for TRACE_MOST_S at most."""
        return self._start(self._keep_trace(trace_id, wish))

    async def _keep_trace(self, trace_id: str, wish: Params) -> None:
        assert self._registry is not None
        end = self._clock() + TRACE_MOST_S
        log.event(logger, logging.INFO, "admin: trace", **{wish["kind"]: wish["name"]}, payloads=wish["payloads"])
        try:
            while (left_s := end - self._clock()) > 0:
                said: Result = {"left_s": round(left_s)}
                try:
                    lease_s = min(TRACE_LEASE_S, left_s)
                    ordered = await self._registry.order("trace", {"id": trace_id, **wish, "for_s": lease_s})
                    tapped = [found for each in ordered.answers if type(found := each.get("tapped")) is int]
                    said |= {"tapped": sum(map(abs, tapped)), "full": -1 in tapped, "silent": ordered.silent}
                except HubError as error:
                    logger.debug("a trace: %s", error)
                    said["trouble"] = "Redis does not answer"
                self._tell_trace(trace_id, said)
                await asyncio.sleep(min(TRACE_RENEW_S, left_s))
            self._tell_trace(trace_id, {"left_s": 0})
        finally:
            if not self._closing:
                self._start(self._end_trace(trace_id, wish))

    async def _end_trace(self, trace_id: str, wish: Params) -> None:
        assert self._registry is not None
        try:
            await self._registry.order("trace", {"id": trace_id, **wish, "for_s": 0})
        except HubError as error:
            logger.debug("the end of a trace: %s", error)  # its lease does it

    def _tell_trace(self, trace_id: str, said: Result) -> None:
        self._fanout.deliver([Publication(TRACES + trace_id, encode_body(said))])

    def _publish_piece(self, trace_id: str, piece: Result) -> None:
        """Rows of this worker, for whichever worker has the page."""
        publication = Publication(TRACES + trace_id, encode_body(piece))
        # What Redis does not take is lost: a trace promises no more.
        self._broker.publish(RULES, RESERVED, [publication], lambda outcome: None)


class AdminSession(Session):
    """A page that is in."""

    __slots__ = ("_admin", "_keeping", "_wishes")

    def __init__(self, admin: Admin, services: Services, connection: AdminConnection, visitor: Visitor, meter: Any):
        super().__init__(services, connection, visitor, meter)
        self._admin = admin
        self._wishes: dict[str, Params] = {}
        """Traces that were asked for, by id."""
        self._keeping: dict[str, asyncio.Task[None]] = {}

    @property
    def kind(self) -> str:
        return "admin"

    def identify(self, token: object) -> None:
        """By the key. Raises ProtocolError 3500."""
        try:
            self.claims = self._admin.keys.judge(token, self.visitor.address)
        except ProtocolError as error:
            shown = self.services.shown(self.visitor.address)
            log.event(logger, logging.INFO, "admin: refused", reason=error.close.reason, address=shown)
            raise
        self._ends_at = self.claims.expires_at
        self.user = self.claims.user

    def carry_out(self, command: Command) -> None:
        if command.method == "rpc":
            self._admin.call(self, command)
        elif command.method in ("connect", "subscribe", "unsubscribe"):
            super().carry_out(command)
        else:
            raise CommandError(errors.METHOD_NOT_FOUND)

    def new_trace(self, params: Params) -> Result:
        """{"kind","name","payloads"?} -> {"channel":"$hub:trace:ID"}. Raises CommandError."""
        kind, name = params.get("kind"), params.get("name")
        if kind not in KINDS:
            raise CommandError(errors.BAD_REQUEST, f"kind: found {short(kind)}; allowed: {', '.join(KINDS)}")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise CommandError(errors.BAD_REQUEST, f"name: allowed are 1 to {MAX_NAME_LENGTH} characters")
        if kind == "channel":
            self._admin.check_channel(name)
        if len(self._wishes) >= MAX_TRACES:
            raise CommandError(errors.LIMIT_EXCEEDED, f"allowed: {MAX_TRACES} traces")
        trace_id = secrets.token_hex(16)
        self._wishes[trace_id] = {"kind": kind, "name": name, "payloads": params.get("payloads") is True}
        return {"channel": TRACES + trace_id}

    def on_subscribed(self, command_id: int, channel: str, watch: bool, joined: Joined) -> None:
        super().on_subscribed(command_id, channel, watch, joined)
        trace_id = channel.removeprefix(TRACES)
        if channel == FIGURES:
            self._admin.look()
        elif trace_id in self._wishes:
            self._keeping[trace_id] = self._admin.keep_trace(trace_id, self._wishes[trace_id])

    def on_left(self, channel: str) -> None:
        super().on_left(channel)
        self._let_go(channel.removeprefix(TRACES))

    def on_gone(self) -> None:
        super().on_gone()
        for trace_id in list(self._wishes):
            self._let_go(trace_id)

    def _let_go(self, trace_id: str) -> None:
        self._wishes.pop(trace_id, None)
        if (task := self._keeping.pop(trace_id, None)) is not None:
            task.cancel()


class AdminConnection(WebSocketConnection):
    """The socket of a page, which is no client and counts as none."""

    __slots__ = ()

    kind = ""

    def __init__(self, fd: Descriptor, door: Door, visitor: Visitor) -> None:
        super().__init__(fd, door.reactor, door.services, visitor)
        self._session = AdminSession(door.admin, door.services, self, visitor, self._session.meter)


@dataclasses.dataclass(slots=True)
class Door:
    """What the handshake needs of its worker. services: the pages' own; entrance: that of all clients."""

    admin: Admin
    reactor: Reactor
    services: Services
    entrance: entrance.Entrance


def _own(services: Services) -> Services:
    """Those of all clients, but that a page is none: not counted, not found, limited by itself, out of the channels of
    everybody else.
    """
    limits = UNLIMITED.model_copy(update={"connections": MAX_SESSIONS, "commands_per_s": COMMANDS_PER_S})
    return dataclasses.replace(
        services,
        channels=Channels(CHANNELS),
        users=Users(),
        gate=None,
        sessionless=set(),
        check_access=lambda user, claims: None,
        quotas=Quotas(limits, services.clock),
    )


class AdminFile(assets.StaticFile):
    """GET of a file of the page."""

    def get(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Frame-Options", "DENY")
        super().get()


class AdminHandler(httpd.Handler):
    """GET /admin/connection: the handshake of RFC 6455, for pages of the same host alone."""

    def initialize(self, door: Door) -> None:
        self._door = door

    async def get(self) -> None:
        headers, door = self.request.headers, self._door
        address = door.entrance.address_of(self.peer, headers)
        # Not allowed_origins: those pages are applications.
        refusal = handshake.refuse(self.request.version, headers, Origins(), secure=self.secure)
        if refusal is None and door.entrance.draining():
            refusal = entrance.BUSY
        if refusal is None and (reason := door.services.quotas.admit(address)):
            refusal = entrance.REFUSALS[reason]
        if refusal is not None:
            self.turn_away(refusal)
            return
        if not self.request.connection or self.request.connection.stream.closed():  # type: ignore[attr-defined]
            return  # it sent a request and went: nothing is left to be detached
        fd, early = leave_tornado(self.detach())
        answer, _ = handshake.accept(headers)
        AdminConnection(fd, door, Visitor(address)).begin(answer, early)


def _parse_busiest(answer: Result) -> tuple[dict[str, int], int]:
    """What a worker answered. Raises ValueError."""
    total = answer.get("total")
    if type(total) is not int:
        raise ValueError("an answer without a total")
    return control.parse_counts(answer.get("channels")), total
