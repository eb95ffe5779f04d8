"""Cases: what a client sends to an echo server, and what must come back, by the numbers of the Autobahn testsuite.

Does: list the cases of its groups 1 to 7, 9 and 10 (smaller where size is all there is to them), one row each, with the
strict verdict; those of 12 and 13 need a handshake of their own and are in test_echo.
Does not: open sockets; test_echo plays them.
Source: https://github.com/crossbario/autobahn-testsuite, whose descriptions the rows follow.
"""

from __future__ import annotations

from typing import NamedTuple

from hub.frames import BINARY, CLOSE, PING, PONG, TEXT
from tests.test_frames import first, frame, last, middle

Answer = tuple[int, bytes | int]
"""(TEXT, b'hi'), (PONG, b''), or (CLOSE, 1002): of a close frame only the code counts, 0 if it has none."""


class Case(NamedTuple):
    """Bytes to send, in writes of `chop` bytes, and every frame that must come back, the close last."""

    sent: bytes
    answers: list[Answer]
    chop: int = 0
    """0: all in one."""


BYE = frame(CLOSE, b"\x03\xe8")
CLOSED: Answer = (CLOSE, 1000)
HI = b"Hello, world!"


def good(sent: bytes, *answers: Answer, chop: int = 0) -> Case:
    """The client closes behind it, and is answered."""
    return Case(sent + BYE, [*answers, CLOSED], chop)


def bad(sent: bytes, code: int, *answers: Answer, chop: int = 0) -> Case:
    """The server closes, with `code`."""
    return Case(sent, [*answers, (CLOSE, code)], chop)


SIZES = (0, 125, 126, 127, 128, 65535, 65536)
FRAMING = {
    **{f"1.1.{n}": good(frame(TEXT, b"*" * size), (TEXT, b"*" * size)) for n, size in enumerate(SIZES, 1)},
    "1.1.8": good(frame(TEXT, b"*" * 65536), (TEXT, b"*" * 65536), chop=997),
    **{f"1.2.{n}": good(frame(BINARY, b"\xfe" * size), (BINARY, b"\xfe" * size)) for n, size in enumerate(SIZES, 1)},
    "1.2.8": good(frame(BINARY, b"\xfe" * 65536), (BINARY, b"\xfe" * 65536), chop=997),
}

ODD = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
TEN = [b"payload-%d" % n for n in range(10)]
PINGS = {
    "2.1": good(frame(PING), (PONG, b"")),
    "2.2": good(frame(PING, HI), (PONG, HI)),
    "2.3": good(frame(PING, ODD), (PONG, ODD)),
    "2.4": good(frame(PING, b"\xfe" * 125), (PONG, b"\xfe" * 125)),
    "2.5": bad(frame(PING, b"\xfe" * 126), 1002),
    "2.6": good(frame(PING, b"\xfe" * 125), (PONG, b"\xfe" * 125), chop=1),
    "2.7": good(frame(PONG)),
    "2.8": good(frame(PONG, b"unsolicited pong payload")),
    "2.9": good(frame(PONG, b"unsolicited") + frame(PING, b"ping payload"), (PONG, b"ping payload")),
    "2.10": good(b"".join(frame(PING, p) for p in TEN), *[(PONG, p) for p in TEN]),
    "2.11": good(b"".join(frame(PING, p) for p in TEN), *[(PONG, p) for p in TEN], chop=1),
}

TEXT_THEN, ECHO = frame(TEXT, HI), (TEXT, HI)
RESERVED = {
    "3.1": bad(frame(TEXT, HI, rsv=1), 1002),
    "3.2": bad(TEXT_THEN + frame(TEXT, HI, rsv=2) + frame(PING), 1002, ECHO),
    "3.3": bad(TEXT_THEN + frame(TEXT, HI, rsv=3) + frame(PING), 1002, ECHO, chop=30),
    "3.4": bad(TEXT_THEN + frame(TEXT, HI, rsv=4) + frame(PING), 1002, ECHO, chop=1),
    "3.5": bad(frame(BINARY, ODD, rsv=5), 1002),
    "3.6": bad(frame(PING, HI, rsv=6), 1002),
    "3.7": bad(frame(CLOSE, rsv=7), 1002),
    "4.1.1": bad(frame(3), 1002),
    "4.1.2": bad(frame(4, b"reserved opcode payload"), 1002),
    "4.1.3": bad(TEXT_THEN + frame(5) + frame(PING), 1002, ECHO),
    "4.1.4": bad(TEXT_THEN + frame(6, HI) + frame(PING), 1002, ECHO),
    "4.1.5": bad(TEXT_THEN + frame(7, HI) + frame(PING), 1002, ECHO, chop=1),
    "4.2.1": bad(frame(11), 1002),
    "4.2.2": bad(frame(12, b"reserved opcode payload"), 1002),
    "4.2.3": bad(TEXT_THEN + frame(13) + frame(PING), 1002, ECHO),
    "4.2.4": bad(TEXT_THEN + frame(14, HI) + frame(PING), 1002, ECHO),
    "4.2.5": bad(TEXT_THEN + frame(15, HI) + frame(PING), 1002, ECHO, chop=1),
}

TWO = first(TEXT, b"fragment1") + last(b"fragment2")
WHOLE: Answer = (TEXT, b"fragment1fragment2")
BETWEEN = first(TEXT, b"fragment1") + frame(PING, b"ping payload") + last(b"fragment2")
PONGED: Answer = (PONG, b"ping payload")
STRAY_LAST = last(b"non-continuation payload") + TEXT_THEN
STRAY = middle(b"non-continuation payload") + TEXT_THEN
FIVE = (
    first(TEXT, b"fragment1") + middle(b"fragment2") + frame(PING, b"pongme 1!") + middle(b"fragment3")
    + middle(b"fragment4") + frame(PING, b"pongme 2!") + last(b"fragment5")
)  # fmt: skip
FIVE_BACK: list[Answer] = [
    (PONG, b"pongme 1!"),
    (PONG, b"pongme 2!"),
    (TEXT, b"fragment1fragment2fragment3fragment4fragment5"),
]
FRAGMENTS = {
    "5.1": bad(first(PING, b"fragment1") + last(b"fragment2"), 1002),
    "5.2": bad(first(PONG, b"fragment1") + last(b"fragment2"), 1002),
    **{f"5.{n}": good(TWO, WHOLE, chop=chop) for n, chop in ((3, 0), (4, 15), (5, 1))},
    **{f"5.{n}": good(BETWEEN, PONGED, WHOLE, chop=chop) for n, chop in ((6, 0), (7, 15), (8, 1))},
    **{f"5.{n}": bad(STRAY_LAST, 1002, chop=chop) for n, chop in ((9, 0), (10, 30), (11, 1))},
    **{f"5.{n}": bad(STRAY, 1002, chop=chop) for n, chop in ((12, 0), (13, 30), (14, 1))},
    "5.15": bad(TWO + STRAY, 1002, WHOLE),
    "5.16": bad((middle(b"fragment1") + last(b"fragment2")) * 2, 1002),
    "5.17": bad((last(b"fragment1") + last(b"fragment2")) * 2, 1002),
    "5.18": bad(first(TEXT, b"fragment1") + frame(TEXT, b"fragment2"), 1002),
    "5.19": good(FIVE, *FIVE_BACK),
    "5.20": good(FIVE, *FIVE_BACK, chop=15),
}

KOSME = "Hello-µ@ßöäüàá-UTF-8!!".encode()
PREFIX = "κ\u1f79σμε".encode()  # with the ó of Extended Greek, of three bytes
SPOILT = PREFIX + b"\xed\xa0\x80" + b"edited"
BEYOND = PREFIX + b"\xf4\x90\x80\x80" + b"edited"


def text(payload: bytes) -> Case:
    return good(frame(TEXT, payload), (TEXT, payload))


def no_text(payload: bytes, chop: int = 0) -> Case:
    return bad(frame(TEXT, payload), 1007, chop=chop)


def in_octets(payload: bytes) -> bytes:
    """Each byte a fragment."""
    return first(TEXT, payload[:1]) + b"".join(middle(payload[i : i + 1]) for i in range(1, len(payload))) + last()


def numbered(group: str, rows: list[Case]) -> dict[str, Case]:
    return {f"{group}.{n}": row for n, row in enumerate(rows, 1)}


def texts(group: str, *points: int) -> dict[str, Case]:
    """Each code point a text."""
    return numbered(group, [text(chr(point).encode()) for point in points])


def no_texts(group: str, hexes: str) -> dict[str, Case]:
    """Each word, in hexadecimal, no text."""
    return numbered(group, [no_text(bytes.fromhex(word)) for word in hexes.split()])


LONELY = ((0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8), (0xF8, 0xFC), (0xFC, 0xFE))
HIGH = ("eda080", "edadbf", "edae80", "edafbf")
UTF8 = {
    "6.1.1": text(b""),
    "6.1.2": good(first(TEXT) + middle() + last(), (TEXT, b"")),
    "6.1.3": good(first(TEXT) + middle(b"middle frame payload") + last(), (TEXT, b"middle frame payload")),
    "6.2.1": text(KOSME),
    "6.2.2": good(first(TEXT, KOSME[:12]) + last(KOSME[12:]), (TEXT, KOSME)),
    "6.2.3": good(in_octets(KOSME), (TEXT, KOSME)),
    "6.2.4": good(in_octets(PREFIX), (TEXT, PREFIX)),
    "6.3.1": no_text(SPOILT),
    "6.3.2": bad(in_octets(SPOILT), 1007),
    # Fail fast: what follows the bad byte is never sent.
    "6.4.1": bad(first(TEXT, PREFIX) + middle(b"\xf4\x90\x80\x80"), 1007),
    "6.4.2": bad(first(TEXT, PREFIX + b"\xf4") + middle(b"\x90"), 1007),
    "6.4.3": bad(frame(TEXT, BEYOND)[: 6 + len(PREFIX) + 4], 1007, chop=6 + len(PREFIX)),
    "6.4.4": bad(frame(TEXT, BEYOND)[: 6 + len(PREFIX) + 2], 1007, chop=6 + len(PREFIX) + 1),
    **numbered("6.5", [text(PREFIX), *(text(PREFIX[:n]) for n in (2, 5, 7, 9))]),
    **numbered("6.6", [(text if n in (2, 5, 7, 9, 11) else no_text)(PREFIX[:n]) for n in range(1, 12)]),
    **texts("6.7", 0, 0x80, 0x800, 0x10000),
    **no_texts("6.8", "f888808080 fc8480808080"),
    **texts("6.9", 0x7F, 0x7FF, 0xFFFF, 0x10FFFF),
    **no_texts("6.10", "f7bfbfbf fbbfbfbfbf fdbfbfbfbfbf"),
    **texts("6.11", 0xD7FF, 0xE000, 0xFFFD, 0x10FFFF),
    "6.11.5": no_text(b"\xf4\x90\x80\x80"),
    **no_texts("6.12", "80 bf 80bf 80bf80 80bf80bf 80bf80bf80 80bf80bf80bf"),
    "6.12.8": no_text(bytes(range(0x80, 0xC0))),
    **{f"6.13.{n}": no_text(b" ".join(bytes((c,)) for c in range(*ends))) for n, ends in enumerate(LONELY, 1)},
    **no_texts("6.14", "c0 e080 f08080 f8808080 fc80808080 df efbf f7bfbf fbbfbfbf fdbfbfbfbf"),
    **no_texts("6.15", "c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"),
    **no_texts("6.16", "fe ff fefeffff"),
    **no_texts("6.17", "c0af e080af f08080af f8808080af fc80808080af"),
    **no_texts("6.18", "c1bf e09fbf f08fbfbf f887bfbfbf fc83bfbfbfbf"),
    **no_texts("6.19", "c080 e08080 f0808080 f880808080 fc8080808080"),
    **no_texts("6.20", "eda080 edadbf edae80 edafbf edb080 edbe80 edbfbf"),
    **no_texts("6.21", " ".join(high + low for high in HIGH for low in ("edb080", "edbfbf"))),
    **texts("6.22", *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF))),
    **texts("6.23", *range(0xFFF9, 0x10000)),
}


def closing(payload: bytes) -> Case:
    """A close frame that is answered with its own code, 1000 for none."""
    return Case(frame(CLOSE, payload), [(CLOSE, int.from_bytes(payload[:2], "big") or 1000)])


GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
BIG = b"BAsd7&jh23" * 26_214
CLOSES = {
    "7.1.1": good(TEXT_THEN, ECHO),
    "7.1.2": Case(BYE + BYE, [CLOSED]),
    "7.1.3": Case(BYE + frame(PING), [CLOSED]),
    "7.1.4": Case(BYE + TEXT_THEN, [CLOSED]),
    "7.1.5": Case(first(TEXT, b"fragment1") + BYE + last(b"fragment2"), [CLOSED]),
    "7.1.6": Case(frame(TEXT, BIG) + TEXT_THEN + BYE + frame(PING), [(TEXT, BIG), ECHO, CLOSED]),
    "7.3.1": closing(b""),
    "7.3.2": bad(frame(CLOSE, b"a"), 1002),
    "7.3.3": closing(b"\x03\xe8"),
    "7.3.4": closing(b"\x03\xe8" + HI),
    "7.3.5": closing(b"\x03\xe8" + b"*" * 123),
    "7.3.6": bad(frame(CLOSE, b"\x03\xe8" + b"*" * 124), 1002),
    "7.5.1": bad(frame(CLOSE, b"\x03\xe8" + SPOILT), 1007),
    **numbered("7.7", [closing(code.to_bytes(2, "big")) for code in GOOD_CODES]),
    **numbered("7.9", [bad(frame(CLOSE, code.to_bytes(2, "big")), 1002) for code in BAD_CODES]),
    **numbered("7.13", [bad(frame(CLOSE, code.to_bytes(2, "big")), 1002) for code in (5000, 65535)]),
}


def pieces(opcode: int, size: int, of: int) -> bytes:
    """A message of `size` bytes in fragments of `of`."""
    return first(opcode, b"*" * of) + middle(b"*" * of) * (size // of - 2) + last(b"*" * of)


def echoed(opcode: int, size: int, sent: bytes = b"", chop: int = 0) -> Case:
    """A message of `size` bytes, whole or as `sent`, comes back whole."""
    message = b"*" * size
    return good(sent or frame(opcode, message), (opcode, message), chop=chop)


def repeated(opcode: int, size: int) -> Case:
    """200 messages, sent without waiting for one to come back."""
    message = b"*" * size
    return good(frame(opcode, message) * 200, *[(opcode, message)] * 200)


KIB = 1024
LARGE = {
    **numbered("9.1", [echoed(TEXT, size * KIB) for size in (64, 256, 1024)]),
    **numbered("9.2", [echoed(BINARY, size * KIB) for size in (64, 256, 1024)]),
    **numbered("9.3", [echoed(TEXT, 256 * KIB, pieces(TEXT, 256 * KIB, 64 * 4**n)) for n in range(6)]),
    **numbered("9.4", [echoed(BINARY, 256 * KIB, pieces(BINARY, 256 * KIB, 64 * 4**n)) for n in range(6)]),
    **numbered("9.5", [echoed(TEXT, 256 * KIB, chop=64 << n) for n in range(6)]),
    **numbered("9.6", [echoed(BINARY, 256 * KIB, chop=64 << n) for n in range(6)]),
    **numbered("9.7", [repeated(TEXT, size) for size in (0, 16, 64, 256, 1024, 4096)]),
    **numbered("9.8", [repeated(BINARY, size) for size in (0, 16, 64, 256, 1024, 4096)]),
    "10.1.1": good(first(TEXT, b"*" * 1300) + middle(b"*" * 1300) * 49 + last(b"*" * 536), (TEXT, b"*" * 65536)),
}

CASES: dict[str, Case] = FRAMING | PINGS | RESERVED | FRAGMENTS | UTF8 | CLOSES | LARGE
