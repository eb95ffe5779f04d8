r"""Request smuggling: bytes that one server may take for one request and another one for two.

Does: list the shapes, number them so that every request in them can be told in a log, send them, and find in the logs
of a proxy and of the hub behind it what the one passed on and the other understood.
Called by: test_smuggling.
A shape's first request is for /first-NNNN. What is for /inner-NNNN is a request only to a server that finds the end of
the first one where its own reading puts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from typing import NamedTuple

IDLE_S = 0.6
"""Without an answer for so long, none comes; nothing is judged by it but when to hang up."""
PATIENCE_S = 20.0
"""For an answer that must come."""
READ_BYTES = 65_536
START = b"POST /first-NNNN HTTP/1.1\r\nHost: h\r\n"
INNER = b"GET /inner-NNNN HTTP/1.1\r\nHost: h\r\n\r\n"
SIZE = len(INNER)
NOTHING = b"0\r\n\r\n"
WHOLE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)
LENGTH = b"Content-Length: %d\r\n" % SIZE
"""Of a body that is the inner request."""
SHORT = b"Content-Length: %d\r\n" % len(NOTHING)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PATH = re.compile(r"/(?:first|inner)-(\d{4})")


def both(coding: bytes, length: bytes = b"Content-Length: %d\r\n" % (len(NOTHING) + SIZE)) -> bytes:
    """A length behind a coding that not every server may see: the inner request is behind the chunks."""
    return START + coding + length + b"\r\n" + NOTHING + INNER


def chunks(text: bytes) -> bytes:
    return START + CHUNKED + b"\r\n" + text


GOOD: dict[str, bytes] = {
    "a length": START + LENGTH + b"\r\n" + INNER,
    "chunks": chunks(WHOLE_CHUNK),
    "no body": b"GET /first-NNNN HTTP/1.1\r\nHost: h\r\n\r\n",
}
"""One request to everybody, whose body looks like another."""
BAD: dict[str, bytes] = {
    "TE and CL": both(CHUNKED),
    "CL and TE": START + SHORT + CHUNKED + b"\r\n" + NOTHING + INNER,
    "two unequal CL": START + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + INNER,
    "two equal CL": START + LENGTH + LENGTH + b"\r\n" + INNER,
    "CL list": START + b"Content-Length: %d, %d\r\n\r\n" % (SIZE, SIZE) + INNER,
    "CL with a sign": START + b"Content-Length: +%d\r\n\r\n" % SIZE + INNER,
    "CL below nothing": START + b"Content-Length: -1\r\n\r\n" + INNER,
    "CL in hexadecimal": START + b"Content-Length: 0x%x\r\n\r\n" % SIZE + INNER,
    "CL with an underscore": START + b"Content-Length: 0_0\r\n\r\n" + INNER,
    "CL empty": START + b"Content-Length:\r\n\r\n" + INNER,
    "CL with a space inside": START + b"Content-Length: 0 0\r\n\r\n" + INNER,
    "CL of 2^64 more": START + b"Content-Length: %d\r\n\r\n" % (2**64) + INNER,
    "CL with a space before the colon": START + b"Content-Length : %d\r\n\r\n" % SIZE + INNER,
    "CL with a tab before the colon": START + b"Content-Length\t: %d\r\n\r\n" % SIZE + INNER,
    "CL folded": START + b"Content-Length:\r\n %d\r\n\r\n" % SIZE + INNER,
    "CL behind a bare LF": START + b"A: b\n" + LENGTH + b"\r\n" + INNER,
    "CL behind a bare CR": START + b"A: b\r" + LENGTH + b"\r\n" + INNER,
    "CL with NUL": START + b"Content-Length: %d\0\r\n\r\n" % SIZE + INNER,
    "TE unknown": both(b"Transfer-Encoding: xchunked\r\n"),
    "TE identity": both(b"Transfer-Encoding: identity\r\n"),
    "TE list": both(b"Transfer-Encoding: gzip, chunked\r\n", b""),
    "TE with chunked first": both(b"Transfer-Encoding: chunked, identity\r\n"),
    "TE behind a comma": both(b"Transfer-Encoding: ,chunked\r\n", b""),
    "TE in quotes": both(b'Transfer-Encoding: "chunked"\r\n', b""),
    "TE behind a vertical tab": both(b"Transfer-Encoding: \x0bchunked\r\n"),
    "TE with NUL": both(b"Transfer-Encoding: chunked\0\r\n"),
    "TE twice": both(CHUNKED + b"Transfer-Encoding: x\r\n"),
    "TE with a space before the colon": both(b"Transfer-Encoding : chunked\r\n"),
    "TE folded": both(b"Transfer-Encoding:\r\n chunked\r\n"),
    "TE behind a bare LF": both(b"A: b\n" + CHUNKED),
    "TE behind a bare CR": both(b"A: b\r" + CHUNKED),
    "TE in a folded value": both(b"A: b\r\n " + CHUNKED),
    "TE as the first, folded": b"POST /first-NNNN HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: h\r\n"
    + SHORT
    + b"\r\n"
    + NOTHING
    + INNER,
    "TE in HTTP/1.0": b"POST /first-NNNN HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n"
    + CHUNKED
    + b"\r\n"
    + NOTHING
    + INNER,
    "TE and CL in HTTP/1.0": b"POST /first-NNNN HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n"
    + CHUNKED
    + SHORT
    + b"\r\n"
    + NOTHING
    + INNER,
    "a chunk's extension": chunks(b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's extension with a bare LF": chunks(b"2;\nxx\r\n%x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's extension at the end": chunks(b"0;a=b\r\n\r\n" + INNER),
    "a chunk's size with a sign": chunks(b"+%x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's size with 0x": chunks(b"0x%x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's size with a space": chunks(b" %x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's size with a space behind": chunks(b"%x \r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk's size of 2^64 more": chunks(b"1%016x\r\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "a chunk that ends with a bare LF": chunks(b"1\r\na\n" + WHOLE_CHUNK),
    "a chunk that ends with a bare CR": chunks(b"1\r\na\r" + WHOLE_CHUNK),
    "a chunk that goes on": chunks(b"1\r\nab\r\n" + WHOLE_CHUNK),
    "a chunk's size that ends with a bare LF": chunks(b"%x\n%b\r\n0\r\n\r\n" % (SIZE, INNER)),
    "the last chunk with bare LFs": chunks(b"0\n\n" + INNER),
    "a trailer": chunks(b"0\r\nContent-Length: %d\r\n\r\n" % SIZE + INNER),
    "bare LFs": b"POST /first-NNNN HTTP/1.1\nHost: h\n" + LENGTH.replace(b"\r", b"") + b"\n" + INNER,
    "a bare LF at the end of the head": START + b"A: b\r\n\n" + INNER,
    "a bare CR at the end of the head": START + b"A: b\r\n\r" + INNER,
    "an absolute target": b"GET http://other/first-NNNN HTTP/1.1\r\nHost: h\r\n" + LENGTH + b"\r\n" + INNER,
    "an authority": b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n" + INNER,
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n" + LENGTH + b"\r\n" + INNER,
    "NUL in the target": b"GET /first-NNNN\0 HTTP/1.1\r\nHost: h\r\n\r\n" + INNER,
    "a space in the target": b"GET /first-NNNN /x HTTP/1.1\r\nHost: h\r\n\r\n" + INNER,
    "two Hosts": b"GET /first-NNNN HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n" + INNER,
    "no Host": b"GET /first-NNNN HTTP/1.1\r\nA: b\r\n\r\n" + INNER,
    "a Host with a path": b"GET /first-NNNN HTTP/1.1\r\nHost: h/inner\r\n\r\n" + INNER,
    "another version": b"GET /first-NNNN HTTP/1.9\r\nHost: h\r\n\r\n" + INNER,
    "HTTP/0.9": b"GET /first-NNNN\r\n\r\n" + INNER,
    "no field name": START + b": b\r\n" + LENGTH + b"\r\n" + INNER,
    "no colon": START + b"b\r\n" + LENGTH + b"\r\n" + INNER,
}
"""What the hub refuses when it sees it; a proxy may refuse it, too, or mend it."""
NAMES = [*GOOD, *BAD]


class Shape(NamedTuple):
    """One, numbered."""

    name: str
    number: int
    data: bytes


def numbered(first: int) -> list[Shape]:
    """All of them, with numbers from `first` on: those of one place to which they are sent."""
    return [
        Shape(name, first + index, data.replace(b"NNNN", b"%04d" % (first + index)))
        for index, (name, data) in enumerate({**GOOD, **BAD}.items())
    ]


async def send(port: int, data: bytes, context: ssl.SSLContext | None = None, patience_s: float = PATIENCE_S) -> bytes:
    """Send it and return what is answered until the other side ends, or says no more.

    patience_s: for the first bytes of an answer.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := await asyncio.wait_for(reader.read(READ_BYTES), IDLE_S if answer else patience_s):
                answer += chunk
    finally:
        writer.transport.abort()
    return answer


def paths(log: str) -> set[str]:
    """The requests of shapes that stand in a log."""
    return {found[0] for found in PATH.finditer(log)}


def smuggled(passed_on: str, understood: str) -> dict[int, str]:
    """Number and path of what the hub took for a request and its proxy did not, by their logs."""
    more = paths(understood) - paths(passed_on)
    return {int(path[-4:]): path for path in sorted(more)}
