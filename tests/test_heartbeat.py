"""Heartbeat: both ends of the pipe between a worker and the supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hub.heartbeat import MAX_TEXT_BYTES, Answer, Heartbeat, Pulse, open_pipe


@pytest.fixture
def ends() -> Iterator[tuple[Pulse, Heartbeat]]:
    pulse, heartbeat = open_pipe(now=1.0)
    yield pulse, heartbeat
    for end in (pulse, heartbeat):
        try:
            end.close()
        except OSError:
            pass  # the test has closed it


def test_a_beat_moves_the_last_sign_of_life(ends: tuple[Pulse, Heartbeat]) -> None:
    """Before the first byte the fork counts as a sign of life, then the time of reading does; neither means ready."""
    pulse, heartbeat = ends
    assert pulse.read(5.0) and pulse.last_s == 1.0
    heartbeat.beat()
    assert pulse.read(6.0) and pulse.last_s == 6.0
    assert not pulse.ready


def test_ready_is_remembered(ends: tuple[Pulse, Heartbeat]) -> None:
    """A worker that was ready once stays so while it beats."""
    pulse, heartbeat = ends
    heartbeat.beat()
    heartbeat.ready()
    heartbeat.beat()
    pulse.read(2.0)
    heartbeat.beat()
    pulse.read(3.0)
    assert pulse.ready and pulse.failure == ""


def test_a_boot_failure_arrives_as_one_line(ends: tuple[Pulse, Heartbeat]) -> None:
    """The text keeps its words and its letters R, E and '.', and loses its line breaks."""
    pulse, heartbeat = ends
    heartbeat.beat()
    heartbeat.boot_failed("REDIS is away.\nEnd")
    heartbeat.close()
    assert not pulse.read(2.0)
    assert pulse.failure == "REDIS is away. End" and not pulse.ready


def test_a_long_text_is_cut_so_that_it_arrives_whole(ends: tuple[Pulse, Heartbeat]) -> None:
    """A text beyond PIPE_BUF would be written in parts; it is cut instead."""
    pulse, heartbeat = ends
    heartbeat.boot_failed("x" * 10_000)
    pulse.read(2.0)
    assert len(pulse.failure) == MAX_TEXT_BYTES


def test_a_full_pipe_does_not_stop_the_worker(ends: tuple[Pulse, Heartbeat]) -> None:
    """A supervisor that reads nothing costs the worker nothing, and reads the beats later."""
    pulse, heartbeat = ends
    for _ in range(70_000):  # a pipe holds 65,536 bytes (pipe(7))
        heartbeat.beat()
    assert pulse.read(9.0) and pulse.last_s == 9.0


def test_a_vanished_supervisor_does_not_raise_in_the_worker(ends: tuple[Pulse, Heartbeat]) -> None:
    """EPIPE is swallowed; the kernel's death signal ends the worker."""
    pulse, heartbeat = ends
    pulse.close()
    heartbeat.beat()


def test_no_end_is_inherited_by_exec(ends: tuple[Pulse, Heartbeat]) -> None:
    """A program that a worker starts cannot keep the pipe open beyond the worker's life."""
    pulse, heartbeat = ends
    assert not os.get_inheritable(pulse.fd)
    assert not os.get_inheritable(heartbeat._fd)


def test_answers_come_out_once_and_in_order(ends: tuple[Pulse, Heartbeat]) -> None:
    """Between beats and with letters in them that mean something outside; a word of readiness behind one is heard."""
    pulse, heartbeat = ends
    heartbeat.beat()
    heartbeat.answer(Answer(3, "prepared"))
    heartbeat.answer(Answer(4, "refused", "auth.keys[0]: REDIS, A and E.\nno PEM"))
    heartbeat.ready()
    pulse.read(2.0)
    assert pulse.take_answers() == [Answer(3, "prepared"), Answer(4, "refused", "auth.keys[0]: REDIS, A and E. no PEM")]
    assert pulse.ready and pulse.failure == "" and pulse.take_answers() == []


def test_the_letters_of_an_answer_are_no_readiness(ends: tuple[Pulse, Heartbeat]) -> None:
    """A worker that refuses while it boots is not ready for that."""
    pulse, heartbeat = ends
    heartbeat.answer(Answer(1, "refused", "R E"))
    pulse.read(2.0)
    assert not pulse.ready and pulse.failure == ""


def test_an_answer_in_two_reads_is_one(ends: tuple[Pulse, Heartbeat]) -> None:
    """As after 65,536 beats that nobody read."""
    pulse, heartbeat = ends
    for part in (b"..A12 appl", b"ied ", b"\n.A13 prepared x\nEgone", b"AE"):
        os.write(heartbeat._fd, part)
        pulse.read(2.0)
    assert pulse.take_answers() == [Answer(12, "applied"), Answer(13, "prepared", "x")]
    assert pulse.failure == "goneAE"
