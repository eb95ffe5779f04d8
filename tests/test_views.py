"""Views: what is left of a publication, and what is said of it."""

from __future__ import annotations

import gc

import orjson
import pytest

from hub.audience import Numbering, Update, replacing
from hub.message import encode_body
from hub.views import REPEAT, Marked, Views, numbering

TICK = {"symbol": "A", "price": 1.5, "bid": 1.4, "seq": 7, "time_ns": "12"}
BODY = encode_body(TICK)


class Form:
    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return orjson.dumps([channel, orjson.Fragment(body)])

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        return b"arrival " + channel.encode()

    def encode_message(self, message: bytes) -> bytes:
        return message


def test_without_wishes_a_body_stays_as_it_is():
    """Not even taken apart: it may be anything."""
    view = Views().of(Form())
    assert view.encode_publication("t:A", b'{"data":1 }') == b'["t:A",{"data":1 }]'
    assert view.encode_arrival("t:A", b"") == b"arrival t:A" and view.encode_message(b"m") == b"m"


def test_fields_narrow_data_that_is_an_object():
    """Those that it has; anything else is sent as it is, and the rest of the publication too."""
    view = Views().of(Form(), fields=("price", "none"))
    body = encode_body(TICK, tags={"a": "b"})
    assert orjson.loads(view.body("t:A", Update(body))) == {"data": {"price": 1.5}, "tags": {"a": "b"}}
    assert orjson.loads(view.body("t:A", Update(encode_body([1])))) == {"data": [1]}


@pytest.mark.parametrize(
    "body", [b"", b"no JSON", b"[1]", b"5", b'{"data":{"seq":1},"tags":"x"}', b'{"data":1,"tags":[1]}']
)
def test_what_is_no_publication_is_told_without_what_is_wrong(body):
    """Whoever reaches Redis can write it; a fault here would cost all who have the same moment their values."""
    for options in ({"marks": True}, {"fields": ("seq",)}, {"shown": "t:$watch", "marks": True}):
        publication = orjson.loads(Views().of(Form(), **options).body("t:A", Update(body)))
        assert publication.get("data") in (None, 1, {"seq": 1}) and isinstance(publication.get("tags", {}), dict)
    assert numbering(body) in (Numbering(), Numbering(1))


@pytest.mark.parametrize("tags", [None, {"a": "b"}])
@pytest.mark.parametrize("fields", [(), ("symbol",)])
def test_on_a_watch_list_a_tag_says_whose_value_it_is(tags, fields):
    """The publication comes on the list's channel; its own tags stay."""
    view = Views().of(Form(), "t:$watch", fields)
    channel, publication = orjson.loads(view.encode_publication("t:A", encode_body(TICK, tags=tags)))
    assert channel == "t:$watch" and publication["tags"] == {**(tags or {}), "channel": "t:A"}
    assert publication["data"] == ({"symbol": "A"} if fields else TICK)


def test_marks_say_what_a_value_stands_for():
    """As texts; what there is nothing to say of is left out."""
    view = Views(lambda: 99).of(Form(), marks=True)

    def tags(**update: object) -> dict:
        return orjson.loads(view.body("t:A", Update(BODY, **update)))["tags"]

    assert tags() == {"merged": "0", "hub": "99", "time": "12"}
    assert tags(merged=2, gap=3) == {"merged": "2", "gap": "3", "hub": "99", "time": "12"}
    assert tags(merged=REPEAT, state="stale")["repeat"] == "1"
    assert orjson.loads(view.body("t:A", Update(encode_body(5))))["tags"] == {"merged": "0", "hub": "99"}


@pytest.mark.parametrize("shown", ["", "t:$watch"])
def test_a_publisher_cant_set_marks(shown):
    """Its tags of these names are left out; its others stay, and without marks all of them are just tags."""
    forged = {"merged": "9", "gap": "9", "time": "9", "hub": "9", "state": "stale", "repeat": "1"}
    body = encode_body({"price": 1}, tags={**forged, "venue": "X"})
    views = Views(lambda: 99)
    channel = {"channel": "t:A"} if shown else {}
    tags = orjson.loads(views.of(Form(), shown, marks=True).body("t:A", Update(body)))["tags"]
    assert tags == {"venue": "X", "merged": "0", "hub": "99", **channel}
    tags = orjson.loads(views.of(Form(), shown).body("t:A", Update(body)))["tags"]
    assert tags == {**forged, "venue": "X", **channel}


def test_a_marked_frame_in_anothers_place_stands_for_both():
    """Merged values, gaps, and the last change of state that nobody has been told."""
    view = Views(lambda: 99).of(Form(), marks=True)
    old = view.encode_update("t:A", Update(BODY, 1, 2, "live"))
    new = view.encode_update("t:A", Update(BODY, 3, 4))
    both = replacing(new, old)
    assert isinstance(both, Marked) and both.update == Update(BODY, 5, 6, "live")
    assert orjson.loads(bytes(both))[1]["tags"]["merged"] == "5"
    again = view.encode_update("t:A", Update(BODY, REPEAT, 0, "stale"))
    assert replacing(again, new).update == Update(BODY, 3, 4, "stale")
    assert replacing(new, b"plain") is new and replacing(b"plain", new) == b"plain"


def test_equal_wishes_share_one_view_as_long_as_somebody_has_it():
    """So that they share bytes, and nothing is left when the last one goes."""
    views, form = Views(), Form()
    one = views.of(form, "", ("b", "a"), True)
    assert views.of(form, "", ("a", "b"), True) is one and len(views) == 1
    assert views.of(form, "t:$watch", ("a", "b"), True) is not one
    assert views.of(Form(), "", ("a", "b"), True) is not one
    del one
    gc.collect()
    assert len(views) == 0


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (TICK, (7, 0, 0)),
        ({**TICK, "merged": 2, "era": 3}, (7, 2, 3)),
        ({}, (0, 0, 0)),
        (5, (0, 0, 0)),
        ({"seq": "7", "merged": -1, "era": True}, (0, 0, 0)),
    ],
)
def test_a_values_place_at_its_source_is_read_where_it_says_one(data, found):
    """Of ticks, and of whatever else counts so."""
    assert numbering(encode_body(data)) == Numbering(*found)
