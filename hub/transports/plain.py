"""Plain HTTP: what SSE, long polling and publishing over HTTP have in common.

Does: check origin, token, channels and rules of one request, and ask the application; answer errors as statuses with
JSON; CORS.
Does not: hold connections or sessions; nothing is known of a client between two requests.
Called by: transports.sse, transports.longpoll, transports.publishing.
Never break: nothing is subscribed or published before origin, token and rules have been checked and the application, if
there is one, has been asked; no answer, header or log line repeats a token or what else the client sent.

    400  101… {"error":{"code":107,"message":"…"}}   a bad parameter, body, cursor or name; too many channels (106)
    401  an invalid or expired token                  403  the origin, or the namespace's rule, does not allow it; or
         the application does not: with the code and the words of its Reject
    404  an unknown namespace (102)                   405, 406, 413  method, Accept, size of the body
         with "index":2 in the error where it is the third of the channels (each counted once) that is not granted, or
         "token":2 where the third channel token is no good
    429  too much waits, or comes from one address or user (111)
    503  too many requests at a time, draining, Redis is away, or the application has failed or taken too long (100)

A channel token comes as `?channel_token=`, once for each channel that needs one. What it gives can't be renewed in a
request: a stream ends with the first of them (3006), and so does the wait of a poll.

Who asks is shown as entrance has it: by the header `Authorization: Bearer` or, for EventSource, which can't send one,
by `?token=`, a ticket or a cookie.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Set
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import orjson

from .. import cors, cursor, errors, httpd
from ..app_gate import Gate
from ..app_guest import Gone, Guest
from ..app_runner import Rejected
from ..auth import ANONYMOUS, Claims
from ..capabilities import SUBSCRIBE
from ..channels import Namespace
from ..cursor import Cursor
from ..entrance import NOBODY, TICKET, TOKEN
from ..errors import CommandError, HubError, ProtocolError, Reply, error_body
from ..grants import Grant
from ..permissions import decide, decide_symbols
from ..wants import Wants
from . import market
from .websocket import Door

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_AFTER_S = 1
MAX_PREFLIGHT_AGE_S = 600
CURSOR_HEADER = "Hub-Cursor"
STATUS = {
    errors.UNAUTHORIZED.code: 401,
    errors.TOKEN_EXPIRED.code: 401,
    errors.EXPIRED.code: 401,
    errors.UNKNOWN_CHANNEL.code: 404,
    errors.PERMISSION_DENIED.code: 403,
    errors.TOO_MANY_REQUESTS.code: 429,
    errors.INTERNAL.code: 503,
}
"""By the code of a CommandError; 400 for all others."""
BUSY = Reply(errors.INTERNAL.code, "too many requests at a time, or shutting down", temporary=True)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks to be told, and who it is; checked."""

    caller: Claims
    channels: dict[str, Namespace]
    wants: dict[str, Wants]
    """Of those `latest` channels that are not taken as they come."""
    since: Cursor
    join_leave: bool
    grants: Mapping[str, Grant]
    """Of its channel tokens, by channel."""
    shown: Claims
    """Of its token, in which its user's name is not the application's."""

    @property
    def ends_at(self) -> float:
        """When the first of them ends, in seconds since 1970."""
        return min((grant.expires_at for grant in self.grants.values()), default=inf)


class ChannelError(CommandError):
    """One of the channels that a request names is not granted. index: which one, as no answer repeats its name."""

    def __init__(self, cause: CommandError, index: int) -> None:
        super().__init__(cause.reply, str(cause))
        self.cause = cause
        self.index = index


class TokenError(CommandError):
    """One of the channel tokens of a request is no good. number: which one, from 0."""

    def __init__(self, cause: CommandError, number: int) -> None:
        super().__init__(cause.reply, str(cause))
        self.number = number


class PlainHandler(httpd.Handler):
    """One request of a client without a session."""

    METHODS = "GET"
    STREAMED = False
    """Publications follow each other, so that something can be said of what is between two."""

    def initialize(self, door: Door) -> None:
        self._door = door
        self._guest: Guest | None = None
        self._gone = False
        self.visitor = NOBODY
        """Once `caller` has been asked."""

    def on_connection_close(self) -> None:
        """Whatever is still done for it ends."""
        self._gone = True
        if self._guest is not None:
            self._guest.on_gone()

    def prepare(self) -> None:
        """Origin first, as all else is only for pages that may read the answer."""
        request = self.request.headers
        page = cors.allowed_origin(
            request.get("Origin"), request.get("Host", ""), self._door.entrance.origins, secure=self.secure
        )
        self.set_header("Vary", "Origin")
        if page is None:
            self._door.entrance.quotas.refusals.count("origins")
            self.refuse(
                403, errors.PERMISSION_DENIED, "this Origin is not allowed; see allowed_origins in the settings"
            )
        elif page:
            self.set_header("Access-Control-Allow-Origin", page)
            if self._door.entrance.cookie:
                self.set_header("Access-Control-Allow-Credentials", "true")
            self.set_header("Access-Control-Expose-Headers", f"{CURSOR_HEADER}, Retry-After")
        if self.request.method not in (*self.METHODS.split(", "), "OPTIONS") and not self._finished:
            self.set_header("Allow", f"{self.METHODS}, OPTIONS")
            self.refuse(405, errors.METHOD_NOT_FOUND, f"allowed here: {self.METHODS}")

    def options(self) -> None:
        """A preflight, or somebody who asks what there is."""
        self.set_header("Allow", f"{self.METHODS}, OPTIONS")
        self.set_header("Access-Control-Allow-Methods", self.METHODS)
        self.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID")
        self.set_header("Access-Control-Max-Age", str(MAX_PREFLIGHT_AGE_S))
        self.set_status(204)
        self.finish()

    # What a request says.

    async def caller(self) -> Claims:
        """Who asks, once the request has been counted: a flood costs no signatures.

        Raises HubError for one too many, and for a token or ticket that is not good.
        """
        entrance, token, ticket = self._door.entrance, self.parameter(TOKEN), self.parameter(TICKET)
        address, size = entrance.address_of(self.peer, self.request.headers), len(self.request.body)
        refusal = entrance.admit(address)
        if refusal is not None:
            raise CommandError(errors.TOO_MANY_REQUESTS, refusal.text) if refusal.status == 429 else CommandError(BUSY)
        if not entrance.quotas.request(address, "", size):
            raise CommandError(errors.TOO_MANY_REQUESTS)
        self.visitor = await entrance.visit(self.peer, self.request.headers, token, ticket)
        if self._gone:
            raise Gone  # while its ticket was looked up
        if not entrance.quotas.request("", self.visitor.user, size):
            raise CommandError(errors.TOO_MANY_REQUESTS)
        return self._shown

    @property
    def _shown(self) -> Claims:
        return self.visitor.claims or ANONYMOUS

    def parameter(self, name: str, default: str = "") -> str:
        """One parameter of the query. Raises CommandError 107 for one that is given twice."""
        values = self.get_query_arguments(name, strip=False)
        if len(values) > 1:
            raise CommandError(errors.BAD_REQUEST, f"{name}: found several; allowed: one")
        return values[0] if values else default

    def wish(self, caller: Claims) -> Wish:
        """Read and check ?channel=…&channel=…&channel_token=…&since=…&join_leave=true, and what `market` has.

        Raises HubError.
        """
        services = self._door.services
        names = dict.fromkeys(self.get_query_arguments("channel", strip=False))
        most = min(services.client.channels, cursor.MAX_CHANNELS)
        if not names:
            raise CommandError(errors.BAD_REQUEST, "channel: missing; allowed: ?channel=NAME, once for each channel")
        if len(names) > most:
            raise CommandError(errors.LIMIT_EXCEEDED, f"{len(names)} channels; allowed: {most}")
        join_leave = self.parameter("join_leave", "false")
        if join_leave not in ("true", "false"):
            raise CommandError(errors.BAD_REQUEST, "join_leave: allowed are true and false")
        grants = self._grants(caller.user, names.keys())
        channels: dict[str, Namespace] = {}
        for index, name in enumerate(names):
            try:
                channels[name] = self._readable(name, caller, grants.get(name), join_leave == "true")
            except CommandError as error:
                raise ChannelError(error, index) from None
        wanted = self._wanted(channels, caller)
        return Wish(caller, channels, wanted, self._since(), join_leave == "true", grants, self._shown)

    def _wanted(self, channels: dict[str, Namespace], caller: Claims) -> dict[str, Wants]:
        query = {name: self.parameter(name) for name in (*market.OPTIONS, "data") if self.get_query_arguments(name)}
        asked = market.asked(query, channels)
        found: dict[str, Wants] = {}
        for index, (name, namespace) in enumerate(channels.items()):
            if namespace.mode != "latest":
                continue
            try:
                wanted = market.granted(name, namespace, asked.get(name), self.STREAMED, caller.max_hz)
            except CommandError as error:
                raise ChannelError(error, index) from None
            if wanted is not None:
                decide_symbols(caller, name.partition(":")[0], namespace, wanted.symbols)
                found[name] = wanted
        return found

    def _grants(self, user: str, names: Set[str]) -> dict[str, Grant]:
        """What its channel tokens give, by channel. Raises CommandError 103, 107, 109."""
        tokens = self.get_query_arguments("channel_token", strip=False)
        if len(tokens) > len(names):
            raise CommandError(errors.BAD_REQUEST, "channel_token: allowed is one for each channel at most")
        found = []
        for number, token in enumerate(tokens):
            try:
                grant = self.grant(user, token)
                if grant.channel not in names:
                    raise CommandError(
                        errors.BAD_REQUEST, "channel_token: found one of a channel that is not asked for"
                    )
            except CommandError as error:
                raise error if errors.is_temporary(error) else TokenError(error, number) from None
            found.append(grant)
        return {grant.channel: grant for grant in found}

    def grant(self, user: str, token: object) -> Grant:
        """What one channel token gives. Raises CommandError 103, 109."""
        return self._door.services.authenticator.verify_subscription(token, user)

    def _readable(self, channel: str, caller: Claims, grant: Grant | None, join_leave: bool) -> Namespace:
        namespace = self._door.services.channels.resolve(channel)
        decide(SUBSCRIBE, caller, channel, namespace, grant=grant)
        if namespace.mailbox:
            raise CommandError(errors.NOT_AVAILABLE, "a mailbox needs acknowledgements: connect by WebSocket")
        if join_leave and not namespace.join_leave:
            raise CommandError(errors.NOT_AVAILABLE, "join_leave is not available in this namespace")
        return namespace

    def _since(self) -> Cursor:
        """The header before the query: an EventSource that comes back repeats the URL that it once began with."""
        try:
            return cursor.decode(self.request.headers.get("Last-Event-ID") or self.parameter("since"))
        except ValueError as error:
            raise CommandError(errors.BAD_REQUEST, str(error)) from None

    # What the application says.

    async def ask(self, gate: Gate, work: Coroutine[Any, Any, Result]) -> Result:
        """Have it run as one call of the application's, within their bound. Raises HubError."""
        try:
            result = await gate.runner.begin(work)
        except asyncio.CancelledError:
            raise CommandError(BUSY) from None  # this worker's last moment has come before the answer
        if self._gone:
            raise Gone
        return result

    async def welcome(self, gate: Gate, caller: Claims) -> tuple[Guest, Claims]:
        """The client as the application lets it in, and who it is then. Raises HubError."""
        guest = self._guest = Guest(gate, self._door.services.new_id(), caller.user)
        if self._gone:
            guest.on_gone()
        await guest.connect()
        return guest, caller._replace(user=guest.user)

    async def granted(self, gate: Gate, caller: Claims) -> tuple[Guest, Wish]:
        """The same, and what is asked for, with all of its channels granted. Raises HubError."""
        guest, caller = await self.welcome(gate, caller)
        wish = self.wish(caller)
        for index, channel in enumerate(wish.channels):
            try:
                await guest.subscribe(channel)
            except CommandError as error:
                # Without the index where it may pass: clients give the one channel up that is not granted.
                raise error if errors.is_temporary(error) else ChannelError(error, index) from None
        self.check_access(wish.caller)
        return guest, wish

    def check_access(self, caller: Claims) -> None:
        """Once more, as it may have become somebody else, or blocked, while the application was asked.

        Raises CommandError 101, 103.
        """
        try:
            self._door.services.check_access(caller.user, self._shown)
        except ProtocolError as error:
            blocked = error.close is errors.CLOSE_PERMISSION_DENIED
            raise CommandError(errors.PERMISSION_DENIED if blocked else errors.UNAUTHORIZED) from None

    # Answers.

    def fail(self, error: HubError) -> None:
        """Answer an error, by the table at the top, if somebody is still there."""
        logger.debug("%s: %s", self.request.path, error)
        if self._gone or self._finished:
            return
        if isinstance(error, ProtocolError) and error.close is errors.CLOSE_PERMISSION_DENIED:  # a blocked user
            self.refuse(403, errors.PERMISSION_DENIED)
        elif isinstance(error, ProtocolError):  # the other kind that comes here is a bad token
            self.refuse(401, errors.UNAUTHORIZED, error.close.reason)
        elif isinstance(error, CommandError):
            place = {"index": error.index} if isinstance(error, ChannelError) else {}
            if isinstance(error, TokenError):
                place = {"token": error.number}
            cause = error.cause if isinstance(error, ChannelError) else error
            status = 403 if isinstance(cause, Rejected) else STATUS.get(error.reply.code, 400)
            self._answer_error(status, {**error_body(error), **place})
        else:
            self._answer_error(503, error_body(error))

    def refuse(self, status: int, reply: Reply, text: str = "") -> None:
        """Answer {"error":{"code":…,"message":…}}."""
        self._answer_error(status, error_body(CommandError(reply, text)))

    def _answer_error(self, status: int, body: dict[str, object]) -> None:
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if status in (429, 503):
            self.set_header("Retry-After", str(RETRY_AFTER_S))
        self.answer(status, {"error": body})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Finish with JSON that nobody keeps."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(orjson.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        reply = errors.INTERNAL if status_code >= 500 else errors.BAD_REQUEST
        self.answer(status_code, {"error": error_body(CommandError(reply))})
