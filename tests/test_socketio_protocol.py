"""Socket.IO packets: what is read and written, against the written protocol and python-socketio's codec."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from socketio import packet as oracle

from hub import socketio_protocol as socketio
from hub.errors import ProtocolError
from hub.socketio_protocol import ACK, CONNECT, DISCONNECT, EVENT, Decoder, Packet

MAX_BYTES = 1000


def decode(message: bytes, *attachments: bytes) -> Packet | None:
    decoder = Decoder(MAX_BYTES)
    packet = decoder.feed_text(message)
    for attachment in attachments:
        assert packet is None and decoder.pending
        packet = decoder.feed_bytes(attachment)
    assert decoder.pending == (packet is None)
    return packet


GOOD = [
    (b"0", Packet(CONNECT, "/", None, None)),
    (b'0{"token":"x"}', Packet(CONNECT, "/", None, {"token": "x"})),
    (b"0/admin,", Packet(CONNECT, "/admin", None, None)),
    (b"0/admin", Packet(CONNECT, "/admin", None, None)),
    (b'0/admin,{"a":1}', Packet(CONNECT, "/admin", None, {"a": 1})),
    (b"0/admin?uid=1,", Packet(CONNECT, "/admin", None, None)),
    (b"1", Packet(DISCONNECT, "/", None, None)),
    (b"1/admin,", Packet(DISCONNECT, "/admin", None, None)),
    (b'2["hey","Jude"]', Packet(EVENT, "/", None, ["hey", "Jude"])),
    (b'2["a/b,c",1]', Packet(EVENT, "/", None, ["a/b,c", 1])),
    (b'20["a"]', Packet(EVENT, "/", 0, ["a"])),
    (b'2/admin,456["a",{"b":[true]}]', Packet(EVENT, "/admin", 456, ["a", {"b": [True]}])),
    (b'312["bar"]', Packet(ACK, "/", 12, ["bar"])),
    (b"3/admin,13[]", Packet(ACK, "/admin", 13, [])),
]


@pytest.mark.parametrize(("message", "packet"), GOOD)
def test_a_text_is_one_packet(message, packet):
    """Kind, namespace, id and data, as the oracle reads them too."""
    assert decode(message) == packet
    theirs = oracle.Packet(encoded_packet=message.decode())
    assert (theirs.packet_type, theirs.namespace or "/", theirs.id, theirs.data) == packet[:4]


BAD = (
    *(b"", b"7", b"abc", b"2", b"2{}", b"2[]", b"2[1]", b'2"a"', b"2abc", b'2["a"', b'2a["b"]', b'2-1["a"]', b'0"a"'),
    *(b"0[1]", b"3[1]", b"3", b'312{"a":1}', b"1[1]", b'4{"message":"x"}', b'2["connect"]', b'2["disconnect",1]'),
    *(b'2/admin["a"]', b'21234567890123456["a"]', b"0/" + b"a" * socketio.MAX_NAMESPACE_LENGTH + b","),
)


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_packet_is_refused(message):
    """Types, namespaces, ids and data that do not fit, one by one."""
    with pytest.raises(ProtocolError):
        decode(message)


def test_attachments_take_their_places():
    """Behind the packet, in order; placeholders may be nested and used twice."""
    message = b'52-/admin,7["a",{"_placeholder":true,"num":1},{"b":[{"_placeholder":true,"num":0}]}]'
    assert decode(message, b"\x00", b"\x01") == Packet(EVENT, "/admin", 7, ["a", b"\x01", {"b": [b"\x00"]}])
    assert decode(b'61-3[{"_placeholder":true,"num":0}]', b"x") == Packet(ACK, "/", 3, [b"x"])


def test_an_ack_id_beside_attachments():
    """The count ends at the dash, the id begins behind it."""
    packet = decode(b'51-12["a",{"_placeholder":true,"num":0}]', b"x")
    assert packet is not None and packet.id == 12


@pytest.mark.parametrize(
    "message",
    [b'50-["a"]', b'511-["a"]', b'59999-["a"]', b'5["a"]', b'21-["a"]', b"01-", b'5-["a"]'],
)
def test_the_number_of_attachments_is_bounded(message):
    """1 to 10 where there are any, and none elsewhere; nothing is kept for a packet that is refused."""
    decoder = Decoder(MAX_BYTES)
    with pytest.raises(ProtocolError):
        decoder.feed_text(message)
    assert not decoder.pending


def test_attachments_are_bounded_in_bytes():
    """All of one packet together."""
    decoder = Decoder(MAX_BYTES)
    decoder.feed_text(b'52-["a"]')
    decoder.feed_bytes(bytes(MAX_BYTES))
    with pytest.raises(ProtocolError):
        decoder.feed_bytes(b"x")


@pytest.mark.parametrize("number", [b"1", b"-1", b"true", b'"0"', b"null"])
def test_a_placeholder_without_its_attachment_is_refused(number):
    """Also for numbers that Python would find at a list's end."""
    with pytest.raises(ProtocolError):
        decode(b'51-["a",{"_placeholder":true,"num":%b}]' % number, b"x")


def test_attachments_come_right_behind_their_packet():
    """Bytes of nothing, and text in between, are faults."""
    decoder = Decoder(MAX_BYTES)
    with pytest.raises(ProtocolError):
        decoder.feed_bytes(b"x")
    decoder.feed_text(b'51-["a"]')
    with pytest.raises(ProtocolError):
        decoder.feed_text(b'2["b"]')


def test_what_waits_for_attachments_takes_no_more_than_its_bytes():
    """A client may let it wait for some seconds; as Python objects it would be many times as large."""
    message = b'51-["a",[' + b",".join([b"[]"] * 100_000) + b"]]"
    decoder = Decoder(MAX_BYTES, values=300_000)
    tracemalloc.start()
    try:
        decoder.feed_text(message)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.pending and kept < 100_000
    packet = decoder.feed_bytes(b"x")
    assert packet is not None and len(packet.data[1]) == 100_000


def test_forgetting_frees_what_was_unfinished():
    """And the next packet begins anew."""
    decoder = Decoder(MAX_BYTES)
    decoder.feed_text(b'52-["a"]')
    decoder.feed_bytes(b"x")
    decoder.forget()
    assert not decoder.pending
    assert decoder.feed_text(b'2["b"]') == Packet(EVENT, "/", None, ["b"])


@pytest.mark.parametrize(
    ("kind", "namespace", "number", "data", "packet"),
    [
        (EVENT, "/", None, b'["a"]', b'2["a"]'),
        (ACK, "/", 0, b"[]", b"30[]"),
        (ACK, "/admin", 12, b"[1]", b"3/admin,12[1]"),
        (DISCONNECT, "/admin", None, b"", b"1/admin,"),
        (DISCONNECT, "/", None, b"", b"1"),
        (socketio.CONNECT_ERROR, "/random", None, b'{"message":"Invalid namespace"}', None),
    ],
)
def test_packets_are_written_as_others_read_them(kind, namespace, number, data, packet):
    """The oracle takes what we write apart into the same parts."""
    encoded = socketio.encode(kind, namespace, number, data)
    assert encoded == (packet or b'4/random,{"message":"Invalid namespace"}')
    theirs = oracle.Packet(encoded_packet=encoded.decode())
    assert (theirs.packet_type, theirs.namespace or "/", theirs.id) == (kind, namespace, number)


@pytest.mark.parametrize(
    ("values", "packets"),
    [
        ((), [b"27[]"]),
        (("a", 1), [b'27["a",1]']),
        (("a", b"x"), [b'51-7["a",{"_placeholder":true,"num":0}]', b"x"]),
        (
            ("a", {"b": [bytearray(b"x"), 1], "c": memoryview(b"y")}),
            [b'52-7["a",{"b":[{"_placeholder":true,"num":0},1],"c":{"_placeholder":true,"num":1}}]', b"x", b"y"],
        ),
    ],
)
def test_values_with_bytes_are_written_with_attachments(values, packets):
    """In any depth, in their order; our own decoder puts them back."""
    assert socketio.encode_values(EVENT, "/", 7, values) == packets
    if values:
        decoder = Decoder(MAX_BYTES)
        whole = decoder.feed_text(packets[0])
        for attachment in packets[1:]:
            whole = decoder.feed_bytes(attachment)
        assert whole is not None
        assert (whole.kind, whole.id, whole.data[0]) == (EVENT, 7, "a")


def test_an_ack_with_bytes_is_a_binary_ack():
    """In its namespace."""
    packet = b'61-/admin,3[{"_placeholder":true,"num":0}]'
    assert socketio.encode_values(ACK, "/admin", 3, [b"x"]) == [packet, b"x"]


def test_what_cannot_be_sent_is_refused():
    """What is neither JSON nor bytes, and more attachments than others read."""
    with pytest.raises(TypeError):
        socketio.encode_values(EVENT, "/", None, ["a", {1, 2}])
    with pytest.raises(ValueError, match="found 11 attachments; allowed: 10"):
        socketio.encode_values(EVENT, "/", None, ["a", *[b"x"] * 11])


VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=3), st.none() | st.integers(0, 10**15 - 1), st.sampled_from(["/", "/admin"]))
def test_any_values_come_back_with_their_bytes(values, number, namespace):
    """Attachments are counted, in their order, and in their places again."""
    packets = socketio.encode_values(EVENT, namespace, number, ["said", *values])
    decoder = Decoder(MAX_BYTES)
    whole = decoder.feed_text(packets[0])
    for attachment in packets[1:]:
        assert whole is None and decoder.pending
        whole = decoder.feed_bytes(attachment)
    assert whole == Packet(EVENT, namespace, number, ["said", *values]) and not decoder.pending


PIECES = st.sampled_from(
    ["0", "2", "3", "5", "1-", "9999-", "/", "/a,", ",", "12", "[", "]", '["a"]', '{"_placeholder":true,"num":0}']
)


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(PIECES, max_size=5).map("".join).map(str.encode) | st.binary(max_size=20))
    )
)
def test_any_messages_are_packets_or_refused(messages):
    """With a ProtocolError, and nothing else; what is held is one packet of few attachments."""
    decoder = Decoder(MAX_BYTES)
    for text, message in messages:
        try:
            packet = decoder.feed_text(message) if text else decoder.feed_bytes(message)
        except ProtocolError:
            return  # its connection ends
        assert packet is None or packet.kind in (CONNECT, DISCONNECT, EVENT, ACK)
        assert len(decoder._attachments) < socketio.MAX_ATTACHMENTS
