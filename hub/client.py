"""Client: what talks to a running hub from outside, by its server API or by the native protocol.

Does: ask the server API over HTTP; follow channels over a WebSocket, and come back after a break.
Does not: read settings or arguments, or print; the commands do.
Called by: remote (`hub publish`, `hub tail`), operating.
Never break: what the hub refuses for good (`errors.Close.reconnect`, replies that are not temporary) is never retried.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import orjson
from tornado import httpclient, netutil
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from .errors import Close, CommandError, HubError, Reply
from .urls import Endpoint

TIMEOUT_S = 10.0
"""For a connection, and for the answer to a request or to the connect command."""
PING_SLACK_S = 10.0
"""Silence beyond the promised ping interval after which a connection counts as dead; what Centrifugo's SDKs allow."""
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 20.0
STABLE_S = 30.0
"""A connection that lasted so long was a good one: the next break begins the backoff anew."""
LOST = Close(1006, "connection lost")
"""RFC 6455 §7.1.5: ended without a close frame."""
MAX_REPLY_BYTES = 67_108_864
"""A page of connections has up to 2 MB of each worker, an answer about channels 3 MB."""
CONNECT_ID = 1
PING = "{}"
RESUBSCRIBE = 2500
"""From this unsubscribe code on a client subscribes again (Centrifugo's rule)."""


class Interrupted(HubError):
    """The conversation ended for now; trying again may help."""


class _UnixResolver(netutil.Resolver):
    """Resolves every host to one Unix socket: Tornado's clients know no other way to be told."""

    def initialize(self, path: str) -> None:
        self._path = path

    async def resolve(self, host: str, port: int, family: int = 0) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self._path)]


def _resolver(endpoint: Endpoint) -> netutil.Resolver | None:
    return _UnixResolver(path=endpoint.unix_path) if endpoint.unix_path else None


# The server API


async def publish(endpoint: Endpoint, key: str, channel: str, data: object) -> dict[str, Any]:
    """Publish one message; returns the API's reply, such as {'result': {}}. Raises as `ask`.

    data: anything that JSON knows.
    """
    return await ask(endpoint, key, "publish", {"channel": channel, "data": data})


async def ask(endpoint: Endpoint, key: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """One request to the server API; returns its reply, which has a 'result'.

    Raises CommandError with the API's code, HubError when the hub can't be reached or does not take the key.
    """
    request = httpclient.HTTPRequest(
        f"{endpoint.url}/{method}",
        method="POST",
        headers={"X-API-Key": key, "Content-Type": "application/json"},
        body=orjson.dumps(params),
        connect_timeout=TIMEOUT_S,
        request_timeout=TIMEOUT_S,
        # A redirect would carry the key to somebody else.
        follow_redirects=False,
    )
    return _judge(endpoint, await _fetch(endpoint, request))


async def _fetch(endpoint: Endpoint, request: httpclient.HTTPRequest) -> httpclient.HTTPResponse:
    # An instance of its own: the shared one would keep the first resolver.
    client = httpclient.AsyncHTTPClient(
        force_instance=True, resolver=_resolver(endpoint), max_body_size=MAX_REPLY_BYTES
    )
    try:
        return await client.fetch(request, raise_error=False)
    except (OSError, httpclient.HTTPError) as error:
        raise HubError(f"cannot reach the hub at {endpoint}: {_cause(error)}") from None
    finally:
        client.close()


def _judge(endpoint: Endpoint, response: httpclient.HTTPResponse) -> dict[str, Any]:
    """The API's reply, or what stands in its place as an exception."""
    if response.code == 401:
        raise HubError(f"{endpoint} refuses the key (HTTP 401); it must be the api.key of that hub")
    reply = _object(response.body)
    if (error := reply.get("error")) is not None:
        raise CommandError(_reply(error))
    if response.code != 200 or "result" not in reply:
        raise HubError(f"{endpoint} answers HTTP {response.code} and no reply of the server API; is the URL right?")
    return reply


def _object(text: bytes | str) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _table(found: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at `key`; {} for anything else."""
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _reply(error: object) -> Reply:
    """{'code': 103, 'message': 'permission denied'} as a Reply; a foreign shape counts as an internal error."""
    found = error if isinstance(error, dict) else {}
    code = found.get("code")
    text = str(found.get("message", "without a text"))
    return Reply(code if isinstance(code, int) else 100, text, found.get("temporary") is True)


def _cause(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__


# The native protocol


class Tail:
    """Follows channels until told to stop; survives breaks as an SDK does, by full-jitter backoff.

    token: called for each connection, so that a fresh one can be made; '' is anonymous.
    on_message: gets the channel and a publication such as {'data': {…}, 'tags': {…}}; its False ends the tail.
    on_break: gets the reason and the seconds until the next try.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channels: Sequence[str],
        token: Callable[[], str],
        on_message: Callable[[str, dict[str, Any]], bool],
        on_break: Callable[[str, float], None],
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._channels = channels
        self._token = token
        self._on_message = on_message
        self._on_break = on_break
        self._jitter = jitter
        self._clock = clock
        self._sleep = sleep
        self._reached = False
        self._breaks = 0
        self._silence_s: float | None = TIMEOUT_S
        self._asked: dict[int, str] = {}
        """Subscriptions that wait for their reply, by command id."""
        self._last_id = CONNECT_ID

    async def run(self) -> None:
        """Return once `on_message` has returned False.

        Raises HubError when the hub refuses for good, CommandError with the code when it refuses a command for good,
        Interrupted when the first try does not even reach a hub: that is more often a wrong URL than a hub that starts.
        """
        while True:
            began = self._clock()
            try:
                return await self._connection()
            except Interrupted as error:
                if not self._reached:
                    raise
                if self._clock() - began >= STABLE_S:
                    self._breaks = 0
                pause_s = self._next_pause_s()
                self._on_break(str(error), pause_s)
            await self._sleep(pause_s)

    def _next_pause_s(self) -> float:
        cap_s: float = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(self._breaks, 10))
        self._breaks += 1
        return self._jitter() * cap_s

    async def _connection(self) -> None:
        """One connection's whole life."""
        websocket = await self._open()
        try:
            self._reached = True
            await self._converse(websocket)
        except WebSocketClosedError:
            raise Interrupted(LOST.reason) from None
        finally:
            _hang_up(websocket)

    async def _open(self) -> WebSocketClientConnection:
        where = self._endpoint
        try:
            return await websocket_connect(where.url, connect_timeout=TIMEOUT_S, resolver=_resolver(where))
        except (OSError, WebSocketError, httpclient.HTTPError) as error:
            # 599 is Tornado's own, for an answer that did not come.
            status = error.code if isinstance(error, httpclient.HTTPError) and error.code != 599 else 0
            if not status:
                raise Interrupted(f"cannot reach the hub at {where}: {_cause(error)}") from None
            raise (Interrupted if status >= 500 else HubError)(f"{where} answers {error}") from None

    async def _converse(self, websocket: WebSocketClientConnection) -> None:
        self._silence_s = TIMEOUT_S
        self._asked.clear()
        token = self._token()
        await _send(websocket, [{"id": CONNECT_ID, "connect": {"token": token} if token else {}}])
        while True:
            # Several replies and pushes may come in one message, one on each line. Not splitlines(): JSON leaves other
            # line breaks, such as U+2028, bare in its texts.
            for line in (await self._read(websocket)).split("\n"):
                if line and not await self._handle(websocket, self._decode(line)):
                    return

    def _decode(self, line: str) -> dict[str, Any]:
        found = _object(line)
        if not found and line != PING:
            raise HubError(f"{self._endpoint} does not speak the native protocol; is the URL right?")
        return found

    async def _read(self, websocket: WebSocketClientConnection) -> str:
        try:
            async with asyncio.timeout(self._silence_s):
                message = await websocket.read_message()
        except TimeoutError:
            raise Interrupted(f"nothing came for {self._silence_s:g} s") from None
        if message is None:
            _raise_close(Close(websocket.close_code or LOST.code, websocket.close_reason or LOST.reason))
        return message if isinstance(message, str) else message.decode(errors="replace")

    async def _handle(self, websocket: WebSocketClientConnection, found: dict[str, Any]) -> bool:
        """One reply or push; False when there is enough."""
        if not found:
            await _send(websocket, [{}])  # a ping
        elif "push" in found:
            return await self._handle_push(websocket, _table(found, "push"))
        elif found.get("id") == CONNECT_ID:
            await self._handle_connect(websocket, found)
        else:
            self._handle_subscribe(found)
        return True

    async def _handle_connect(self, websocket: WebSocketClientConnection, found: dict[str, Any]) -> None:
        _raise_error("connect", found)
        ping_s = _table(found, "connect").get("ping")
        # No ping promised: then silence means nothing, and TCP has to notice.
        self._silence_s = ping_s + PING_SLACK_S if isinstance(ping_s, int | float) and ping_s else None
        await self._subscribe(websocket, self._channels)

    def _handle_subscribe(self, found: dict[str, Any]) -> None:
        channel = self._asked.pop(found.get("id", 0), "")
        _raise_error(f"subscribe to {channel}", found)

    async def _handle_push(self, websocket: WebSocketClientConnection, push: dict[str, Any]) -> bool:
        channel = str(push.get("channel", ""))
        if "pub" in push:
            return self._on_message(channel, _table(push, "pub"))
        if "unsubscribe" in push:
            await self._handle_unsubscribe(websocket, channel, _table(push, "unsubscribe"))
        # Other pushes, such as joins, are not what a tail is for.
        return True

    async def _handle_unsubscribe(
        self, websocket: WebSocketClientConnection, channel: str, end: dict[str, Any]
    ) -> None:
        code = end.get("code", 0)
        if not isinstance(code, int) or code < RESUBSCRIBE:
            raise HubError(f"unsubscribed from {channel} with {code}: {end.get('reason', '')}")
        await self._subscribe(websocket, [channel])

    async def _subscribe(self, websocket: WebSocketClientConnection, channels: Sequence[str]) -> None:
        commands = []
        for channel in channels:
            self._last_id += 1
            self._asked[self._last_id] = channel
            commands.append({"id": self._last_id, "subscribe": {"channel": channel}})
        await _send(websocket, commands)


def _hang_up(websocket: WebSocketClientConnection) -> None:
    """Say goodbye and go: whoever leaves need not wait for the answer, and a lost hub gives none."""
    protocol = websocket.protocol
    websocket.close(1000)
    if protocol is not None and protocol.stream is not None:
        protocol.stream.close()


async def _send(websocket: WebSocketClientConnection, commands: list[dict[str, Any]]) -> None:
    await websocket.write_message(b"\n".join(map(orjson.dumps, commands)))


def _raise_error(what: str, found: dict[str, Any]) -> None:
    """Raise Interrupted or CommandError if the reply is an error."""
    if (error := found.get("error")) is None:
        return
    reply = _reply(error)
    if reply.temporary:
        raise Interrupted(f"{what}: error {reply.code}: {reply.text}")
    raise CommandError(reply, f"{what}: {reply.text}")


def _raise_close(close: Close) -> NoReturn:
    raise (Interrupted if close.reconnect else HubError)(f"closed with {close.code}: {close.reason}")
