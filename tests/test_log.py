"""The log: where its lines go, from which level on, and the brakes on lines that repeat."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from hub import journal
from hub.log import BURST_PERIOD_S, MAX_KINDS, Brake, PatientHandler, Throttle
from tests.support import FakeClock

logger = logging.getLogger("hub.tests")


@pytest.mark.expects_log
def test_a_repeated_warning_is_let_through_once_a_period_with_a_count(caplog):
    """Three in a row are one line; the next after the period says that two were held back."""
    clock = FakeClock()
    brake = Brake(10.0, clock)
    for _ in range(3):
        brake.warning(logger, "bad batch %s", "x")
    clock.advance(10)
    brake.warning(logger, "bad batch %s", "y")
    assert [r.getMessage() for r in caplog.records] == ["bad batch x", "bad batch y (2 more since the last such line)"]


def test_lines_go_to_stderr_from_the_chosen_level_on():
    """configure('warning') shows a warning with level, process and room, and hides info."""
    program = (
        "import logging; from hub import log; log.configure('warning');"
        "logging.getLogger('hub.x').info('hidden'); logging.getLogger('hub.x').warning('shown')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "hidden" not in done.stderr
    assert " WARNING " in done.stderr and "hub.x: shown" in done.stderr


def lines_of(program: str, **environ: str) -> list[str]:
    """What a program of its own writes to standard error."""
    text = f"import logging, os; from hub import log; logger = logging.getLogger('hub.x'); {program}"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env={**os.environ, **environ}
    )
    return done.stderr.splitlines()


def test_the_level_is_changed_in_place() -> None:
    """A process that logs warnings logs debug lines from set_level on, and less again when it is told so."""
    program = (
        "log.configure('warning', 'json'); logger.debug('1'); log.set_level('debug'); logger.debug('2');"
        "log.set_level('error'); logger.warning('3'); logger.error('4')"
    )
    assert [json.loads(line)["event"] for line in lines_of(program)] == ["2", "4"]


def test_a_worker_s_lines_say_which_it_is() -> None:
    """From `sit` on; not before, in the supervisor."""
    program = "log.configure('info', 'json'); logger.info('a'); log.sit(3, 9); logger.info('b')"
    before, after = (json.loads(line) for line in lines_of(program))
    assert "slot" not in before
    assert (after["slot"], after["generation"]) == (3, 9)


def test_an_event_has_its_fields_and_costs_nothing_below_the_level() -> None:
    program = (
        "log.configure('info', 'json'); log.event(logger, logging.INFO, 'closed', code=1);"
        "log.event(logger, logging.DEBUG, 'opened', code=2)"
    )
    [line] = (json.loads(line) for line in lines_of(program))
    assert (line["event"], line["code"], line["level"]) == ("closed", 1, "info")


def test_journald_gets_json_by_itself() -> None:
    """With $JOURNAL_STREAM naming standard error, as systemd sets it; without, text."""
    program = (
        "s = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{s.st_dev}:{s.st_ino}';"
        "log.configure('info'); logger.warning('x')"
    )
    [line] = lines_of(program)
    assert line.startswith("<4>{") and json.loads(line[3:])["event"] == "x"
    [line] = lines_of("log.configure('info'); logger.warning('x')", JOURNAL_STREAM="1:2")
    assert line.endswith(" hub.x: x")


def test_of_one_kind_only_a_burst_is_written_and_the_rest_counted() -> None:
    """A thousand closes leave room for the one line that matters; at the end the count of the others is told."""
    program = (
        "log.configure('debug', 'json', 3); [logger.info('closed %d', n) for n in range(1000)];"
        "logger.warning('what matters'); [logger.debug('step') for n in range(5)]; logging.shutdown()"
    )
    events = [json.loads(line)["event"] for line in lines_of(program)]
    assert events == [
        "closed 0",
        "closed 1",
        "closed 2",
        "what matters",
        *["step"] * 5,
        "997 lines were held back, 997 of hub.x: closed %d",
    ]


def test_a_line_that_would_be_held_back_need_not_be_made() -> None:
    """Who asks before, and makes none then, leaves the same lines behind; nothing is held back without a bound."""
    # They fit into a pipe together: what finds no room in it is dropped.
    ask = "[log.held_back(logger, 'closed') or logger.info('closed') for n in range(300)]"
    bounded = f"log.configure('info', 'json', 3); {ask}; logging.shutdown()"
    events = [json.loads(line)["event"] for line in lines_of(bounded)]
    assert events == [*["closed"] * 3, "297 lines were held back, 297 of hub.x: closed"]
    unbounded = f"log.configure('info', 'json', 0); {ask}; logging.shutdown()"
    assert len(lines_of(unbounded)) == 300
    elsewhere = "print([log.held_back(logger, 'closed') for n in range(3)], file=__import__('sys').stderr)"
    assert lines_of(elsewhere) == ["[False, False, False]"]


def test_what_is_refused_beforehand_counts_as_what_was_made() -> None:
    """In one period; in the next one lines are made again."""
    clock = FakeClock()
    throttle = Throttle(2, clock)
    kind = ("hub.x", "a")
    assert not throttle.refuse(kind)
    assert [throttle.admit(info("a")) for _ in range(2)] == [True, True]
    assert throttle.refuse(kind) and not throttle.admit(info("a")) and not throttle.refuse(("hub.x", "b"))
    clock.advance(BURST_PERIOD_S)
    assert not throttle.refuse(kind)
    assert throttle.admit(info("a"))
    assert throttle.take_held() == {kind: 2}


def info(text: str) -> logging.LogRecord:
    return logging.LogRecord("hub.x", logging.INFO, "", 0, text, (), None)


def test_a_throttle_begins_anew_each_period() -> None:
    """What was held back is told once, when the next period begins."""
    clock = FakeClock()
    throttle = Throttle(2, clock)
    assert [throttle.admit(info("a")) for _ in range(4)] == [True, True, False, False]
    assert throttle.admit(info("b"))
    assert throttle.take_held() == {}
    clock.advance(BURST_PERIOD_S)
    assert throttle.admit(info("b"))
    assert throttle.take_held() == {("hub.x", "a"): 2}
    assert throttle.take_held() == {}


def test_a_throttle_of_none_lets_everything_through() -> None:
    throttle = Throttle(0)
    assert all(throttle.admit(info("a")) for _ in range(5000))


def test_a_throttle_remembers_a_bounded_number_of_kinds() -> None:
    """Texts that somebody makes up each time pass, and are not kept."""
    throttle = Throttle(1, FakeClock())
    assert all(throttle.admit(info(str(n))) for n in range(MAX_KINDS + 5))
    assert throttle.admit(info(str(MAX_KINDS + 1)))
    assert not throttle.admit(info("0"))


def test_lines_that_nobody_read_are_counted_in_a_line_of_the_same_form() -> None:
    """A full pipe holds nobody up; once there is room, the first line says how many are missing, as JSON too."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "w") as stream:
        os.set_blocking(writer, False)
        handler = PatientHandler(stream)
        handler.setFormatter(journal.Json(journald=False))
        try:
            while True:
                os.write(writer, b" " * 4096)
        except BlockingIOError:
            pass
        for _ in range(3):
            handler.emit(info("lost"))
        os.set_blocking(reader, False)
        while pipe.read(65_536):
            pass
        handler.emit(info("heard"))
        missing, heard = (json.loads(line) for line in pipe.read().splitlines())
    assert missing["event"] == "3 log lines were dropped, as nobody read them in time"
    assert heard["event"] == "heard"


def test_form_level_and_burst_are_changed_in_place() -> None:
    """For lines of a worker too, which still say of which one they are."""
    program = (
        "log.configure('warning', 'text', 0); log.sit(3, 7); logger.info('hidden'); log.retune('info', 'json', 2);"
        "[logger.info('x') for _ in range(5)]; log.retune('info', 'json', 0); [logger.info('y') for _ in range(3)]"
    )
    lines = [json.loads(line) for line in lines_of(program)]
    events = [line["event"] for line in lines if line["logger"] == "hub.x"]
    assert events == ["x"] * 2 + ["y"] * 3 and {line["slot"] for line in lines} == {3}
