"""Apps: what the author of an application writes with, in a Python file that `[app] module` names.

Does: gather handlers and middleware, hand out what they may do: publish, emit, join, leave, call; load such a file.
Does not: run handlers (app_runner), know sessions or Redis (app_gate). Importing it starts nothing.
Called by: applications; app_gate and app_testing, which run them.
Never break: what stands here is what applications are written against; a name that goes breaks them.

    from hub.app import App, Client, Reject

    app = App()

    @app.on_connect()
    async def connect(client: Client, data):          # None: accepted; a dict: its claims, "user" may be among them
        if not client.user:
            raise Reject("who are you?")

    @app.on("say", namespace="/")                     # a Socket.IO event; what is returned is its ack
    async def say(client: Client, text):
        await app.emit("said", text, to="room:lobby", skip=client)
        return "ok"

Nobody comes past it: clients of Socket.IO and of the native protocol are asked about when they connect, those of plain
HTTP (`/sse`, `/poll`, `POST /publish`) with each request, `on_connect` first. An event stream is a client like others,
though it has no acks and no rooms but the channels of its request. A poll or a publication is over with its answer: it
can be sent nothing, and is neither connected nor disconnected. All that such a request asks shares one `app.timeout_s`;
a Reject answers it 403, a handler that fails or takes too long 503.

Handlers are coroutine functions, or plain ones, which run in a thread so that they may wait. What an app does returns
something to await in the former, and is done when it returns in the latter. The file is loaded by each worker, after
the fork: what its handlers keep in variables is of one worker, and only what they publish reaches the others.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from . import errors
from .errors import BootError

Handler = Callable[..., Any]
Proceed = Callable[[], Awaitable[Any]]
Middleware = Callable[["Client", "Call", Proceed], Awaitable[Any]]
Given = TypeVar("Given", bound=Callable[..., Any])
MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
CLIENT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PATH = re.compile(r"/[A-Za-z0-9_.\-/]{1,63}")
OWN_PATHS = re.compile(r"/(?:api|connection|emulation|hub\.js|poll|publish|relay|socket\.io|sse|static)(?:/.*)?")
"""Addresses of the hub itself, which no application can have."""
CONNECT, CONNECTED, DISCONNECT, SUBSCRIBE, PUBLISH, RPC, EVENT, MESSAGE = (
    "connect",
    "connected",
    "disconnect",
    "subscribe",
    "publish",
    "rpc",
    "event",
    "message",
)


class Reject(Exception):
    """Raised by a handler: the client's command, event or connect fails with these words.

    code: as in the native protocol; the default is permission denied. data: of a Socket.IO connect_error, JSON.
    """

    def __init__(self, message: str, code: int = errors.PERMISSION_DENIED.code, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Call(NamedTuple):
    """What a handler is called for. kind: as the constants above; name: of the event, method or channel, or ''."""

    kind: str
    name: str
    args: tuple[Any, ...]


class Peer(Protocol):
    """A client's connection, as seen from here."""

    def emit(self, name: str, args: tuple[Any, ...], volatile: bool = False) -> None: ...
    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any: ...
    async def enter(self, channel: str) -> None: ...
    async def exit(self, channel: str) -> None: ...
    def send(self, data: str | bytes) -> None: ...
    def end(self) -> None: ...


class Hub(Protocol):
    """The hub, as seen from here."""

    async def publish(self, channel: str, data: Any, tags: dict[str, str] | None) -> None: ...
    async def emit(
        self, name: str, args: tuple[Any, ...], to: str, namespace: str, skip: str, volatile: bool = False
    ) -> None: ...
    async def call(self, client: str, name: str, args: tuple[Any, ...], timeout_s: float) -> Any: ...
    async def disconnect(self, client: str) -> None: ...


class Client:
    """One connected client: of a Socket.IO namespace, of the native protocol, or of plain HTTP.

    id: the hub's name for this connection, or this request. user: '' is nobody in particular. namespace: '' where there
    are none: on the native protocol and plain HTTP.
    claims: what the connect handler returned, JSON of at most `app.claims_bytes`. state: the application's own, as long
    as the client is connected. recovered: it was away and comes back to its rooms without loss (socketio.recovery_ms).
    """

    __slots__ = ("_app", "_peer", "claims", "id", "namespace", "recovered", "state", "user")

    def __init__(self, app: App, peer: Peer, client_id: str, user: str, namespace: str) -> None:
        self._app = app
        self._peer = peer
        self.id = client_id
        self.user = user
        self.namespace = namespace
        self.claims: Mapping[str, Any] = {}
        self.recovered = False
        self.state: dict[str, Any] = {}

    def emit(self, name: str, *args: Any, volatile: bool = False) -> Any:
        """Send it an event; bytes go as attachments. To a native client it is a message {"event":…,"data":…}, with
        {"$base64":…} for bytes and their number as "binary"; to an event stream the same, as a `notice`.

        volatile: not where it would have to wait: its socket takes no more now, or no poll of its waits.
        Not before it is connected: until then, a RuntimeError; so always for a poll or a `POST /publish`.
        """
        return self._app.act(self._emit(name, args, volatile))

    async def _emit(self, name: str, args: tuple[Any, ...], volatile: bool) -> None:
        self._peer.emit(name, args, volatile)

    def send(self, data: str | bytes) -> Any:
        """Send it a message, text or bytes, in order. Of clients of `on_message` only; a TypeError for others."""
        return self._app.act(self._send(data))

    async def _send(self, data: str | bytes) -> None:
        self._peer.send(data)

    def call(self, name: str, *args: Any, timeout_s: float = 5.0) -> Any:
        """Send it an event and wait for its ack: the one value in it, None for none, or a list of several.

        Raises TimeoutError, or ConnectionError once it is gone; HubError where the wire has no acks.
        """
        return self._app.act(self._peer.ask(name, args, timeout_s))

    def join(self, channel: str) -> Any:
        """Put it into a room, whatever the rules say. Rooms are channels, of a namespace that exists.

        It is kept in, and gets what is published from now on; where the hub falls behind something may be missed, also
        in mode stream, for it can't be told to subscribe anew. To a native client this is a server-side subscription,
        of which its SDK raises `subscribed` (again where something may have been missed), `publication` and
        `unsubscribed`; it ends with the connection. Raises HubError where that can't be, as for an event stream.
        """
        return self._app.act(self._peer.enter(channel))

    def leave(self, channel: str) -> Any:
        """Take it out of a room; without effect where it is in none of that name.

        An event stream that has it ends, comes back by itself, and `on_subscribe` is asked again.
        """
        return self._app.act(self._peer.exit(channel))

    def disconnect(self) -> Any:
        """End its connection, or on Socket.IO its stay in this namespace; it does not come back by itself.

        A browser's EventSource does, and is asked about again. A poll or publication that has no answer yet gets 403.
        """
        return self._app.act(self._end())

    async def _end(self) -> None:
        self._peer.end()


class App:
    """An application: its handlers, and what they can do to all clients."""

    def __init__(self) -> None:
        self.middlewares: list[Middleware] = []
        self.tasks: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._handlers: dict[tuple[str, str, str | None], Handler] = {}
        self._hub: Hub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    # Registering. `namespace` is of Socket.IO, '' the native protocol; None is wherever there is no nearer handler.

    def on_connect(self, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client, data): may it come in? data: what it sent along. Raise Reject, or return None or claims.

        Asked with each request of plain HTTP as well; data is None there.

        Asked of a client that comes back as well (`client.recovered`), as it may not be welcome any more. Let in, it is
        in its rooms again, and gets what it missed in those of mode stream and what was emitted to its whole namespace,
        and the newest value in those of mode latest. What was emitted in others or to it alone is gone, and so is
        `client.state`. Where its claims make another user of it, it starts anew. Its `id` is a new one in
        any case.
        """
        return self._register(CONNECT, "", namespace)

    def on_connected(self, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client, data): it has been let in and told so; from now on it can be sent events.

        Of plain HTTP that is an event stream with all its channels, and nobody else.
        """
        return self._register(CONNECTED, "", namespace)

    def on_disconnect(self, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client): it is gone. At least once for each client that was let in, as for `on_connected`.

        For clients of a worker that was killed as well: some 5 s later and in another worker, where `client.state` is
        empty and `client.emit` raises ConnectionError. Twice only where a worker is killed while the handler runs or
        just as it has ended, or where it was cut off from Redis, so that its clients had to come in anew.
        """
        return self._register(DISCONNECT, "", namespace)

    def on_subscribe(self, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client, channel): raise Reject to refuse. The rules of the channel's namespace hold besides.

        Of event streams and polls before they are let in, for each channel in the order of the request.
        """
        return self._register(SUBSCRIBE, "", namespace)

    def on_publish(self, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client, channel, data): raise Reject to refuse, return None or other data. The rules hold besides."""
        return self._register(PUBLISH, "", namespace)

    def on_rpc(self, method: str, namespace: str | None = None) -> Callable[[Given], Given]:
        """handler(client, data): the answer of an rpc command. Methods that begin with `hub.` are the hub's own."""
        if method.startswith("hub."):
            raise ValueError("methods that begin with hub. are the hub's own")
        return self._register(RPC, method, namespace)

    def on(self, event: str, namespace: str = "/") -> Callable[[Given], Given]:
        """handler(client, *args): a Socket.IO event. Returned is the ack's value; a tuple is several."""
        return self._register(EVENT, event, namespace)

    def on_message(self, path: str) -> Callable[[Given], Given]:
        """handler(client, data): a message at an address of its own, such as "/engine.io/": Engine.IO 4, no Socket.IO.

        data: text or bytes; `client.send` answers. A client's messages are handled one by one, in their order. One that
        the handler fails for, or rejects, ends the connection, as nothing else could tell. `on_connect(path)`,
        `on_connected(path)` and `on_disconnect(path)`, or else those without a namespace, are called for these clients;
        the path is their `namespace`, and their data is None.
        Raises ValueError for an address that is none, or the hub's own.
        """
        path = path.rstrip("/") + "/"
        if not PATH.fullmatch(path) or OWN_PATHS.fullmatch(path):
            raise ValueError(f"path: found {path!r}; allowed: / and up to 63 of A-Z a-z 0-9 _ . - /, none of the hub's")
        return self._register(MESSAGE, path, "")

    def middleware(self, one: Middleware) -> Middleware:
        """async one(client, call, proceed): around every handler, the first registered outermost.

        `await proceed()` goes on and gives what the handler returned; raise Reject to refuse.
        """
        if not iscoroutinefunction(one):
            raise TypeError("a middleware is a coroutine function")
        self.middlewares.append(one)
        return one

    def task(self, one: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Coroutine[Any, Any, None]]:
        """async one(): runs in each worker from its start, and is cancelled at its end."""
        if not iscoroutinefunction(one):
            raise TypeError("a background task is a coroutine function")
        self.tasks.append(one)
        return one

    def _register(self, kind: str, name: str, namespace: str | None) -> Callable[[Given], Given]:
        key = (kind, name, namespace)

        def register(handler: Given) -> Given:
            if key in self._handlers:
                raise ValueError(f"a second handler for {kind} {name!r} of namespace {namespace!r}")
            self._handlers[key] = handler
            return handler

        return register

    def handler(self, kind: str, namespace: str, name: str = "") -> Handler | None:
        """Who handles it; None: nobody."""
        found = self._handlers.get((kind, name, namespace))
        return found if found is not None else self._handlers.get((kind, name, None))

    def handles(self, kind: str) -> bool:
        """There is a handler of this kind."""
        return any(one == kind for one, _, _ in self._handlers)

    def namespaces(self) -> set[str]:
        """Of Socket.IO, that handlers name."""
        return {namespace for _, _, namespace in self._handlers if namespace} - self.message_paths()

    def message_paths(self) -> set[str]:
        """Addresses of `on_message`: {'/engine.io/'}."""
        return {path for kind, path, _ in self._handlers if kind == MESSAGE}

    # Acting.

    def publish(self, channel: str, data: Any, tags: dict[str, str] | None = None) -> Any:
        """Publish to a channel, by the one door that all use. Raises HubError."""
        return self.act(self._bound().publish(channel, data, tags))

    def emit(
        self,
        name: str,
        *args: Any,
        to: str = "",
        namespace: str = "/",
        skip: Client | None = None,
        volatile: bool = False,
    ) -> Any:
        """Send an event to everybody in a room, on all workers; without `to`, to all of a Socket.IO namespace.

        to: a room, or the id of one client, wherever it is; for one that is nowhere, without effect. A text in the form
        of a client's id is never taken for a room.
        args: JSON, and bytes: at most 10, of 1 MB in all (64 KB of all args, to one client). Socket.IO clients get them
        as attachments, others as {"$base64":…} and with a tag `binary`.
        skip: a client that is passed over, also when it comes back to the room (socketio.recovery_ms). A native client
        that takes up a channel where it was reads all of it, with `skip` among the tags.
        volatile: whoever would have to wait for it goes without, and no history keeps it; not in mode latest.
        Raises HubError.
        """
        return self.act(self._bound().emit(name, args, to, namespace, "" if skip is None else skip.id, volatile))

    def call(self, client: str, name: str, *args: Any, timeout_s: float = 5.0) -> Any:
        """Send an event to one client by its id, in whatever worker it is, and wait for its ack; as `Client.call`.

        For one that is nowhere, a TimeoutError when that time has come.
        """
        return self.act(self._bound().call(check_client_id(client), name, args, timeout_s))

    def disconnect(self, client: str) -> Any:
        """End the connection of one client by its id, in whatever worker it is."""
        return self.act(self._bound().disconnect(check_client_id(client)))

    def bind(self, hub: Hub) -> None:
        """Act in this hub from now on; called in its loop."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def act(self, action: Coroutine[Any, Any, Any]) -> Any:
        """What is to be awaited in the loop; in a handler's thread, the outcome itself."""
        if self._loop is None or threading.get_ident() == self._thread:
            return action
        return asyncio.run_coroutine_threadsafe(action, self._loop).result()

    def _bound(self) -> Hub:
        if self._hub is None:
            raise RuntimeError("the application is not running yet")
        return self._hub


def check_client_id(text: str) -> str:
    """The text. Raises ValueError for what is no client's id."""
    if not isinstance(text, str) or not CLIENT_ID.fullmatch(text):
        raise ValueError(f"found {text!r}; allowed: a client's id")
    return text


def load(module: str, directory: str) -> App:
    """Import 'chat:app' from `directory`, DIRECTORY/chat.py or DIRECTORY/chat/, and return the App.

    Raises BootError: one line that says what is wrong and where.
    """
    app = find("app.module", module, directory)
    if not isinstance(app, App):
        name, _, attribute = module.partition(":")
        raise BootError(f"app.module: found no App named {attribute!r} in {name}; allowed: {attribute} = App()")
    return app


def find(setting: str, module: str, directory: str) -> object:
    """What 'chat:app' names in `directory`; None where the module has no such name. Raises BootError as `load`.

    setting: which one gives `module`, for the error.
    """
    name, _, attribute = module.partition(":")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found = importlib.import_module(name)
        value = getattr(found, attribute, None)
    except (Exception, SystemExit) as error:
        # Whatever the file does at its import: the operator gets one line and the place.
        raise BootError(f"{setting}: found {module!r} in {directory}: {describe(error)}") from None
    if not Path(getattr(found, "__file__", None) or "/").resolve().is_relative_to(Path(directory).resolve()):
        raise BootError(f"{setting}: found {module!r}, a module of another place; allowed: one in {directory}")
    return value


MAX_ERROR_LENGTH = 200


def describe(error: BaseException) -> str:
    """One line with the place where it was raised: "KeyError: 'x' (chat.py, line 12)"."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_ERROR_LENGTH]
    if trace is None or isinstance(error, SyntaxError):
        return text
    return f"{text} ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
