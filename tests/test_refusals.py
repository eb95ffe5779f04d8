"""What was turned away, by reason."""

from __future__ import annotations

import pytest

from hub.refusals import REASONS, Refusals


def test_a_report_says_what_was_added_since_the_last_one():
    """And nothing where nothing was."""
    refusals = Refusals()
    assert refusals.report() == ""
    refusals.count("origins")
    refusals.count("commands", 11)
    assert refusals.report() == "refused: commands 11, origins 1"
    assert refusals.report() == ""
    refusals.count("origins")
    assert refusals.report() == "refused: origins 1" and refusals.counts["origins"] == 2


def test_a_reason_that_nobody_knows_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        Refusals().count("weather")
    assert set(Refusals().counts) == set(REASONS)
