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


def test_who_may_not_look_is_told_as_whom_to_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root, where even it may not, is not told to be root."""

    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    for user, words in ((1000, "belongs to another user: run this as that one, or as root"), (0, "not even as root")):
        monkeypatch.setattr(status.os, "geteuid", lambda user=user: user)
        with pytest.raises(HubError, match=words):
            status.read(1, tmp_path)
    assert status.is_hub(1, tmp_path) is None


def test_a_hub_is_a_supervisor_or_its_child(tmp_path: Path) -> None:
    """Whatever a process calls itself; of one that has ended, or may not be looked at, nothing is known."""
    for pid, parent, name in ((14, 1, "hub"), (15, 14, "x) S 99 ("), (16, 15, "hub"), (17, 0, "none above")):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/stat").write_text(f"{pid} ({name}) S {parent} {pid} 0 0 -1")
    (tmp_path / "14/fd/5").symlink_to(status.LINK)
    assert [status.is_hub(pid, tmp_path) for pid in (14, 15, 16, 17, 18)] == [True, True, False, False, None]


def test_who_takes_a_board_over_goes_on_with_what_it_shows(board: status.Board) -> None:
    """A new one shows nothing yet."""
    assert board.read() == {}
    board.write({"number": 7})
    heir = status.Board(os.dup(board.fd))
    assert heir.read() == {"number": 7}
    heir.write({})
    assert board.read() == status.read(os.getpid()) == {}
    heir.close()
