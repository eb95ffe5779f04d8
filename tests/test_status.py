"""Status: a record of this process, as another one reads it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import status
from hub.errors import HubError


@pytest.fixture
def board() -> Iterator[status.Board]:
    board = status.Board()
    yield board
    board.close()


def test_what_was_written_last_is_read_whole(board: status.Board) -> None:
    """A shorter record leaves nothing of a longer one."""
    board.write({"text": "x" * 5000})
    board.write({"text": "short"})
    assert status.read(os.getpid()) == {"text": "short"}


def test_another_process_finds_and_reads_it(board: status.Board) -> None:
    board.write({"number": 7})
    program = f"from hub import status; print({os.getpid()} in status.find(), status.read({os.getpid()}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True {'number': 7}\n", done.stderr


def test_a_process_without_one_is_no_hub() -> None:
    assert os.getpid() not in status.find()
    with pytest.raises(HubError, match=f"process {os.getpid()} is not the supervisor of a hub"):
        status.read(os.getpid())


def test_one_that_has_ended_is_told_so() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(HubError, match=f"process {child.pid} has ended"):
        status.read(child.pid)


def test_a_record_in_the_middle_of_a_write_is_not_taken(board: status.Board) -> None:
    """Half a record has another sum."""
    board.write({"text": "whole"})
    os.pwrite(board.fd, b"X", 12)
    with pytest.raises(HubError, match="can't be read"):
        status.read(os.getpid())


def _write_on(fd: int, stop: object) -> None:
    writer = status.Board.__new__(status.Board)
    writer.fd = fd
    number = 0
    while not stop.is_set():  # type: ignore[attr-defined]
        number += 1
        writer.write({"a": number, "pad": "p" * (number % 3000), "b": number})


def test_a_reader_never_sees_parts_of_two(board: status.Board) -> None:
    """While another process writes as fast as it can, each record that is read is one that was written."""
    board.write({"a": 0, "b": 0})
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    writer = context.Process(target=_write_on, args=(board.fd, stop))
    writer.start()
    try:
        found = [status.read(os.getpid()) for _ in range(500)]
    finally:
        stop.set()
        writer.join()
    assert all(one["a"] == one["b"] for one in found)
    assert len({one["a"] for one in found}) > 1


def test_processes_that_cant_be_looked_at_are_passed_over(tmp_path: Path) -> None:
    """One that ends meanwhile, or is somebody else's, is none of ours."""
    (tmp_path / "12").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "13/fd").mkdir(parents=True)
    (tmp_path / "13/fd/4").symlink_to("/dev/null")
    (tmp_path / "14/fd").mkdir(parents=True)
    (tmp_path / "14/fd/5").symlink_to(status.LINK)
    assert status.find(tmp_path) == [14]


def test_who_takes_a_board_over_goes_on_with_what_it_shows(board: status.Board) -> None:
    """A new one shows nothing yet."""
    assert board.read() == {}
    board.write({"number": 7})
    heir = status.Board(os.dup(board.fd))
    assert heir.read() == {"number": 7}
    heir.write({})
    assert board.read() == status.read(os.getpid()) == {}
    heir.close()
