"""Archive: what is written is read again, whatever the bytes; and a file that is not whole, or not ours, is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import archive
from hub.archive import Channel, Counts, Damaged, Header, Key, MorePublications, MoreValues, Reader, Writer
from hub.errors import HubError

HEADER = Header("0.1.0", "hub", "2026-01-31T12:00:00Z", "all", 4)
META = {b"o": b"17", b"e": b"4.k3f9x1", b"g": b"4.aa"}
RECORDS = [
    Channel("chat:room", META, 2_591_000, 299_000, [(15, b'{"offset":15,"data":1}'), (16, b"\xff\x00\n")]),
    MorePublications([(17, "ü".encode())]),
    Channel("chat:empty", {b"o": b"0", b"e": b"4.b"}, -1, -1, []),
    Key("mail:{inbox:#42}", "hash", -1, [b"id", b"\x80body"]),
    MoreValues([b"id2", b""]),
    Key("wait:{inbox:#42}", "zset", 5, [b"id", b"0", b"id2", b"-inf"]),
    Key("dead", "stream", -1, [b"1-1", b"4", b"c", b"inbox:#1", b"r", b"expired"]),
]


def written(records: list[archive.Record] = RECORDS, header: Header = HEADER) -> bytes:
    out = io.BytesIO()
    writer = Writer(out, header)
    for record in records:
        writer.write(record)
    writer.close()
    return out.getvalue()


def read(data: bytes) -> list[archive.Record]:
    return list(Reader(io.BytesIO(data)))


def sealed(*lines: object, counts: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """Lines with a last one that is right: what is wrong with them is not that they were cut."""
    body = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    end = dict(zip(("channels", "publications", "keys"), counts, strict=True))
    return body + orjson.dumps({"end": True, **end, "sha256": sha256(body).hexdigest()}) + b"\n"


FIRST = {"format": "hub-backup", "version": 1, **HEADER._asdict()}


def test_what_is_written_is_read_again():
    """Records, header, counts and digest; and no line but JSON."""
    data = written()
    reader = Reader(io.BytesIO(data))
    assert (reader.header, list(reader)) == (HEADER, RECORDS)
    assert reader.counts == Counts(channels=2, publications=3, keys=3)
    assert reader.sha256 == sha256(data[: data.rindex(b"\n", 0, -1) + 1]).hexdigest()
    assert all(orjson.loads(line) for line in data.splitlines())


@given(st.lists(st.binary()), st.lists(st.binary()))
def test_any_bytes_come_back(bodies, values):
    """As a publication and as a value, valid UTF-8 or not."""
    channel = Channel("c", {b"o": b"99999", b"e": b"\xff"}, -1, -1, list(enumerate(bodies, 1)))
    key = Key("mailboxes", "hash", -1, [each for value in values for each in (value, value)])
    assert read(written([channel, key])) == [channel, key]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_each_shorter_file_is_refused(compress):
    """Cut off anywhere, between two lines too."""
    pack, unpack = (gzip.compress, lambda file: gzip.GzipFile(fileobj=file)) if compress else (bytes, lambda file: file)
    whole = pack(written())
    for size in range(len(whole)):
        with pytest.raises(Damaged):
            list(Reader(unpack(io.BytesIO(whole[:size]))))
    assert list(Reader(unpack(io.BytesIO(whole)))) == RECORDS


def test_each_flipped_bit_of_a_compressed_file_is_refused_or_harmless():
    """In the head of gzip's format some bits mean nothing, such as the time; what is read is the same then."""
    whole = gzip.compress(written())
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            with contextlib.suppress(Damaged):
                assert list(Reader(gzip.GzipFile(fileobj=io.BytesIO(bytes(damaged))))) == RECORDS


def test_a_changed_file_is_refused():
    """Any other letter in a body, although all of it is well-formed."""
    with pytest.raises(Damaged, match="SHA-256"):
        read(written().replace(b'"data\\":1', b'"data\\":2'))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "line 1: cut off, or not a backup"),
        (b"REDIS0011\xfa\tredis-ver\n", "line 1: not JSON"),
        (b"[]\n", "line 1: not an object"),
        (b'{"a":1}\n', "its first line says something else"),
        (sealed({**FIRST, "format": "other"}), "its first line says something else"),
        (sealed({**FIRST, "version": 2}), "found version 2 of the format; allowed: 1"),
        (sealed({name: FIRST[name] for name in FIRST if name != "prefix"}), "line 1: no prefix"),
        (sealed({**FIRST, "contents": "some"}), "line 1: contents"),
        (sealed({**FIRST, "generation": "4"}), "line 1: contents or generation"),
        (sealed(FIRST, counts=(1, 0, 0)), "found 0 channels; its last line says 1"),
        (sealed(FIRST) + b"\n", "line 3: something follows"),
        (sealed(FIRST, {"more": ["a", "b"]}), "line 2: not a record: more of nothing"),
        (sealed(FIRST, {"what": 1}), "line 2: not a record"),
    ],
)
def test_what_is_no_backup_is_refused_with_a_reason(data, text):
    """Foreign files, other versions, and what only pretends to be whole."""
    with pytest.raises(Damaged, match=re.escape(text)):
        read(data)


CHANNEL = {"channel": "c", "meta": {"o": "3", "e": "1.a"}, "meta_ttl_ms": -1, "ttl_ms": -1, "publications": []}
KEY = {"key": "wait:{inbox:#1}", "type": "zset", "ttl_ms": -1, "values": []}


@pytest.mark.parametrize(
    "record",
    [
        {**CHANNEL, "channel": "a b"},
        {**CHANNEL, "channel": 1},
        {**CHANNEL, "channel": "a}:{b"},
        {**CHANNEL, "meta": {"e": "1.a"}},
        {**CHANNEL, "meta": {"o": "3"}},
        {**CHANNEL, "meta": {"o": "3", "e": ""}},
        {**CHANNEL, "meta": {"o": "x", "e": "1.a"}},
        {**CHANNEL, "meta": {"o": "-1", "e": "1.a"}},
        {**CHANNEL, "meta": {"o": str(2**53), "e": "1.a"}},
        {**CHANNEL, "meta": 1},
        {**CHANNEL, "ttl_ms": -2},
        {**CHANNEL, "ttl_ms": True},
        {**CHANNEL, "meta_ttl_ms": "5"},
        {**CHANNEL, "publications": [[0, "x"]]},
        {**CHANNEL, "publications": [[1, "x"], [1, "x"]]},
        {**CHANNEL, "publications": [[4, "x"]]},
        {**CHANNEL, "publications": [[1]]},
        {**CHANNEL, "publications": [[1, {"base64": "?"}]]},
        {**CHANNEL, "publications": [[1, {"hex": "00"}]]},
        {**KEY, "key": "generation"},
        {**KEY, "key": "wait:{a b}"},
        {**KEY, "key": "dead:x"},
        {**KEY, "key": "mail:{inbox:#1}"},
        {**KEY, "values": ["id"]},
        {**KEY, "values": ["id", "high"]},
        {**KEY, "values": ["id", "nan"]},
        {**KEY, "key": "dead", "type": "stream", "values": ["1-1", "2", "c"]},
        {**KEY, "key": "dead", "type": "stream", "values": ["1-1", "1", "c"]},
        {**KEY, "key": "dead", "type": "stream", "values": ["*", "2", "c", "d"]},
        {**KEY, "key": "dead", "type": "stream", "values": ["1-1", "-2"]},
    ],
)
def test_a_record_that_could_do_harm_is_refused(record):
    """Though the digest is right: names that are not ours, offsets out of order, half pairs, wrong types."""
    with pytest.raises(Damaged, match="line 2: not a record"):
        read(sealed(FIRST, record, counts=(1, 0, 0)))


def test_offsets_go_on_over_the_pages_of_a_channel():
    """And begin anew with the next channel."""
    more = {"more": [[2, "x"]]}
    one = {**CHANNEL, "publications": [[2, "x"]]}
    with pytest.raises(Damaged, match="line 3: not a record: offset 2 after 2"):
        read(sealed(FIRST, one, more, counts=(1, 2, 0)))
    assert len(read(sealed(FIRST, one, one, counts=(2, 2, 0)))) == 2


@pytest.mark.parametrize("record", [Channel("a b", META, -1, -1, []), Key("x:{c}", "hash", -1, [])])
def test_what_could_not_be_read_again_is_not_written(record):
    """A backup that is refused at its restore comes too late."""
    with pytest.raises(HubError, match="which no hub has written"):
        Writer(io.BytesIO(), HEADER).write(record)


def test_a_line_is_bounded_both_ways(monkeypatch):
    """A foreign file without newlines does not fill the memory."""
    monkeypatch.setattr(archive, "MAX_LINE_BYTES", 300)
    assert read(written(RECORDS[:1])) == RECORDS[:1]
    with pytest.raises(HubError, match=r"found \d+ bytes in one record; allowed: 300"):
        written([Channel("c", META, -1, -1, [(1, b"x" * 300)])])
    with pytest.raises(Damaged, match="cut off, or not a backup"):
        read(b"x" * 301 + b"\n")
