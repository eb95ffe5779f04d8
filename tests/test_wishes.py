"""Wishes: what a subscribe command may ask for, and the words of its answer."""

from __future__ import annotations

import orjson
import pytest

from hub import wishes
from hub.errors import CommandError
from hub.position import Position
from hub.recovery import Joined


@pytest.mark.parametrize(
    ("mode", "params", "refused"),
    [
        ("none", {"recover": True}, "recover"),
        ("none", {"positioned": True, "recover": False}, "positioned"),
        ("latest", {"positioned": True}, "positioned"),
        ("stream", {"token": "x"}, None),
        ("latest", {"recover": True}, None),
        ("stream", {"recover": True, "positioned": True}, None),
    ],
)
def test_what_a_mode_does_not_have_is_refused(mode, params, refused):
    """With 108 and the option's name; what is false is not asked for."""
    if refused is None:
        wishes.check(mode, params)
        return
    with pytest.raises(CommandError, match=f"^{refused} is not available$") as caught:
        wishes.check(mode, params)
    assert caught.value.reply.code == 108


def test_positions_are_read_and_judged():
    """Left out, both parts are empty."""
    assert wishes.position({"epoch": "x", "offset": 3}) == Position("x", 3)
    assert wishes.position({}) == Position("", 0)
    for params in ({"epoch": 1}, {"epoch": "x" * 1000}, {"offset": -1}, {"offset": 1.5}, {"offset": True}):
        with pytest.raises(CommandError) as caught:
            wishes.position(params)
        assert caught.value.reply.code == 107


def test_results_leave_out_what_is_false():
    """As the protocol has it."""
    assert wishes.subscribe_result(Joined()) == {}
    missed = Joined(
        positioned=True, recoverable=True, epoch="x", offset=3, recovered=True, publications=[b'{"data":1}']
    )
    assert orjson.loads(orjson.dumps(wishes.subscribe_result(missed))) == {
        "positioned": True,
        "recoverable": True,
        "epoch": "x",
        "offset": 3,
        "was_recovering": True,
        "recovered": True,
        "publications": [{"data": 1}],
    }


def test_a_channel_without_positions_says_what_to_come_back_with():
    """As an epoch, which SDKs bring back; a channel with positions has one of its own."""
    assert wishes.subscribe_result(Joined(recoverable=True), device="a") == {"epoch": "a", "recoverable": True}
    assert wishes.subscribe_result(Joined(positioned=True, epoch="x"), device="a")["epoch"] == "x"
