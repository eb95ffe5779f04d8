"""Engine.IO without Socket.IO: clients of an application's `on_message`, which send and get bare messages.

Does: have the application asked about a client, hand it the messages one by one in their order, send what it answers.
Does not: know sessions and polls (engineio), run handlers (app_runner), or channels: these clients are in none.
Called by: worker (`makers`), transports.polling through them, app_runner through the Client.
Never break: one call of the application at a time for each client, its disconnect last; what waits is bounded, and
beyond that the client is ended (3013).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NoReturn

from .. import app as apps
from .. import errors, frames
from ..app import Call, Client
from ..app_gate import Gate
from ..app_runner import Rejected
from ..auth import ANONYMOUS, Claims, is_user
from ..entrance import Visitor
from ..errors import Close, CommandError, HubError, ProtocolError
from ..outgoing import OPEN
from ..services import Services
from ..tls import Descriptor
from .engineio import Engine, EngineConnection, Make, encode_frame

logger = logging.getLogger(__name__)

PAYLOADS_AHEAD = 8
"""So many messages of the largest size may wait for the application, or as many bytes in smaller ones."""


def addresses(services: Services) -> list[Raw]:
    """Of the application's `on_message`; none without an application."""
    gate = services.gate
    return [] if gate is None else [Raw(path, gate, services) for path in gate.runner.app.message_paths()]


def makers(raws: Sequence[Raw]) -> Mapping[str, Make]:
    """By address."""
    return {raw.path: raw.new_connection for raw in raws}


@dataclass(slots=True)
class Raw:
    """One address. Other services are for what begins from now on."""

    path: str
    gate: Gate
    services: Services

    def new_connection(self, fd: Descriptor, engine: Engine, visitor: Visitor) -> RawConnection:
        """A session, as `engineio.Make`."""
        return RawConnection(fd, engine, visitor, self)


class RawConnection(EngineConnection):
    """One client."""

    __slots__ = ("_accepted", "_bytes", "_calls", "_client", "_raw", "_working")

    def __init__(self, fd: Descriptor, engine: Engine, visitor: Visitor, raw: Raw) -> None:
        super().__init__(fd, engine, visitor)
        self._raw = raw
        self._client = Client(raw.gate.runner.app, _Line(self), raw.services.new_id(), visitor.user, raw.path)
        self._calls = deque([(Call(apps.CONNECT, "", (None,)), 0)])
        """Of the application, in their turn, with the bytes of their messages."""
        self._bytes = 0
        """Of all those messages."""
        self._working = self._accepted = False

    def begin_polling(self) -> None:
        super().begin_polling()
        self._raw.services.sessionless.add(self)
        self._work()

    def begin(self, head: bytes, early: bytes) -> None:
        super().begin(head, early)
        self._raw.services.sessionless.add(self)
        self._work()

    # What orders ask and do.

    @property
    def user(self) -> str:
        return self._client.user

    @property
    def claims(self) -> Claims:
        return self.visitor.claims or ANONYMOUS

    def holds(self, channel: str) -> bool:
        """These clients are in no channels."""
        return False

    def channels(self) -> Iterable[str]:
        """None."""
        return ()

    def send_back(self) -> None:
        """Have it come anew."""
        self.close(errors.CLOSE_FORCE_RECONNECT)

    def turn_away(self, error: HubError) -> None:
        """End it, so that it stays away."""
        self.refuse(error.close if isinstance(error, ProtocolError) else errors.CLOSE_FORCE_DISCONNECT)

    # What engineio calls.

    @property
    def max_packets(self) -> int:
        return self.engine.settings.max_packets

    def on_packet(self, data: bytes, binary: bool) -> None:
        if not self.meter.spend(self.heard_at, 1, len(data)):
            # There is no answer that could say so, and what is sent here is not lost without a word.
            self.engine.quotas.refusals.count("floods")
            self.refuse(errors.CLOSE_TOO_MANY_REQUESTS)
            return
        most = PAYLOADS_AHEAD * self.engine.settings.max_payload_bytes
        if len(self._calls) >= self._raw.gate.pending or self._bytes + len(data) > most:
            self.refuse(errors.CLOSE_TOO_MANY_REQUESTS)
            return
        self._bytes += len(data)
        call = Call(apps.MESSAGE, self._raw.path, (data if binary else data.decode(),))
        self._calls.append((call, len(data)))
        self._work()

    def app_due(self) -> float:
        left_s = self._left_s()
        return inf if left_s == inf else self.reactor.clock() + left_s

    def _left_s(self) -> float:
        """Until its token has ended and had its grace; there is no way to refresh it."""
        claims, services = self.visitor.claims, self._raw.services
        if claims is None or claims.expires_at == inf:
            return inf
        return claims.expires_at + services.authenticator.grace_s - services.wall_clock()

    def on_app_due(self, now: float) -> None:
        self.close(errors.CLOSE_EXPIRED)

    def farewell(self, close: Close) -> bytes:
        return b""

    def on_gone(self) -> None:
        super().on_gone()
        self._raw.services.sessionless.discard(self)
        # Behind what it had sent before it went, which was taken and so is handled.
        self._calls.append((Call(apps.DISCONNECT, "", ()), 0))
        self._work()

    def about(self) -> Mapping[str, object]:
        address = self._raw.services.shown(self.visitor.address)
        return {**super().about(), "client": self._client.id, "address": address, "path": self._raw.path}

    # The application's turn.

    def _work(self) -> None:
        """Have the calls made, unless that is going on."""
        if self._working:
            return
        try:
            self._raw.gate.runner.begin(self._make_calls())
        except CommandError as error:
            if self._accepted and self.state != OPEN:
                logger.warning("no disconnect handler for client %s: %s", self._client.id, error)
            self._calls.clear()
            self.close(errors.CLOSE_TOO_MANY_REQUESTS)
        else:
            self._working = True

    async def _make_calls(self) -> None:
        try:
            while self._calls:
                call, size = self._calls.popleft()
                self._bytes -= size
                await self._make(call)
        except Exception:
            # A fault of ours: this one client is told to come back.
            logger.exception("a call of the application, client %s", self._client.id)
            self.close(errors.CLOSE_SERVER_ERROR)
        finally:
            self._working = False

    async def _make(self, call: Call) -> None:
        if call.kind != apps.CONNECT and not self._accepted:
            return
        try:
            result = await self._call(call)
            if call.kind == apps.CONNECT:
                await self._let_in(result)
        except ProtocolError as error:  # it became somebody else, or blocked, while the application was asked
            self.refuse(error.close)
        except CommandError as error:
            # The runner has logged what was no Reject.
            refused = isinstance(error, Rejected)
            self.refuse(errors.CLOSE_PERMISSION_DENIED if refused else errors.CLOSE_SERVER_ERROR)

    def refuse(self, close: Close) -> None:
        """End it; messages that wait are not handled behind that for which it ends."""
        left = [call for call in self._calls if call[0].kind != apps.MESSAGE]
        self._calls.clear()
        self._calls.extend(left)
        self._bytes = 0
        self.close(close)

    async def _call(self, call: Call) -> Any:
        app, runner = self._raw.gate.runner.app, self._raw.gate.runner
        key = ("", self._raw.path) if call.kind == apps.MESSAGE else (self._raw.path, "")
        handler = app.handler(call.kind, *key)
        if handler is None and call.kind != apps.CONNECT:
            return None
        return await runner.run(handler, self._client, call)

    async def _let_in(self, claims: Any) -> None:
        if claims is not None:
            if not isinstance(claims, Mapping) or not _is_user(claims.get("user", "")):
                logger.warning("the application's connect handler returned neither None nor claims with a user's name")
                raise CommandError(errors.INTERNAL, "the application failed")
            self._client.claims = claims
            self._client.user = claims.get("user", self._client.user)
        self._raw.services.check_access(self.user, self.claims)
        if self.state == OPEN:
            self._accepted = True
            await self._call(Call(apps.CONNECTED, "", (None,)))


class _Line:
    """The Client's way to its connection: its Peer."""

    def __init__(self, connection: RawConnection) -> None:
        self._connection = connection

    def send(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._connection.put(encode_frame(b"4" + data.encode()))
        else:
            self._connection.put(encode_frame(bytes(data), frames.BINARY))

    def end(self) -> None:
        self._connection.refuse(errors.CLOSE_FORCE_DISCONNECT)

    def emit(self, name: str, args: tuple[Any, ...], volatile: bool = False) -> None:
        _no_events()

    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        _no_events()

    async def enter(self, channel: str) -> None:
        raise TypeError("a client of on_message is in no room")

    async def exit(self, channel: str) -> None:
        raise TypeError("a client of on_message is in no room")


def _no_events() -> NoReturn:
    raise TypeError("a client of on_message has messages and no events: send")


def _is_user(name: object) -> bool:
    return isinstance(name, str) and is_user(name)
