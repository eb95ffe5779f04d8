"""Curb: addresses whose connections the kernel does not even begin, for a second.

Does: keep a filter on the listeners that drops the first segment (SYN) of whoever has gone on connecting beyond its
rate, and take each address out of it again.
Does not: decide who that is (quotas), or end anything that exists.
Called by: acceptor.
Never break: what is not certain passes: the filter looks at first segments alone, and without it everything works, at
the price of an accept and a reset for each connection, which is 30 µs, some three hundred times that of a drop.

The filter is classic BPF (socket(7), SO_ATTACH_FILTER), which needs no privilege for a socket of one's own. A client
whose first segment is dropped tries again by itself, after 1, 3 and 7 seconds (RFC 6298): that is the wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Collection

logger = logging.getLogger(__name__)

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
HOLD_S = 1.0
"""So long an address is kept out. The second attempt of a client comes a second behind its first."""
MOST = 64
"""Addresses at a time; what it takes to look at a first segment, and the kernel's memory, grow with them."""
RESETS = 20
"""Connections of an address that were reset in HOLD_S, until it is kept out."""
# The instructions of linux/filter.h, and where it puts the IP header.
LOAD_BYTE, LOAD_WORD, AND, JUMP, JUMP_EQUAL, RETURN = 0x30, 0x20, 0x54, 0x05, 0x15, 0x06
NET = 0xFFF00000
FLAGS = 13
"""Of the TCP header, with which the data begins that a filter of a TCP socket sees."""
SYN, SYN_AND_ACK = 0x02, 0x12
VERSION, IPV4 = 0xF0, 0x40
SOURCES = {4: 12, 6: 8}
"""Where the source address stands in an IP header."""
PASS, DROP = 0xFFFFFFFF, 0

Instruction = tuple[int, int, int, int]
"""Code, how many to pass over if a comparison holds and if it does not, value."""


class Curb:
    """Of one worker's listeners."""

    def __init__(self, call_later: Callable[..., object]) -> None:
        """call_later: the loop's."""
        self._call_later = call_later
        self._listeners: list[socket.socket] = []
        self._resets: dict[str, int] = {}
        """Of each address, since the last beat."""
        self._held: dict[str, int] = {}
        """Who is kept out, for so many beats more."""
        self._armed = False

    def watch(self, listeners: Collection[socket.socket]) -> None:
        """These, too; what the worker before left on them is taken away."""
        for listener in listeners:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                self._listeners.append(listener)
                _detach(listener)

    def stop(self) -> None:
        """Let go of the listeners, which another worker may serve next."""
        for listener in self._listeners:
            _detach(listener)
        self._listeners.clear()

    def held(self) -> Collection[str]:
        """Addresses, and networks, that are kept out now."""
        return self._held.keys()

    def on_reset(self, key: str) -> None:
        """A connection of this address, or network, was reset as it came: '203.0.113.7', '2001:db8::/64'."""
        count = self._resets[key] = self._resets.get(key, 0) + 1
        if count == RESETS and len(self._held) < MOST:
            self._held[key] = 2  # beats are not in step with it: for one to two of them
            self._apply()
        if not self._armed:
            self._armed = True
            self._call_later(HOLD_S, self._beat)

    def _beat(self) -> None:
        self._resets.clear()
        before = len(self._held)
        self._held = {key: beats - 1 for key, beats in self._held.items() if beats > 1}
        if len(self._held) != before:
            self._apply()
        self._armed = bool(self._held)
        if self._armed:
            self._call_later(HOLD_S, self._beat)

    def _apply(self) -> None:
        program = encode(program_of(self._held)) if self._held else b""
        for listener in self._listeners:
            try:
                if program:
                    _attach(listener, program)
                else:
                    _detach(listener)
            except OSError as error:
                # A kernel without it, or a sandbox that forbids it: they are reset one by one, as before.
                logger.debug("no filter on a listener: %s", error)


def program_of(keys: Collection[str]) -> list[Instruction]:
    """What drops first segments from these addresses and networks, and passes all others."""
    networks = [ipaddress.ip_network(key) for key in keys]
    old = [step for one in networks if one.version == 4 for step in _block(one)]
    new = [step for one in networks if one.version == 6 for step in _block(one)]
    return [
        (LOAD_BYTE, 0, 0, FLAGS),
        (AND, 0, 0, SYN_AND_ACK),
        (JUMP_EQUAL, 1, 0, SYN),
        (RETURN, 0, 0, PASS),
        (LOAD_BYTE, 0, 0, NET),
        (AND, 0, 0, VERSION),
        (JUMP_EQUAL, 1, 0, IPV4),
        (JUMP, 0, 0, len(old) + 1),
        *old,
        (RETURN, 0, 0, PASS),
        *new,
        (RETURN, 0, 0, PASS),
    ]


def _block(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[Instruction]:
    """Drop what comes from there, and go on with what does not."""
    steps: list[Instruction] = []
    at = SOURCES[network.version]
    masks, values = (struct.unpack(f"!{len(part) // 4}I", part) for part in _parts(network))
    words = [(at + 4 * number, mask, values[number]) for number, mask in enumerate(masks) if mask]
    for number, (where, mask, value) in enumerate(words):
        # Three instructions for each word, and the last one for all: beyond it, where a word is another one.
        steps += [(LOAD_WORD, 0, 0, NET + where), (AND, 0, 0, mask)]
        steps.append((JUMP_EQUAL, 0, 3 * (len(words) - number - 1) + 1, value))
    return [*steps, (RETURN, 0, 0, DROP)]


def _parts(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[bytes, bytes]:
    return network.netmask.packed, network.network_address.packed


def encode(program: list[Instruction]) -> bytes:
    """As the kernel reads it (struct sock_filter)."""
    return b"".join(struct.pack("HBBI", *step) for step in program)


def _attach(listener: socket.socket, program: bytes) -> None:
    block = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where they are.
    descriptor = struct.pack("HP", len(program) // 8, ctypes.addressof(block))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, descriptor)


def _detach(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # there was none
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
