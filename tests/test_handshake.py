"""The opening handshake: which heads are read in place, what is refused, what is answered."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from hub.handshake import Bounds, accept, read_head, refuse

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = {
    "Host": "hub.example",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def head(start: str = "GET /connection/websocket HTTP/1.1", extra: str = "", **changes: str | None) -> bytes:
    fields = {**FIELDS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [start, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode("latin-1")


def test_a_plain_upgrade_is_read_with_its_size():
    """Names in lower case; what stands behind the empty line is not part of it."""
    data = head()
    found = read_head(data + b"\x81\x80frame")
    assert found is not None and found.size == len(data)
    assert found.headers == {name.lower(): value for name, value in FIELDS.items()}
    assert refuse("HTTP/1.1", found.headers, ()) is None


@pytest.mark.parametrize(
    "start", ["GET /connection/websocket?format=json HTTP/1.1", "GET /connection/websocket? HTTP/1.1"]
)
def test_a_query_does_not_matter(start):
    """SDKs add some."""
    assert read_head(head(start)) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        head()[:-1],
        head()[:-4],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        head("GET /connection/websocketx HTTP/1.1"),
        head("GET /connection/websocket/ HTTP/1.1"),
        head("GET //connection/websocket HTTP/1.1"),
        head("GET http://h/connection/websocket HTTP/1.1"),
        head("POST /connection/websocket HTTP/1.1"),
        head("get /connection/websocket HTTP/1.1"),
        head("GET /connection/websocket HTTP/1.0"),
        head("GET  /connection/websocket HTTP/1.1"),
        head("GET /connection/websocket?a b HTTP/1.1"),
        head(Host=None),
        head(Host="a b"),
        head(Host="h/"),
        head(Host="h@x"),
        head(Host="h,h"),
        head(Host="h:x"),
        head(extra="Host: other\r\n"),
        head(extra="Content-Length: 0\r\n"),
        head(extra="Transfer-Encoding: chunked\r\n"),
        head(extra=" folded\r\n"),
        head(extra="No colon\r\n"),
        head(extra="Space : before\r\n"),
        head(extra="Empty:\r\n"),
        head(extra="Nul: a\0b\r\n"),
        head(extra="Bare: a\rb\r\n"),
        head(extra="High: \xe9\r\n"),
        head(extra=": nameless\r\n"),
        head().replace(b"\r\n", b"\n"),
    ],
)
def test_whatever_is_odd_partial_or_for_others_is_left_to_tornado(data):
    """None, so that nothing is consumed and nothing is decided here."""
    assert read_head(data) is None


FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)[ \t]*")
"""RFC 9110 §5.1 and §5.5 without obs-text and without empty values."""
NEVER = {"content-length", "transfer-encoding", "expect"}
NAMES = st.sampled_from(
    [*FIELDS, "ORIGIN", "cookie", "X-Forwarded-For", "x!y", "X_y", "Content-length", "", "a b", "\xe9"]
)
VALUES = st.text(st.sampled_from("aZ09 \t:,;=\x00\x7f\r\n\xe9"), max_size=8)
COLONS = st.sampled_from([":", ": ", ":\t ", " :", "", "::"])


@given(st.lists(st.tuples(NAMES, COLONS, VALUES), max_size=5))
def test_fields_are_read_as_the_rfc_has_them_or_not_at_all(fields):
    """Each line by itself, against the grammar; names in any spelling, none of them twice."""
    lines = [f"{name}{colon}{value}".encode("latin-1") for name, colon, value in fields]
    data = b"\r\n".join([b"GET /connection/websocket HTTP/1.1", b"Host: h", *lines]) + b"\r\n\r\n"
    head = data[: data.index(b"\r\n\r\n")]
    found = [FIELD.fullmatch(line) for line in head.split(b"\r\n")[1:]]
    expected = [(field[1].decode().lower(), field[2].decode()) for field in found if field is not None]
    names = [name for name, _ in expected]
    good = None not in found and len(set(names)) == len(names) and NEVER.isdisjoint(names)
    answer = read_head(data)
    assert (answer.headers if answer is not None else None) == (dict(expected) if good else None)


@pytest.mark.parametrize("name", ["sec-websocket-key", "Sec-WebSocket-Key", "Sec-Websocket-Key", "SEC-WEBSOCKET-KEY"])
def test_a_name_may_be_written_in_any_way(name):
    """And is the same field in each, so that it can't come twice."""
    found = read_head(head(Sec_WebSocket_Key=None, extra=f"{name}: {KEY}\r\n"))
    assert found is not None and found.headers["sec-websocket-key"] == KEY
    assert read_head(head(extra=f"{name}: {KEY}\r\n")) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise(data):
    """A head, or None; also behind a good beginning."""
    read_head(data)
    read_head(head()[:60] + data + b"\r\n\r\n")


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "Origin", "Sec-WebSocket-Extensions"]),
        st.sampled_from(["", "x", "websocket", "upgrade", "13", KEY, "permessage-deflate; client_max_window_bits"]),
    )
)
def test_both_kinds_of_headers_are_judged_alike(fields):
    """Tornado's and ours give the same verdict and the same answer."""
    theirs, ours = HTTPHeaders(fields), {name.lower(): value for name, value in fields.items()}
    assert refuse("HTTP/1.1", theirs, ()) == refuse("HTTP/1.1", ours, ())
    assert accept(theirs) == accept(ours)
    assert accept(theirs, compress=True) == accept(ours, compress=True)


def test_the_answer_is_rfc_6455s_example():
    """Section 1.3; the subprotocol only where it was offered."""
    answer, _ = accept({"sec-websocket-key": KEY})
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" in answer
    offered, _ = accept({"sec-websocket-key": KEY, "sec-websocket-protocol": "x, centrifuge-json"})
    assert b"\r\nSec-WebSocket-Protocol: centrifuge-json\r\n\r\n" in offered


def test_compression_is_agreed_on_only_where_it_is_on_and_offered():
    """The answer names it, with the offer's parameters; otherwise it has no such header."""
    offer = {"sec-websocket-key": KEY, "sec-websocket-extensions": "permessage-deflate; server_no_context_takeover"}
    answer, agreement = accept(offer, compress=True)
    assert agreement is not None
    assert b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n" in answer
    for headers, compress in ((offer, False), ({"sec-websocket-key": KEY}, True)):
        answer, agreement = accept(headers, compress)
        assert agreement is None and b"Extensions" not in answer


@pytest.mark.parametrize(
    ("bounds", "query"),
    [
        (Bounds(fields=len(FIELDS)), ""),
        (Bounds(query_fields=3), "?a&b&c"),
        (Bounds(head_bytes=len(head())), ""),
    ],
)
def test_a_head_beyond_the_bounds_is_not_read_here(bounds, query):
    """As many fields, parameters and bytes as it may have are read; one more, and heads refuses it."""
    start = "GET /connection/websocket{} HTTP/1.1"
    assert read_head(head(start.format(query)), bounds) is not None
    assert (
        read_head(head(start.format(query + "&" if query else ""), extra="" if query else "x: y\r\n"), bounds) is None
    )
