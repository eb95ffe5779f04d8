"""Feed: the bench's end of feed_source.py: the hub's own ticker runs that source, and this says when and how fast.

Called by: stage.
Never break: a source that is gone, or that did not keep its pace, is an error or stands beside the figures.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .build import BENCH
from .processes import BenchError

ACCEPT_TIMEOUT_S = 30.0
MARGIN_S = 5.0
"""Beyond the time that the ticks take by the clock. A hub that is further behind is not under the load that was asked
for, and every figure of it would be that of its queue."""
READ_BYTES = 65_536


class Fed(NamedTuple):
    """What one order came to; feed_source.py says it. seqs: of each symbol, the newest."""

    ticks: int
    seconds: float
    late_ms: float
    latest_ms: float
    seqs: list[int]


class Feed:
    """One hub's source."""

    def __init__(self, path: str, symbols: int) -> None:
        self._symbols = symbols
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.settimeout(ACCEPT_TIMEOUT_S)
        self._source: socket.socket | None = None

    def settings(self, namespace: str) -> str:
        """The hub's table for it."""
        return (
            f'[ticker]\nnamespace = "{namespace}"\nsource = "feed_source:Beats"\ndirectory = {json.dumps(str(BENCH))}\n'
            f"[ticker.options]\ncontrol = {json.dumps(self._path)}\nsymbols = {self._symbols}\n"
        )

    def accept(self) -> None:
        """Return when a worker leads the ticker. Raises BenchError."""
        try:
            self._source, _ = self._listener.accept()
        except TimeoutError:
            raise BenchError(f"no worker has led the ticker for {ACCEPT_TIMEOUT_S:g} s") from None

    def start(self, per_s: int, beats: int, seconds: float) -> None:
        """Order `per_s` ticks a second in so many beats; `wait` has the answer."""
        assert self._source is not None, "after `accept`"
        self._source.settimeout(seconds + MARGIN_S)
        order = {"per_s": per_s, "beats": beats, "seconds": seconds}
        self._source.sendall(json.dumps(order).encode() + b"\n")

    def wait(self) -> Fed:
        """Return when Redis has all that was ordered. Raises BenchError."""
        assert self._source is not None, "after `accept`"
        found = b""
        try:
            while not found.endswith(b"\n"):
                # Redis' fault, or a loop that was held up for longer than the lease: the hub's log says which.
                if not (some := self._source.recv(READ_BYTES)):
                    raise BenchError("the ticker's term ended in the middle of a feed")
                found += some
        except TimeoutError:
            raise BenchError(
                f"not loaded as asked: the hub has not taken all ticks {MARGIN_S:g} s after the last was due"
            ) from None
        return Fed(**json.loads(found))

    def run(self, per_s: int, beats: int, seconds: float) -> Fed:
        """Both."""
        self.start(per_s, beats, seconds)
        return self.wait()

    def close(self) -> None:
        self._listener.close()
        if self._source is not None:
            self._source.close()


@contextlib.contextmanager
def feed(symbols: int) -> Iterator[Feed]:
    """One that listens; nothing of it is left behind."""
    with (
        tempfile.TemporaryDirectory(prefix="hub-bench-") as directory,
        contextlib.closing(Feed(str(Path(directory) / "feed.sock"), symbols)) as found,
    ):
        yield found
