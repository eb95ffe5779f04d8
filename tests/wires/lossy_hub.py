"""A hub that does one thing wrong to its Socket.IO clients, as LIE in its environment says.

Run as `python -m tests.wires.lossy_hub` with the command line of `hub`: it shows that the rig finds what a real hub
does wrong, as test_checker shows it of logs.

    "drops"     one message in five on its way to a poll   "repeats"   one ack in five comes twice
    "forgets"   one session in five, at its 5th request: the worker no longer knows it
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from hub.cli import main
from hub.transports import engineio
from hub.transports.polling import Address
from hub.transports.socketio_session import SocketSession

ONE_IN = 5
NOOP = b"6"


def drops() -> None:
    honest = engineio.unframe
    numbers = itertools.count(1)

    def lossy(data: bytes) -> Iterator[bytes]:
        for packet in honest(data):
            yield NOOP if b'"publication"' in packet and not next(numbers) % ONE_IN else packet

    engineio.unframe = lossy


def repeats() -> None:
    honest = SocketSession.acknowledge
    numbers = itertools.count(1)

    def lossy(self: SocketSession, number: int, args: tuple[Any, ...]) -> None:
        honest(self, number, args)
        if not next(numbers) % ONE_IN:
            honest(self, number, args)

    SocketSession.acknowledge = lossy


def forgets() -> None:
    honest = Address.find
    asked: dict[str, int] = {}

    def lossy(self: Address, sid: str, token: str) -> Any:
        asked[sid] = asked.get(sid, 0) + 1
        if asked[sid] == ONE_IN and not list(asked).index(sid) % ONE_IN:
            return honest(self, "", "")
        return honest(self, sid, token)

    Address.find = lossy


LIES = {"drops": drops, "repeats": repeats, "forgets": forgets}

if __name__ == "__main__":
    LIES[os.environ["LIE"]]()
    main()
