"""API: what an application's backend asks of the hub over HTTP, in the shape of Centrifugo's server API.

Does: check the key, read the request, answer it from the doors and the registry.
Does not: know client connections or rules for clients: whoever has the key may publish to every configured namespace.
Called by: worker (routes, on the internal listener).
Never break: an option that would change what a request means is honoured or refused, never ignored.

    POST /api/publish   X-API-Key: KEY   {"channel":"news","data":{"text":"hi"}}   ->   200 {"result":{}}

What goes wrong is always a JSON body {"error":{"code":102,"message":"unknown channel"}} with one of Centrifugo's codes:

    200  the request was read and refused, as Centrifugo does it: the code says why
    400  not a JSON object, or not a batch        401  no key or a wrong one
    404  no such method (104)                     405  not POST
    503  "temporary": true, Retry-After: the same request may succeed later. A publication that failed so may still have
         arrived, if the link to Redis broke while the answer was awaited.

In `broadcast` and `batch` the single answers carry the errors; the whole is a 503 only where each of them is temporary.
Of a broken batch's answers, PyPI `cent` can read only the good ones; that is the same with Centrifugo.
See https://centrifugal.dev/docs/server/server_api. A new method needs a row in METHODS.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson

from . import admin_keys, api_control, api_mailbox, errors, httpd, pages
from .asking import presence_body
from .broker import Receipt
from .channels import Channels
from .control import Node
from .errors import CommandError, HubError, Reply, error_body, is_temporary, raise_if_hopeless
from .history import History
from .mailbox import Mailboxes
from .message import PublishOptions
from .presence import Presence
from .publish import Publisher
from .registry import Registry
from .revocation import Revocations
from .roll import Roll
from .tickets import DEFAULT_TTL_S, Tickets

logger = logging.getLogger(__name__)

MAX_BROADCAST = 1000
"""Channels in one broadcast."""
BROADCAST_AT_ONCE = 64
"""Of them, so many wait for Redis together: each is a copy of the data, which may be as large as a request."""
RETRY_AFTER_S = 1
UNAVAILABLE_OPTIONS = ("b64data", "delta")
"""Of `publish` and `broadcast`: binary data is not in the JSON protocol."""
MAX_HISTORY = 1000
"""Publications in one answer; a caller who wants more asks on behind the last one."""
MAX_HISTORY_BYTES = 16_777_216
"""The same in bytes; one publication comes whatever its size."""

Params = dict[str, Any]
Result = dict[str, Any]
Verdict = asyncio.Future[Receipt | HubError]
Outcome = TypeVar("Outcome")


@dataclass(slots=True)
class Api:
    """What the API needs of its worker; a reload changes it in place.

    key: '' refuses everybody; most_commands: in one batch; inbox: the namespace of `notify`.
    """

    key: str
    channels: Channels
    publisher: Publisher
    history: History
    registry: Registry
    presence: Presence
    most_commands: int
    mailboxes: Mailboxes
    inbox: str
    revocations: Revocations
    tickets: Tickets | None = None


def routes(api: Api) -> httpd.Routes:
    """The routes of the server API."""
    return [(r"/api(?:/(.*))?", ApiHandler, {"api": api})]


class Malformed(CommandError):
    """The request as a whole can't be read: HTTP 400."""


class ApiHandler(httpd.Handler):
    """POST /api/METHOD."""

    def initialize(self, api: Api) -> None:
        self._api = api

    def prepare(self) -> None:
        if self.request.method != "POST":
            self.set_header("Allow", "POST")
            self._refuse(405, errors.BAD_REQUEST, "the server API takes POST only")
        elif not self._api.key:
            self._refuse(401, errors.UNAUTHORIZED, "api.key is not set, so the server API is off")
        elif not self._has_key():
            self._refuse(401, errors.UNAUTHORIZED, "X-API-Key: missing or wrong")

    async def post(self, method: str | None) -> None:
        try:
            if method == "batch":
                body: Result = {"replies": await _batch(self._api, self._params())}
            elif method in METHODS:
                body = {"result": await METHODS[method](self._api, self._params())}
            else:
                self._refuse(404, errors.METHOD_NOT_FOUND)
                return
        except HubError as error:
            self._fail(error)
        else:
            self._finish(200, body)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self._refuse(status_code, errors.INTERNAL if status_code >= 500 else errors.BAD_REQUEST)

    def _has_key(self) -> bool:
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        offers = [self.request.headers.get("X-API-Key", ""), key.strip() if scheme.lower() == "apikey" else ""]
        # Tornado reads headers as Latin-1, so this gives back the client's bytes.
        return any(hmac.compare_digest(offer.encode("latin-1"), self._api.key.encode()) for offer in offers)

    def _params(self) -> Params:
        try:
            params = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as error:
            raise Malformed(errors.BAD_REQUEST, f"body: not JSON: {error.msg}") from None
        if not isinstance(params, dict):
            raise Malformed(errors.BAD_REQUEST, "body: allowed is a JSON object")
        return params

    def _fail(self, error: HubError) -> None:
        # The cause may hold addresses: it is for the log, the client learns whether trying again may help.
        logger.debug("%s: %s", self.request.path, error)
        status = 400 if isinstance(error, Malformed) else 503 if is_temporary(error) else 200
        if status == 503:
            self.set_header("Retry-After", str(RETRY_AFTER_S))
        self._finish(status, {"error": error_body(error)})

    def _refuse(self, status: int, reply: Reply, text: str = "") -> None:
        self._finish(status, {"error": error_body(CommandError(reply, text))})

    def _finish(self, status: int, body: Result) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(body))


# Letting in.


async def _ticket(api: Api, params: Params) -> Result:
    """{"user","ttl"?,"exp"?,"caps"?,…} -> {"ticket":"…","ttl":30}: whom one request within `ttl` seconds speaks for.

    ttl: seconds to 60, 30 by default. All other parameters are the client's claims, named as in a token; without `exp`
    its connection has no end of its own.
    """
    if api.tickets is None:
        raise CommandError(errors.NOT_AVAILABLE, "tickets are not available")
    claims = {name: value for name, value in params.items() if name not in ("user", "ttl", "sub")}
    ttl_s = params.get("ttl", DEFAULT_TTL_S)
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float):
        raise CommandError(errors.BAD_REQUEST, "ttl: allowed are seconds")
    return {"ticket": await api.tickets.issue({"sub": params.get("user"), **claims}, ttl_s), "ttl": ttl_s}


async def _admin_token(api: Api, params: Params) -> Result:
    """{"ttl"?} -> {"token":"eyJ…","ttl":900}: opens the admin page, and nothing else, for so many seconds, to 3600."""
    ttl_s = params.get("ttl", admin_keys.DEFAULT_TTL_S)
    if type(ttl_s) is not int or not 1 <= ttl_s <= admin_keys.MAX_TTL_S:
        raise CommandError(errors.BAD_REQUEST, f"ttl: allowed are whole seconds from 1 to {admin_keys.MAX_TTL_S}")
    return {"token": admin_keys.make(api.key, ttl_s, time.time()), "ttl": ttl_s}


# Publishing.


def _publish(api: Api, params: Params) -> Awaitable[Result]:
    """{"channel","data","tags"?,"idempotency_key"?,"version"?,"version_epoch"?,"skip_history"?}.

    -> {} or, in mode `stream`, {"ack":"memory","offset":17,"epoch":"4.k3"}; "duplicate":true where the key was used:
    then the position is that of then. An outdated version is not published, and gets the position of now.
    Begun within the call, so that the calls' order is the publications'.
    """
    return _published(_begin(api, params.get("channel"), params))


async def _published(verdict: Verdict) -> Result:
    outcome = await verdict
    if isinstance(outcome, HubError):
        raise outcome
    return _receipt_body(outcome)


def _receipt_body(receipt: Receipt) -> Result:
    """What became of a publication; `ack` only where it is kept, `offset` and `epoch` only where it was numbered, `id`
    where it is in a mailbox.
    """
    body: Result = {"ack": receipt.ack} if receipt.ack else {}
    if receipt.id:
        body["id"] = receipt.id
    if receipt.offset:
        body |= {"offset": receipt.offset, "epoch": receipt.epoch}
    if receipt.duplicate:
        body["duplicate"] = True
    return body


async def _broadcast(api: Api, params: Params) -> Result:
    """{"channels":[…],"data",…} as publish -> {"responses":[{"result":{…}},{"error":…}]}, in their order."""
    channels = params.get("channels")
    if not isinstance(channels, list) or not channels:
        raise CommandError(errors.BAD_REQUEST, "channels: allowed is a list of at least one")
    if len(channels) > MAX_BROADCAST:
        raise CommandError(errors.LIMIT_EXCEEDED, f"channels: found {len(channels)}; allowed: {MAX_BROADCAST}")
    verdicts: list[Receipt | HubError] = []
    for i in range(0, len(channels), BROADCAST_AT_ONCE):
        begun = [_begin(api, channel, params) for channel in channels[i : i + BROADCAST_AT_ONCE]]
        verdicts += [await verdict for verdict in begun]
    raise_if_hopeless(verdicts)
    return {"responses": [_response(verdict) for verdict in verdicts]}


def _response(verdict: Receipt | HubError) -> Result:
    return {"error": error_body(verdict)} if isinstance(verdict, HubError) else {"result": _receipt_body(verdict)}


def _begin(api: Api, channel: object, params: Params) -> Verdict:
    """Hand one publication to the door; the verdict is a Receipt or why it failed, and is never an exception itself."""
    verdict: Verdict = asyncio.get_running_loop().create_future()
    try:
        namespace = api.channels.resolve(channel)
        options = _options(params)
        done = partial(_settle, verdict)
        api.publisher.publish(str(channel), namespace, params["data"], done, tags=params.get("tags"), options=options)
    except CommandError as error:
        verdict.set_result(error)
    return verdict


def _settle(verdict: asyncio.Future[Outcome], outcome: Outcome) -> None:
    # Cancelled where the request ended before Redis answered.
    if not verdict.done():
        verdict.set_result(outcome)


def _options(params: Params) -> PublishOptions:
    # Keys that nobody knows pass, as in Centrifugo; what these options may be is the publisher's to say.
    for option in UNAVAILABLE_OPTIONS:
        if params.get(option):
            raise CommandError(errors.NOT_AVAILABLE, f"{option} is not available")
    if "data" not in params:
        raise CommandError(errors.BAD_REQUEST, "data is missing")
    given = {name: params[name] for name in PublishOptions._fields if params.get(name) is not None}
    return PublishOptions(**given)


# Asking.


async def _info(api: Api, params: Params) -> Result:
    """{} -> {"nodes":[…]}: all live workers, with counts that are a few seconds old."""
    return {"nodes": [_node_body(node) for node in await api.registry.nodes()]}


async def _channels(api: Api, params: Params) -> Result:
    """{"pattern"?} -> {"channels":{"news":{"num_clients":3}}}; "silent_nodes" names workers that did not answer."""
    clients, silent = await api.registry.channels(params.get("pattern") or "")
    body: Result = {"channels": {channel: {"num_clients": number} for channel, number in clients.items()}}
    return api_control.with_silent(body, silent)


async def _connections(api: Api, params: Params) -> Result:
    """{} -> {"num_clients","num_users","nodes":[…]} of this moment; a user on two workers counts twice.

    With `user`, `client`, `session`, `channel`, `limit` or `after`: who they are; api_control has the words.
    """
    if api_control.wants_list(params):
        return await api_control.connections(api, params)
    nodes, silent = await api.registry.fresh_nodes()
    body: Result = {
        "num_clients": sum(node.num_clients for node in nodes),
        "num_users": sum(node.num_users for node in nodes),
        "nodes": [_node_body(node) for node in nodes],
    }
    return api_control.with_silent(body, silent)


def _node_body(node: Node) -> Result:
    body = node._asdict()
    body["uptime"] = body.pop("uptime_s")
    return body


async def _presence(api: Api, params: Params, full: bool) -> Result:
    """{"channel"} -> {"presence":{CLIENT:{"user","client"}}}, at most client.presence_clients of them, else 106.

    Not full: {"num_clients","num_users"}. 108 where the namespace keeps no presence.
    """
    channel = params.get("channel")
    if api.channels.resolve(channel).presence == "off":
        raise CommandError(errors.NOT_AVAILABLE, "presence is not available in this namespace")
    verdict: asyncio.Future[Roll | HubError] = asyncio.get_running_loop().create_future()
    api.presence.ask(str(channel), full, partial(_settle, verdict))
    roll = await verdict
    if isinstance(roll, HubError):
        raise roll
    return presence_body(roll)


async def _history(api: Api, params: Params) -> Result:
    """{"channel","limit"?,"since"?,"reverse"?} -> {"publications":[…],"offset","epoch"}; see pages."""
    namespace = api.channels.resolve(params.get("channel"))
    request = pages.wanted(params, MAX_HISTORY)
    return pages.body(await pages.read(api.history, params["channel"], namespace, request, MAX_HISTORY_BYTES))


async def _history_remove(api: Api, params: Params) -> Result:
    """{"channel"} -> {}: what is kept goes, the position stays."""
    namespace = api.channels.resolve(params.get("channel"))
    pages.check_kept(namespace)
    await api.history.remove(params["channel"], namespace)
    return {}


# Batches.


async def _batch(api: Api, params: Params) -> list[Result]:
    """{"commands":[{"publish":{…}},…],"parallel"?} -> [{"publish":{…}},{"error":…}], one for each command, in order.

    One after another, each whatever became of the others; `parallel`: publications do not wait for each other's answer.
    """
    commands = params.get("commands")
    if not isinstance(commands, list):
        raise Malformed(errors.BAD_REQUEST, "commands: allowed is a list")
    if len(commands) > api.most_commands:
        raise Malformed(errors.LIMIT_EXCEEDED, f"commands: found {len(commands)}; allowed: {api.most_commands}")
    begun: Iterable[tuple[str, Awaitable[Result]]] = (_begin_command(api, command) for command in commands)
    if params.get("parallel"):
        begun = list(begun)
    outcomes = [await _outcome(name, running) for name, running in begun]
    raise_if_hopeless(outcomes)
    return [{"error": error_body(outcome)} if isinstance(outcome, HubError) else outcome for outcome in outcomes]


def _begin_command(api: Api, command: object) -> tuple[str, Awaitable[Result]]:
    if not isinstance(command, dict) or len(command) != 1:
        return "", _failed(CommandError(errors.BAD_REQUEST, 'command: allowed is {"METHOD":{…}}'))
    ((name, params),) = command.items()
    if name not in METHODS:
        return name, _failed(CommandError(errors.METHOD_NOT_FOUND))
    if not isinstance(params, dict):
        return name, _failed(CommandError(errors.BAD_REQUEST, "command: its parameters are not an object"))
    return name, METHODS[name](api, params)


async def _failed(error: HubError) -> Result:
    raise error


async def _outcome(name: str, running: Awaitable[Result]) -> Result | HubError:
    try:
        return {name: await running}
    except HubError as error:
        return error


METHODS: dict[str, Callable[[Api, Params], Awaitable[Result]]] = {
    "publish": _publish,
    "broadcast": _broadcast,
    "notify": api_mailbox.notify,
    "mailbox_stats": api_mailbox.stats,
    "mailbox_dead": api_mailbox.dead,
    "mailbox_requeue": api_mailbox.requeue,
    "info": _info,
    "channels": _channels,
    "connections": _connections,
    "ticket": _ticket,
    "admin_token": _admin_token,
    "presence": partial(_presence, full=True),
    "presence_stats": partial(_presence, full=False),
    "history": _history,
    "history_remove": _history_remove,
    "subscribe": api_control.subscribe,
    "unsubscribe": api_control.unsubscribe,
    "disconnect": api_control.disconnect,
    "refresh": api_control.refresh,
    "revoke_token": api_control.revoke_token,
    "invalidate_user_tokens": api_control.invalidate_user_tokens,
    "block_user": api_control.block_user,
    "unblock_user": api_control.unblock_user,
}
"""What a request or a batch's command may name; a batch itself is no command."""
