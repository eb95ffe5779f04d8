"""Signals: each becomes one call in the loop, held ones too, and afterwards they mean what they meant before."""

from __future__ import annotations

import os
import pty
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import signals
from hub.seat import SUPERVISED_SIGNALS
from hub.signals import Signals


class Loop:
    """A loop of one supervisor. handled: number and time of each signal."""

    def __init__(self) -> None:
        self.handled: list[tuple[int, float]] = []
        self.selector = selectors.DefaultSelector()
        self.signals = Signals(lambda number, now: self.handled.append((number, now)))
        self.signals.open(self.selector)

    def turn(self, now: float, timeout_s: float = 5.0) -> None:
        for key, _ in self.selector.select(timeout_s):
            key.data(now)

    def close(self) -> None:
        self.signals.close()
        self.selector.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_each_signal_is_a_call_in_the_next_turn(loop: Loop) -> None:
    """In their order, with the time of the turn; none is handled where it arrives."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
    assert not loop.handled
    loop.turn(3.0)
    assert loop.handled == [(signal.SIGUSR2, 3.0), (signal.SIGTERM, 3.0), (signal.SIGHUP, 3.0)]
    loop.turn(4.0, 0)
    assert len(loop.handled) == 3


HELD = """
import os, signal
from hub.seat import SUPERVISED_SIGNALS
from tests.test_signals import Loop

loop = Loop()
os.kill(os.getpid(), signal.SIGTERM)
with loop.signals.held():
    os.kill(os.getpid(), signal.SIGHUP)
    loop.turn(3.0, 0)
    print(loop.handled, sorted(map(int, signal.sigpending() & {*SUPERVISED_SIGNALS})))
loop.turn(4.0)
print(sorted(loop.handled))
"""


def test_held_ones_wait_and_then_come() -> None:
    """What was in the pipe and what comes meanwhile are pending, as an exec leaves them; without one they are handled.

    In a process without threads, as a supervisor is: another one would get what this one holds.
    """
    done = subprocess.run(
        [sys.executable, "-c", HELD], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert not done.stderr
    assert done.stdout.splitlines() == ["[] [1, 15]", "[(1, 4.0), (15, 4.0)]"]


def test_they_are_let_in_again_where_nothing_came_of_it(loop: Loop) -> None:
    """An exec that fails raises."""
    with pytest.raises(OSError), loop.signals.held():
        raise OSError
    signal.raise_signal(signal.SIGUSR2)
    loop.turn(5.0)
    assert loop.handled == [(signal.SIGUSR2, 5.0)]


def test_signals_of_before_the_handlers_come_after_them() -> None:
    """As whoever made the exec has blocked them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    loop = Loop()
    try:
        loop.turn(3.0)
        assert loop.handled == [(signal.SIGTERM, 3.0)]
    finally:
        loop.close()


def test_nothing_is_left_behind() -> None:
    """Handlers and the wakeup descriptor are those of before, and no descriptor stays open."""

    def standing() -> tuple[object, ...]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return wakeup, [signal.getsignal(number) for number in SUPERVISED_SIGNALS], len(os.listdir("/proc/self/fd"))

    before = standing()
    loop = Loop()
    during = standing()
    assert all(now != then for now, then in zip(during, before, strict=True))
    loop.close()
    assert standing() == before


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_of_a_terminal_is_told_from_a_wish_for_new_settings(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Both are SIGHUP; who was started without a terminal can't lose one."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    monkeypatch.setattr(signals, "STDIN_FD", theirs)
    loop = Loop()
    assert not loop.signals.hung_up
    os.close(ours)
    assert loop.signals.hung_up == terminal
    loop.close()
    os.close(theirs)
