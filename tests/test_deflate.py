"""Deflate: what is agreed on for each offer, and every verdict on compressed messages, however they are cut."""

from __future__ import annotations

import functools
import os
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from hub import deflate
from hub.deflate import TAIL, Agreement, Inflater, compress, negotiate, parse_offers
from hub.frames import BINARY, CLOSE, CONTINUATION, INFLATED_BYTE_S, PING, PONG, TEXT, Event, FrameReader
from hub.sections import LimitSettings
from tests.test_frames import Counted, all_cuts, cut, frame, head, read

MAX_BYTES = 1000
MAX_FRAGMENTS = 4
FRESH = Agreement("", 15, 15, True)
KEEPS = Agreement("", 15, 15, False)
HELLO = bytes.fromhex("f248cdc9c90700")  # RFC 7692 §7.2.3.1
SNOW = "snow ☃ man ".encode() * 20

packed = functools.partial(frame, rsv=4)
first = functools.partial(frame, rsv=4, fin=False)
middle = functools.partial(frame, CONTINUATION, fin=False)
last = functools.partial(frame, CONTINUATION)


def pack(payload: bytes, bits: int = 15) -> bytes:
    """As `zlib` does it by default, so that not only our own compression is inflated."""
    stream = zlib.compressobj(wbits=-bits)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def final(payload: bytes) -> bytes:
    """Ended by a final block, without the octet that should follow it."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(payload) + stream.flush()


def reader(agreement: Agreement = FRESH, max_bytes: int = MAX_BYTES) -> FrameReader:
    return FrameReader(max_bytes, MAX_FRAGMENTS, Inflater(agreement, max_bytes))


# -- offers --

PLAIN = Agreement("permessage-deflate", 15, 15, False)
MET: dict[str, Agreement] = {
    "permessage-deflate": PLAIN,
    "permessage-deflate; client_max_window_bits": Agreement(
        "permessage-deflate; client_max_window_bits=15", 15, 15, False
    ),
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover": Agreement(
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover", 15, 15, True
    ),
    "permessage-deflate;client_no_context_takeover": Agreement(
        "permessage-deflate; client_no_context_takeover", 15, 15, True
    ),
    "permessage-deflate; server_max_window_bits=9; client_max_window_bits=8": Agreement(
        "permessage-deflate; server_max_window_bits=9; client_max_window_bits=8", 9, 8, False
    ),
    'permessage-deflate ; server_max_window_bits = "10"': Agreement(
        "permessage-deflate; server_max_window_bits=10", 10, 15, False
    ),
    'permessage-deflate; server_max_window_bits="1\\0"': Agreement(
        "permessage-deflate; server_max_window_bits=10", 10, 15, False
    ),
    "x-webkit-deflate-frame, permessage-deflate": PLAIN,
    'other; note="a, permessage-deflate; b\\""; flag, permessage-deflate': PLAIN,
    ",, permessage-deflate,, ,": PLAIN,
    "permessage-deflate; server_max_window_bits=8, permessage-deflate": PLAIN,
    "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=12, permessage-deflate": Agreement(
        "permessage-deflate; server_max_window_bits=12", 12, 15, False
    ),
}
NOT_MET = [
    "",
    " ,\t, ",
    "x-webkit-deflate-frame",
    "permessage-deflat",
    "Permessage-Deflate",
    *(
        f"permessage-deflate; server_max_window_bits={bits}"
        for bits in ("7", "8", "16", "09", "010", "+9", "1e1", "-1")
    ),
    *(f"permessage-deflate; client_max_window_bits={bits}" for bits in ("7", "16", "08", "015", "x", '""', '"9 "')),
    "permessage-deflate; server_max_window_bits",
    "permessage-deflate; server_no_context_takeover=1",
    'permessage-deflate; client_no_context_takeover=""',
    "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10; server_max_window_bits=11",
    "permessage-deflate; Server_max_window_bits=10",
    "permessage-deflate; unknown",
    "permessage-deflate; unknown=1",
]
MALFORMED = [
    "permessage-deflate;",
    "permessage-deflate; server_max_window_bits=",
    'permessage-deflate; server_max_window_bits="10',
    "permessage-deflate server_no_context_takeover",
    "permessage-deflate; =1",
    "; permessage-deflate",
    "permessage-deflate, (",
    "permessage-deflate\n",
    "permessage-d\xe9flate",
    "permessage-deflate" + "; " * 5000,
    "permessage-deflate" + " " * 5000 + "x",
]


@pytest.mark.parametrize("header", MET)
def test_the_first_offer_that_can_be_met_is_answered_with_its_own_parameters(header: str) -> None:
    """Value-less parameters are kept, nothing is added, and a value stands for client_max_window_bits without one."""
    assert negotiate(header) == MET[header]


@pytest.mark.parametrize("header", NOT_MET + MALFORMED)
def test_an_offer_that_can_not_be_met_is_declined(header: str) -> None:
    """A parameter that is unknown, stands twice or has a bad value declines its offer, and no other one."""
    assert negotiate(header) is None
    if header in NOT_MET:
        assert negotiate(f"{header}, permessage-deflate") == PLAIN


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_header_offers_nothing(header: str) -> None:
    """And it is found out in no time, however long it is."""
    begin = time.process_time()
    assert parse_offers(header) == []
    assert time.process_time() - begin < 0.1


@given(st.text(alphabet='permsag-dflt;,="\\ \t1059_x\n') | st.text())
def test_no_header_raises(header: str) -> None:
    """There is an agreement, or none."""
    negotiate(header)
    negotiate("permessage-deflate;" + header)


@pytest.mark.parametrize("fresh", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("server_bits", [None, 9, 15])
@pytest.mark.parametrize("client_bits", [None, True, 9, 15])
def test_websockets_takes_every_answer_to_its_offers(
    fresh: tuple[bool, bool], server_bits: object, client_bits: object
):
    """The client of `websockets`, which checks answers, accepts each."""
    factory = ClientPerMessageDeflateFactory(*fresh, server_bits, client_bits)
    offer = "; ".join(
        ["permessage-deflate", *(k if v is None else f"{k}={v}" for k, v in factory.get_request_params())]
    )
    agreement = negotiate(offer)
    assert agreement is not None
    [(_, parameters)] = parse_offers(agreement.answer)
    extension = factory.process_response_params(parameters, [])
    assert extension.local_max_window_bits == agreement.client_bits
    assert extension.remote_max_window_bits == agreement.server_bits
    assert extension.local_no_context_takeover == agreement.client_fresh


# -- compressing --


@pytest.mark.parametrize("bits", deflate.WINDOWS)
@pytest.mark.parametrize("level", [1, 9])
def test_a_compressed_payload_needs_no_other_and_no_larger_window(bits: int, level: int) -> None:
    """A new stream with exactly that window inflates it to what it was, and it does not end in TAIL."""
    for payload in (b"", b"x", SNOW, os.urandom(50_000), b"abc" * 30_000, bytes(range(256)) * 400):
        small = compress(payload, level, bits)
        assert zlib.decompressobj(-bits).decompress(small + TAIL) == payload
        assert not small.endswith(TAIL)
        assert len(small) <= deflate.most_packed_bytes(len(payload))


def test_the_example_of_the_rfc_comes_out() -> None:
    """RFC 7692 §7.2.3.1."""
    assert compress(b"Hello", 1, 12) == HELLO


# -- compressed messages --

LONG = pack(b"x" * MAX_BYTES)
STORED = bytes.fromhex("000500faff48656c6c6f00")  # §7.2.3.3
FINAL = bytes.fromhex("f348cdc9c9070000")  # §7.2.3.4
TWO_BLOCKS = bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", ""))  # §7.2.3.5
READ: dict[str, tuple[bytes, list[Event]]] = {
    "RFC 7692 §7.2.3.1": (packed(TEXT, HELLO), [(TEXT, b"Hello")]),
    "RFC 7692 §7.2.3.1 in fragments": (first(TEXT, HELLO[:3]) + last(HELLO[3:]), [(TEXT, b"Hello")]),
    "RFC 7692 §7.2.3.3, stored": (packed(TEXT, STORED), [(TEXT, b"Hello")]),
    "RFC 7692 §7.2.3.4, final block": (packed(TEXT, FINAL), [(TEXT, b"Hello")]),
    "RFC 7692 §7.2.3.5, two blocks": (packed(TEXT, TWO_BLOCKS), [(TEXT, b"Hello")]),
    "RFC 7692 §7.2.3.6, empty": (packed(TEXT, b"\0") + packed(BINARY, b"\0"), [(TEXT, b""), (BINARY, b"")]),
    "no payload at all": (packed(TEXT), [(TEXT, b"")]),
    "final block without the octet behind it": (packed(TEXT, final(b"abc")), [(TEXT, b"abc")]),
    "final blocks in fragments": (
        first(BINARY, final(b"a" * 99)) + middle(final(b"b" * 99)) + last(pack(b"c")),
        [(BINARY, b"a" * 99 + b"b" * 99 + b"c")],
    ),
    "text at the limit": (packed(TEXT, LONG), [(TEXT, b"x" * MAX_BYTES)]),
    "binary at the limit that does not shrink": (
        packed(BINARY, pack(noise := os.urandom(MAX_BYTES))),
        [(BINARY, noise)],
    ),
    "compressed and not, in turn": (
        (frame(TEXT, b"a") + packed(TEXT, HELLO)) * 2,
        [(TEXT, b"a"), (TEXT, b"Hello")] * 2,
    ),
    "text beyond ASCII": (packed(TEXT, pack(SNOW)), [(TEXT, SNOW)]),
    "text beyond ASCII in fragments": (first(TEXT, pack(SNOW)[:9]) + last(pack(SNOW)[9:]), [(TEXT, SNOW)]),
    "empty fragments around": (
        first(TEXT) + middle(HELLO) + last(),
        [(TEXT, b"Hello")],
    ),
    "deflate fragments + ping between": (
        first(TEXT, HELLO[:2]) + frame(PING, b"p") + middle(HELLO[2:4]) + frame(PONG) + last(HELLO[4:]),
        [(PING, b"p"), (PONG, b""), (TEXT, b"Hello")],
    ),
    "close inside compressed fragments": (first(TEXT, HELLO[:2]) + frame(CLOSE), [(CLOSE, b"")]),
}
NOISE = b"\xff\xff\xff\xff"
REFUSED: dict[str, tuple[bytes, int]] = {
    "bad deflate data": (packed(TEXT, NOISE), 1007),
    "bad deflate data in the last fragment": (first(TEXT, HELLO[:6]) + last(NOISE), 1007),
    "data that breaks off": (packed(BINARY, pack(os.urandom(50))[:40]), 1007),
    "text that breaks off": (packed(TEXT, HELLO[:4]), 1007),
    "a reference to before the message": (packed(TEXT, bytes.fromhex("f200110000")), 1007),
    "inflated text is not UTF-8": (packed(TEXT, pack(b"ok \xff")), 1007),
    "inflated text ends within a character": (packed(TEXT, pack(b"snow \xe2\x98")), 1007),
    "ping with RSV1 when deflate on": (frame(PING, b"p", rsv=4), 1002),
    "pong with RSV1": (frame(PONG, rsv=4), 1002),
    "close with RSV1": (frame(CLOSE, rsv=4), 1002),
    "continuation with RSV1": (first(TEXT, HELLO[:2]) + frame(CONTINUATION, HELLO[2:], rsv=4), 1002),
    "continuation with RSV1 of a plain message": (frame(TEXT, fin=False) + frame(CONTINUATION, HELLO, rsv=4), 1002),
    "RSV1 and RSV2": (frame(TEXT, HELLO, rsv=6), 1002),
    "RSV1 and RSV3": (frame(TEXT, HELLO, rsv=5), 1002),
    "reserved opcode with RSV1": (frame(3, HELLO, rsv=4), 1002),
    "one byte over the limit": (packed(BINARY, pack(b"x" * (MAX_BYTES + 1))), 1009),
    "one byte over the limit, in fragments": (first(BINARY, LONG + TAIL) + last(pack(b"x")), 1009),
    "bad text, then too much": (packed(TEXT, pack(b"\xff" + b"x" * MAX_BYTES)), 1007),
    "too much, cut within a character": (packed(TEXT, pack("☃".encode() * 400)), 1009),
    "permessage-deflate bomb": (packed(BINARY, pack(bytes(10_000_000))), 1009),
    "longer than anything allowed can become, from its head": (b"\xc2" + head(BINARY, 1190, 2)[1:], 1009),
    "the same in fragments": (first(BINARY, b"\0\0\0\xff\xff" * 200) + b"\x80" + head(0, 190, 2)[1:], 1009),
    "too many fragments": (first(TEXT) + middle() * MAX_FRAGMENTS, 1008),
    "too many final blocks": (packed(BINARY, b"\3\0" * (deflate.MAX_FINAL_BLOCKS + 1)), 1008),
}


@pytest.mark.parametrize("name", READ)
def test_what_the_rfc_allows_is_inflated(name: str) -> None:
    """Compressed messages come out whole, between others and control frames; cuts change nothing."""
    stream, events = READ[name]
    for pieces in all_cuts(stream) if len(stream) < 200 else ([stream], cut(stream, [1]), cut(stream, [7])):
        assert read(pieces, reader()) == (events, None, "None", False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rfc_forbids_has_its_close_code(name: str) -> None:
    """A fault gives its close code, and what was whole before it is kept; cuts change nothing."""
    stream, code = REFUSED[name]
    stream = packed(TEXT, HELLO) + stream
    for pieces in [stream], cut(stream, [1]), cut(stream, [7]), cut(stream, [300]):
        events, found, _, pending = read(pieces, reader())
        assert ([e for e in events if e[0] != PING], found, pending) == ([(TEXT, b"Hello")], code, False)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_message_refers_to_earlier_ones_only_where_that_was_not_given_up(fresh: bool) -> None:
    """With context takeover the window goes on, also over uncompressed messages and a final block; else it is 1007."""
    stream, text = zlib.compressobj(wbits=-15), os.urandom(100).hex().encode()
    one, two, three = ((stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in range(3))
    assert len(three) < 20 < len(one)
    peer = reader(FRESH if fresh else KEEPS)
    assert read([packed(TEXT, one)], peer)[0] == [(TEXT, text)]
    assert read([frame(TEXT, b"plain")], peer)[0] == [(TEXT, b"plain")]
    events, code, _, _ = read([packed(TEXT, two) + packed(TEXT, three)], peer)
    assert (events, code) == (([], 1007) if fresh else ([(TEXT, text)] * 2, None))


def test_what_is_kept_between_messages_is_one_window() -> None:
    """No stream, and no more bytes than the agreed window has; none for a client that gave context up."""
    for agreement, most in ((KEEPS, 1 << 15), (Agreement("", 15, 9, False), 1 << 9), (FRESH, 0)):
        inflater = Inflater(agreement, 1 << 20)
        peer = FrameReader(1 << 20, MAX_FRAGMENTS, inflater)
        bits = max(agreement.client_bits, 9)
        for size in (100, 100_000, 50):
            assert read([packed(BINARY, pack(os.urandom(size), bits))], peer)[1] is None
        assert inflater._stream is None and len(inflater._window) == most


def test_a_bomb_takes_no_more_memory_than_a_message() -> None:
    """10 MB in 10 KB, whole or dripping: 1009, with a few times the limit in memory and not what the bomb holds."""
    bomb = packed(BINARY, pack(bytes(10_000_000)))
    assert len(bomb) < 10_100
    for size in (len(bomb), 1):
        peer = reader(max_bytes=65_536)
        tracemalloc.start()
        try:
            assert read(cut(bomb, [size]), peer)[1] == 1009
            assert tracemalloc.get_traced_memory()[1] < 6 * 65_536
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_what_a_message_inflates_to_is_charged_as_so_many_bytes(size: int) -> None:
    """However it is cut into reads; of a bomb as much as was inflated, and of what is not compressed nothing."""
    counted = Counted()
    peer = FrameReader(65_536, MAX_FRAGMENTS, Inflater(FRESH, 65_536), counted)
    assert read([frame(TEXT, b"x" * 1000)], peer)[1] is None and not counted.work_s
    assert read(cut(packed(TEXT, pack(b" " * 60_000)), [size]), peer)[1] is None
    assert round(counted.work_s / INFLATED_BYTE_S) == 60_000
    assert read(cut(packed(BINARY, pack(bytes(10_000_000))), [size]), peer)[1] == 1009
    assert round(counted.work_s / INFLATED_BYTE_S) == 60_000 + 65_537


def test_a_client_within_its_bytes_keeps_within_its_share_of_the_loop() -> None:
    """By the defaults: compression is no reason to be read later."""
    limits = LimitSettings()
    assert limits.bytes_per_s * INFLATED_BYTE_S <= limits.loop_ms_per_s / 1000


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.integers(0, 300)), max_size=4),
    st.binary(max_size=20),
    st.lists(st.integers(1, 40), min_size=1),
    st.booleans(),
)
def test_any_bytes_in_any_pieces_read_the_same(messages, rest, sizes, keeps) -> None:
    """Good messages, then anything as a compressed payload: events and fault do not depend on the cuts."""
    agreement, stream, packer = KEEPS if keeps else FRESH, b"", zlib.compressobj(wbits=-15)
    for payload, compressed, at in messages:
        if not keeps:
            packer = zlib.compressobj(wbits=-15)
        data = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4] if compressed and payload else payload
        rsv = 4 if compressed and payload else 0
        stream += frame(BINARY, data[:at], fin=False, rsv=rsv) + frame(PING) + last(data[at:])
    stream += packed(TEXT, rest)
    whole, pieces = read([stream], reader(agreement)), read(cut(stream, sizes), reader(agreement))
    assert pieces[:2] == whole[:2] and pieces[3] == whole[3]  # only the log may word a fault otherwise
    expected = [event for payload, _, _ in messages for event in ((PING, b""), (BINARY, payload))]
    assert whole[0][: len(expected)] == expected
