"""Instructions: the pipe by which the supervisor tells a worker what to do. Both ends; the answer is heartbeat's.

    supervisor   Instructor ──  length, kind, number, data  ──▶  Instructions   worker
                 Pulse      ◀──  b"A" + "number word text"  ───  Heartbeat

Does: send and receive whole instructions in order, however large, without either end ever waiting for the other.
Does not: know what they mean (reload sends them, retune carries them out), or judge a worker that is silent.
Called by: processes (makes it), reload, retune; seat hands the worker's end over.
Never break: the supervisor's end never blocks: a worker that is busy or stopped finds its instructions when it is back.

An instruction is a head of HEAD.size bytes and its data: b'\0\0\0\2' b'P' b'\0\0\0\7' b'..'.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import NamedTuple

HEAD = struct.Struct(">IcI")
MAX_DATA_BYTES = 67_108_864
"""Of one instruction: a thousand certificates with their chains are a tenth of it."""
MAX_UNSENT_BYTES = 2 * MAX_DATA_BYTES
READ_BYTES = 65_536

PREPARE, APPLY, DROP, TELL = b"P", b"A", b"D", b"T"
"""Get ready for these settings; let them hold; forget them; numbers that metrics show."""


class Instruction(NamedTuple):
    """kind: one of the above. number: of the reload that it belongs to."""

    kind: bytes
    number: int
    data: bytes


class Instructor:
    """The supervisor's end of one worker's pipe."""

    __slots__ = ("_unsent", "fd", "unsent_bytes")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0

    def send(self, instruction: Instruction) -> bool:
        """Send it, as far as the pipe takes it now; `flush` goes on. False: too much waits already, nothing was taken.

        Too much is that the worker has not read the one before, for an instruction of the largest size.
        """
        size = HEAD.size + len(instruction.data)
        if self.unsent_bytes + size > MAX_UNSENT_BYTES:
            return False
        head = HEAD.pack(len(instruction.data), instruction.kind, instruction.number)
        self._unsent += [memoryview(part) for part in (head, instruction.data) if part]
        self.unsent_bytes += size
        self.flush()
        return True

    def flush(self) -> None:
        """Write what the pipe takes; `unsent_bytes` is what is left."""
        try:
            while self._unsent:
                sent = os.write(self.fd, self._unsent[0])
                self.unsent_bytes -= sent
                if sent == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # The worker has gone; its death follows, and its successor gets a pipe of its own.
            self._unsent.clear()
            self.unsent_bytes = 0

    def close(self) -> None:
        os.close(self.fd)


class Instructions:
    """The worker's end."""

    __slots__ = ("_data", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._data = bytearray()

    def read(self) -> list[Instruction]:
        """What has come whole, without waiting.

        Raises EOFError once the supervisor is gone, ValueError for a head that can't be its.
        """
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        self._data += data
        found = []
        while (one := self._next()) is not None:
            found.append(one)
        return found

    def _next(self) -> Instruction | None:
        data = self._data
        if len(data) < HEAD.size:
            return None
        size, kind, number = HEAD.unpack_from(data)
        if size > MAX_DATA_BYTES:
            raise ValueError(f"an instruction of {size} bytes")
        if len(data) < HEAD.size + size:
            return None
        one = Instruction(kind, number, bytes(data[HEAD.size : HEAD.size + size]))
        del data[: HEAD.size + size]
        return one

    def close(self) -> None:
        os.close(self.fd)


def open_pipe() -> tuple[Instructor, Instructions]:
    """Make both ends, neither of them blocking, neither inherited by exec. Raises OSError without free descriptors."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    return Instructor(writer), Instructions(reader)
