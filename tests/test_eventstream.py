"""Event streams: what is written is what a parser after the specification reads."""

from __future__ import annotations

import random
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import cursor, eventstream, protocol
from hub.errors import CLOSE_BAD_REQUEST, CLOSE_SHUTDOWN
from hub.eventstream import PLAIN, PositionedForm, encode_event
from hub.position import Position
from tests.eventsource import Event, Parser


def read(data: bytes) -> list[Event]:
    return Parser().feed(data)


def test_an_event_has_its_type_data_and_id() -> None:
    assert encode_event(b"{}", b"cursor", b"1~x") == b"id: 1~x\nevent: cursor\ndata: {}\n\n"
    assert read(encode_event(b"{}", b"cursor", b"1~x")) == [Event("cursor", "{}", "1~x")]


@pytest.mark.parametrize("data", [b"a\rb", b"a\nb", b"a\r\nb", b"\r", b"a\r", b"\n\nid: 9\n", b"a\r\n\r\nevent: x\r\r"])
def test_line_ends_in_data_end_a_line_of_data_and_nothing_else(data: bytes) -> None:
    events = read(encode_event(data, b"e", b"7"))
    assert events == [Event("e", re.sub(r"\r\n|\r", "\n", data.decode()), "7")]


@pytest.mark.parametrize("bad", [b"a\rb", b"a\nb", b"a\0b", b"\n"])
def test_line_ends_and_nul_in_names_and_ids_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="without CR"):
        encode_event(b"{}", bad)
    with pytest.raises(ValueError, match="without CR"):
        encode_event(b"{}", b"e", bad)


def test_no_data_breaks_a_frame() -> None:
    """Fuzz: texts made of all that means something in a stream, each between two events that must stay as they are."""
    chosen = random.Random(2)
    parts = ["\r", "\n", "\r\n", "data:", "event: x", "id: 9", "retry: 1", ":", " ", "ü", "\u2028", "\ufeff", "a", "{"]
    for _ in range(3000):
        text = "".join(chosen.choices(parts, k=chosen.randint(0, 12)))
        data = encode_event(b"1", id=b"1") + encode_event(text.encode()) + encode_event(b"3")
        parser, events = Parser(), []
        while data:  # cut anywhere: what is read does not depend on it
            cut = chosen.randint(1, len(data))
            while cut < len(data) and data[cut] & 0xC0 == 0x80:
                cut += 1
            events += parser.feed(data[:cut])
            data = data[cut:]
        assert [event.data for event in events] == ["1", re.sub(r"\r\n|\r", "\n", text), "3"]
        assert {event.type for event in events} == {"message"} and parser.last_id == "1" and parser.retry_ms is None


@pytest.mark.parametrize("form", [PLAIN, PositionedForm(lambda channel: "4.k3")])
def test_no_publication_breaks_a_frame(form: eventstream.PlainForm) -> None:
    """Not even one whose JSON stands on several lines, as a foreign publisher on the same Redis could write it."""
    body = b'{"offset":5,\r"data":\n"a\\r\\nb\\u0000"\r\n}'
    (event,) = read(form.encode_publication("chat:a", body))
    assert event.json == {"channel": "chat:a", "pub": {"offset": 5, "data": "a\r\nb\0"}}


def test_a_positioned_publication_carries_its_channel_s_cursor() -> None:
    form = PositionedForm({"chat:a": "4.k3"}.__getitem__)
    (event,) = read(form.encode_publication("chat:a", b'{"offset":17,"data":1}'))
    assert cursor.decode(event.id).position("chat:a") == Position("4.k3", 17)


def test_a_publication_without_an_offset_leaves_the_cursor_where_it_is() -> None:
    """Of another mode, or published with skip_history; data that looks like an offset is none."""
    form = PositionedForm(lambda channel: "4.k3")
    for body in (b'{"data":1}', b'{"data":{"offset":3}}'):
        parser = Parser()
        parser.feed(b"id: 1\ndata: 1\n\n" + form.encode_publication("chat:a", body))
        assert parser.last_id == "1"


def test_the_offset_of_a_plain_publication_is_found_and_only_there() -> None:
    assert eventstream.numbered(PLAIN.encode_publication("chat:a#1,2", b'{"offset":17,"data":1}')) == ("chat:a#1,2", 17)
    for body in (b'{"data":1}', b'{"data":{"offset":3}}', b'{"data":"{\\"offset\\":3}"}'):
        assert eventstream.numbered(PLAIN.encode_publication("chat:a", body)) is None
    assert eventstream.numbered(eventstream.HEARTBEAT) is None


def test_arrivals_and_notices_are_events_of_their_own() -> None:
    (join,) = read(PLAIN.encode_arrival("room:a", b'"join":{"info":{"user":"42"}}'))
    assert (join.type, join.json) == ("join", {"channel": "room:a", "join": {"info": {"user": "42"}}})
    (leave,) = read(PLAIN.encode_arrival("room:a", b'"leave":{"info":{"user":"42"}}'))
    assert leave.type == "leave"
    (notice,) = read(PLAIN.encode_message(protocol.encode_message({"a": 1})))
    assert (notice.type, notice.json) == ("notice", {"data": {"a": 1}})


def test_the_last_words_say_whether_to_come_back_and_when() -> None:
    parser = Parser()
    (event,) = parser.feed(eventstream.encode_closed(CLOSE_SHUTDOWN, 250))
    assert event == Event("closed", '{"code":3001,"reason":"shutdown","reconnect":true}', "")
    assert parser.retry_ms == 250
    assert orjson.loads(read(eventstream.encode_closed(CLOSE_BAD_REQUEST, 1))[0].data)["reconnect"] is False


def test_a_stamp_is_made_once_for_all_who_stand_at_the_same_place() -> None:
    positions = (("chat:a", Position("4.k3", 17)), ("chat:b", Position("4.p0", 3)))
    stamp = eventstream.encode_stamp(positions)
    assert stamp is eventstream.encode_stamp((*positions[:1], *positions[1:]))
    (event,) = read(stamp)
    found = cursor.decode(event.id)
    assert {name: found.position(name) for name, _ in positions} == dict(positions)


def test_heartbeat_retry_and_the_cursor_event_are_not_messages() -> None:
    parser = Parser()
    data = eventstream.HEARTBEAT + eventstream.encode_retry(99) + eventstream.encode_cursor("1~a")
    assert parser.feed(data) == [Event("cursor", "{}", "1~a")]
    assert (parser.comments, parser.retry_ms) == (1, 99)


TEXTS = st.text(st.sampled_from("ab:\r\n\0 \ufeff\u2028é") | st.characters(codec="utf-8"), max_size=12)


@given(TEXTS, TEXTS, TEXTS)
def test_a_client_reads_what_was_written_whatever_it_is(data: str, event: str, id: str) -> None:
    """One event with its type, id and data, in which each kind of line end has become one; or it is refused."""
    words = data.encode(), event.encode(), id.encode()
    if set("\r\n\0") & set(event + id):
        with pytest.raises(ValueError, match="allowed are texts without"):
            encode_event(*words)
        return
    written = encode_event(*words)
    expected = Event(event or "message", re.sub("\r\n|\r", "\n", data), id)
    assert read(written) == [expected]
    assert read(b": before\n\n" + written + b"data: behind\n\n") == [expected, Event("message", "behind", id)]
