"""Engine.IO packets: what is read and written, against the written protocol and python-engineio's codec."""

from __future__ import annotations

import orjson
import pytest
from engineio import packet as oracle
from engineio import payload as oracle_payload
from hypothesis import given
from hypothesis import strategies as st

from hub import engineio_protocol as engineio
from hub.engineio_protocol import MESSAGE, Packet
from hub.errors import ProtocolError


@pytest.mark.parametrize(
    ("message", "packet"),
    [
        (b"0{}", Packet(engineio.OPEN, b"{}")),
        (b"1", Packet(engineio.CLOSE, b"")),
        (b"2probe", Packet(engineio.PING, b"probe")),
        (b"3", Packet(engineio.PONG, b"")),
        (b"4hello", Packet(MESSAGE, b"hello")),
        (b"4", Packet(MESSAGE, b"")),
        ("4é".encode(), Packet(MESSAGE, "é".encode())),
        (b"5", Packet(engineio.UPGRADE, b"")),
        (b"6", Packet(engineio.NOOP, b"")),
    ],
)
def test_a_text_is_one_packet(message, packet):
    """The digit is the kind, the rest its data."""
    assert engineio.decode_text(message) == packet
    assert oracle.Packet(encoded_packet=message.decode()).packet_type == packet.kind


@pytest.mark.parametrize("message", [b"", b"7", b"abc", b"-1", b"/", b":", b"b", b"\xc3\xa9"])
def test_what_begins_with_no_digit_is_no_packet(message):
    """Nothing is guessed."""
    with pytest.raises(ProtocolError):
        engineio.decode_text(message)


def test_a_body_holds_several_packets():
    """Texts and base64, in order, as the protocol's example has it."""
    body = b"4hello\x1e2\x1e4world\x1ebAQIDBA=="
    packets = engineio.decode_payload(body)
    assert packets == [
        Packet(MESSAGE, b"hello"),
        Packet(engineio.PING, b""),
        Packet(MESSAGE, b"world"),
        Packet(MESSAGE, b"\x01\x02\x03\x04", True),
    ]
    theirs = oracle_payload.Payload(encoded_payload=body.decode()).packets
    assert [one.binary for one in theirs] == [one.binary for one in packets]
    assert theirs[3].data == packets[3].data


@pytest.mark.parametrize("body", [b"", b"4a\x1e", b"\x1e4a", b"4a\x1eabc", b"b*", b"bAQI", b"4\xff", b"4a\x1e9"])
def test_a_body_with_one_bad_packet_is_bad(body):
    """The packets before it don't count either: the session ends."""
    with pytest.raises(ProtocolError):
        engineio.decode_payload(body)


def test_packets_of_a_body_are_bounded():
    """As many as allowed pass, one more does not."""
    packets = [b"4a"] * engineio.MAX_PACKETS
    assert len(engineio.decode_payload(b"\x1e".join(packets))) == engineio.MAX_PACKETS
    with pytest.raises(ProtocolError):
        engineio.decode_payload(b"\x1e".join([*packets, b"4a"]))


def test_more_packets_may_be_messages():
    """As many as the caller says; the others stay at sixteen."""
    assert len(engineio.decode_payload(b"\x1e".join([b"4a", b"bAQ=="] * 20), 40)) == 40
    assert len(engineio.decode_payload(b"\x1e".join([b"4a"] * 24 + [b"3"] * 16), 40)) == 40
    for packets in ([b"4a"] * 41, [b"4a"] * 23 + [b"3"] * 17, [b"3"] * 17):
        with pytest.raises(ProtocolError):
            engineio.decode_payload(b"\x1e".join(packets), 40)


def test_packets_are_joined_as_others_join_them():
    """The oracle reads what we write."""
    body = engineio.encode_payload([b"2", b"4hi", engineio.encode_bytes(b"\x00\xff")])
    assert body == b"2\x1e4hi\x1ebAP8="
    assert [one.data for one in oracle_payload.Payload(encoded_payload=body.decode()).packets] == [
        "",
        "hi",
        b"\x00\xff",
    ]


def test_the_handshake_has_the_keys_of_the_protocol():
    """These five and no others; times in milliseconds."""
    packet = engineio.encode_open("x", ["websocket"], 25_000, 20_000, 1_000_000)
    assert packet[:1] == b"0"
    assert orjson.loads(packet[1:]) == {
        "sid": "x",
        "upgrades": ["websocket"],
        "pingInterval": 25_000,
        "pingTimeout": 20_000,
        "maxPayload": 1_000_000,
    }


@pytest.mark.parametrize(
    ("version", "transport", "code"),
    [
        ("4", "polling", None),
        ("4", "websocket", None),
        ("3", "polling", 5),
        ("", "polling", 5),
        ("abc", "websocket", 5),
        ("4", "", 0),
        ("4", "abc", 0),
        ("", "", 0),
    ],
)
def test_a_query_is_judged_in_the_protocols_words(version, transport, code):
    """An Engine.IO 3 client learns that its version is not spoken here."""
    fault = engineio.check_query(version, transport)
    assert (fault and (fault.status, fault.code)) == (code if code is None else (400, code))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x1e"), max_size=8).map(str.encode)
KINDS = st.integers(engineio.OPEN, engineio.NOOP)
PACKETS = st.builds(lambda kind, data: Packet(kind, data), KINDS, TEXTS) | st.builds(
    lambda data: Packet(MESSAGE, data, True), st.binary(max_size=8)
)


@given(st.lists(PACKETS, min_size=1, max_size=engineio.MAX_PACKETS))
def test_any_packets_come_back_in_their_order(packets):
    """Texts and bytes; python-engineio reads the same."""
    parts = [engineio.encode_bytes(one.data) if one.binary else b"%d" % one.kind + one.data for one in packets]
    body = engineio.encode_payload(parts)
    assert engineio.decode_payload(body) == packets
    theirs = oracle_payload.Payload(encoded_payload=body.decode()).packets
    assert [(one.packet_type, one.binary) for one in theirs] == [(one.kind, one.binary) for one in packets]


@given(st.binary(max_size=60) | st.text(st.sampled_from("0123456789b=QI\x1e"), max_size=80).map(str.encode))
def test_any_body_is_packets_or_refused(body):
    """With a ProtocolError, and nothing else; no more packets than there may be."""
    for decode in (engineio.decode_payload, lambda body: [engineio.decode_text(body)]):
        try:
            packets = decode(body)
        except ProtocolError:
            continue
        assert 0 < len(packets) <= engineio.MAX_PACKETS
        assert all(engineio.OPEN <= one.kind <= engineio.NOOP for one in packets)
