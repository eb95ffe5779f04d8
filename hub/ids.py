"""Ids: names for clients, of chance.

Does: make UUIDs of version 4 (RFC 9562 §5.4), as uuid.uuid4 does, in a quarter of its time: each handshake needs one.
Does not: know who gets one, or keep any.
Called by: session (Services.new_id).
Never break: build it in the process that uses it. After a fork, parent and child would go on with the same ids.
"""

from __future__ import annotations

import os

AT_ONCE = 256
"""Ids of which the chance is asked for in one call of the kernel: 4 KB."""
DIGITS = 32
"""Of one id."""
VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The digit that says of which variant a UUID is, made of one of chance."""


class ClientIds:
    """Call it for an id: '0b6a1f4e-6c0d-4b8e-9d57-2f1a3c5e7b90'."""

    __slots__ = ("_at", "_random")

    def __init__(self) -> None:
        self._random = ""
        self._at = 0

    def __call__(self) -> str:
        at = self._at
        if at == len(self._random):
            self._random, at = os.urandom(AT_ONCE * DIGITS // 2).hex(), 0
        self._at = end = at + DIGITS
        text = self._random[at:end]
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{VARIANT[text[16]]}{text[17:20]}-{text[20:]}"
