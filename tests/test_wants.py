"""Wants: what may be asked for, what is refused, and what is granted of it."""

from __future__ import annotations

import pytest

from hub import errors
from hub.channels import Namespace
from hub.errors import CommandError
from hub.wants import (
    EVERY,
    PLAIN,
    RATES_HZ,
    Wants,
    capped,
    describe,
    digest,
    is_pattern,
    is_watch,
    pack,
    read,
    unpack,
)

RULES = Namespace(mode="latest", watch=3)
PATTERNS = Namespace(mode="latest", watch=3, watch_prefixes=True, watch_prefix_length=2)


def test_nothing_asked_is_every_value_merged_where_the_client_is_slow():
    """Also by an empty object, and by saying so."""
    assert read(None, RULES, watch=False) is PLAIN
    assert read({}, RULES, watch=False) == read({"mode": "merge", "marks": False}, RULES, watch=False) == PLAIN


def test_each_wish_is_read():
    """Fields in any order are the same fields."""
    data = {"hz": 5, "fields": ["price", "bid", "price"], "marks": True}
    assert read(data, RULES, watch=False) == Wants(False, 5.0, ("bid", "price"), True)
    assert read({"mode": "raw"}, RULES, watch=False) == Wants(raw=True)
    assert read({"symbols": ["A", "B", "A"]}, RULES, watch=True).symbols == ("A", "B")
    assert [str(read({"hz": hz}, RULES, watch=False).hz) for hz in (0, -0.0)] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("merge", "data"),
        ([], "data"),
        ({"rate": 5}, "rate"),
        ({"mode": "all"}, "mode"),
        ({"mode": "raw", "hz": 5}, "hz"),
        ({"hz": -1}, "hz"),
        ({"hz": 1001}, "hz"),
        ({"hz": True}, "hz"),
        ({"hz": "5"}, "hz"),
        ({"hz": float("nan")}, "hz"),
        ({"marks": 1}, "marks"),
        ({"fields": "price"}, "fields"),
        ({"fields": [""]}, "fields"),
        ({"fields": ["x" * 65]}, "fields"),
        ({"fields": ["x"] * 65}, "fields"),
        ({"fields": [1]}, "fields"),
        ({"symbols": ["A"]}, "symbols"),
    ],
)
def test_what_is_no_wish_is_refused_by_its_name(data, word):
    """A name that is not known too: a typing error must not be another wish."""
    with pytest.raises(CommandError, match=word) as caught:
        read(data, RULES, watch=False)
    assert caught.value.reply is errors.BAD_REQUEST


@pytest.mark.parametrize("symbols", ["A", ["A:B"], [1], ["x" * 65], [""], ["$watch"]])
def test_what_is_no_symbol_is_refused(symbols):
    """A symbol is the channel's name behind the namespace."""
    with pytest.raises(CommandError) as caught:
        read({"symbols": symbols}, RULES, watch=True)
    assert caught.value.reply is errors.BAD_REQUEST


def test_more_symbols_than_a_list_holds_are_refused():
    """A bound for each client."""
    with pytest.raises(CommandError) as caught:
        read({"symbols": ["A", "B", "C", "D"]}, RULES, watch=True)
    assert caught.value.reply is errors.LIMIT_EXCEEDED


@pytest.mark.parametrize("entry", ["A*", "*A*", "A*B", "AB**", "*", "A:B*", "x" * 65 + "*", "A B*"])
def test_what_is_no_pattern_is_refused(entry):
    """With what is allowed; a namespace without patterns does not speak of them."""
    with pytest.raises(CommandError) as caught:
        read({"symbols": [entry]}, PATTERNS, watch=True)
    assert caught.value.reply is errors.BAD_REQUEST
    allowed = "allowed: 1 to 64 of A-Z a-z 0-9 _ . -"
    assert str(caught.value).endswith(f"{allowed}, or a prefix of 2 or more of them and a *")
    with pytest.raises(CommandError) as caught:
        read({"symbols": [entry]}, RULES, watch=True)
    assert str(caught.value).endswith(allowed)


def test_patterns_are_entries_where_the_namespace_has_them():
    """And are kept like names; a bare star where a prefix may be empty."""
    asked = ("AB*", "A", "x" * 64 + "*")
    wants = read({"symbols": list(asked)}, PATTERNS, watch=True)
    assert wants.symbols == asked and unpack(pack(wants), PATTERNS, True, PLAIN) == wants
    assert read({"symbols": ["*"]}, PATTERNS.model_copy(update={"watch_prefix_length": 0}), watch=True).symbols == (
        "*",
    )
    assert [is_pattern(entry) for entry in ("AB*", "AB", "*")] == [True, False, True]


def test_a_rate_is_capped_by_the_namespace_and_by_the_token():
    """The lower of them; `raw` has no rate that could be capped."""
    slow = Namespace(mode="latest", max_hz=2)
    assert capped(Wants(), slow, EVERY).hz == 2
    assert capped(Wants(), slow, 1.0).hz == 1
    assert capped(Wants(hz=0.5), slow, 1.0).hz == 0.5
    assert capped(Wants(), RULES, EVERY) == PLAIN
    assert capped(Wants(raw=True), RULES, EVERY).raw
    for rules, claimed in ((slow, EVERY), (RULES, 1.0)):
        with pytest.raises(CommandError) as caught:
            capped(Wants(raw=True), rules, claimed)
        assert caught.value.reply is errors.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("wish", "cap", "hz"), [(7, 0, 5), (100, 0, 100), (0.01, 0, 0.1), (0, 0, 0), (9, 7, 5), (0, 7, 0)]
)
@pytest.mark.parametrize("by_token", [False, True])
def test_what_is_granted_is_the_rate_that_is_had(wish, cap, hz, by_token):
    """So that the reply says what will come."""
    rules = Namespace(mode="latest", max_hz=0 if by_token else cap)
    assert capped(Wants(hz=wish), rules, (cap or EVERY) if by_token else EVERY).hz == hz


def test_a_cap_above_all_rates_is_one_all_the_same():
    """Every value might be more than it allows."""
    for wish in (100.0, 1000.0, EVERY):
        assert capped(Wants(hz=wish), Namespace(mode="latest", max_hz=100), EVERY).hz == RATES_HZ[-1]
        assert capped(Wants(hz=wish), RULES, 61.0).hz == RATES_HZ[-1]


def test_only_where_there_are_watch_lists_is_a_channel_one():
    """By its name."""
    assert is_watch("t:$watch", RULES) and not is_watch("t:A", RULES)
    assert not is_watch("t:$watch", Namespace(mode="latest"))


def test_what_is_granted_is_told():
    """In the words in which it is asked for."""
    assert describe(Wants(hz=5.0, fields=("bid",), marks=True)) == {
        "mode": "merge",
        "hz": 5.0,
        "fields": ("bid",),
        "marks": True,
    }
    assert describe(Wants(raw=True)) == {"mode": "raw"}


def test_changes_are_kept_under_who_and_where_and_what_it_began_with():
    """The token says who, and the id which of its connections, or the id alone; nobody's has no name."""
    names = {
        digest(user, client, channel, began)
        for user in ("ann", "bob", "ann', '1")
        for client in ("1", "2", "")
        for channel in ("t:A", "t:B")
        for began in (PLAIN, Wants(hz=5))
    }
    assert len(names) == 36
    assert digest("", "1", "t:A", PLAIN) not in names and digest("", "", "t:A", PLAIN) == ""
    assert digest("", "ann", "t:A", PLAIN) != digest("ann", "", "t:A", PLAIN)
    assert digest("ann", "", "t:A", Wants(client="1")) == digest("ann", "", "t:A", Wants(client="2"))


def test_what_is_kept_is_read_as_if_it_were_asked_for():
    """What is not to be had any more, or was never ours, is passed over."""
    changed = Wants(False, 5.0, ("bid",), True, ("A", "B"))
    assert unpack(pack(changed), RULES, True, PLAIN) == changed
    assert unpack(pack(changed), RULES, False, PLAIN) == changed._replace(symbols=())
    for text in (None, b"", b"5", b"[]", b"null", b'{"hz":-1}', pack(Wants(symbols=("A", "B", "C", "D")))):
        assert unpack(text, RULES, True, PLAIN) is PLAIN
