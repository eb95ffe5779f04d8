"""The command line of the load: what is chosen, what is printed, when it fails."""

from __future__ import annotations

import pytest

from tests.wires.__main__ import failed, parsed, quantile, record, row, table
from tests.wires.checker import FAULTS, Figures
from tests.wires.rig import NAMES, Outcome, told


def outcome(**figures) -> Outcome:
    return Outcome({"polling": Figures(clients=2, **figures)}, [], 1.25)


def test_without_words_it_is_the_whole_load():
    """A thousand clients, a hundred events each, every wire, four workers."""
    arguments = parsed([])
    assert (arguments.clients, arguments.events, arguments.workers) == (1000, 100, 4)
    assert arguments.only == list(NAMES)


def test_an_unknown_wire_is_said_so(capsys):
    with pytest.raises(SystemExit):
        parsed(["--only", "pigeon"])
    assert "invalid choice: 'pigeon'" in capsys.readouterr().err


@pytest.mark.parametrize("fault", FAULTS)
def test_any_fault_fails_the_run(fault):
    assert failed({"polling": outcome(**{fault: 1})})
    assert not failed({"polling": outcome()})


def test_what_the_hub_logged_and_what_never_ran_fail_too():
    assert failed({"polling": outcome()._replace(findings=["the hub: ERROR"])})
    assert failed({"polling": outcome()._replace(groups={})})


def test_a_row_has_times_where_there_are_any():
    assert row("a", Figures(clients=1000, events=2, ack_ms=[1.0, 3.0]), 1.25)[-3:] == ["3.0", "3.0", "1.2"]
    assert row("a", Figures(clients=1000), 1.25)[:2] == ["a", "1,000"]
    assert row("a", Figures(), 1.25)[-3:] == ["–", "–", "1.2"]


def test_a_table_says_which_wire_the_others_listened_beside():
    groups = {"polling": Figures(), "polling, npm": Figures(), "hears by sse": Figures()}
    text = table({"polling": Outcome(groups, [], 1.0)})
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [
        "polling",
        "polling, npm",
        "polling: hears by sse",
    ]


def test_a_record_has_quantiles_in_place_of_every_time():
    found = record({"polling": outcome(ack_ms=[n / 10 for n in range(100)], lost=3)})["polling"]
    assert found["seconds"] == 1.25
    figures = found["groups"]["polling"]
    assert "ack_ms" not in figures
    assert (figures["lost"], figures["p50_ms"], figures["p99_ms"]) == (3, 5.0, 9.9)
    assert quantile([], 0.5) is None


def test_the_hub_s_own_words_are_listed():
    """Its errors; where something is wrong also its warnings, and why it ended sessions."""
    words = [
        "INFO 7 hub.serve: ready",
        "WARNING 7 hub.supervisor: worker 1 ended",
        "INFO 8 hub.connection: closed wire=socketio session=a code=3012 reason='no pong' seconds=1.0",
        "INFO 8 hub.connection: closed wire=socketio session=b code=1000 reason='' seconds=1.0",
        "INFO 8 hub.connection: closed wire=socketio session=c code=3012 reason='no pong' seconds=1.0",
        "INFO 8 hub.connection: closed wire=websocket client=d code=3008 reason=slow seconds=1.0",
        "ERROR 8 hub.connection: a connection failed",
    ]
    log = "\n".join(["7:M # WARNING Memory", *[f"2026-01-01 00:00:00,000 {line}" for line in words]])
    error = f"the hub: 2026-01-01 00:00:00,000 {words[6]}"
    assert told(log, False) == [error]
    assert told(log, True) == [
        f"the hub: 2026-01-01 00:00:00,000 {words[1]}",
        error,
        "the hub: 2 × code=3012 reason='no pong'",
        "the hub: 1 × code=3008 reason=slow",
    ]
