"""Ticks: what is filled in, what is refused."""

from __future__ import annotations

import pytest

from hub.message import encode_body
from hub.tick import make_tick, read_body


def test_symbol_and_price_are_enough():
    """Bid and ask default to the price, volume to 0, the number to the next, the time to now."""
    assert make_tick({"symbol": "ACME", "price": 10.5}, 6, 1_700_000_000_000_000_001) == {
        "symbol": "ACME",
        "price": 10.5,
        "bid": 10.5,
        "ask": 10.5,
        "volume": 0,
        "seq": 7,
        "time_ns": "1700000000000000001",
    }


def test_what_is_given_is_kept_and_what_is_unknown_is_left_out():
    """All seven fields pass, a whole time becomes text, an eighth field does not pass."""
    given = {"symbol": "A-B.c_1", "price": -37, "bid": -38, "ask": -36, "volume": 2.5, "seq": 3, "time_ns": -5}
    assert make_tick(given | {"secret": 1}, 99, 0) == given | {"time_ns": "-5"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (17, "found 17; allowed: an object"),
        ({}, "symbol: found None"),
        ({"symbol": "A B", "price": 1}, "symbol: found 'A B'"),
        ({"symbol": "A:B", "price": 1}, "symbol: found 'A:B'"),
        ({"symbol": "x" * 65, "price": 1}, "symbol: found"),
        ({"symbol": "A"}, "price: found None"),
        ({"symbol": "A", "price": "1"}, "price: found '1'"),
        ({"symbol": "A", "price": True}, "price: found True"),
        ({"symbol": "A", "price": float("nan")}, "price: found nan"),
        ({"symbol": "A", "price": float("inf")}, "price: found inf"),
        ({"symbol": "A", "price": 2**53 + 2}, "price: found 9007199254740994; allowed: a number of at most 2"),
        ({"symbol": "A", "price": -(2**53) - 2}, "price: found -9007199254740994"),
        ({"symbol": "A", "price": 1, "volume": float("nan")}, "volume: found nan"),
        ({"symbol": "A", "price": 1, "seq": 2**53 + 1}, "seq: found 9007199254740993"),
        ({"symbol": "A", "price": 1, "time_ns": 10**19}, "time_ns: found 10000000000000000000"),
        ({"symbol": "", "price": 1}, "symbol: found ''"),
        ({"symbol": "A{B}", "price": 1}, "symbol: found 'A{B}'"),
        ({"symbol": ["A"], "price": 1}, r"symbol: found \['A'\]"),
        ({"symbol": "A", "price": 10**400}, "price: found 1000"),
        ({"symbol": "A", "price": 1, "bid": []}, r"bid: found \[\]"),
        ({"symbol": "A", "price": 1, "ask": "x"}, "ask: found 'x'"),
        ({"symbol": "A", "price": 1, "volume": -1}, "volume: found -1; allowed: 0 or more"),
        ({"symbol": "A", "price": 1, "seq": 1.5}, "seq: found 1.5"),
        ({"symbol": "A", "price": 1, "seq": -1}, "seq: found -1"),
        ({"symbol": "A", "price": 1, "time_ns": 1.5}, "time_ns: found 1.5"),
        ({"symbol": "A", "price": 1, "time_ns": "now"}, "time_ns: found 'now'"),
        ({"symbol": "A", "price": 1, "time_ns": True}, "time_ns: found True"),
    ],
)
def test_a_malformed_tick_is_refused_with_the_field_and_what_was_found(fields, reason):
    """Every field has its own check, and the text says which one failed on what."""
    with pytest.raises(ValueError, match=reason):
        make_tick(fields, 0, 0)


def test_a_published_tick_is_read_back():
    """`read_body` undoes `encode_body`; the era is part of it, how many were merged is not."""
    tick = make_tick({"symbol": "ACME", "price": 1}, 4, 5)
    assert read_body(encode_body(tick)) == tick
    assert read_body(encode_body(tick | {"era": 3, "merged": 2})) == tick | {"era": 3}


@pytest.mark.parametrize("body", [None, b"", b"[]", b"{", b'{"data":"hello"}', b'{"data":{"symbol":"A"}}'])
def test_a_body_that_is_no_tick_is_none(body):
    """Others may publish anything on a ticker's channel; that must not stop it."""
    assert read_body(body) is None
