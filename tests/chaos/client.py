"""Client: a light client of the native protocol; hundreds in one process do what SDKs do, and write it down.

Does: connect, subscribe, recover with its positions, come back after disconnects and 2500s, publish; log each step.
Does not: keep messages or judge them.
Called by: load, publisher.
Never break: it is a client as the protocol wants it: a position moves only by what was received and by replies, nothing
is dropped or reordered on the way to the log, and a reply without `recovered` gives the hub's position up for good.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from .events import Connected, Gone, Log, Received, Subscribed, Unsubscribed, now_s

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0
"""Between tries, doubled each time; the actual wait is at random below (full jitter)."""
HANDSHAKE_TIMEOUT_S = 5.0
ABNORMAL = 1006
UNRECOVERABLE = 112
RESUBSCRIBE = 2500
"""Unsubscribe codes from here on ask the client to subscribe again."""
TERMINAL = range(3500, 4000)

Answer = Callable[[dict[str, Any]], None]


class Place:
    """One subscription: `epoch` is None before the first reply."""

    __slots__ = ("epoch", "offset", "online", "tries")

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.offset = 0
        self.online = False
        self.tries = 0


class Client(asyncio.Protocol):
    """One client. Call `start`; it runs until `stop`."""

    def __init__(self, name: str, url: str, channels: list[str], log: Log, rng: random.Random) -> None:
        self.name = name
        self.places = {channel: Place() for channel in channels}
        self.refused: list[str] = []
        """Errors that no further try can mend; a run with one is not worth much."""
        self.port = 0
        self._parts = urlsplit(url)
        self._log = log
        self._rng = rng
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._upgraded = False
        self._connected = False
        self._asked = False
        self._code = ABNORMAL
        self._tries = 0
        self._next_id = 0
        self._answers: dict[int, Answer] = {}
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # What its owner calls.

    def start(self) -> None:
        """Connect, now and whenever it is needed."""
        self._task = asyncio.get_running_loop().create_task(self._connect())

    def stop(self) -> None:
        """Disconnect and stay so."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self.cut()

    def cut(self) -> None:
        """Lose the connection of its own will; it comes back with its positions unless it was stopped."""
        self._asked = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def connected(self) -> bool:
        """The connect command has succeeded."""
        return self._connected

    def stall(self, seconds: float) -> None:
        """Read nothing for so long."""
        transport = self._transport
        if transport is not None:
            transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, _resume, transport)

    def behind(self, channel: str, epoch: str, offset: int) -> bool:
        """Whether it is not where the store is."""
        place = self.places[channel]
        return not (place.online and (place.epoch, place.offset) == (epoch, offset))

    def publish(self, channel: str, data: object, answer: Answer) -> bool:
        """Send; `answer` gets the reply, or {} when the connection ends before. False: not connected."""
        if not self._connected:
            return False
        self._command(answer, publish={"channel": channel, "data": data})
        return True

    # The connection.

    async def _connect(self) -> None:
        parts = self._parts
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: self, parts.hostname, parts.port)
        except OSError:
            self._come_back()  # nobody listens just now

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._stopped:
            transport.abort()
            return
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]
        self._buffer, self._upgraded, self._asked, self._code = b"", False, False, ABNORMAL
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self._parts.path} HTTP/1.1\r\nHost: {self._parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if not self._connected and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._connected:
            self._log.write(Gone(now_s(), self.name, self._code, self._asked))
        self._connected = False
        answers, self._answers = self._answers, {}
        for place in self.places.values():
            place.online = False
        for answer in answers.values():
            answer({})
        if self._code in TERMINAL:
            self.refused.append(f"{self.name} was closed with {self._code}")
        self._come_back()

    def _come_back(self) -> None:
        if not self._stopped:
            self._tries += 1
            self._timer = asyncio.get_running_loop().call_later(self._pause_s(self._tries), self.start)

    def _pause_s(self, tries: int) -> float:
        return self._rng.random() * min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(tries, 10))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._give_up()
                return
            self._upgraded, self._buffer = True, rest
            self._command(self._on_connected, connect={})
        self._read_frames()

    def _read_frames(self) -> None:
        """Frames as a hub sends them: unmasked, whole."""
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            length, body = buffer[at + 1], at + 2
            if length == 126:
                body += 2
                length = int.from_bytes(buffer[at + 2 : body], "big") if len(buffer) >= body else 1 << 62
            elif length == 127:
                body += 8
                length = int.from_bytes(buffer[at + 2 : body], "big") if len(buffer) >= body else 1 << 62
            if len(buffer) < body + length:
                break
            payload = buffer[body : body + length]
            self._on_frame(buffer[at] & 15, payload)
            at = body + length
        self._buffer = buffer[at:]

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            for line in payload.split(b"\n"):
                self._on_line(orjson.loads(line))
        elif opcode == 8:
            self._code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._send(8, payload[:2])
        elif opcode == 9:
            self._send(10, payload)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._transport is None:
            return
        size = len(payload)
        # A mask of zeros is a mask (RFC 6455 §5.3), and leaves the payload as it is.
        head = (
            struct.pack("!BB", 128 | opcode, 128 | size) if size < 126 else struct.pack("!BBH", 128 | opcode, 254, size)
        )
        self._transport.write(head + b"\0\0\0\0" + payload)

    # The protocol.

    def _command(self, answer: Answer, **command: object) -> None:
        self._next_id += 1
        self._answers[self._next_id] = answer
        self._send(1, orjson.dumps({"id": self._next_id, **command}))

    def _on_line(self, line: dict[str, Any]) -> None:
        if not line:
            self._send(1, b"{}")
        elif "id" in line:
            self._answers.pop(line["id"])(line)
        elif push := line.get("push"):
            if pub := push.get("pub"):
                self._receive(push["channel"], pub)
            elif "unsubscribe" in push:
                self._on_unsubscribe(push["channel"], push["unsubscribe"]["code"])

    def _on_connected(self, reply: dict[str, Any]) -> None:
        if not reply:
            return
        if "error" in reply:
            self._give_up()
            return
        self._connected, self._tries = True, 0
        self._log.write(Connected(now_s(), self.name, self.port))
        for channel in self.places:
            self._subscribe(channel)

    def _subscribe(self, channel: str) -> None:
        place = self.places[channel]
        if not self._connected or place.online:
            return
        wish: dict[str, object] = {"channel": channel, "recoverable": True, "positioned": True}
        if place.epoch is not None:
            wish |= {"recover": True, "epoch": place.epoch, "offset": place.offset}
        self._command(lambda reply: self._on_subscribed(channel, reply), subscribe=wish)

    def _on_subscribed(self, channel: str, reply: dict[str, Any]) -> None:
        if not reply:
            return  # the connection has ended; it subscribes again on the next one
        place = self.places[channel]
        if error := reply.get("error"):
            if error["code"] == UNRECOVERABLE:
                place.epoch = None
            elif not error.get("temporary") and error["code"] != 100:
                self.refused.append(f"{self.name} in {channel}: {error}")
            self._again(channel, place)
            return
        result = reply["subscribe"]
        place.tries, place.online = 0, True
        epoch, offset = result.get("epoch", ""), result.get("offset", 0)
        flags = bool(result.get("was_recovering")), bool(result.get("recovered"))
        self._log.write(Subscribed(now_s(), self.name, channel, epoch, offset, *flags))
        place.epoch = epoch
        for pub in result.get("publications", ()):
            self._receive(channel, pub)
        place.offset = offset

    def _on_unsubscribe(self, channel: str, code: int) -> None:
        place = self.places[channel]
        place.online = False
        self._log.write(Unsubscribed(now_s(), self.name, channel, code))
        if code >= RESUBSCRIBE:
            self._again(channel, place)
        else:
            self.refused.append(f"{self.name} in {channel}: unsubscribed with {code}")

    def _again(self, channel: str, place: Place) -> None:
        place.tries += 1
        asyncio.get_running_loop().call_later(self._pause_s(place.tries), self._subscribe, channel)

    def _receive(self, channel: str, pub: dict[str, Any]) -> None:
        offset = pub.get("offset", 0)
        self._log.write(Received(now_s(), self.name, channel, offset, pub["data"]["id"]))
        self.places[channel].offset = offset


def _resume(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()
