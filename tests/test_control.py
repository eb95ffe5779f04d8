"""The words among workers: whatever Redis holds is either what it should be or a ValueError."""

from __future__ import annotations

import orjson
import pytest

from hub import control
from hub.control import Errand, Node, Notice, Question

ID = "0f" * 16
NODE = Node("u", "host:0", "1.0", 5, 1, 2, 3, 4)


def test_a_survey_comes_back_as_it_was_asked():
    """encode_survey and parse_control with parse_question are each other's opposites."""
    name, command = control.parse_control(control.encode_survey(Question(ID, "channels", "a:*")))
    assert (name, control.parse_question(command)) == ("survey", Question(ID, "channels", "a:*"))


def test_an_order_comes_back_with_its_params():
    """And what is too much for a control message is a ValueError before it is sent."""
    order = Question(ID, "disconnect", "", {"user": "42", "code": 3503})
    assert control.parse_question(control.parse_control(control.encode_survey(order))[1]) == order
    with pytest.raises(ValueError, match="allowed: 65536"):
        control.encode_survey(Question(ID, "disconnect", "", {"user": "4" * 65_536}))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", b"[]", b"null", b"7", b"{}", b'{"do":7}', b"[" * 5000, b'{"do":"' + b"x" * 70_000 + b'"}'],
)
def test_what_is_no_control_message_is_a_value_error(payload):
    """No JSON, no object, no `do`, too deep, too large."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_control(payload)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 1},
        {"id": "short"},
        {"id": "../../etc/passwd" * 2},
        {"id": ID * 2},
        {"ask": None},
        {"pattern": 1},
        {"pattern": "a" * 256},
        {"pattern": "a{b,c}"},
        {"pattern": "a\nb"},
        {"params": []},
        {"params": "x"},
    ],
)
def test_a_malformed_survey_is_a_value_error(changes):
    """An id that must not be in a key, a question that is no text, a pattern beyond what is allowed."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_question({"id": ID, "ask": "channels", "pattern": "*", **changes})


def test_a_pattern_may_name_any_channel():
    """Also one that is limited to several users."""
    assert control.check_pattern("dialog:#42,77*") == "dialog:#42,77*"


@pytest.mark.parametrize("text", [b"nonsense", b"[]", b"{}", b'{"uid":1}', b'{"uid":"' + b"x" * 5_000_000 + b'"}'])
def test_a_malformed_answer_is_a_value_error(text):
    """No JSON, no object, no uid, too large."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_answer(text)


def test_a_node_comes_back_as_it_was_stored():
    """A description survives its way through Redis, and what it does not tell is 0."""
    assert control.parse_stored_node(orjson.dumps(NODE._asdict())) == NODE
    assert control.parse_node({"uid": "u", "name": "n", "version": "2"}) == Node("u", "n", "2", 0, 0, 0, 0, 0)
    assert control.parse_node({**NODE._asdict(), "a_later_count": 7}) == NODE


@pytest.mark.parametrize("value", [None, [], "node", {}, {"uid": "u", "name": "n"}])
def test_a_node_without_its_texts_is_a_value_error(value):
    """Each node has uid, name and version."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_node(value)


@pytest.mark.parametrize("count", [-1, 1.5, True, "1", None, 2**41])
def test_what_is_no_count_is_a_value_error(count):
    """A count is a whole number from 0 to 2**40, so that sums of it can be written."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_node({**NODE._asdict(), "num_clients": count})
    with pytest.raises(ValueError, match=r"."):
        control.parse_counts({"a": 1, "b": count})


def test_a_notice_comes_back_as_it_was_sent():
    """encode_notice and parse_control with parse_notice are each other's opposites."""
    for notice in (Notice("42", "inbox:#42", {"a": [1, None]}), Notice("", "", None)):
        name, command = control.parse_control(control.encode_notice(notice))
        assert (name, control.parse_notice(command)) == ("notify", notice)


def test_a_notice_is_no_larger_than_workers_read():
    """ValueError at whoever wants to send it, with both sizes."""
    with pytest.raises(ValueError, match="allowed: 65536"):
        control.encode_notice(Notice("", "", "x" * 65_536))


@pytest.mark.parametrize("changes", [{"user": 1}, {"user": None}, {"channel": []}, {"channel": None}])
def test_a_malformed_notice_is_a_value_error(changes):
    """Texts where texts should be, and data, whatever it is."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_notice({"user": "42", "channel": "", "data": 1, **changes})
    with pytest.raises(ValueError, match="without data"):
        control.parse_notice({"user": "42", "channel": ""})


ERRANDS = [
    Errand(control.EMIT, "c1", "said", ["hi", {"a": [1]}], volatile=True),
    Errand(control.EMIT, "c1", "said", [{"$base64": "AQI="}], binary=True),
    Errand(control.CALL, "c1", "question", [6], number="0c", timeout_s=2.5),
    Errand(control.ANSWER, number="0c", args=[None]),
    Errand(control.ANSWER, number="0c", name="limit exceeded", code=106),
    Errand(control.DISCONNECT, "c1"),
]


@pytest.mark.parametrize("errand", ERRANDS)
def test_an_errand_comes_back_as_it_was_sent(errand):
    """What is empty is left out on the way."""
    name, command = control.parse_control(control.encode_errand(errand))
    assert (name, control.parse_errand(command)) == ("errand", errand)


def test_an_errand_that_is_too_large_is_a_value_error():
    """Also one with something that orjson can't write."""
    with pytest.raises(ValueError, match="allowed: 65536"):
        control.encode_errand(Errand(control.EMIT, "c1", "said", ["x" * 65_536]))
    with pytest.raises(TypeError):
        control.encode_errand(Errand(control.EMIT, "c1", "said", [{1}]))


@pytest.mark.parametrize(
    "changes",
    [
        {"what": "nonsense"},
        {"what": ["emit"]},
        {"client": 7},
        {"name": None},
        {"number": []},
        {"args": {}},
        {"timeout_s": -1},
        {"timeout_s": 1e9},
        {"timeout_s": "5"},
        {"timeout_s": True},
        {"code": -1},
        {"code": "103"},
        {"what": "answer", "args": [], "name": ""},
    ],
)
def test_a_malformed_errand_is_a_value_error(changes):
    """Whoever reaches Redis may write it."""
    with pytest.raises(ValueError, match=r"."):
        control.parse_errand({"what": "call", "client": "c1", "name": "x", "args": [1], "number": "1", **changes})
