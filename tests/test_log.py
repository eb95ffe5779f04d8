"""The log: its format, and the brake on repeated lines."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from hub.log import Brake
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
