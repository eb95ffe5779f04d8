"""What is told of frames: names, sizes, texts without secrets; whatever stands in them."""

from __future__ import annotations

import time
import zlib

import orjson
import pytest

from hub import tap
from hub.errors import CLOSE_FORCE_DISCONNECT
from hub.frames import PING, RSV1, TEXT, encode_frame, payloads
from hub.tap import Row, Tap, describe, shown

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


class Listener:
    """Takes rows, as long as there is room."""

    def __init__(self, payloads: bool = False, room: int = 100) -> None:
        self.payloads, self.room = payloads, room
        self.rows: list[Row] = []
        self.cut = 0

    def has_room(self) -> bool:
        self.cut += len(self.rows) >= self.room
        return len(self.rows) < self.room

    def take(self, row: Row) -> None:
        self.rows.append(row)


def tapped(*listeners: Listener) -> Tap:
    one = Tap("c1", "ann", "websocket", lambda: 1.5, lambda: None)
    for number, listener in enumerate(listeners):
        one.add(str(number), listener)
    return one


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b'{"id":1,"connect":{"token":"x"}}', ("connect", "")),
        (b'{"id":2,"subscribe":{"channel":"chat:a"}}', ("subscribe", "chat:a")),
        (b'{"subscribe":{},"id":2}', ("subscribe", "")),
        (b'{"id":3,"rpc":{"method":"hub.ack","data":1}}', ("rpc hub.ack", "")),
        (b'{"id":3,"error":{"code":103,"message":"permission denied"}}', ("error 103", "")),
        (b'{"push":{"channel":"chat:a","pub":{"data":1}}}', ("push pub", "chat:a")),
        (b'{"push":{"channel":"chat:a","join":{"info":{}}}}', ("push join", "chat:a")),
        (b'{"push":{"disconnect":{"code":3001}}}', ("push disconnect", "")),
        (b"{}", ("ping or pong", "")),
        (b'data: {"push":{"channel":"a","pub":{}}}\n\n', ("push pub", "a")),
        (b'id: 1~x\ndata: {"channel":"a","pub":{}}\n\n', ("push pub", "a")),
        (b'event: open\ndata: {"client":"1"}\n\n', ("event open", "")),
        (b'42["subscribe",{"channel":"a"}]', ("packet 42 subscribe", "")),
        (b'431[{"channel":"a"}]', ("packet 43", "")),
        (b'42/admin,17["pub"]', ("packet 42 pub", "")),
        (b'40{"token":"x"}', ("packet 40", "")),
        (b"2", ("packet 2", "")),
        # Whatever else comes.
        (b'{"id":', ("message", "")),
        (b'{"push":7}', ("push", "")),
        (b'{"id":1,"subscribe":{"channel":[1]}}', ("subscribe", "")),
        (b"[1]", ("message", "")),
        (b"\xff\xfe", ("message", "")),
        (b": comment\n\n", ("message", "")),
        (b"", ("message", "")),
        (b'{"id":1,"' + b"x" * 500 + b'":{}}', ("x" * 64, "")),
    ],
)
def test_a_message_has_a_name(message: bytes, expected: tuple[str, str]) -> None:
    assert describe(message) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"id":1,"connect":{"token":"SECRET","data":1}}',
        '{"connect": {"Token" : "SECRET\\"SECRET"}}',
        '{"data":{"password":"SECRET","apiKey":"SECRET","api_key":"SECRET","authorization":"Bearer SECRET"}}',
        '{"data":"{\\"token\\":\\"SECRET\\",\\"a\\":1}"}',
        '40{"token":"SECRET"}',
        '0{"sid":"SECRET","upgrades":[]}',
        '{"id":1,"connect":{"session":"SECRET","node":"SECRET"}}',
        '{"token":"SECRET',
        '{"data":"{\\"token\\":\\"SECRET',
    ],
)
def test_secrets_are_not_shown(text: str) -> None:
    """By their names, in JSON and in JSON within it, whole or cut off."""
    found = shown(text.encode())
    assert "SECRET" not in found and "redacted" in found


@pytest.mark.parametrize(
    "name",
    [
        "access_token", "refreshToken", "client_secret", "userPassword", "passphrase", "X-API-Key", "auth", "pwd",
        "sessionId", "setCookie", "private_key", "credentials", "jwt",
    ],
)  # fmt: skip
def test_secrets_are_known_by_a_part_of_their_names(name: str) -> None:
    """As applications name them in what they hand over at a connect; also in a text of JSON, and in lists."""
    for value in ({name: "hide-me"}, {name: ["hide-me", "hide-me-too"]}, {name: 4711}, {name: 'a"hide-me'}):
        message = orjson.dumps({"id": 1, "connect": {"data": value | {"room": "seen"}}})
        found = shown(message)
        assert "hide-me" not in found and "4711" not in found and "seen" in found
        inner = orjson.dumps(value | {"room": "seen"}).decode()
        for _ in range(3):
            inner = orjson.dumps({"data": inner}).decode()
            found = shown(inner.encode())
            assert "hide-me" not in found and "4711" not in found and "seen" in found


@pytest.mark.parametrize("text", ["\\", '\\"', '\\"key' + "\\" * 2000, '"key":', '"key":"', "eyJ", '"key":[', '"a'])
def test_no_text_is_costly_to_show(text: str) -> None:
    """Whoever is traced says what he likes: twice as long a text takes about twice the time, not four times."""

    def seconds(size: int, monkeypatch: pytest.MonkeyPatch) -> float:
        monkeypatch.setattr(tap, "MAX_SHOWN", size)
        message = (text * size).encode()[: 4 * size]
        times = []
        for _ in range(5):
            begin = time.process_time()
            shown(message)
            times.append(time.process_time() - begin)
        return min(times)

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert seconds(16_000, monkeypatch) < 8 * seconds(4_000, monkeypatch) + 0.001


def test_tokens_are_not_shown_wherever_they_stand() -> None:
    """By their looks, also where a text is cut in the middle of one."""
    assert shown(f'{{"data":"see {JWT} there"}}'.encode()) == '{"data":"see [redacted] there"}'
    text = f'{{"data":"{"x" * (4 * tap.MAX_SHOWN - 20)}{JWT}"}}'
    assert "eyJ" not in shown(text.encode())


def test_payloads_are_cut_and_other_words_stay() -> None:
    assert shown(b'{"data":{"text":"a token of love","n":1}}') == '{"data":{"text":"a token of love","n":1}}'
    assert len(shown(b"x" * 100_000)) == tap.MAX_SHOWN + 1
    assert shown(b"\xff<script>") == "\ufffd<script>"


def test_a_row_is_whose_frame_it_is_and_no_payload_unless_asked() -> None:
    """Each listener gets what it has asked for, whatever the others have."""
    plain, full = Listener(), Listener(payloads=True)
    one = tapped(plain, full)
    one.heard(b'{"id":1,"publish":{"channel":"a","data":"hi"}}')
    row = {"t": 1500, "client": "c1", "user": "ann", "wire": "websocket", "dir": "in"}
    row |= {"what": "publish", "channel": "a", "bytes": 46}
    assert plain.rows == [row]
    assert full.rows == [row | {"payload": '{"id":1,"publish":{"channel":"a","data":"hi"}}'}]
    one.remove("1")
    one.closing(CLOSE_FORCE_DISCONNECT)
    one.gone()
    assert [(row["dir"], row["what"]) for row in plain.rows[1:]] == [
        ("", "close 3503 force disconnect"),
        ("", "gone"),
    ]
    assert len(full.rows) == 1


def test_each_message_of_a_frame_is_a_row() -> None:
    """Compressed ones, too; control frames are none. A publication has the channel that the fan-out knows."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = (packer.compress(b"{}" * 50) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    data = encode_frame(TEXT, b'{"id":1}\n{}') + encode_frame(PING, b"x") + encode_frame(TEXT | RSV1, packed)
    assert list(payloads(data)) == [b'{"id":1}\n{}', b"{}" * 50]
    assert list(payloads(encode_frame(TEXT, b"x" * 70_000))) == [b"x" * 70_000]
    for text in (b"HTTP/1.1 101 x", b"HTTP/1.1 200 OK\r\n" * 9, b"\x81"):  # no frames, or none that is whole
        assert b"".join(payloads(text)) in (text, b"")
    listener = Listener()
    tapped(listener).sent(payloads(encode_frame(TEXT, b'{"id":1}\n{}')), "chat:a")
    assert [(row["what"], row["channel"]) for row in listener.rows] == [
        ("message", "chat:a"),
        ("ping or pong", "chat:a"),
    ]


def test_what_there_is_no_room_for_is_not_taken_apart() -> None:
    """It is counted by whoever has no room; others get it."""
    small, large = Listener(room=1), Listener()
    one = tapped(small, large)
    for _ in range(3):
        one.heard(b"{}")
    assert (len(small.rows), small.cut, len(large.rows)) == (1, 2, 3)


def test_rows_can_be_written() -> None:
    """Whatever the bytes, they become JSON."""
    listener = Listener(payloads=True)
    one = tapped(listener)
    for message in (b"\xed\xa0\x80", bytes(range(256)), b'{"id":1,"\xc3\xa4":{"channel":"\xc3\xa4"}}', b"\x00"):
        one.heard(message)
    assert len(orjson.loads(orjson.dumps(listener.rows))) == 4
