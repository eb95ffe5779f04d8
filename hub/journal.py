"""Journal: what a line of the log looks like, for journald one JSON object, for a person text.

Does: choose the form, turn a record and its event's own fields into one line, whatever a client has put into them.
Does not: write (log), or decide what is worth a line; each room has its own logger.
Called by: log.
Never break: one event is one line, also where a name has a line break in it.

    {"time":"2026-11-20T15:06:31.123Z","level":"info","logger":"hub.connection","event":"closed","pid":71,"slot":0,
     "generation":3,"wire":"websocket","client":"…","user":"ann","code":3001,"reason":"shutdown","seconds":12.5, …}
    2026-11-20 15:06:31,123 INFO 71 hub.connection: closed wire=websocket client=… user='ann' code=3001 …
"""

from __future__ import annotations

import datetime
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

Form = Literal["auto", "text", "json"]
FIELDS = "hub_fields"
"""The attribute of a record that has its event's own fields."""
TRACE_CHARACTERS = 16_000
"""Of a trace, its end: journald cuts a line at 48 KB (LineMax=), and half a JSON object is none."""
PLAIN = re.compile(r"[\w.:/@%+-]+")
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog(3)'s numbers; below, 7."""


def under_journald(environ: Mapping[str, str], fd: int) -> bool:
    """Whether what is written to `fd` goes to journald by itself: $JOURNAL_STREAM of systemd.exec(5)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False  # closed by the shell
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def formatter(form: Form, journald: bool) -> Text | Json:
    """What writes the lines. journald: they go there, so each is told its priority (sd-daemon(3))."""
    if form == "json" or (form == "auto" and journald):
        return Json(journald)
    return Text()


class Text(logging.Formatter):
    """For people, and for whoever reads line by line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")
        self.seat: dict[str, int] = {}
        """Not told here: the pid says as much."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        fields: Mapping[str, Any] = getattr(record, FIELDS, {})
        return super().formatMessage(record) + "".join(f" {name}={_value(value)}" for name, value in fields.items())


class Json(logging.Formatter):
    """For programs."""

    def __init__(self, journald: bool) -> None:
        super().__init__()
        self._journald = journald
        self.seat: dict[str, int] = {}
        """A worker's slot and generation; empty in the supervisor."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "pid": record.process,
            **self.seat,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-TRACE_CHARACTERS:]
        text = _encode(line)
        return f"<{_priority(record.levelno)}>{text}" if self._journald else text


def printable(text: str) -> str:
    r"""With what would end the line, or steer a terminal, spelt out: 'a\nb' as 'a\\nb'."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode() for each in text
    )


def _encode(line: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:
        # A text with half a character (surrogate), which UTF-8 has no bytes for; or a number beyond 64 bits.
        return orjson.dumps({name: printable(str(value)) for name, value in line.items()}).decode()


def _value(value: object) -> str:
    text = str(value)
    if not isinstance(value, str) or PLAIN.fullmatch(text):
        return printable(text)
    return repr(text)


def _priority(level: int) -> int:
    return next((priority for least, priority in PRIORITIES if level >= least), 7)
