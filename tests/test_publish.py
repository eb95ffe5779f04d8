"""The one door in: what may pass, and as what."""

from __future__ import annotations

import orjson
import pytest

from hub.channels import Namespace
from hub.errors import CommandError
from hub.message import ClientInfo, PublishOptions
from hub.publish import MAX_TAGS, Publisher, check_tags, too_deep


class Broker:
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list = []

    def publish(self, *call: object, **more: object) -> None:
        self.calls.append((*call, more))


def nested(depth: int, inner: object = 1) -> object:
    value = inner
    for _ in range(depth):
        value = [value]
    return value


def test_a_publication_reaches_the_broker_with_its_namespace_and_mode():
    """Channel, data, publisher and tags become one body."""
    broker = Broker()
    done = object()
    rules, options = Namespace(mode="stream"), PublishOptions("key", 3, "v")
    Publisher(broker, 32).publish("t:a", rules, {"x": 1}, done, ClientInfo("42", "c"), {"k": "v"}, options)
    [(mode, namespace, [publication], told, more)] = broker.calls
    assert (mode, namespace, publication.channel, told, more) == (rules, "t", "t:a", done, {"options": options})
    assert orjson.loads(publication.body) == {
        "data": {"x": 1},
        "info": {"user": "42", "client": "c"},
        "tags": {"k": "v"},
    }


@pytest.mark.parametrize(("data", "deep"), [(1, 0), ([], 1), ({}, 1), ([[]], 2), ({"a": [{}]}, 3), ([1, [2], 3], 2)])
def test_depth_counts_arrays_and_objects_that_stand_in_each_other(data, deep):
    """Empty ones count too; a scalar has depth 0."""
    assert not too_deep(data, deep)
    assert deep == 0 or too_deep(data, deep - 1)


def test_data_nested_too_deep_is_refused_before_anything_happens():
    """json_depth levels pass, one more is 107; also at depths where no encoder could follow."""
    broker = Broker()
    publisher = Publisher(broker, 32)
    publisher.publish("a", Namespace(), nested(32), print)
    for depth in (33, 900):
        with pytest.raises(CommandError) as refused:
            publisher.publish("a", Namespace(), nested(depth), print)
        assert refused.value.reply.code == 107
    assert len(broker.calls) == 1


def test_nothing_is_published_to_a_watch_list():
    """Nobody would hear it; where there are no lists it is a channel like others."""
    broker = Broker()
    publisher = Publisher(broker, 32)
    with pytest.raises(CommandError, match="watch list") as refused:
        publisher.publish("t:$watch", Namespace(mode="latest", watch=1), 1, print)
    assert refused.value.reply.code == 107 and broker.calls == []
    publisher.publish("t:$watch", Namespace(mode="latest"), 1, print)
    publisher.publish("t:A", Namespace(mode="latest", watch=1), 1, print)
    assert len(broker.calls) == 2


@pytest.mark.parametrize(
    "tags",
    [[], "x", {"a": 1}, {"a": None}, {"a": "v" * 256}, {"k" * 256: "v"}, {str(i): "v" for i in range(MAX_TAGS + 1)}],
)
def test_tags_are_a_few_texts_by_name(tags):
    """Everything else is 107, naming what is allowed."""
    with pytest.raises(CommandError) as refused:
        check_tags(tags)
    assert refused.value.reply.code == 107 and "allowed" in str(refused.value)


def test_good_tags_and_none_pass():
    """Absent tags are no tags."""
    check_tags(None)
    check_tags({"a": "b"})
