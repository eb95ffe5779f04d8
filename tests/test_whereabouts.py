"""Whereabouts: a living hub is found by its settings file, and nobody can name another's process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.relay import Home
from hub.whereabouts import NAME, Standing, find, is_same, read, write


@pytest.fixture
def base() -> Iterator[Path]:
    """Where homes are made; short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hub-test-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def home(base: Path) -> Iterator[Home]:
    made = Home.make({"RUNTIME_DIRECTORY": str(base)})
    yield made
    shutil.rmtree(made.directory)
    try:
        os.close(made.lock)
    except OSError:
        pass  # closed by the test


def standing(**changes: object) -> Standing:
    return Standing.model_validate({"pid": os.getpid(), "version": "1", "config": "/etc/hub.toml", **changes})


def test_a_living_hub_is_found_by_its_settings(base: Path, home: Home) -> None:
    """By the absolute path; another file's hub is not it."""
    environ = {"RUNTIME_DIRECTORY": str(base)}
    assert find(Path("/etc/hub.toml"), environ) == []
    write(home.directory, standing(done=2))
    assert find(Path("/etc/hub.toml"), environ) == [(home.directory, standing(done=2))]
    assert find(Path("/etc/other.toml"), environ) == []
    write(home.directory, standing(config=str(Path("own.toml").absolute())))
    assert len(find(Path("own.toml"), environ)) == 1
    assert os.listdir(home.directory) == [NAME]


def test_a_hub_that_has_ended_is_none(home: Home) -> None:
    """What a killed one left: nobody holds the directory any more."""
    write(home.directory, standing())
    assert read(home.directory) == standing()
    os.close(home.lock)
    assert read(home.directory) is None


@pytest.mark.parametrize("text", ["", "{}", '{"pid": "x"}', '{"pid": 0, "version": "1", "config": "/etc/hub.toml"}'])
def test_nonsense_is_no_hub(home: Home, text: str) -> None:
    """Half a file, or a pid that nobody has."""
    Path(home.directory, NAME).write_text(text)
    assert read(home.directory) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be another user")
def test_nobody_speaks_for_anothers_process(home: Home) -> None:
    """A directory of user 12345 names a process of ours: whoever believed it would signal that one."""
    write(home.directory, standing())
    os.chown(home.directory, 12345, -1)
    assert read(home.directory) is None


def test_a_link_leads_nowhere(base: Path, home: Home) -> None:
    """A directory that is a link may change under our feet."""
    write(home.directory, standing())
    link = base / "hub-relay-link"
    link.symlink_to(home.directory)
    assert read(link) is None


def test_a_settings_file_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another directory, or over a link; one that is not there, such as in another namespace, by its text."""
    (tmp_path / "hub.toml").write_text("")
    (tmp_path / "link.toml").symlink_to("hub.toml")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for said in ("hub.toml", "link.toml", "below/../hub.toml"):
        for path in (Path("../hub.toml"), tmp_path / "link.toml"):
            assert is_same(str(tmp_path / said), path)
    assert is_same("/nowhere/hub.toml", Path("/nowhere/hub.toml"))
    assert not is_same(str(tmp_path / "other.toml"), tmp_path / "hub.toml")
    assert not is_same("", tmp_path / "below")
    assert not is_same("", Path())
