"""Capabilities: what the claim `caps` may say, and which channels its patterns name."""

from __future__ import annotations

import time

import pytest

from hub import capabilities
from hub.capabilities import MAX_CHANNELS, MAX_ENTRIES


def caps(*entries: tuple[list[str], str, list[str]]) -> capabilities.Capabilities:
    return capabilities.read([{"channels": names, "match": match, "allow": allow} for names, match, allow in entries])


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("game:*", ["game:", "game:1", "game:a:b"], ["game", "xgame:1", "Game:1"]),
        ("*", ["", "a", "game:1"], []),
        ("*:news", ["a:news", ":news", "a:b:news"], ["news", "a:news2"]),
        ("a*b*c", ["abc", "a1b2c", "abbc", "abcbc"], ["ab", "ac", "acb", "abcd", "xabc"]),
        ("aa*aa", ["aaaa", "aaxaa"], ["aaa", "aa"]),
        ("a*b*b", ["abb", "axbxb"], ["ab"]),
        ("a.c", ["a.c"], ["abc"]),
        ("exact", ["exact"], ["exact1", "1exact"]),
    ],
)
def test_a_star_stands_for_anything_and_nothing_else_does(pattern, yes, no):
    """The whole name has to match; what comes around two stars may not overlap."""
    (one,) = caps(([pattern], "wildcard", ["sub"]))
    assert [name for name in yes if not one.covers(name)] == []
    assert [name for name in no if one.covers(name)] == []


def test_a_pattern_of_many_stars_takes_no_time():
    """The shape that makes a backtracking matcher stop for minutes."""
    (one,) = caps((["a*" * 100 + "b"], "wildcard", ["sub"]))
    begin = time.perf_counter()
    assert not one.covers("a" * 255)
    assert time.perf_counter() - begin < 0.01


def test_without_match_a_star_is_a_character():
    """As in Centrifugo, names are exact unless the entry says otherwise."""
    (one,) = capabilities.read([{"channels": ["a*"], "allow": ["sub"]}])
    assert one.covers("a*") and not one.covers("ab")


def test_the_first_entry_that_names_a_channel_counts():
    """So an exception stands before what it is an exception from."""
    some = caps((["game:1"], "exact", ["sub"]), (["game:*"], "wildcard", ["sub", "pub"]))
    assert not capabilities.allows(some, "pub", "game:1")
    assert capabilities.allows(some, "pub", "game:2")
    assert capabilities.allows(some, "sub", "game:1")
    assert not capabilities.allows(some, "sub", "chat:1")
    assert not capabilities.allows((), "sub", "game:1")


@pytest.mark.parametrize(
    ("entries", "verdict"),
    [
        ([(["t:AC*"], "wildcard", ["sub"])], True),
        ([(["t:*"], "wildcard", ["sub"])], True),
        ([(["t:ACME*"], "wildcard", ["sub"])], False),
        ([(["t:AC*E"], "wildcard", ["sub"])], False),
        ([(["t:AC*"], "exact", ["sub"])], False),
        ([(["t:ACME"], "exact", ["sub"])], False),
        ([(["t:*"], "wildcard", ["pub"]), (["t:*"], "wildcard", ["sub"])], False),
        ([(["t:ACME"], "exact", ["pub"]), (["t:*"], "wildcard", ["sub"])], False),
        ([(["t:*E"], "wildcard", []), (["t:*"], "wildcard", ["sub"])], False),
        ([(["t:ACME"], "exact", ["sub"]), (["t:*"], "wildcard", ["sub"])], True),
        ([(["t:B*", "x"], "wildcard", []), (["t:A*"], "wildcard", ["sub"])], True),
        ([], False),
    ],
)
def test_all_that_begin_so_are_allowed_only_where_each_of_them_is(entries, verdict):
    """An exception among them, and one that may be among them, is one too many."""
    assert capabilities.allows_all(caps(*entries), "sub", "t:AC") is verdict


ENTRY = {"channels": ["a"], "allow": ["sub"]}


@pytest.mark.parametrize(
    "claim",
    [
        None,
        {},
        "sub",
        [1],
        [{}],
        [{**ENTRY, "match": "regex"}],
        [{**ENTRY, "match": 1}],
        [{**ENTRY, "more": 1}],
        [{**ENTRY, "channels": "a"}],
        [{**ENTRY, "channels": [1]}],
        [{**ENTRY, "allow": ["all"]}],
        [{**ENTRY, "allow": [["sub"]]}],
        [{**ENTRY, "allow": "sub"}],
        [{"channels": ["a"]}],
        [ENTRY] * (MAX_ENTRIES + 1),
        [{**ENTRY, "channels": [f"a{n}" for n in range(MAX_CHANNELS + 1)]}],
    ],
    ids=range(16),
)
def test_what_is_not_understood_is_refused(claim):
    """All of it: half a claim could allow more than was meant. `regex` could stop a worker."""
    with pytest.raises(ValueError, match=r"^(caps|allow): .*allowed"):
        capabilities.read(claim)


def test_as_much_as_is_allowed_is_read():
    """The bounds themselves are within."""
    assert len(capabilities.read([ENTRY] * MAX_ENTRIES)) == MAX_ENTRIES
    (one,) = capabilities.read([{**ENTRY, "channels": [f"a{n}" for n in range(MAX_CHANNELS)]}])
    assert len(one.names) == MAX_CHANNELS
