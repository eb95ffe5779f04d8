"""Instructions: both ends of the pipe from the supervisor to a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hub import instructions
from hub.instructions import APPLY, HEAD, PREPARE, Instruction, Instructions, Instructor, open_pipe


@pytest.fixture
def ends() -> Iterator[tuple[Instructor, Instructions]]:
    instructor, worker = open_pipe()
    yield instructor, worker
    for end in (instructor, worker):
        try:
            end.close()
        except OSError:
            pass  # the test has closed it


def test_they_come_whole_and_in_order(ends: tuple[Instructor, Instructions]) -> None:
    """However many one read brings."""
    instructor, worker = ends
    sent = [Instruction(PREPARE, 7, b"settings"), Instruction(APPLY, 7, b""), Instruction(PREPARE, 8, b"")]
    assert all(map(instructor.send, sent)) and instructor.unsent_bytes == 0
    assert worker.read() == sent
    assert worker.read() == []


def test_one_larger_than_a_pipe_waits_for_its_reader(ends: tuple[Instructor, Instructions]) -> None:
    """Neither end waits: the writer keeps what does not fit, and what comes behind it."""
    instructor, worker = ends
    large = Instruction(PREPARE, 1, os.urandom(1_000_000))
    assert instructor.send(large) and instructor.send(Instruction(APPLY, 1, b""))
    assert instructor.unsent_bytes > 900_000
    found: list[Instruction] = []
    while len(found) < 2:
        found += worker.read()
        instructor.flush()
    assert found == [large, Instruction(APPLY, 1, b"")] and instructor.unsent_bytes == 0


def test_a_worker_that_reads_nothing_is_not_sent_more_than_the_bound(
    ends: tuple[Instructor, Instructions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused leaves no part of itself."""
    monkeypatch.setattr(instructions, "MAX_UNSENT_BYTES", 300_000)
    instructor, worker = ends
    first = Instruction(PREPARE, 1, b"x" * 250_000)
    assert instructor.send(first)
    before = instructor.unsent_bytes
    assert not instructor.send(Instruction(PREPARE, 2, b"y" * 250_000)) and instructor.unsent_bytes == before
    found: list[Instruction] = []
    while not found:
        found += worker.read()
        instructor.flush()
    assert found == [first]


def test_byte_by_byte_is_as_good(ends: tuple[Instructor, Instructions]) -> None:
    instructor, worker = ends
    data = HEAD.pack(3, PREPARE, 5) + b"abc"
    found = []
    for at in range(len(data)):
        os.write(instructor.fd, data[at : at + 1])
        found.append(worker.read())
    assert found == [[]] * (len(data) - 1) + [[Instruction(PREPARE, 5, b"abc")]]


def test_a_worker_that_is_gone_costs_nothing(ends: tuple[Instructor, Instructions]) -> None:
    """Its successor has a pipe of its own."""
    instructor, worker = ends
    worker.close()
    assert instructor.send(Instruction(PREPARE, 1, b"x" * 1_000_000))
    assert instructor.unsent_bytes == 0


def test_the_end_of_the_supervisor_is_told(ends: tuple[Instructor, Instructions]) -> None:
    """Not as nothing: a loop would be called for it again and again."""
    instructor, worker = ends
    instructor.send(Instruction(APPLY, 1, b""))
    instructor.close()
    assert worker.read() == [Instruction(APPLY, 1, b"")]
    with pytest.raises(EOFError):
        worker.read()


def test_a_head_that_is_none_of_ours_is_an_error(ends: tuple[Instructor, Instructions]) -> None:
    instructor, worker = ends
    os.write(instructor.fd, b"\xff" * HEAD.size)
    with pytest.raises(ValueError, match="an instruction of 4294967295 bytes"):
        worker.read()
