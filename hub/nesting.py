"""Nesting: JSON that costs more than its bytes: too many values, or values too deep in each other.

Does: count both before anything is made of the text, or walk what has been made where counting can't tell.
Does not: decide what the answer is, or how much is too much; limits are passed in.
Called by: protocol, socketio_protocol, publish, transports.emulation, transports.publishing.
Never break: time is linear in the text, whatever it is; what stands in strings counts for nothing.

A parsed value takes 20 to 40 times the bytes of its text at worst ([[],[],…), and what is nested deeper than some 250
levels can be read by orjson, and by no encoder written again. A text of n bytes has at most about n/2 values, so almost
all messages are told apart by their length, and the others by a count of commas and brackets, in C.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

# A string that never ends is taken to the end of the text: otherwise the search would begin anew at each quote in it.
STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class TooManyValues(ValueError):
    """The text has more values than allowed."""


def parse(text: bytes, most_values: int) -> Any:
    """What a JSON text says. Raises orjson.JSONDecodeError, a ValueError, too; TooManyValues before it is parsed."""
    if len(text) > most_values and _values(text) > most_values and _values(STRINGS.sub(b"", text)) > most_values:
        raise TooManyValues(f"over {most_values} values in one JSON text")
    return orjson.loads(text)


def _values(text: bytes) -> int:
    """One for each comma and opening bracket, those in strings included; an empty array or object counts double."""
    return 1 + text.count(b",") + openers(text)


def openers(text: bytes) -> int:
    """How deep the text may be nested at most: its opening brackets, those in strings included."""
    return text.count(b"[") + text.count(b"{")


def too_deep(data: Any, most: int) -> bool:
    """Whether arrays and objects in `data` stand in each other more than `most` levels deep."""
    level: list[Any] = [data]
    for _ in range(most + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            else:
                continue
            inner.append(None)  # keeps the level in being for an empty array or object
        if not inner:
            return False
        level = inner
    return True
