r"""Heads: whether a request's head is one that every server on its way reads alike (RFC 9112), bytes → verdict, no I/O.

Does: judge the bytes of a head before Tornado parses them: its form, its framing, its sizes; write the answer to one
that is refused.
Does not: read sockets, know addresses or methods (httpd, Tornado), nor judge chunks, which come later (httpd).
Called by: httpd, for every request that is not a plain WebSocket upgrade; those have `handshake.read_head`, which takes
less.
Never break: a proxy and the hub must not find different ends of a request, or one client's bytes become the beginning
of another's (request smuggling). So what RFC 9112 leaves to a server's leniency is refused here: bare LF, folded lines,
white space before a colon, two lengths, any Transfer-Encoding but `chunked`, targets that are no path. A new exception
needs its row in tests/test_heads.py and in tests/hostile/smuggling.py, which shows it to nginx and HAProxy.
"""

from __future__ import annotations

import re
from http.client import responses
from typing import NamedTuple

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
START = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])" % TOKEN)
FIELDS = re.compile(rb"(?:\r\n%b:[\t\x20-\x7e\x80-\xff]*)*" % TOKEN)
JUDGED = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|content-encoding|content-type):[ \t]*([^\r]*)", re.IGNORECASE
)
HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=\-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
LENGTH = re.compile(rb"[0-9]+")
MOST_DIGITS = 20
"""Of a length that are read: of a longer one they are enough to know that it is too much."""
END = b"\r\n\r\n"


class Limits(NamedTuple):
    """Of one request. fields: of its head; query_fields: of its query, counted as what stands between `&`."""

    body_bytes: int
    fields: int
    query_fields: int


class Refusal(NamedTuple):
    """Why a request is not looked at: an HTTP status and a line of text, which repeats nothing of it."""

    status: int
    text: str

    def answer(self) -> bytes:
        """The whole answer; it ends the connection, as nobody knows where the next request would begin."""
        return (
            f"HTTP/1.1 {self.status} {responses[self.status]}\r\nServer: hub\r\nCache-Control: no-store\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(self.text) + 1}\r\n"
            f"Connection: close\r\n\r\n{self.text}\n"
        ).encode("ascii")


def _bad(text: str) -> Refusal:
    return Refusal(400, text)


TOO_LONG = Refusal(431, "the head is too long; see http.header_bytes in the settings")
TARGET_TOO_LONG = Refusal(414, "the address is too long; see http.header_bytes in the settings")
MANY_FIELDS = Refusal(431, "too many header fields; see http.header_fields in the settings")
MANY_PARAMETERS = _bad("too many parameters in the query; see http.query_fields in the settings")
TOO_LARGE = Refusal(413, "the body is too large; see http.body_bytes in the settings")
NO_REQUEST = _bad("the first line is no request")
NO_PATH = _bad("the target must be a path")
UNKNOWN_VERSION = Refusal(505, "this address speaks HTTP/1.1 and HTTP/1.0")
BAD_FIELD = _bad("a header field is malformed")
BAD_HOST = _bad("Host must be there once")
TWO_LENGTHS = _bad("more than one length of the body")
BAD_LENGTH = _bad("Content-Length must be a number")
BAD_CODING = _bad("Transfer-Encoding: allowed is chunked, once, in HTTP/1.1")
BAD_CHUNKS = _bad("the chunks of the body are malformed")
ENCODED = Refusal(415, "Content-Encoding: a body must not be compressed")
MULTIPART = Refusal(415, "Content-Type: nothing here takes multipart")


def judge(head: bytes, limits: Limits) -> Refusal | None:
    r"""Why a request with this head is refused; None if it may pass.

    head: b'GET / HTTP/1.1\r\nHost: h\r\n\r\n', or as much as there may be of one that has not ended by then. One empty
    line in front of it is passed over (RFC 9112 §2.2).
    """
    if len(head) > len(END):
        head = head.removeprefix(b"\r\n")
    if not head.endswith(END):
        return _unfinished(head)
    first, separator, rest = head[:-4].partition(b"\r\n")
    fields = separator + rest
    return _judge_start(first, limits) or _judge_fields(fields, limits) or _judge_body(first, fields, limits)


def _unfinished(head: bytes) -> Refusal:
    """Too long, or ended by bare LFs."""
    if head.endswith((b"\n\n", b"\n\r\n")):
        return NO_REQUEST
    return TOO_LONG if b"\n" in head else TARGET_TOO_LONG


def _judge_start(first: bytes, limits: Limits) -> Refusal | None:
    found = START.fullmatch(first)
    if found is None:
        return NO_REQUEST
    target, version = found[2], found[3]
    if version not in (b"1.1", b"1.0"):
        return UNKNOWN_VERSION
    # An absolute target names a host beside Host, and two servers may look at different ones. A fragment is not sent.
    if not target.startswith(b"/") or b"#" in target:
        return NO_PATH
    if target.count(b"&") >= limits.query_fields:
        return MANY_PARAMETERS
    return None


def _judge_fields(fields: bytes, limits: Limits) -> Refusal | None:
    if fields.count(b"\n") > limits.fields:
        return MANY_FIELDS
    return None if FIELDS.fullmatch(fields) else BAD_FIELD


def _judge_body(first: bytes, fields: bytes, limits: Limits) -> Refusal | None:
    """What the head says of host and body; its form is good."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in JUDGED.findall(fields):
        found.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or (not hosts and first.endswith(b"1")) or not all(map(HOST.fullmatch, hosts)):
        return BAD_HOST
    lengths, codings = found.get(b"content-length", []), found.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1:
        return TWO_LENGTHS
    if codings and (codings[0].lower() != b"chunked" or first.endswith(b"0")):
        return BAD_CODING
    if lengths and not LENGTH.fullmatch(lengths[0]):
        return BAD_LENGTH
    if lengths and int(lengths[0].lstrip(b"0")[:MOST_DIGITS] or b"0") > limits.body_bytes:
        return TOO_LARGE
    if any(value.lower() not in (b"", b"identity") for value in found.get(b"content-encoding", [])):
        return ENCODED
    if any(value.lower().startswith(b"multipart/") for value in found.get(b"content-type", [])):
        return MULTIPART
    return None
