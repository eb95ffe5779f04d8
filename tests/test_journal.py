"""What a line of the log looks like: one line whatever is in it, JSON for journald, text for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import pytest

from hub import journal


def record(text: str, *args: object, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("hub.x", level, "", 0, text, args, None)
    made.created = 1_795_187_191.1234
    if fields:
        setattr(made, journal.FIELDS, fields)
    return made


def as_json(made: logging.LogRecord, seat: dict[str, int] | None = None) -> dict[str, Any]:
    form = journal.Json(journald=False)
    form.seat = seat or {}
    text = form.format(made)
    assert "\n" not in text
    return json.loads(text)


def test_a_json_line_has_the_events_own_fields_beside_the_common_ones() -> None:
    """Time in UTC, level, logger, event, pid, slot and generation of a worker, then what belongs to the event."""
    line = as_json(record("closed", client="c", code=3001, seconds=1.5), {"slot": 2, "generation": 7})
    assert line == {
        "time": "2026-11-20T15:06:31.123Z",
        "level": "info",
        "logger": "hub.x",
        "event": "closed",
        "pid": os.getpid(),
        "slot": 2,
        "generation": 7,
        "client": "c",
        "code": 3001,
        "seconds": 1.5,
    }


def test_in_the_supervisor_there_is_no_slot() -> None:
    assert {"slot", "generation"}.isdisjoint(as_json(record("x")))


def test_a_line_that_is_no_event_has_its_text() -> None:
    assert as_json(record("worker %d started, pid %d", 1, 71))["event"] == "worker 1 started, pid 71"


@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "\ud800", "\u2028", 2**70, object()])
def test_whatever_a_name_holds_it_is_one_line_and_json(value: object) -> None:
    """Line breaks, escapes, half a character, and what JSON has no word for."""
    assert as_json(record("closed", user=value))["event"] == "closed"


@pytest.mark.parametrize("text", ["a\nb INFO forged", "\x1b[2J", "\u2028x", "\x00"])
def test_text_for_people_is_one_line_too(text: str) -> None:
    """Neither in the line nor in a field may a client write a line of its own, or steer the terminal."""
    for made in (record("client %s", text), record("closed", user=text)):
        assert journal.Text().format(made).isprintable()


def test_text_has_fields_behind_the_event() -> None:
    line = journal.Text().format(record("closed", user="ann b", client="c-1", code=3001, seconds=1.5, reason=""))
    assert line.endswith(f" INFO {os.getpid()} hub.x: closed user='ann b' client=c-1 code=3001 seconds=1.5 reason=''")


def failing() -> logging.LogRecord:
    made = record("failed", level=logging.ERROR)
    try:
        raise RuntimeError("x" * 100_000)
    except RuntimeError:
        made.exc_info = sys.exc_info()
    return made


def test_a_trace_is_in_the_line_and_bounded() -> None:
    """journald cuts at 48 KB, and a cut object is none."""
    line = as_json(failing())
    assert line["trace"].endswith("xxx") and len(json.dumps(line)) < 48_000


def test_people_get_the_whole_trace() -> None:
    assert "RuntimeError: xxx" in journal.Text().format(failing())


@pytest.mark.parametrize(
    ("level", "priority"), [("CRITICAL", 2), ("ERROR", 3), ("WARNING", 4), ("INFO", 6), ("DEBUG", 7)]
)
def test_journald_is_told_the_priority(level: str, priority: int) -> None:
    """`journalctl -p warning` finds what is a warning: sd-daemon(3)'s prefix, which it takes off."""
    text = journal.Json(journald=True).format(record("x", level=getattr(logging, level)))
    assert text.startswith(f'<{priority}>{{"time"')


@pytest.mark.parametrize(
    ("form", "journald", "kind"),
    [
        ("auto", False, journal.Text),
        ("auto", True, journal.Json),
        ("json", False, journal.Json),
        ("text", True, journal.Text),
    ],
)
def test_auto_is_json_for_journald(form: journal.Form, journald: bool, kind: type) -> None:
    assert type(journal.formatter(form, journald)) is kind


def test_journald_is_known_by_the_stream(tmp_path) -> None:
    """$JOURNAL_STREAM names device and inode: inherited by a process with another stderr, it is not true of that."""
    with (tmp_path / "a").open("w") as ours, (tmp_path / "b").open("w") as other:
        status = os.fstat(ours.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert journal.under_journald(environ, ours.fileno())
        assert not journal.under_journald(environ, other.fileno())
        assert not journal.under_journald({}, ours.fileno())
    assert not journal.under_journald(environ, 10**6)
