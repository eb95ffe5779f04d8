"""Relay: what one worker asks of another, because a session lives there.

Does: name a session's owner in its id, keep a private Unix socket for this worker, carry requests to the owner's and
bring back its answer, or say why there is none.
Does not: know what is asked; each kind of request has its handler (`serve`). Publications never come this way.
Called by: links (builds it), transports.emulation and other wires whose requests may land in any worker.
Never break: an `ask` ends, with an answer or a RelayError, by its deadline; it is carried out once at the most, and
whoever asked and goes away has it cancelled in the owner.

An id names the hub's run, the worker's slot and its generation, so that a worker that took the slot of a dead one is
never taken for it. The last part is 128 bits of chance: who does not know the id can't reach the session.

    3f9c2d11a0b4e875.2.17.5d1e…(32 hex digits)

Frames, both ways: length of the payload, number of the request, code (`HEADER`), payload. The sockets lie in a 0700
directory of the supervisor's, which makes it and removes it; each belongs to one generation, so a killed worker's
refuses at once and is not waited for. An owner on another machine is asked by `neighbours`, where relay.url is set;
otherwise it is gone, as far as this room can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self, cast

from .errors import OwnerFailed, OwnerGone, OwnerSlow, RelayError

logger = logging.getLogger(__name__)

HEADER = struct.Struct(">IIB")
ASK, CANCEL = range(2)
"""Codes of a request: begin one, its payload is the kind's length, the kind and what is asked; give it up."""
DONE, FAILED, BUSY = range(3)
"""Codes of an answer."""
MAX_NUMBER = 2**32
SECRET_BYTES = 16
OWNER = re.compile(r"([0-9a-f]{16})\.(\d{1,4})\.(\d{1,12})")
SESSION = re.compile(OWNER.pattern + r"\.[0-9a-f]{32}")
SOCKET_MODE = 0o600
BACKLOG = 1024
"""Connections waiting to be accepted: one for each other worker, of which there are 1024 at the most."""
FDS, NEWCOMERS = "-fds", "-new"
"""Kinds of sockets besides the relay's own: for descriptors (handover), for new connections (balance)."""
MAX_DIRECTORY_BYTES = 80
"""Of a socket's path 107 bytes are allowed (unix(7))."""

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers one request in the owner; is cancelled when whoever asked has gone."""
Elsewhere = Callable[["Owner", str, bytes, float], Awaitable[bytes]]


class Owner(NamedTuple):
    """A worker process, as ids name it. hub: one run of a supervisor, 16 hex digits."""

    hub: str
    slot: int
    generation: int

    def __str__(self) -> str:
        """'3f9c2d11a0b4e875.2.17'"""
        return f"{self.hub}.{self.slot}.{self.generation}"


def parse_owner(text: object) -> Owner:
    """The worker that a text names. Raises ValueError."""
    found = OWNER.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("not a worker's name")
    return Owner(found[1], int(found[2]), int(found[3]))


def new_session_id(owner: Owner, new_secret: Callable[[int], str] = secrets.token_hex) -> str:
    """An id that names its owner and can't be guessed."""
    return f"{owner}.{new_secret(SECRET_BYTES)}"


def owner_of(session_id: object) -> Owner:
    """The worker in which a session lives. Raises ValueError for what is no id."""
    if not isinstance(session_id, str) or not SESSION.fullmatch(session_id):
        raise ValueError("not a session's id")
    return parse_owner(session_id.rpartition(".")[0])


class Home(NamedTuple):
    """What the workers of one supervisor share. directory: where their sockets lie, private.

    lock: a descriptor that holds the directory as long as the supervisor or any of its forks lives; -1 for none.
    """

    hub: str
    directory: str
    lock: int = -1

    @classmethod
    def make(cls, environ: Mapping[str, str]) -> Self:
        """A new one, below systemd's $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR or the directory for temporary files.

        Raises OSError.
        """
        bases = (environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", ""))
        fit = (base for base in bases if base.startswith("/") and len(os.fsencode(base)) < MAX_DIRECTORY_BYTES - 20)
        base = next((base for base in fit if os.access(base, os.W_OK)), "/tmp")
        _remove_left(base)
        # 0700, and its name can't be foreseen. It has its final name only once it is locked, so that another hub that
        # starts now does not take it for one that was left.
        made = tempfile.mkdtemp(prefix=".hub-relay-", dir=base)
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = f"{base}/{os.path.basename(made)[1:]}"
        os.rename(made, directory)
        return cls(secrets.token_hex(8), directory, lock)

    def remove(self) -> None:
        """Remove it with all that lies there."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)

    def path(self, slot: int, generation: int, kind: str = "") -> str:
        """Of one worker's socket; kind: '', FDS or NEWCOMERS."""
        return f"{self.directory}/{slot}-{generation}{kind}.sock"

    def clear(self, slot: int, generation: int) -> None:
        """Remove the sockets of a worker that ends or has ended."""
        for kind in ("", FDS, NEWCOMERS):
            Path(self.path(slot, generation, kind)).unlink(missing_ok=True)


def _remove_left(base: str) -> None:
    """Remove what killed supervisors have left, of this user: a directory that nobody holds."""
    for path in Path(base).glob("hub-relay-*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its hub lives
        finally:
            os.close(lock)


class Limits(NamedTuple):
    """timeout_s: for an answer, where a request has no time of its own. pending: requests at a time, of one worker to
    one other. message_bytes: of one request or answer. buffer_bytes: unsent, to one other worker."""

    timeout_s: float = 5.0
    pending: int = 10_000
    message_bytes: int = 8_388_608
    buffer_bytes: int = 67_108_864


class Relay:
    """One worker's way to all others of its hub, and theirs to it. Build it with a running loop."""

    def __init__(self, home: Home, slot: int, generation: int, limits: Limits) -> None:
        self.owner = Owner(home.hub, slot, generation)
        """This worker."""
        self.limits = limits
        self.elsewhere: Elsewhere = _nowhere
        """Asks a worker of another hub, as `ask` does; set by neighbours."""
        self._home = home
        self._handlers: dict[str, Handler] = {}
        self._links: dict[Owner, asyncio.Task[_Link | RelayError]] = {}
        self._callers: set[_Caller] = set()
        self._server: asyncio.Server | None = None

    def serve(self, kind: str, handler: Handler) -> None:
        """Answer requests of this kind, ours and those of other workers, from now on. kind: at most 255 letters."""
        self._handlers[kind] = handler

    async def start(self) -> None:
        """Be reachable. Raises OSError."""
        path = self._home.path(self.owner.slot, self.owner.generation)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(sock.fileno(), SOCKET_MODE)
            sock.bind(path)
            sock.setblocking(False)
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Caller(self), sock=sock, backlog=BACKLOG
            )
        except OSError:
            sock.close()
            raise

    async def close(self) -> None:
        """Be gone: no more requests are taken, and those under way end with OwnerGone."""
        if self._server is not None:
            self._server.close()
            self._home.clear(self.owner.slot, self.owner.generation)
        for caller in list(self._callers):
            caller.abort()
        links = list(self._links.values())
        for task in links:
            task.cancel()
            if task.done() and not task.cancelled() and isinstance(link := task.result(), _Link):
                link.abort()
        await asyncio.gather(*links, return_exceptions=True)
        # One turn, in which the transports close and what they were asked is cancelled.
        await asyncio.sleep(0)

    async def ask(self, owner: Owner, kind: str, payload: bytes, timeout_s: float | None = None) -> bytes:
        """What the owner's handler of `kind` answers to `payload`; here, where that is this worker.

        timeout_s: None is that of the settings. Cancelled, it cancels the handler too.
        Raises OwnerGone: there is no such worker, or it went meanwhile; what was asked may have been done then.
        OwnerSlow: no answer in time, or too much waits for it. OwnerFailed: the request is too large, or the handler
        raised.
        """
        timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if owner == self.owner:
                    return await self.answer(kind, payload)
                if owner.hub != self.owner.hub:
                    return await self.elsewhere(owner, kind, payload, timeout_s)
                return await (await self._link(owner)).ask(kind, payload)
        except TimeoutError:
            raise OwnerSlow(f"worker {owner.slot} did not answer in time") from None

    async def answer(self, kind: str, payload: bytes) -> bytes:
        """Have this worker's handler answer. Raises OwnerFailed."""
        handler = self._handlers.get(kind)
        if handler is None:
            raise OwnerFailed(f"this worker answers no {kind!r}")
        try:
            return await handler(payload)
        except Exception:
            # The border of one request: whoever asked is told, the other requests go on.
            logger.exception("a relayed request of kind %s failed", kind)
            raise OwnerFailed(f"{kind} failed") from None

    async def _link(self, owner: Owner) -> _Link:
        task = self._links.get(owner)
        if task is None:
            task = self._links[owner] = asyncio.create_task(self._connect(owner))
        # Shielded: others wait for the same connection.
        try:
            link = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise OwnerGone("this worker ends") from None
            raise
        if isinstance(link, RelayError):
            raise type(link)(str(link))
        return link

    async def _connect(self, owner: Owner) -> _Link | RelayError:
        """The connection to another worker, or why there is none; then the next request tries again."""
        path = self._home.path(owner.slot, owner.generation)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                _, link = await loop.create_unix_connection(lambda: _Link(self, owner), path)
        except TimeoutError:
            del self._links[owner]
            return OwnerSlow(f"worker {owner.slot} accepts no connection")
        except OSError as error:
            del self._links[owner]
            if error.errno == errno.EAGAIN:  # its accept queue is full
                return OwnerSlow(f"worker {owner.slot} accepts no connection")
            return OwnerGone(f"worker {owner.slot} of that generation is gone")
        return link

    # What the connections call.

    def on_link_lost(self, owner: Owner) -> None:
        self._links.pop(owner, None)

    def on_caller(self, caller: _Caller) -> None:
        self._callers.add(caller)

    def on_caller_lost(self, caller: _Caller) -> None:
        self._callers.discard(caller)


async def _nowhere(owner: Owner, kind: str, payload: bytes, timeout_s: float) -> bytes:
    raise OwnerGone("the session's hub is not this one, or was restarted")


class _Framed(asyncio.Protocol):
    """One end of a connection between two workers: bytes ⇄ frames."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= HEADER.size:
            length, number, code = HEADER.unpack_from(buffer, at)
            if length > self._relay.limits.message_bytes:
                self.abort()  # not one of us, or of other settings
                return
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            self.on_frame(number, code, bytes(buffer[at + HEADER.size : end]))
            at = end
        del buffer[:at]

    def on_frame(self, number: int, code: int, payload: bytes) -> None:
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """So much is unsent that nothing may come behind it."""
        transport = self._transport
        return transport is None or transport.get_write_buffer_size() > self._relay.limits.buffer_bytes

    def send(self, number: int, code: int, payload: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(HEADER.pack(len(payload), number, code) + payload)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Link(_Framed):
    """To another worker: our requests, its answers."""

    def __init__(self, relay: Relay, owner: Owner) -> None:
        super().__init__(relay)
        self._owner = owner
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    async def ask(self, kind: str, payload: bytes) -> bytes:
        limits = self._relay.limits
        name = kind.encode()
        request = bytes([len(name)]) + name + payload
        if len(request) > limits.message_bytes:
            raise OwnerFailed(f"found {len(request)} bytes for another worker; allowed: {limits.message_bytes}")
        if self._transport is None:
            raise OwnerGone(f"worker {self._owner.slot} has just gone")
        if self.full or len(self._pending) >= limits.pending:
            raise OwnerSlow(f"too much waits for worker {self._owner.slot}")
        number = self._number = (self._number + 1) % MAX_NUMBER
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        self.send(number, ASK, request)
        try:
            return await future
        except asyncio.CancelledError:
            self.send(number, CANCEL)
            raise
        finally:
            self._pending.pop(number, None)

    def on_frame(self, number: int, code: int, payload: bytes) -> None:
        future = self._pending.get(number)
        if future is None or future.done():
            return  # given up meanwhile
        if code == DONE:
            future.set_result(payload)
        elif code == BUSY:
            future.set_exception(OwnerSlow(f"too much waits for worker {self._owner.slot}"))
        else:
            future.set_exception(OwnerFailed(payload.decode(errors="replace")))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._relay.on_link_lost(self._owner)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(OwnerGone(f"worker {self._owner.slot} went before it answered"))


class _Caller(_Framed):
    """From another worker: its requests, our answers."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self._running: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._relay.on_caller(self)

    def on_frame(self, number: int, code: int, payload: bytes) -> None:
        if code == CANCEL:
            if task := self._running.get(number):
                task.cancel()
        elif code != ASK or not payload:
            self.abort()
        elif len(self._running) >= self._relay.limits.pending or number in self._running:
            self.send(number, BUSY)
        else:
            end = 1 + payload[0]
            kind = payload[1:end].decode(errors="replace")
            self._running[number] = asyncio.create_task(self._run(number, kind, payload[end:]))

    async def _run(self, number: int, kind: str, payload: bytes) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):  # nobody waits for the answer any more
                self._reply(number, *await self._outcome(kind, payload))
        finally:
            self._running.pop(number, None)

    async def _outcome(self, kind: str, payload: bytes) -> tuple[int, bytes]:
        try:
            answer = await self._relay.answer(kind, payload)
        except OwnerFailed as error:
            return FAILED, str(error).encode()
        if len(answer) > self._relay.limits.message_bytes:
            return FAILED, f"the answer has {len(answer)} bytes".encode()
        return DONE, answer

    def _reply(self, number: int, code: int, answer: bytes) -> None:
        if self.full:
            self.abort()  # whoever asked reads no more: hung, and soon replaced
        else:
            self.send(number, code, answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._relay.on_caller_lost(self)
        for task in list(self._running.values()):
            task.cancel()
