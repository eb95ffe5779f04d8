"""Emissions: an event as a publication, and the fan-out that leaves one client out."""

from __future__ import annotations

import pytest

from hub import emission
from hub.audience import Volatile
from hub.channels import Channels
from hub.emission import Emission, EmittingFanout
from hub.errors import CommandError
from hub.message import Publication, encode_body
from hub.socketio_protocol import MAIN
from tests.support import FakeClock


@pytest.mark.parametrize("args", [(), (1,), ([1, 2],), (1, [2]), ('{"event":"',), (None,)])
def test_what_is_encoded_is_parsed_again(args):
    """With any number of arguments, and also when they look like tags."""
    for skip in ("", "c1"):
        data, tags = emission.encode("said", args, skip)
        assert emission.parse(encode_body(data, None, tags)) == Emission("said", list(args), skip)


@pytest.mark.parametrize("args", [(b"",), (b"\x00\xff", 1), ({"a": [b"x", {"b": b"y"}]},), ([[b"x"]], "$base64")])
def test_bytes_come_back_as_bytes(args):
    """Wherever they stand; in JSON they are base64, and a tag says that there are some."""
    data, tags = emission.encode("said", args)
    assert emission.parse(encode_body(data, None, tags)) == Emission("said", list(args))
    assert int(tags["binary"]) == repr(data).count("{'$base64': '")


@pytest.mark.parametrize("args", [(bytearray(b"ab"),), (memoryview(b"ab"),)])
def test_other_kinds_of_bytes_are_bytes(args):
    """As in the packets of Socket.IO."""
    data, tags = emission.encode("said", args)
    assert emission.parse(encode_body(data, None, tags)).args == [b"ab"]


def test_what_looks_like_bytes_stays_as_it_is():
    """Without the tag, or where it is not base64 at all."""
    for tags, value in (
        ({}, {"$base64": "AQI="}),
        ({"binary": "1"}, {"$base64": "A"}),
        ({"binary": "1"}, {"$base64": 1}),
    ):
        body = encode_body(value, None, {"event": "said", **tags})
        assert emission.parse(body).args == [value]


def test_bytes_are_bounded_in_number_and_size():
    """And what is neither JSON nor bytes is told of."""
    emission.encode("said", [b"x"] * 10)
    emission.encode("said", (b"x" * emission.MAX_BINARY_BYTES,))
    for args in ([b"x"] * 11, [b"x" * 500_001] * 2):
        with pytest.raises(ValueError, match="binary values"):
            emission.encode("said", args)
    with pytest.raises(TypeError):
        emission.encode("said", ({1, 2}, b"x"))


@pytest.mark.parametrize("data", [1, {"tags": {"event": "x"}}, {"event": "x"}, '"event":"x"'])
def test_other_publications_are_no_events(data):
    """Whatever their data, which clients choose, holds."""
    assert emission.parse(encode_body(data)) is None
    assert emission.parse(encode_body(data, None, {"other": "event"})) is None


def test_no_client_can_name_the_channel_of_everyone():
    """It is of a namespace that nobody configures; each Socket.IO namespace has its own."""
    names = [emission.everyone(namespace) for namespace in (MAIN, "/a", "/a/b", "/a.b", "/hub")]
    assert len(set(names)) == len(names)
    for name in names:
        with pytest.raises(CommandError, match="unknown channel"):
            Channels({}).resolve(name)


class Wire:
    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return body


class Reader:
    """A subscriber that keeps what it is given."""

    direct = sealed = False
    open = True
    fd = -5

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.group = None
        self.place = -1
        self.got: list[bytes] = []

    def put(self, frame: bytes) -> None:
        self.got.append(frame)

    full = False

    def offer(self, audience, frame: bytes) -> None:
        if not self.full or type(frame) is not Volatile:
            self.got.append(frame)

    def left(self, *audiences) -> None: ...


class Rig:
    """A fan-out with two readers of one channel."""

    def __init__(self, flush_ms: float = 0, **options) -> None:
        wire = Wire()
        self.later: list = []
        self.rules = emission.EVERYONE.model_copy(update={"flush_ms": flush_ms, **options.pop("rules", {})})
        self.fanout = EmittingFanout({}, lambda: None, FakeClock(), self.call_later, **options)
        self.ann, self.bob = Reader(wire), Reader(wire)
        for reader in (self.ann, self.bob):
            self.fanout.join("a", self.rules, reader)
        self.turn()
        self.fanout.find = {"ann": self.ann}.get

    def call_later(self, delay, call, *args):
        self.later.append((call, args))

        class Timer:
            def cancel(self) -> None: ...

        return Timer()

    def say(self, *texts: str) -> None:
        """Each as one publication; ann is passed over by those that begin with a minus."""
        batch = []
        for text in texts:
            data, tags = emission.encode("said", (text,), "ann" if text.startswith("-") else "")
            batch.append(Publication("a", encode_body(data, None, tags)))
        self.fanout.deliver(batch)

    def turn(self) -> None:
        while self.fanout.busy:
            self.fanout.begin()
            self.fanout.run()

    @staticmethod
    def texts(reader: Reader) -> list[str]:
        return [emission.parse(bytes(one)).args[0] for frames in reader.got for one in [frames]]


def test_one_client_is_passed_over_in_order():
    """Before, behind, twice in one batch; the next batch reaches it as ever."""
    rig = Rig()
    rig.say("1", "-2", "3", "-4", "5")
    rig.turn()
    rig.say("6")
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["1", "3", "5", "6"], ["1", "-2", "3", "-4", "5", "6"])


def test_one_that_joins_or_leaves_in_the_same_batch_gets_its_part():
    """No more and no less than without the event."""
    rig = Rig()
    rig.fanout.leave("a", rig.ann)
    rig.say("-0", "1")
    rig.fanout.join("a", rig.rules, rig.ann)
    rig.say("-2", "3")
    rig.turn()
    assert rig.texts(rig.ann) == ["3"]
    rig.say("-4", "5")
    rig.fanout.leave("a", rig.ann)
    rig.turn()
    assert rig.texts(rig.ann) == ["3"]
    rig.say("-6")
    rig.turn()
    assert rig.texts(rig.bob) == ["-0", "1", "-2", "3", "-4", "5", "-6"]


def test_a_pause_ends_with_such_an_event():
    """What waited goes before it, to both."""
    rig = Rig(flush_ms=100)
    rig.say("1", "-2")
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["1"], ["1", "-2"])


def test_a_worker_that_is_behind_counts_right():
    """Frames that newer ones replaced, or that were never taken up, do not shift who is passed over."""
    rig = Rig(rules={"mode": "latest"}, max_bytes=1)
    rig.say("1", "-2", "3")
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["3"], ["3"])
    rig.say("4", "-5")
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["3"], ["3", "-5"])
    rig = Rig(max_bytes=1)
    rig.say("1", "-2", "3")
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["1"], ["1"])


def test_volatile_events_are_marked_as_such_for_each_wire():
    """Those before and behind are not; whoever is full goes without, and one that is passed over never sees it."""
    rig = Rig()
    rig.ann.full = True
    batch = []
    for text, skip, volatile in (("1", "", False), ("2", "", True), ("3", "ann", True), ("4", "", False)):
        data, tags = emission.encode("said", (text,), skip, volatile)
        batch.append(Publication("a", encode_body(data, None, tags)))
    rig.fanout.deliver(batch)
    rig.turn()
    assert (rig.texts(rig.ann), rig.texts(rig.bob)) == (["1", "4"], ["1", "2", "3", "4"])
    assert [type(frame) is Volatile for frame in rig.bob.got] == [False, True, True, False]


def test_what_is_numbered_is_not_volatile():
    """Its channel's positions count it."""
    rig = Rig()
    data, tags = emission.encode("said", ("1",), "", True)
    rig.fanout.deliver([Publication("a", b'{"offset":7,' + encode_body(data, None, tags)[1:])])
    rig.turn()
    assert type(rig.bob.got[0]) is bytes
