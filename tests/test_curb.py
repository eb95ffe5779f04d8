"""Addresses that the kernel keeps out: what the filter says, in a machine of our own and in the kernel's."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from hub import curb
from hub.curb import DROP, MOST, NET, PASS, RESETS, Curb, encode, program_of

SYN, ACK, SYN_ACK = 0x02, 0x10, 0x12
KEYS = ["203.0.113.7", "198.51.100.1", "2001:db8:1:2::/64", "2001:db8:5::/48"]


def packet(source: str, flags: int = SYN) -> tuple[bytes, bytes]:
    """IP header and TCP header."""
    address = ipaddress.ip_address(source)
    tcp = bytes(13) + bytes([flags]) + bytes(6)
    if address.version == 4:
        return b"\x45" + bytes(11) + address.packed + bytes(4), tcp
    return b"\x60" + bytes(7) + address.packed + bytes(16), tcp


def verdict(program: list[curb.Instruction], network: bytes, data: bytes) -> int:
    """What the kernel's interpreter makes of it."""
    value, at = 0, 0
    while True:
        code, yes, no, number = program[at]
        at += 1
        if code == curb.RETURN:
            return number
        if code in (curb.LOAD_BYTE, curb.LOAD_WORD):
            where, size = (network, 4 if code == curb.LOAD_WORD else 1) if number >= NET else (data, 1)
            begin = number - NET if number >= NET else number
            assert begin + size <= len(where), "beyond the header"
            value = int.from_bytes(where[begin : begin + size])
        elif code == curb.AND:
            value &= number
        elif code == curb.JUMP:
            at += number
        else:
            at += yes if value == number else no


@pytest.mark.parametrize(
    ("source", "kept_out"),
    [
        ("203.0.113.7", True),
        ("198.51.100.1", True),
        ("203.0.113.8", False),
        ("2001:db8:1:2::1", True),
        ("2001:db8:1:2:ffff::", True),
        ("2001:db8:1:3::1", False),
        ("2001:db8:5:ffff::1", True),
        ("2001:db8:6::1", False),
    ],
)
def test_the_first_segments_of_these_are_dropped_and_no_others(source, kept_out):
    """By address, and by network of IPv6."""
    program = program_of(KEYS)
    assert verdict(program, *packet(source)) == (DROP if kept_out else PASS)
    for flags in (ACK, SYN_ACK, 0x04, 0x18):
        assert verdict(program, *packet(source, flags)) == PASS, "connections that exist go on"


def test_a_full_program_is_one_that_the_kernel_takes():
    """The longest there can be: each address of IPv6 by all of its bits."""
    program = program_of([f"2001:db8::{number:x}/128" for number in range(MOST)])
    with socket.socket() as listener:
        curb._attach(listener, encode(program))
    assert verdict(program, *packet(f"2001:db8::{MOST - 1:x}")) == DROP
    assert verdict(program, *packet(f"2001:db8::{MOST:x}")) == PASS


def connects(source: str, to: tuple[str, int], timeout_s: float) -> bool:
    with socket.socket() as sock:
        sock.settimeout(timeout_s)
        sock.bind((source, 0))
        try:
            sock.connect(to)
        except TimeoutError:
            return False
        return True


def test_an_address_is_kept_out_for_a_while_and_no_other():
    """In the kernel; and who tries again by itself is in as soon as the time is over."""
    timers: list[object] = []
    room = Curb(lambda delay_s, callback: timers.append(callback))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as unix:
        room.watch([listener, unix])
        to = listener.getsockname()
        for _ in range(RESETS - 1):
            room.on_reset("127.0.0.66")
        assert connects("127.0.0.66", to, 5), "it has not come so often yet"
        room.on_reset("127.0.0.66")
        assert list(room.held()) == ["127.0.0.66"]
        assert not connects("127.0.0.66", to, 0.05) and connects("127.0.0.67", to, 5)
        [beat] = timers
        timers.clear()
        beat()
        assert list(room.held()), "it may have begun right before the beat"
        timers.pop()()
        assert not room.held() and not timers and connects("127.0.0.66", to, 5)


def test_an_address_that_is_reset_now_and_then_is_not_kept_out():
    """The count is of one beat."""
    timers: list[object] = []
    room = Curb(lambda delay_s, callback: timers.append(callback))
    for _ in range(5):
        for _ in range(RESETS - 1):
            room.on_reset("203.0.113.7")
        timers.pop()()
    assert not room.held()


def test_so_many_are_kept_out_at_a_time():
    """The others are reset one by one."""
    room = Curb(lambda delay_s, callback: None)
    for number in range(MOST + 5):
        for _ in range(RESETS):
            room.on_reset(f"203.0.113.{number}")
    assert len(room.held()) == MOST


def test_what_a_killed_worker_has_left_is_taken_away():
    """Listeners outlive their worker."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = Curb(lambda delay_s, callback: None)
        first.watch([listener])
        for _ in range(RESETS):
            first.on_reset("127.0.0.66")
        assert not connects("127.0.0.66", listener.getsockname(), 0.05)
        second = Curb(lambda delay_s, callback: None)
        second.watch([listener])
        assert connects("127.0.0.66", listener.getsockname(), 5)
        second.stop()


def test_without_filters_nothing_fails(monkeypatch, caplog):
    """A sandbox may forbid them."""

    def refused(listener: socket.socket, program: bytes) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(curb, "_attach", refused)
    room = Curb(lambda delay_s, callback: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        room.watch([listener])
        for _ in range(RESETS):
            room.on_reset("127.0.0.66")
        assert connects("127.0.0.66", listener.getsockname(), 5)


def test_an_instruction_is_eight_bytes():
    """struct sock_filter."""
    assert (
        encode([(0x15, 1, 2, 0xABCD)]) == struct.pack("HBBI", 0x15, 1, 2, 0xABCD)
        and len(encode(program_of(KEYS))) % 8 == 0
    )
