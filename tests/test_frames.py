"""Frames: every verdict of RFC 6455 on what a client may send, however it is cut, and what a server sends back."""

from __future__ import annotations

import functools
import gc
import sys
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.util import _websocket_mask
from websockets.protocol import State
from websockets.server import ServerProtocol

from hub import frames
from hub.errors import Close, ProtocolError
from hub.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FRAGMENT_S,
    PING,
    PONG,
    TEXT,
    Event,
    FrameReader,
    encode_close,
    encode_frame,
)

MAX_BYTES = 1000
MAX_FRAGMENTS = 4
KEY = bytes.fromhex("37fa213d")  # the masking key of the examples in RFC 6455 §5.7
SNOW = "snow ☃ man".encode()


def frame(
    opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0, key: bytes | None = KEY, width: int | None = None
) -> bytes:
    """A client's frame; `width`: bytes of the length (0, 2 or 8) where it is not to be the shortest."""
    length = len(payload)
    if width is None:
        width = 0 if length < 126 else 2 if length < 0x10000 else 8
    small = {0: length, 2: 126, 8: 127}[width]
    head = (
        bytes((fin << 7 | rsv << 4 | opcode, (key is not None) << 7 | small)) + length.to_bytes(8, "big")[8 - width :]
    )
    return head + payload if key is None else head + key + _websocket_mask(key, payload)


first = functools.partial(frame, fin=False)
middle = functools.partial(frame, CONTINUATION, fin=False)
last = functools.partial(frame, CONTINUATION)


def head(opcode: int, length: int, width: int) -> bytes:
    """The head of a masked frame as far as its length; no key or payload follows."""
    return bytes((0x80 | opcode, {2: 254, 8: 255}[width])) + length.to_bytes(width, "big")


def new_reader() -> FrameReader:
    return FrameReader(MAX_BYTES, MAX_FRAGMENTS)


def read(pieces: Iterable[bytes], reader: FrameReader | None = None) -> tuple[list[Event], int | None, str, bool]:
    """All events of a reader that got `pieces`, its fault's close code and text, and whether something is pending."""
    reader = reader or new_reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events, reader.failed and reader.failed.close.code, str(reader.failed), reader.pending


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """`stream` in pieces of `sizes`, over and over."""
    pieces, at = [], 0
    while at < len(stream):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def all_cuts(stream: bytes) -> list[list[bytes]]:
    """`stream` whole, byte by byte, and in two at every place."""
    return [[stream], cut(stream, [1]), *([stream[:at], stream[at:]] for at in range(1, len(stream)))]


FRAGMENTED = first(TEXT, b"one ") + middle(b"two ") + last(b"three")
MESSAGE = (TEXT, b"one two three")

ACCEPTED: dict[str, tuple[bytes, list[Event]]] = {
    "RFC 6455 §5.7 masked hello": (bytes.fromhex("818537fa213d7f9f4d5158"), [(TEXT, b"Hello")]),
    "empty text and binary": (frame(TEXT) + frame(BINARY), [(TEXT, b""), (BINARY, b"")]),
    "text of 125 bytes": (frame(TEXT, b"x" * 125), [(TEXT, b"x" * 125)]),
    "text of 126 bytes": (frame(TEXT, b"x" * 126), [(TEXT, b"x" * 126)]),
    "binary at the limit": (frame(BINARY, b"\xff" * MAX_BYTES), [(BINARY, b"\xff" * MAX_BYTES)]),
    "text beyond ASCII": (frame(TEXT, SNOW), [(TEXT, SNOW)]),
    "last code point": (frame(TEXT, b"\xf4\x8f\xbf\xbf"), [(TEXT, b"\xf4\x8f\xbf\xbf")]),
    "last before the surrogates": (frame(TEXT, b"\xed\x9f\xbf"), [(TEXT, b"\xed\x9f\xbf")]),
    "long text beyond ASCII": (frame(TEXT, SNOW * 20), [(TEXT, SNOW * 20)]),
    "key of zeros": (frame(TEXT, b"abc", key=bytes(4)), [(TEXT, b"abc")]),
    "ping of 125 bytes, empty pong": (frame(PING, b"\xff" * 125) + frame(PONG), [(PING, b"\xff" * 125), (PONG, b"")]),
    "texts back to back": (frame(TEXT, b"{}") * 3 + frame(BINARY, b"\0"), [(TEXT, b"{}")] * 3 + [(BINARY, b"\0")]),
    "three fragments": (FRAGMENTED, [MESSAGE]),
    "binary fragments that are no text": (first(BINARY, b"\xff") + last(b"\xfe"), [(BINARY, b"\xff\xfe")]),
    "as many fragments as allowed, empty": (first(TEXT) + middle() * (MAX_FRAGMENTS - 2) + last(), [(TEXT, b"")]),
    "fragment counts begin anew": (FRAGMENTED * 3, [MESSAGE] * 3),
    "a character in three": (first(TEXT, b"\xe2") + middle(b"\x98") + last(b"\x83"), [(TEXT, "☃".encode())]),
    "ping between fragments": (first(TEXT, b"a") + frame(PING) + last(b"b"), [(PING, b""), (TEXT, b"ab")]),
    "pong between fragments": (first(TEXT, b"a") + frame(PONG) + last(b"b"), [(PONG, b""), (TEXT, b"ab")]),
    "fragments at the limit": (first(BINARY, b"x" * 600) + last(b"x" * 400), [(BINARY, b"x" * 1000)]),
    "close without a code": (frame(CLOSE), [(CLOSE, b"")]),
    "close with a reason": (frame(CLOSE, b"\x03\xe8" + SNOW), [(CLOSE, b"\x03\xe8" + SNOW)]),
    "close of 125 bytes": (frame(CLOSE, b"\x0f\xa0" + b"x" * 123), [(CLOSE, b"\x0f\xa0" + b"x" * 123)]),
    "close inside a fragmented message": (first(TEXT, b"a") + frame(CLOSE), [(CLOSE, b"")]),
    "anything behind a close": (frame(CLOSE) + frame(TEXT, b"late") + b"\xff" * 20, [(CLOSE, b"")]),
}

REFUSED: dict[str, tuple[bytes, int]] = {
    "unmasked text": (frame(TEXT, b"hello", key=None), 1002),
    "unmasked empty pong": (frame(PONG, key=None), 1002),
    **{f"RSV {rsv:03b}": (frame(TEXT, b"hello", rsv=rsv), 1002) for rsv in range(1, 8)},
    "RSV1 on a ping": (frame(PING, b"p", rsv=4), 1002),
    **{f"reserved opcode {opcode:#x}": (frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "stray continuation": (last(b"x"), 1002),
    "stray unfinished continuation": (middle(b"x"), 1002),
    "text inside fragments": (first(TEXT, b"a") + frame(TEXT, b"b"), 1002),
    "binary inside fragments": (first(TEXT, b"a") + frame(BINARY, b"b"), 1002),
    **{f"fragmented control frame {opcode:#x}": (first(opcode), 1002) for opcode in (CLOSE, PING, PONG)},
    **{f"control frame {op:#x} of 126 bytes": (frame(op, b"\x03\xe8" * 63), 1002) for op in (CLOSE, PING, PONG)},
    "one byte over the limit, from its head": (head(BINARY, MAX_BYTES + 1, 2), 1009),
    "largest length, from its head": (head(TEXT, (1 << 63) - 1, 8), 1009),
    "fragments over the limit together": (first(BINARY, b"x" * 600) + last(b"x" * 401), 1009),
    "close of 1 byte": (frame(CLOSE, b"\x03"), 1002),
    "close reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "close reason that ends within a character": (frame(CLOSE, b"\x03\xe8\xe2\x98"), 1007),
}

STRICTER: dict[str, tuple[bytes, int]] = {
    "length 125 in 2 bytes": (frame(TEXT, b"x" * 125, width=2), 1002),
    "length 0 in 2 bytes": (frame(BINARY, width=2), 1002),
    "length 125 in 8 bytes": (frame(TEXT, b"x" * 125, width=8), 1002),
    "length 65535 in 8 bytes": (head(BINARY, 0xFFFF, 8), 1002),
    "length with its top bit set": (head(BINARY, 1 << 63, 8), 1002),
    "length of all ones": (head(BINARY, (1 << 64) - 1, 8), 1002),
    "fragment too many": (first(TEXT) + middle() * MAX_FRAGMENTS, 1008),
    "fragment too many, the last": (first(TEXT) + middle() * (MAX_FRAGMENTS - 1) + last(), 1008),
    "text that ends within a character": (frame(TEXT, b"\xe2\x98"), 1007),
    "text of 202 bytes that does": (frame(TEXT, b"x" * 200 + b"\xe2\x98"), 1007),
    "text in fragments that does": (first(TEXT, b"\xe2") + last(b"\x98"), 1007),
    "text in fragments that does, the last empty": (first(TEXT, b"\xe2\x98") + last(), 1007),
}
"""Faults that `websockets` does not see so: the form of lengths, fragment counts, and the UTF-8 of text."""

NOT_UTF8: dict[str, tuple[bytes, bytes]] = {
    "lone continuation byte": (b"ok ", b"\x80"),
    "overlong slash": (b"", b"\xc0"),
    "overlong in 3 bytes": (b"ok \xe0", b"\x80"),
    "overlong in 4 bytes": (b"\xf0", b"\x80"),
    "first surrogate": ("κόσμε".encode() + b"\xed", b"\xa0"),
    "last surrogate": (b"\xed", b"\xbf"),
    "over the last code point": ("κόσμε".encode() + b"\xf4", b"\x90"),
    "no such first byte": (b"ok", b"\xf5"),
    "character broken off": (b"\xf0\x9f\x98", b"x"),
}
"""Text that may still become valid, and the byte with which it can't."""

GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
BAD_CODES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_rfc_allows_is_read(name: str) -> None:
    """A valid stream gives its messages and control frames in order, nothing stays pending, cuts change nothing."""
    stream, events = ACCEPTED[name]
    for pieces in all_cuts(stream):
        assert read(pieces) == (events, None, "None", False)


@pytest.mark.parametrize("name", REFUSED | STRICTER)
def test_what_the_rfc_forbids_has_its_close_code(name: str) -> None:
    """A fault gives its close code, keeps what was whole before it, and ends the reading; cuts change nothing."""
    stream, code = (REFUSED | STRICTER)[name]
    text = read([stream])[2]
    for pieces in [*all_cuts(FRAGMENTED + stream), cut(FRAGMENTED + stream + frame(TEXT, b"late"), [1])]:
        assert read(pieces) == ([MESSAGE], code, text, False)


@pytest.mark.parametrize("code", GOOD_CODES)
def test_close_codes_that_clients_may_send(code: int) -> None:
    """The defined codes and 3000 to 4999 are read."""
    payload = code.to_bytes(2, "big") + b"why"
    assert read([frame(CLOSE, payload)])[0] == [(CLOSE, payload)]
    assert frames.parse_close(payload) == Close(code, "why")


@pytest.mark.parametrize("code", BAD_CODES)
def test_close_codes_that_nobody_may_send(code: int) -> None:
    """Reserved and unassigned close codes are a fault, 1002."""
    assert read([frame(CLOSE, code.to_bytes(2, "big"))])[:2] == ([], 1002)
    with pytest.raises(ProtocolError, match=f"close code {code} "):
        frames.parse_close(code.to_bytes(2, "big"))


@pytest.mark.parametrize("name", NOT_UTF8)
@pytest.mark.parametrize("before", [b"", b"x" * 200])
@pytest.mark.parametrize("fragment", [frame, first])
def test_bad_text_fails_at_its_first_bad_byte(name: str, before: bytes, fragment: Any) -> None:
    """In an unfinished frame or fragment text is refused with the byte that spoils it, and not earlier."""
    good, bad = NOT_UTF8[name]
    stream = fragment(TEXT, before + good + bad + b"more")[: -len(b"more")]
    for pieces in [stream[:-1]], cut(stream[:-1], [1]):
        reader = new_reader()
        assert read(pieces, reader) == ([], None, "None", True)
        assert read([stream[-1:]], reader)[1] == 1007


def test_bad_text_in_a_later_fragment_fails_at_its_first_bad_byte() -> None:
    """The state of a character is carried from fragment to fragment."""
    reader = new_reader()
    second = middle(b"\x98zz")
    assert read([first(TEXT, b"\xe2"), second[:-2]], reader)[1] is None
    assert read([second[-2:-1]], reader)[1] == 1007


def test_too_many_fragments_are_named_to_the_client() -> None:
    """The close of a fragment flood says what it is for."""
    reader = FrameReader(MAX_BYTES, 1)
    reader.feed(first(TEXT) + last())
    assert reader.failed is not None and reader.failed.close == Close(1008, "too many fragments")


class Counted:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.work_s = 0.0

    def charge(self, work_s: float) -> None:
        self.work_s += work_s


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_each_frame_of_a_message_behind_its_first_is_charged(size: int) -> None:
    """However they are cut into reads; what comes whole is charged nothing beyond its own time."""
    counted = Counted()
    reader = FrameReader(MAX_BYTES, 3, charged=counted)
    whole = frame(TEXT, b"abc") + frame(PING, b"p") + frame(TEXT, b"a" * 200)
    assert read(cut(whole, [size]), reader)[1] is None and not counted.work_s
    assert read(cut(first(TEXT, b"abc") + middle() + last(b"d"), [size]), reader)[1] is None
    assert round(counted.work_s / FRAGMENT_S) == 2
    assert read(cut(first(TEXT) + middle() + middle() + middle(), [size]), reader)[1] == 1008
    assert round(counted.work_s / FRAGMENT_S) == 4


def test_a_small_limit_holds_for_small_messages() -> None:
    """A limit below 125 bytes holds for messages, and not for control frames."""
    events, code, _, _ = read([frame(TEXT, b"abc") + frame(PING, b"longer") + frame(TEXT, b"abcd")], FrameReader(3, 1))
    assert (events, code) == ([(TEXT, b"abc"), (PING, b"longer")], 1009)


@pytest.mark.parametrize("begun", [b"\x81", frame(PING, b"abc")[:-1], frame(TEXT, b"abc")[:-1], first(TEXT)])
def test_what_has_begun_is_pending(begun: bytes) -> None:
    """A partial head, control frame, data frame or message is pending; a new reader is not."""
    assert read([]) == ([], None, "None", False)
    assert read([begun]) == ([], None, "None", True)


def test_an_idle_reader_holds_nothing() -> None:
    """After whole messages a reader is its slots and no more: under 100 bytes, no buffer, no dictionary."""
    reader = new_reader()
    read(cut(FRAGMENTED, [1]), reader)
    assert not hasattr(reader, "__dict__") and sys.getsizeof(reader) < 100
    assert (reader._held, reader._message, reader.failed) == (None, None, None)


@pytest.mark.parametrize("end", [last(b"\xff"), last(rsv=7)], ids=["bad text", "reserved bits"])
def test_a_fault_takes_no_memory_of_the_message_that_it_ended(end: bytes) -> None:
    """Without a garbage collection; the reader is still there, as its connection is for a moment."""
    gc.disable()
    tracemalloc.start()
    try:
        readers = [FrameReader(100_000, MAX_FRAGMENTS) for _ in range(20)]
        for reader in readers:
            reader.feed(first(TEXT, b" " * 50_000) + end)
            assert reader.failed is not None
        assert tracemalloc.get_traced_memory()[0] < 20 * 5000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_partial_message_takes_no_more_memory_than_what_came() -> None:
    """A head that announces 16 MiB allocates next to nothing, and a message that drips in byte by byte its own size."""
    reader, size = FrameReader(1 << 24, MAX_FRAGMENTS), 20_000
    tracemalloc.start()
    try:
        reader.feed(head(BINARY, 1 << 24, 8) + KEY)
        assert tracemalloc.get_traced_memory()[1] < 10_000
        for _ in range(size):
            reader.feed(b"x")
        assert tracemalloc.get_traced_memory()[0] < 1.5 * size
    finally:
        tracemalloc.stop()


class CountedBytes(bytes):
    """Bytes that count what is copied out of them."""

    copied = 0

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if isinstance(part, bytes) and len(part) != len(self):  # a whole bytes object is handed on, not copied
            CountedBytes.copied += len(part)
        return part

    def __radd__(self, before: bytes) -> bytes:
        CountedBytes.copied += len(before) + len(self)
        return CountedBytes(bytes.__add__(before, self))


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_reading_is_linear_in_the_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the pieces, each byte is unmasked once, and taken out of the input at most twice."""
    unmasked = []

    def counting_mask(key: bytes, data: bytes) -> bytes:
        unmasked.append(len(data))
        return _websocket_mask(key, data)

    monkeypatch.setattr(frames, "_websocket_mask", counting_mask)
    monkeypatch.setattr(CountedBytes, "copied", 0)
    payload = b"x" * (20_000 if size < 4096 else 1 << 20)
    stream = (frame(TEXT, b"{}") + frame(PING, b"p")) * 500 + first(TEXT, payload) + last(payload)
    pieces = [CountedBytes(piece) for piece in cut(stream, [size])]
    events = [(TEXT, b"{}"), (PING, b"p")] * 500 + [(TEXT, payload * 2)]
    assert read(pieces, FrameReader(2 * len(payload), MAX_FRAGMENTS))[0] == events
    assert sum(unmasked) == sum(len(payload) for _, payload in events)
    assert CountedBytes.copied <= 2 * len(stream) + 1000


KEYS = st.binary(min_size=4, max_size=4)
TEXTS = st.text(max_size=100).map(str.encode)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@st.composite
def valid_messages(draw: st.DrawFn) -> bytes:
    """One message of a correct client, in as many fragments as allowed, with control frames between."""
    text = st.tuples(st.just(TEXT), TEXTS)
    opcode, payload = draw(text | st.tuples(st.just(BINARY), st.binary(max_size=300)))
    places = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=MAX_FRAGMENTS - 1)))
    stream = b""
    for number, (begin, end) in enumerate(zip([0, *places], [*places, len(payload)], strict=True)):
        stream += draw(st.sampled_from([b"", b"", frame(PING, b"p"), frame(PONG)]))
        fin = number == len(places)
        stream += frame(CONTINUATION if number else opcode, payload[begin:end], fin=fin, key=draw(KEYS))
    return stream


MESSAGES = st.lists(valid_messages(), max_size=4).map(b"".join)
CODES = st.sampled_from(GOOD_CODES + BAD_CODES).map(lambda code: code.to_bytes(2, "big"))
PAYLOADS = st.binary(max_size=140) | TEXTS | CODES | st.integers(120, 1100).map(bytes)
OPCODES = st.sampled_from([TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE])
FRAMES = st.builds(frame, OPCODES, PAYLOADS, fin=st.booleans(), key=KEYS)
FAULTY = st.builds(frame, st.integers(0, 15), PAYLOADS, rsv=st.integers(0, 7), key=st.none() | KEYS)
STREAMS = st.tuples(MESSAGES, FRAMES, st.just(b"") | FRAMES | FAULTY | st.binary()).map(b"".join)


@settings(deadline=None)  # on a busy machine one example may take long
@given(STREAMS, SIZES)
def test_any_bytes_in_any_pieces_read_the_same(stream: bytes, sizes: list[int]) -> None:
    """However a stream is cut, events, fault and pending state are the same, and nothing is raised."""
    assert read(cut(stream, sizes)) == read([stream])


def read_by_websockets(stream: bytes) -> tuple[list[Event], int | None]:
    """What the reader of `websockets` finds: messages and control frames, and the code with which it fails."""
    peer = ServerProtocol(state=State.OPEN, max_size=MAX_BYTES)
    peer.receive_data(stream)
    events: list[Event] = []
    parts: list[Any] = []
    for received in peer.events_received():
        if received.opcode >= CLOSE:
            events.append((int(received.opcode), bytes(received.data)))
            continue
        parts.append(received)
        if received.fin:
            events.append((int(parts[0].opcode), b"".join(part.data for part in parts)))
            parts = []
    failed = peer.parser_exc is not None and peer.close_sent is not None
    return events, peer.close_sent.code if failed else None


@settings(deadline=None)
@given(MESSAGES, st.sampled_from([b"", frame(CLOSE)]), SIZES)
def test_valid_streams_read_as_websockets_reads_them(messages: bytes, end: bytes, sizes: list[int]) -> None:
    """On what a correct client sends, this reader and that of `websockets` agree."""
    events, code, _, pending = read(cut(messages + end, sizes))
    assert (events, code) == read_by_websockets(messages + end)
    assert code is None and not pending


@settings(max_examples=300)
@given(STREAMS)
def test_nothing_is_read_that_websockets_refuses(stream: bytes) -> None:
    """Whatever the bytes. The other way round there is more: this reader judges a head before the rest of its frame is
    there and a text before its end, and it counts fragments. A frame with several faults has no one code.
    """
    events, code, _, _ = read([stream])
    # It also refuses a close in the middle of a message, which RFC 6455 §5.4 has nothing against.
    if code is None and CLOSE not in dict(events):
        assert read_by_websockets(stream) == (events, None)


@pytest.mark.parametrize("name", REFUSED)
def test_faults_are_those_that_websockets_finds(name: str) -> None:
    """Where `websockets` judges, its close code is this reader's."""
    stream, code = REFUSED[name]
    assert read_by_websockets(stream) == ([], code)


@pytest.mark.parametrize(
    ("length", "head"),
    [(0, b"\0"), (125, b"\x7d"), (126, b"\x7e\0\x7e"), (0xFFFF, b"\x7e\xff\xff"), (0x10000, b"\x7f\0\0\0\0\0\1\0\0")],
)
def test_frames_are_encoded_whole_unmasked_and_short(length: int, head: bytes) -> None:
    """A frame has FIN, no mask, and the shortest form of its length."""
    assert encode_frame(TEXT, b"hello") == b"\x81\x05hello"
    assert encode_frame(BINARY, b"x" * length) == b"\x82" + head + b"x" * length


def test_a_close_reads_back_as_it_was_encoded() -> None:
    """A close frame carries code and reason, an empty payload neither; a reason that is no text still closes."""
    assert encode_close(1002, "no") == b"\x88\x04\x03\xeano"
    assert frames.parse_close(encode_close(3001, "shutdown ☃")[2:]) == Close(3001, "shutdown ☃")
    assert frames.parse_close(b"") is None
    assert encode_close(1008, "lone surrogate \ud800")[4:] == b"lone surrogate ?"


@pytest.mark.parametrize("lead", range(4))
def test_a_long_reason_is_cut_before_a_character(lead: int) -> None:
    """A reason over 123 bytes loses whole characters at its end, and only as many as must go."""
    wire = encode_close(4000, "x" * lead + "☃" * 60)
    assert wire[4:].decode() == "x" * lead + "☃" * ((123 - lead) // 3)
    assert wire[1] == len(wire) - 2 <= 125


def test_the_accept_key_is_that_of_the_rfc() -> None:
    """The example of RFC 6455 §1.3 comes out."""
    assert frames.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_key_is_the_base64_of_16_bytes() -> None:
    """Exactly the base64 of 16 bytes is a well-formed handshake key."""
    good = "dGhlIHNhbXBsZSBub25jZQ=="
    assert frames.is_well_formed_key(good) and frames.is_well_formed_key("A" * 22 + "==")
    for bad in ("", good[:-2], good + "\n", "A" * 20, good + "AAAA", good.replace("Z", "-"), "Ä" + good[1:]):
        assert not frames.is_well_formed_key(bad), bad
