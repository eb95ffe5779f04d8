"""A source of your own for the ticker: ticks as lines of JSON that another program appends to a file.

    {"symbol":"ACME","price":100.25,"volume":300}

    [ticker]
    source = "own_source:Lines"
    directory = "/where/this/file/is"
    options = { path = "/srv/ticks.jsonl" }

A source is a class with `identity`, which names what its positions belong to, and `batches`, which yields ticks, each
batch with the position behind it. The hub stores that position in one step with the ticks and begins there when another
worker takes over: no line is lost here, and none comes twice. A feed that can't be asked for what was missed, such as a
socket, yields '' as its position and ignores what it is given. Checks, numbers, order and the choice of the one worker
that reads are the hub's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from hub.tick import Batch, LastTicks, Row

MOST_LINES = 1000
"""In one batch: reading it holds up the worker's clients."""
MAX_LINE_BYTES = 65_536
POLL_S = 0.05


class Lines:
    """Follows one file, from its beginning; a line counts once its newline is there."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Made by each worker, also by those that never lead: opens nothing. What it raises stops the start."""
        self._path = Path(options["path"])
        self.identity = f"lines {self._path}"

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """position: where the last published batch ended, '' at first. last: looks up the newest published ticks."""
        offset = int(position or 0)
        while True:
            rows, faults = [], []
            for line in self._read(offset):
                where = f"{self._path.name}, byte {offset}"
                offset += len(line)
                try:
                    rows.append(Row(where, json.loads(line)))
                except ValueError as error:
                    faults.append(f"{where}: {error}")
            if rows or faults:
                yield Batch(rows, str(offset), faults)
            else:
                await asyncio.sleep(POLL_S)

    def _read(self, offset: int) -> list[bytes]:
        """Whole lines from `offset` on, or pieces of one that is too long; none while the file is not there."""
        lines: list[bytes] = []
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                while len(lines) < MOST_LINES and (line := file.readline(MAX_LINE_BYTES)):
                    if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                        break  # still being written
                    lines.append(line)
        except FileNotFoundError:
            pass  # it may come
        return lines
