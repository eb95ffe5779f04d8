"""One answer to a poll, without a request: its bytes, its newest values, and a cursor that never says too much."""

from __future__ import annotations

import orjson

from hub import cursor
from hub.auth import ANONYMOUS
from hub.channels import Namespace
from hub.cursor import NOWHERE, key_of
from hub.position import Position
from hub.transports.plain import Wish
from hub.transports.poll_answer import FORM, Answer
from hub.wants import Wants

MODES = {mode: Namespace(mode=mode) for mode in ("none", "stream", "latest")}
PLACES = {"stream:a": Position("e", 4), "stream:b": Position("e", 9)}
WATCH = "latest:$watch"


def answer(*channels: str, max_bytes: int = 10_000, since: cursor.Cursor = NOWHERE) -> Answer:
    """Of a client that is in its `stream` channels already."""
    wants = {WATCH: Wants(symbols=("A", "B"))} if WATCH in channels else {}
    rules = {channel: MODES[channel.partition(":")[0]] for channel in channels}
    made = Answer(Wish(ANONYMOUS, rules, wants, since, False, {}, ANONYMOUS), max_bytes)
    made.positions.update({channel: PLACES[channel] for channel in channels if channel in PLACES})
    return made


def told(one: Answer, channel: str, **publication: object) -> bytes:
    """Have a publication offered to it; the message."""
    frame = FORM.encode_publication(channel, orjson.dumps(publication))
    one._take(frame)
    return frame


def test_what_comes_is_gathered_in_order_and_the_position_moves_with_it() -> None:
    """Also of a channel without positions; and whoever waits is told."""
    one = answer("stream:a", "none:c")
    assert not one.ready.is_set()
    frames = [told(one, "stream:a", offset=5, data=1), told(one, "none:c", data=2), told(one, "stream:a", offset=6)]
    assert one.messages == frames and one.ready.is_set()
    assert one.positions == {"stream:a": Position("e", 6)}


def test_behind_what_did_not_fit_nothing_of_its_channel_is_taken() -> None:
    """Though it would fit: the next poll goes on where this one stopped. Another channel's may still fit."""
    one = answer("stream:a", "stream:b", max_bytes=200)
    told(one, "stream:a", offset=5, data="x" * 60)
    told(one, "stream:a", offset=6, data="x" * 200)
    told(one, "stream:a", offset=7)
    told(one, "stream:b", offset=10)
    assert one.positions == {"stream:a": Position("e", 5), "stream:b": Position("e", 10)}
    assert len(one.messages) == 2


def test_a_message_that_is_larger_than_all_may_be_comes_alone() -> None:
    """Or its channel would never go on."""
    one = answer("stream:a", max_bytes=100)
    told(one, "stream:a", offset=5, data="x" * 500)
    told(one, "stream:a", offset=6)
    assert one.positions == {"stream:a": Position("e", 5)} and len(one.messages) == 1


def test_a_newer_value_takes_the_older_one_s_place() -> None:
    """And its bytes; the mark is the newest one's, and nothing else is moved."""
    one = answer("latest:a", "none:c", max_bytes=200)
    told(one, "latest:a", data="x" * 80)
    between = told(one, "none:c", data=1)
    newest = told(one, "latest:a", data=2)
    more = told(one, "none:c", data="y" * 40)
    assert one.messages == [newest, between, more]
    assert one.marks == {"latest:a": cursor.mark_of(b'{"data":2}')}


def test_each_symbol_of_a_watch_list_has_its_own_place_and_mark() -> None:
    """By its tag; what has none is no publication, and is passed over."""
    one = answer(WATCH)
    for name, price in (("A", 1), ("B", 2), ("A", 3)):
        told(one, WATCH, data=price, tags={"channel": f"latest:{name}"})
    told(one, WATCH, data=4)
    assert [orjson.loads(message)["pub"]["data"] for message in one.messages] == [3, 2]
    assert set(one.marks) == {"latest:A", "latest:B"}


def test_what_the_client_has_is_no_news_and_its_mark_goes_back() -> None:
    """Whether anything comes or not: without it the value would come again and again."""
    body = b'{"data":1}'
    brought = cursor.Cursor({}, {key_of("latest:a"): cursor.mark_of(body)})
    one = answer("latest:a", since=brought)
    assert not one._is_news("latest:a", body) and one._is_news("latest:a", b'{"data":2}')
    assert one.marks == {"latest:a": cursor.mark_of(body)} and one.cursor == cursor.encode({}, one.marks)


def test_nothing_is_taken_once_it_is_finished_and_nothing_that_is_no_message() -> None:
    """What comes late comes with the next poll."""
    one = answer("stream:a")
    one._take(b'{"subscribe":{}}')
    one._finished = True
    told(one, "stream:a", offset=5)
    assert not one.messages and one.positions == {"stream:a": Position("e", 4)} and not one.ready.is_set()
