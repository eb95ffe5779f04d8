"""Tally: how many clients of a worker there are, have come and have gone, by wire and by what they were closed with.

Does: keep plain numbers, and how long handshakes took.
Does not: hold connections (reactor) or count who was turned away (refusals).
Called by: connection (enter, leave), acceptor and transports.websocket (handshakes); figures reads it.
Never break: who has entered leaves once; a client's doing adds no new name here, so what is told stays bounded.
A new wire needs its name in WIRES.
"""

from __future__ import annotations

from . import errors
from .errors import Close
from .histogram import SLOW_S, Histogram

WIRES = ("websocket", "http_stream", "sse", "event_stream", "socketio", "engineio")
"""As each kind of connection has it in `kind`. Polls that wait are no connections; longpoll counts them."""
OTHER = "other"
"""Codes of peers' and applications' own making, of which there may be thousands."""
CODES = tuple(
    str(code) for code in sorted({close.code for close in vars(errors).values() if isinstance(close, Close)} | {1001})
)
"""What the hub itself closes with, and 1001, with which browsers leave a page."""


class Tally:
    """Of one worker, since its start."""

    __slots__ = ("closed", "handshakes", "open", "opened")

    def __init__(self) -> None:
        self.open = dict.fromkeys(WIRES, 0)
        """Now."""
        self.opened = dict.fromkeys(WIRES, 0)
        self.closed = dict.fromkeys((*CODES, OTHER), 0)
        self.handshakes = Histogram(SLOW_S)
        """Seconds from the accept, or where Tornado answers from the end of the request's head, to the answer of a
        WebSocket's handshake."""

    def enter(self, wire: str) -> None:
        """A client is there, by one of WIRES."""
        self.open[wire] += 1
        self.opened[wire] += 1

    def leave(self, wire: str, code: int) -> None:
        """The opposite of an `enter` before, and why."""
        self.open[wire] -= 1
        name = str(code)
        self.closed[name if name in self.closed else OTHER] += 1
