"""Engine: one Socket.IO client by the written protocols, on bare requests with a TCP connection for each.

Does: Engine.IO 4 by polls, by WebSocket, and the way from one to the other; of Socket.IO 5 the namespace `/`, text
events and acks.
Does not: reconnect, or know what events mean: who is cut off says so, and that is a fault.
Called by: load.
Never break: one poll and one post at a time, packets in the order in which they were given; whatever the hub says that
the protocols do not allow ends the client with a ProtocolFault. Nothing here stands on the hub's own code.

Sources: https://socket.io/docs/v4/engine-io-protocol/ and https://socket.io/docs/v4/socket-io-protocol/. As stock
clients do, it goes on posting until its probe is answered, then waits for its poll and post to end, sends `5`, and then
all that was given meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

Wire = Literal["polling", "upgrade", "websocket"]
WIRES: tuple[Wire, ...] = ("polling", "upgrade", "websocket")
SEPARATOR = "\x1e"
OnEvent = Callable[[str, list[Any]], None]
OnLost = Callable[[Exception], None]
PATH = "/socket.io/?EIO=4&transport="
REQUEST_TIMEOUT_S = 120.0
"""Above a poll's longest wait, the ping interval."""
SOURCES = 16
"""Addresses of 127.0.0.0/8 that connections come from: one has only some 28,000 ports towards one server."""
_sources = itertools.cycle(range(2, 2 + SOURCES))


class ProtocolFault(Exception):
    """The hub said what the protocols do not allow, or cut the client off."""


class Refused(ProtocolFault):
    """A request was answered with an error. code: of Engine.IO, -1 where the body has none."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:200]!r}")
        self.status = status
        try:
            self.code = int(orjson.loads(body)["code"])
        except (ValueError, KeyError, TypeError):
            self.code = -1


class Server(NamedTuple):
    """Where the hub is."""

    host: str
    port: int

    def new_socket(self) -> socket.socket:
        """A socket of another address each time, not connected yet."""
        sock = socket.socket()
        sock.setblocking(False)
        # Without it the port would be chosen before the peer is known, and be taken for all peers.
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((f"127.0.0.{next(_sources)}", 0))
        return sock

    async def dial(self) -> socket.socket:
        """A connected one. Raises OSError."""
        sock = self.new_socket()
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of a 200, by a connection of its own. Raises Refused, ProtocolFault, OSError, TimeoutError."""
        return (await self.exchange(method, path, body)).body

    async def exchange(self, method: str, path: str, body: bytes = b"") -> Answer:
        """The whole answer, also where it is a 204; else as `request`."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
        if method == "POST":
            head += f"Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {len(body)}\r\n"
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            sock = await self.dial()
            answer: asyncio.Future[bytes] = loop.create_future()
            transport, _ = await loop.create_connection(lambda: _Reader(answer), sock=sock)
            try:
                transport.write(f"{head}\r\n".encode() + body)
                return _parse(await answer)
            finally:
                transport.abort()


class Answer(NamedTuple):
    """Of a request. headers: by their names in lower case."""

    headers: dict[str, str]
    body: bytes


class _Reader(asyncio.Protocol):
    """All bytes of one connection, up to its end."""

    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer
        self._parts: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer.done():
            return
        if error is not None:
            self._answer.set_exception(error)
        else:
            self._answer.set_result(b"".join(self._parts))


def _parse(answer: bytes) -> Answer:
    """All of one connection. Raises Refused and ProtocolFault."""
    head, end, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    if not end or not status_line.startswith("HTTP/1.1 "):
        raise ProtocolFault(f"no whole answer: {answer[:200]!r}")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(status_line.split()[1])
    if len(body) != (0 if status == 204 else int(headers.get("content-length", -1))):
        raise ProtocolFault(f"an answer in part, or without its length: {answer[:200]!r}")
    if status not in (200, 204):
        raise Refused(status, body)
    return Answer(headers, body)


class Client:
    """One client in the namespace `/`.

    on_event: called with the name and arguments of each event. on_lost: called once, with the cause, if the connection
    ends otherwise than by `close`.
    """

    def __init__(self, server: Server, wire: Wire, on_event: OnEvent, on_lost: OnLost) -> None:
        self._server = server
        self._wire = wire
        self._on_event = on_event
        self._on_lost = on_lost
        self.sid = ""
        """Of Engine.IO."""
        self._path = ""
        self._max_payload = 0
        self._waiting: deque[str] = deque()
        """Packets that are to be sent, in order."""
        self._something = asyncio.Event()
        """Some may be."""
        self._writing = asyncio.Lock()
        """A post is under way, or the move is."""
        self._moving = False
        """The probe was answered: what is given waits for the WebSocket."""
        self._polled = asyncio.Event()
        """The last poll has ended."""
        self._moved = asyncio.Event()
        """The WebSocket has taken over."""
        self._socket: ClientConnection | None = None
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks: dict[int, asyncio.Future[list[Any]]] = {}
        self._numbers = itertools.count()
        self._life: asyncio.Task[None] | None = None
        self.on_stray_ack: Callable[[int, list[Any]], None] = _unwanted
        """An ack came that nobody waits for, most likely once more. For whoever keeps count."""

    # Doors.

    async def open(self) -> None:
        """Get in. Raises ProtocolFault, WebSocketException, OSError, TimeoutError."""
        if self._wire == "websocket":
            self._socket = await self._dial("")
            self._opened(_text(await self._socket.recv()))
        else:
            self._opened((await self._server.request("GET", f"{PATH}polling")).decode())
        self.send("40")
        self._life = asyncio.create_task(self._live())
        await self._joined

    async def call(self, name: str, *arguments: Any) -> list[Any]:
        """Emit an event; the arguments of its ack."""
        number = next(self._numbers)
        answer = self._acks[number] = asyncio.get_running_loop().create_future()
        self.send(f"42{number}{orjson.dumps([name, *arguments]).decode()}")
        return await answer

    async def settled(self) -> None:
        """Return once it is on the wire on which it stays. Never does, where the move fails: `on_lost` is called."""
        if self._wire == "upgrade":
            await self._moved.wait()

    def send(self, packet: str) -> None:
        """Have a packet sent behind those before."""
        self._waiting.append(packet)
        self._something.set()

    async def close(self) -> None:
        """End it, as a stock client does on `disconnect()`: leave the namespace, then the session."""
        if self._life is None or self._life.done():
            return
        if self._socket is None and not self._moving:
            self._on_lost = lambda error: None  # the poll is about to end, by what is sent here
            self.send("41")
            self.send("1")
            await self._life
            return
        self._life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._life
        if self._socket is not None:
            await self._socket.close()

    # Life.

    def _opened(self, packet: str) -> None:
        if not packet.startswith("0{"):
            raise ProtocolFault(f"no handshake: {packet!r}")
        words = orjson.loads(packet[1:])
        self.sid, self._max_payload = words["sid"], words["maxPayload"]
        self._path = f"{PATH}polling&sid={self.sid}"
        if words["upgrades"] != ([] if self._wire == "websocket" else ["websocket"]):
            raise ProtocolFault(f"found upgrades {words['upgrades']}")

    async def _live(self) -> None:
        """All that goes on at the same time, until one part of it fails."""
        try:
            async with asyncio.TaskGroup() as group:
                if self._socket is not None:
                    group.create_task(self._read(self._socket))
                else:
                    group.create_task(self._poll())
                if self._wire == "upgrade":
                    group.create_task(self._upgrade())
                group.create_task(self._write())
        except* (ProtocolFault, WebSocketException, OSError, TimeoutError) as errors:
            # The border of one client: whoever built it is told, and the others go on.
            error = _first(errors)
            for waiting in (self._joined, *self._acks.values()):
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # nobody may be waiting for it any more
            self._on_lost(error)

    async def _dial(self, sid: str) -> ClientConnection:
        uri = f"ws://{self._server.host}:{self._server.port}{PATH}websocket{sid}"
        try:
            return await connect(
                uri, proxy=None, compression=None, sock=await self._server.dial(), open_timeout=REQUEST_TIMEOUT_S
            )
        except InvalidStatus as error:
            raise Refused(error.response.status_code, error.response.body) from None

    async def _poll(self) -> None:
        """One poll behind the other, until the WebSocket takes over."""
        while not self._moving:
            body = await self._server.request("GET", self._path)
            for packet in body.decode().split(SEPARATOR):
                self._handle(packet)
        self._polled.set()

    async def _upgrade(self) -> None:
        """Probe, wait until the poll and the post under way have ended, take over, read."""
        new = await self._dial(f"&sid={self.sid}")
        await new.send("2probe")
        if (answer := _text(await new.recv())) != "3probe":
            raise ProtocolFault(f"the probe was answered {answer!r}")
        self._moving = True
        await self._polled.wait()
        async with self._writing:
            await new.send("5")
            self._socket = new
        self._moved.set()
        self._something.set()
        await self._read(new)

    async def _read(self, socket: ClientConnection) -> None:
        """Whatever comes on the WebSocket."""
        while True:
            self._handle(_text(await socket.recv()))

    async def _write(self) -> None:
        """Whatever waits, by the way that there is now."""
        while True:
            await self._something.wait()
            self._something.clear()
            async with self._writing:
                while self._waiting and (self._socket is not None or not self._moving):
                    await self._write_some()

    async def _write_some(self) -> None:
        if self._socket is not None:
            await self._socket.send(self._waiting.popleft())
            return
        packets: list[str] = []
        size = 0
        while self._waiting:
            size += len(self._waiting[0].encode()) + len(SEPARATOR)
            if packets and size - len(SEPARATOR) > self._max_payload:
                break
            packets.append(self._waiting.popleft())
        answer = await self._server.request("POST", self._path, SEPARATOR.join(packets).encode())
        if answer != b"ok":
            raise ProtocolFault(f"a post was answered {answer[:200]!r}")

    # Packets.

    def _handle(self, packet: str) -> None:
        if packet == "2":
            self.send("3")
        elif packet.startswith("42["):
            name, *arguments = orjson.loads(packet[2:])
            self._on_event(name, arguments)
        elif packet.startswith("43"):
            number, _, rest = packet[2:].partition("[")
            self._on_ack(int(number), orjson.loads("[" + rest))
        elif packet.startswith('40{"sid":') and not self._joined.done():
            self._joined.set_result(None)
        elif packet != "6":
            raise ProtocolFault(f"out of place: {packet[:200]!r}")

    def _on_ack(self, number: int, arguments: list[Any]) -> None:
        answer = self._acks.pop(number, None)
        if answer is None:
            self.on_stray_ack(number, arguments)
        elif not answer.done():
            answer.set_result(arguments)


def _unwanted(number: int, arguments: list[Any]) -> None:
    raise ProtocolFault(f"ack {number} with {arguments!r}, which nobody waits for")


def _text(message: str | bytes) -> str:
    if not isinstance(message, str):
        raise ProtocolFault(f"bytes, which nobody sends here: {message[:200]!r}")
    return message


def _first(errors: BaseExceptionGroup) -> Exception:
    """Of what several parts raised, the first."""
    found = errors.exceptions[0]
    if isinstance(found, BaseExceptionGroup):
        return _first(found)
    assert isinstance(found, Exception)
    return found
