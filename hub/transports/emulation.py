r"""Emulation: commands of clients whose stream goes one way, in requests of their own (POST /emulation).

Does: know this worker's streams by their ids, take a request apart, have the stream's owner handle it, answer with a
status.
Does not: open streams (transports.http_stream), carry requests between workers (relay), handle commands (session).
Called by: worker (routes), transports.http_stream (enter, leave), relay (`answer`).
Never break: who does not know a session's id learns nothing about it: an id that is no more, one that never was and one
of another hub are the same 404.

    POST /emulation  {"node":"3f9c….2.17","session":"3f9c….2.17.5d1e…","data":"{\"id\":2,\"subscribe\":{…}}"}  ->  204

    204  the session has taken the commands; their replies come in its stream
    400  not a request as above, or commands that the session could not read, which has ended it
    401  a token or ticket (entrance) that is not good; there need be none, the session's id is secret enough
    403  a token of somebody else than the session's user
    404  there is no such session, or the worker that had it has ended; its stream has ended too
    413  more commands than client.message_bytes       415  not application/json
    429  too many requests of one address, as limits.ip_commands_per_s has it
    500, 504  the session's worker failed, or did not answer in time; the commands may have been handled
Source: https://centrifugal.dev/docs/transports/http_stream
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import orjson

from .. import nesting
from ..cors import CorsHandler
from ..entrance import TICKET, TOKEN, Entrance
from ..entrance import refusal as refuse_token
from ..errors import HubError, OwnerGone, OwnerSlow, RelayError
from ..reactor import Reactor
from ..relay import Owner, Relay, new_session_id, owner_of
from ..services import Services

logger = logging.getLogger(__name__)

KIND = "emulation"
"""Of the relay's requests."""
PATH = "/emulation"
RETRY_AFTER_S = 1
MAX_VALUES = 100
"""Of a request, which has three; its commands are in a text."""
TEXTS = {
    400: "the commands were not understood; the session has ended",
    403: "the token is not that of the session's user",
    404: "no such session",
}


class Stream(Protocol):
    """One client's stream."""

    @property
    def open(self) -> bool: ...

    @property
    def user(self) -> str:
        """Whom its token names, '' for nobody in particular."""

    def hear(self, message: bytes) -> None:
        """Handle commands of its client. Never raises."""


class Sessions:
    """The streams of one worker by id."""

    def __init__(self, owner: Owner, new_id: Callable[[Owner], str] = new_session_id) -> None:
        """owner: this worker."""
        self.owner = owner
        self._new_id = new_id
        self._streams: dict[str, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, stream: Stream) -> str:
        """A new session; its id."""
        session_id = self._new_id(self.owner)
        self._streams[session_id] = stream
        return session_id

    def leave(self, session_id: str) -> None:
        """It has ended."""
        del self._streams[session_id]

    async def answer(self, payload: bytes) -> bytes:
        """What the relay calls: a packed `Request` of any worker -> its status, such as b'204'."""
        session_id, user, data = orjson.loads(payload)
        return b"%d" % self._hear(session_id, user, data)

    def _hear(self, session_id: str, user: str | None, data: str) -> int:
        stream = self._streams.get(session_id)
        if stream is None or not stream.open:
            return 404
        if user is not None and user != stream.user:
            return 403
        stream.hear(data.encode())
        return 204 if stream.open else 400


class Request(NamedTuple):
    """One request. data: commands of the native protocol, one a line."""

    session: str
    owner: Owner
    data: str

    def pack(self, user: str | None) -> bytes:
        """For the session's owner. user: whom the request's token names; None without one."""
        return orjson.dumps([self.session, user, self.data])


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def parse(body: bytes, most_bytes: int) -> Request:
    """Take a request's body apart. Raises _Refused."""
    try:
        found = nesting.parse(body, MAX_VALUES)
    except ValueError:
        raise _Refused(400, "body: not JSON, or of too many values") from None
    if not isinstance(found, dict) or not isinstance(found.get("data"), str) or not found["data"]:
        raise _Refused(400, "body: allowed is an object of node, session and data, each a text")
    if len(found["data"].encode()) > most_bytes:
        raise _Refused(413, f"data: allowed are {most_bytes} bytes")
    try:
        owner = owner_of(found.get("session"))
    except ValueError:
        raise _Refused(404, TEXTS[404]) from None
    if found.get("node") != str(owner):
        raise _Refused(404, TEXTS[404])
    return Request(found["session"], owner, found["data"])


@dataclass(slots=True)
class Emulation:
    """What these doors need of their worker. Other services are for sessions to come."""

    reactor: Reactor
    services: Services
    entrance: Entrance
    sessions: Sessions
    relay: Relay


class EmulationHandler(CorsHandler):
    """POST /emulation."""

    def initialize(self, emulation: Emulation) -> None:
        self._emulation = emulation
        self.allowed_origins = emulation.entrance.origins
        self.refusals = emulation.entrance.quotas.refusals
        self.takes_cookies = bool(emulation.entrance.cookie)

    async def post(self) -> None:
        if not self.is_json():
            return
        services, entrance = self._emulation.services, self._emulation.entrance
        # One command of its address, besides those in it, which count where the session lives.
        if not entrance.quotas.request(entrance.address_of(self.peer, self.request.headers), "", 0):
            self.set_header("Retry-After", str(RETRY_AFTER_S))
            self.plain(429, "too many requests from this address")
            return
        try:
            request = parse(self.request.body, services.client.message_bytes)
            status = await self._ask(request, await self._user())
        except _Refused as refusal:
            self.plain(refusal.status, str(refusal))
            return
        if status == 204:
            self.set_status(204)
            self.finish()
        else:
            self.plain(status, TEXTS[status])

    async def _user(self) -> str | None:
        query = [self.get_query_argument(name, "") for name in (TOKEN, TICKET)]
        try:
            visitor = await self._emulation.entrance.visit(self.peer, self.request.headers, *query)
        except HubError as error:
            found = refuse_token(error)
            for name, value in found.headers.items():
                self.set_header(name, value)
            raise _Refused(found.status, found.text) from None
        return visitor.user if visitor.claims is not None else None

    async def _ask(self, request: Request, user: str | None) -> int:
        try:
            return int(await self._emulation.relay.ask(request.owner, KIND, request.pack(user)))
        except OwnerGone:
            return 404
        except OwnerSlow:
            raise _Refused(504, "the session's worker did not answer in time") from None
        except RelayError:
            raise _Refused(500, "the session's worker failed") from None
