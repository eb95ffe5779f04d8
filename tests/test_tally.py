"""Clients that are there, came and went, by wire."""

from __future__ import annotations

import inspect

import pytest

from hub.connection import Connection
from hub.errors import CLOSE_NO_PONG
from hub.tally import OTHER, WIRES, Tally
from hub.transports import engineio_raw, http_stream, socketio, sse, websocket


def test_who_enters_and_leaves_is_counted_by_wire_and_code():
    tally = Tally()
    tally.enter("websocket")
    tally.enter("websocket")
    tally.enter("sse")
    tally.leave("websocket", CLOSE_NO_PONG.code)
    assert (tally.open["websocket"], tally.open["sse"], tally.open["socketio"]) == (1, 1, 0)
    assert (tally.opened["websocket"], tally.closed["3012"], tally.closed["3000"]) == (2, 1, 0)


def test_codes_of_a_clients_own_making_are_one_name():
    """A peer may close with 4,000 codes, and applications with more: each would be a time series."""
    tally = Tally()
    names = set(tally.closed)
    for code in (1001, 3999, 4000, 4999):
        tally.enter("sse")
        tally.leave("sse", code)
    assert set(tally.closed) == names and tally.closed[OTHER] == 3 and tally.closed["1001"] == 1


def test_a_wire_that_has_no_name_here_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        Tally().enter("pigeon")


def test_every_wire_that_there_is_has_its_name():
    """Each class that stands for a client; those of http_stream say it by their form."""
    rooms = (websocket, sse, socketio, engineio_raw)
    found = {
        kind.kind
        for room in rooms
        for _, kind in inspect.getmembers(room, inspect.isclass)
        if issubclass(kind, Connection) and isinstance(kind.kind, str)
    }
    assert found | set(http_stream.KINDS.values()) == set(WIRES)
