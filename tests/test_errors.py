"""Errors: the two tables of codes that stock SDKs act upon, and the tree."""

from __future__ import annotations

import pytest

from hub import errors
from hub.errors import Close, CommandError, HubError, ProtocolError, Reply

REPLIES = {name: value for name, value in vars(errors).items() if isinstance(value, Reply)}
CLOSES = {name: value for name, value in vars(errors).items() if isinstance(value, Close)}


def test_codes_are_unique() -> None:
    """No two replies and no two closes share a code, nor a text."""
    for table in (REPLIES, CLOSES):
        assert len({entry.code for entry in table.values()}) == len(table)
    assert len({reply.text for reply in REPLIES.values()}) == len(REPLIES)
    assert len({close.reason for close in CLOSES.values()}) == len(CLOSES)


def test_reply_codes_are_centrifugos() -> None:
    """100 to 112 without a gap; only what may pass by itself is temporary."""
    assert sorted(reply.code for reply in REPLIES.values()) == list(range(100, 113))
    assert {reply.code for reply in REPLIES.values() if reply.temporary} == {100, 111}


@pytest.mark.parametrize("close", CLOSES.values(), ids=list(CLOSES))
def test_close_codes_may_go_on_the_wire(close: Close) -> None:
    """Each is one that RFC 6455 §7.4.1 lets be sent or leaves to us, and its reason fits a control frame (§5.5)."""
    assert close.code in {1000, 1002, 1003, 1007, 1008, 1009, 1012} or 3000 <= close.code < 3600
    assert len(close.reason.encode()) <= 123


def test_only_closes_below_3500_bring_clients_back() -> None:
    """Centrifugo's rule: clients reconnect below 3500 and stay away from 3500 on."""
    back = {close.code for close in CLOSES.values() if close.reconnect}
    final = {close.code for close in CLOSES.values()} - back
    assert max(back) < 3500 <= min(final)
    assert {errors.CLOSE_SHUTDOWN.code, errors.CLOSE_SLOW.code, errors.CLOSE_NO_PONG.code} <= back
    assert {errors.CLOSE_INVALID_TOKEN.code, errors.CLOSE_BAD_REQUEST.code, errors.CLOSE_STALE.code} <= final


def test_every_error_of_ours_is_a_huberror() -> None:
    """One `except HubError` at a border catches whatever the hub raises on purpose."""
    ours = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(ours) >= 6 and all(issubclass(each, HubError) for each in ours)


def test_errors_carry_their_code_and_a_text() -> None:
    """The code travels with the exception; without a detail its text is the code's own."""
    assert ProtocolError(errors.CLOSE_TOO_BIG).close is errors.CLOSE_TOO_BIG
    assert str(ProtocolError(errors.CLOSE_TOO_BIG)) == "message too big"
    assert CommandError(errors.BAD_REQUEST, "why").reply is errors.BAD_REQUEST
    assert str(CommandError(errors.BAD_REQUEST, "why")) == "why"


def test_exit_statuses_differ() -> None:
    """A service manager can tell bad settings from a machine that is not ready."""
    assert (errors.EXIT_OK, errors.EXIT_FAILED, errors.EXIT_USAGE, errors.EXIT_BOOT) == (0, 1, 2, 3)
