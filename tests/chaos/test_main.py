"""The command line of the matrix: what is chosen, what is printed, when it fails."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import chosen, figures_record, main, row, table
from tests.chaos.checker import Figures
from tests.chaos.faults import FAULTS


def test_all_faults_have_names_of_their_own_and_are_listed(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_an_unknown_fault_is_said_so():
    with pytest.raises(SystemExit, match="no fault 'flod'; there are: nothing, worker kill"):
        chosen(["flod"])


@pytest.mark.parametrize("name", ["split", "fail-back"])
def test_a_split_and_the_way_back_belong_together(name):
    """One has nothing to begin with, the other nothing that mends it."""
    assert [fault.name for fault in chosen([name])] == ["split", "fail-back"]


def test_the_matrix_has_the_rounds_that_are_promised():
    """300 kills, 20 of everything else, the long hold once."""
    rounds = {fault.name: fault.rounds for fault in FAULTS}
    assert rounds.pop("worker kill") >= 300
    assert (rounds.pop("nothing"), rounds.pop("pub/sub held 60 s")) == (3, 1)
    assert min(rounds.values()) >= 20


def test_a_row_has_times_where_there_are_any():
    figures = Figures(rounds=2, published=1234, back_s=[0.1, 0.2, 0.3], error_windows_s=[1.0, 3.0])
    cells = row("flush", figures)
    assert cells[:3] == ["flush", "2", "1,234"]
    assert cells[-2:] == ["0.20 / 0.30", "3.0 / 3.0"]
    assert row("flush", Figures())[-2:] == ["–", "–"]


def test_what_never_ran_has_no_row():
    text = table({"start": Figures(), "flush": Figures(rounds=1)})
    assert "flush" in text and "start" not in text


def test_a_record_has_quantiles_in_place_of_every_time():
    record = figures_record(Figures(rounds=1, back_s=[n / 100 for n in range(100)]))
    assert record["back_s"] == {"count": 100, "p50": 0.5, "p99": 0.99, "most": 0.99}
    assert record["error_windows_s"] == {"count": 0}
