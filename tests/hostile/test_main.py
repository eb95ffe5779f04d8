"""The command line of the attacks: what is chosen, what is printed, when it fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hostile import attackers
from tests.hostile.__main__ import chosen_of, faults, main, parsed, row
from tests.hostile.rig import ATTACKS, SETTINGS, Pair, Slot

GOOD = Slot(200, 40_000, 0, 0, 0, 1.0, 2.0, 3.0, counts={"drips": 5, "held": 1000})
HEADS = ATTACKS[0]


def test_each_attack_comes_from_one_address_and_from_many():
    """Unless it is said from where."""
    both = [attack.label for attack in chosen_of(["slow heads"], parsed([]).sources)]
    assert both == ["slow heads, one", "slow heads, many"]
    assert [attack.source for attack in chosen_of(None, parsed(["--from", "one"]).sources)] == ["one"] * len(ATTACKS)
    many = attackers.SOURCES["many"]
    assert len(set(many)) == 200 and not {*many, *attackers.SOURCES["one"]} & set(SETTINGS["trusted_proxies"])


def test_from_one_address_it_need_not_hold_what_limits_keep_it_from():
    """From many it has to: otherwise it shows nothing."""
    few = Pair(GOOD, replace(GOOD, counts={"drips": 5, "held": 9}))
    assert faults(HEADS._replace(source="one"), [few], timed=True) == []
    assert len(faults(HEADS, [few], timed=True)) == 1


def test_all_attacks_have_names_of_their_own_and_are_listed(capsys):
    assert main(["--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == len(set(names)) == len(ATTACKS)
    assert {*names, "burn"} == set(attackers.ATTACKS)


def test_an_unknown_attack_is_said_so():
    with pytest.raises(SystemExit, match="no attack 'flod'; there are: slow heads, slow bodies"):
        chosen_of(["flod"], ["one"])


def test_the_attacks_of_the_promise_are_there():
    """Slowloris, floods of pings, fragments and subscriptions, bombs, a storm, and readers who don't."""
    promised = ("slow heads", "slow bodies", "ping flood", "fragment flood", "deflate bomb", "JSON bomb")
    assert {*promised, "subscription flood", "reconnect storm", "slow readers"} <= {attack.name for attack in ATTACKS}
    assert attackers.SLOW_READERS == 1000 and parsed([]).clients == 200 and parsed([]).rounds >= 3


def test_nothing_is_found_where_nothing_is_wrong():
    """Twice the calm p99 is allowed, and the whole budget."""
    pair = Pair(GOOD, replace(GOOD, p99_ms=4.0, peak_mb=float(HEADS.budget_mb)))
    assert faults(HEADS, [pair], timed=True) == []
    assert row(HEADS, [pair], True)[-1] == "reached"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"p99_ms": 4.1}, "p99 is 2.05 × the calm one"),
        ({"lost": 1, "words": ["slow"]}, "1 normal clients disconnected ['slow']"),
        ({"missing": 2}, "2 receipts missing"),
        ({"refused": 1}, "1 receipts missing"),
        ({"peak_mb": HEADS.budget_mb + 0.1}, "memory grew"),
        ({"counts": {"connections": 1000}}, "the attack did not take place"),
        ({"counts": {"drips": 5, "held": 999}}, "the attack had 999 connections of 1000"),
    ],
)
def test_each_fault_is_found(change, word):
    """One is enough to fail."""
    pair = Pair(GOOD, replace(GOOD, **change))
    (found,) = faults(HEADS, [pair], timed=True)
    assert word in found and row(HEADS, [pair], True)[-1] == "missed"


def test_times_are_judged_by_the_median_and_not_in_the_short_version():
    """One bad round of three is the machine's."""
    slow = Pair(GOOD, replace(GOOD, p99_ms=20.0))
    good = Pair(GOOD, GOOD)
    assert faults(HEADS, [good, slow, good], timed=True) == []
    assert len(faults(HEADS, [slow, slow, good], timed=True)) == 1
    assert faults(HEADS, [slow], timed=False) == []


def test_a_machine_that_is_busy_otherwise_shows_nothing():
    """A calm slot as slow as an attacked one makes any ratio good."""
    busy = Pair(replace(GOOD, p99_ms=744.0), replace(GOOD, p99_ms=53.0))
    [found] = faults(HEADS, [busy], timed=True)
    assert "nothing can be told" in found and row(HEADS, [busy], True)[-1] == "missed"
    assert faults(HEADS, [busy], timed=False) == []
