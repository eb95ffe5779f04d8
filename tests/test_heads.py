"""Heads of requests: each form that servers may read differently has its verdict."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub import heads
from hub.heads import Limits, Refusal

LIMITS = Limits(body_bytes=1000, fields=20, query_fields=16)


def head(*fields: bytes, start: bytes = b"POST /publish HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *fields]) + b"\r\n\r\n"


PASSING = {
    "plain": head(),
    "HTTP/1.0, without Host": head(start=b"GET / HTTP/1.0", host=b""),
    "an empty Host": head(host=b"Host:"),
    "IPv6 and a port": head(host=b"Host: [::1]:8000"),
    "an empty line before": b"\r\n" + head(),
    "a length": head(b"Content-Length: 1000"),
    "a length with zeros": head(b"content-length:\t 0000000000000000000000000000000001000 "),
    "chunks": head(b"Transfer-Encoding: Chunked"),
    "no coding": head(b"Content-Encoding: identity"),
    "JSON": head(b"Content-Type: application/json; charset=utf-8"),
    "obs-text in a value": head(b"A: caf\xe9"),
    "an empty value": head(b"A:"),
    "a query": head(start=b"GET /poll?channel=a%20b&since=1~x,y@z HTTP/1.1"),
    "as many parameters as may be": head(start=b"GET /?" + b"&".join([b"a"] * 16) + b" HTTP/1.1"),
    "as many fields as may be": head(*[b"A: b"] * 19),
    "a name that ends like one that is judged": head(b"X-Content-Length: 5", b"X-Transfer-Encoding: gzip"),
    "a value that holds one that is judged": head(b"A: b Content-Length: 5000"),
}
REFUSED = {
    "no start line": (b"\r\n\r\n", heads.NO_REQUEST),
    "no version": (head(start=b"GET /"), heads.NO_REQUEST),
    "two spaces": (head(start=b"GET  / HTTP/1.1"), heads.NO_REQUEST),
    "a space in the target": (head(start=b"GET /a b HTTP/1.1"), heads.NO_REQUEST),
    "a space behind": (head(start=b"GET / HTTP/1.1 "), heads.NO_REQUEST),
    "NUL in the target": (head(start=b"GET /\0 HTTP/1.1"), heads.NO_REQUEST),
    "no ASCII in the target": (head(start=b"GET /\xc3\xa9 HTTP/1.1"), heads.NO_REQUEST),
    "small letters": (head(start=b"GET / http/1.1"), heads.NO_REQUEST),
    "a method that is no token": (head(start=b"G@T / HTTP/1.1"), heads.NO_REQUEST),
    "two empty lines before": (b"\r\n\r\n" + head(), heads.NO_REQUEST),
    "bare LFs": (b"GET / HTTP/1.1\nHost: h\n\n", heads.NO_REQUEST),
    "a bare LF at the end": (b"GET / HTTP/1.1\r\nHost: h\n\r\n", heads.NO_REQUEST),
    "another version": (head(start=b"GET / HTTP/1.2"), heads.UNKNOWN_VERSION),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\n", heads.UNKNOWN_VERSION),
    "HTTP/0.9": (head(start=b"GET / HTTP/0.9"), heads.UNKNOWN_VERSION),
    "an absolute target": (head(start=b"GET http://h/ HTTP/1.1"), heads.NO_PATH),
    "an authority": (head(start=b"CONNECT h:80 HTTP/1.1"), heads.NO_PATH),
    "an asterisk": (head(start=b"OPTIONS * HTTP/1.1"), heads.NO_PATH),
    "a fragment": (head(start=b"GET /a#b HTTP/1.1"), heads.NO_PATH),
    "too many parameters": (head(start=b"GET /?" + b"&".join([b"a"] * 17) + b" HTTP/1.1"), heads.MANY_PARAMETERS),
    "too many fields": (head(*[b"A: b"] * 20), heads.MANY_FIELDS),
    "a folded line": (head(b"A: b\r\n c"), heads.BAD_FIELD),
    "a first line that is folded": (head(b" A: b"), heads.BAD_FIELD),
    "a space before the colon": (head(b"Content-Length : 5"), heads.BAD_FIELD),
    "no colon": (head(b"A"), heads.BAD_FIELD),
    "no name": (head(b": a"), heads.BAD_FIELD),
    "a bare LF in a value": (head(b"A: b\nContent-Length: 5"), heads.BAD_FIELD),
    "a bare CR in a value": (head(b"A: b\rContent-Length: 5"), heads.BAD_FIELD),
    "a bare CR before a line": (head(b"A: b", b"\rContent-Length: 5"), heads.BAD_FIELD),
    "NUL in a value": (head(b"A: b\0c"), heads.BAD_FIELD),
    "NUL in a name": (head(b"A\0: b"), heads.BAD_FIELD),
    "DEL in a value": (head(b"A: \x7f"), heads.BAD_FIELD),
    "no Host": (head(host=b""), heads.BAD_HOST),
    "two Hosts": (head(b"Host: h"), heads.BAD_HOST),
    "a Host with a path": (head(host=b"Host: h/x"), heads.BAD_HOST),
    "a Host with a user": (head(host=b"Host: a@h"), heads.BAD_HOST),
    "a length and chunks": (head(b"Content-Length: 5", b"Transfer-Encoding: chunked"), heads.TWO_LENGTHS),
    "chunks and a length": (head(b"transfer-encoding: chunked", b"content-length: 5"), heads.TWO_LENGTHS),
    "two lengths": (head(b"Content-Length: 5", b"Content-Length: 6"), heads.TWO_LENGTHS),
    "the same length twice": (head(b"Content-Length: 5", b"CONTENT-LENGTH: 5"), heads.TWO_LENGTHS),
    "two codings": (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), heads.TWO_LENGTHS),
    "two lengths in one": (head(b"Content-Length: 5, 5"), heads.BAD_LENGTH),
    "a length with a sign": (head(b"Content-Length: +5"), heads.BAD_LENGTH),
    "a length below nothing": (head(b"Content-Length: -5"), heads.BAD_LENGTH),
    "a hexadecimal length": (head(b"Content-Length: 0x5"), heads.BAD_LENGTH),
    "a length with an underscore": (head(b"Content-Length: 1_0"), heads.BAD_LENGTH),
    "a length of other digits": (head("Content-Length: ٥".encode()), heads.BAD_LENGTH),
    "an empty length": (head(b"Content-Length:"), heads.BAD_LENGTH),
    "an unknown coding": (head(b"Transfer-Encoding: xchunked"), heads.BAD_CODING),
    "another coding first": (head(b"Transfer-Encoding: gzip, chunked"), heads.BAD_CODING),
    "a coding behind a comma": (head(b"Transfer-Encoding: ,chunked"), heads.BAD_CODING),
    "a coding behind a vertical tab": (head(b"Transfer-Encoding: \x0bchunked"), heads.BAD_FIELD),
    "a coding in quotes": (head(b'Transfer-Encoding: "chunked"'), heads.BAD_CODING),
    "no coding": (head(b"Transfer-Encoding: identity"), heads.BAD_CODING),
    "an empty coding": (head(b"Transfer-Encoding:"), heads.BAD_CODING),
    "chunks in HTTP/1.0": (head(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"), heads.BAD_CODING),
    "too much": (head(b"Content-Length: 1001"), heads.TOO_LARGE),
    "far too much": (head(b"Content-Length: " + b"9" * 5000), heads.TOO_LARGE),
    "gzip": (head(b"Content-Encoding: gzip"), heads.ENCODED),
    "parts": (head(b"Content-Type: Multipart/form-data; boundary=a"), heads.MULTIPART),
    "a head that goes on": (b"GET / HTTP/1.1\r\nA: " + b"b" * 100, heads.TOO_LONG),
    "an address that goes on": (b"GET /" + b"b" * 100, heads.TARGET_TOO_LONG),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_every_server_reads_alike_passes(name: str) -> None:
    """None."""
    assert heads.judge(PASSING[name], LIMITS) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_servers_may_read_differently_is_refused(name: str) -> None:
    """With a status of its own, and for the reason that is named."""
    data, refusal = REFUSED[name]
    assert heads.judge(data, LIMITS) == refusal


def test_an_answer_is_whole_and_ends_the_connection() -> None:
    """Status, length and one line of text."""
    for refusal in (value for value in vars(heads).values() if isinstance(value, Refusal)):
        first, separator, text = refusal.answer().partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % refusal.status) and separator
        assert b"\r\nConnection: close" in first and b"\r\nContent-Length: %d\r\n" % len(text) in first
        assert text == refusal.text.encode() + b"\n"


NAMES = st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding", b"content-length", b"A", b"Content-Type"])
VALUES = st.sampled_from([b"h", b"5", b"0", b"chunked", b"5, 5", b"+5", b"gzip", b""]) | st.binary(max_size=6)
LINES = st.builds(lambda name, gap, value: name + gap + value, NAMES, st.sampled_from([b": ", b":", b" :"]), VALUES)
STARTS = st.sampled_from([b"POST / HTTP/1.1", b"GET /a?b=c HTTP/1.1", b"GET / HTTP/1.0", b"POST http://h/ HTTP/1.1"])
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n "])
HEADS = st.builds(
    lambda start, lines: start + b"".join(end + line for end, line in lines) + b"\r\n\r\n",
    STARTS,
    st.lists(st.tuples(ENDS, LINES | st.binary(max_size=8)), max_size=4).map(lambda all: [(b"\r\n", b"Host: h"), *all]),
)


@given(HEADS | st.binary(max_size=60))
@example(head(b"Content-Length: 5"))
@example(head(b"Transfer-Encoding: chunked"))
@settings(max_examples=500)
def test_what_passes_has_the_framing_that_h11_finds(data: bytes) -> None:
    """One head, the same method and target, and the same length of its body; whatever the bytes, nothing raises."""
    if heads.judge(data, LIMITS) is not None:
        return
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data)
    event = peer.next_event()
    assert isinstance(event, h11.Request)
    first = data.removeprefix(b"\r\n").split(b"\r\n")[0]
    assert first == b"%b %b HTTP/%b" % (event.method, event.target, event.http_version)
    fields = dict(event.headers)
    lengths = re.findall(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)", data)
    assert [int(value) for value in lengths] == ([int(fields[b"content-length"])] if lengths else [])
    assert (b"transfer-encoding" in fields) == (re.search(rb"(?i)\r\ntransfer-encoding:", data) is not None)
    assert peer.trailing_data == (b"", False)
