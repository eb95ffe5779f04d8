"""Changes: files and kernel values come back to the byte, whatever was there and wherever the change was cut short."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from hub import changes as room
from hub.changes import RECORD, Changes, NewFile
from hub.errors import HubError

SYSCTL, LIMITS = "/etc/sysctl.d/60-hub.conf", "/etc/security/limits.d/60-hub.conf"
FILES = [NewFile(SYSCTL, b"a = 1\n"), NewFile(LIMITS, b"hub - nofile 9\n"), NewFile("/etc/new/dir/x.conf", b"x", 0o640)]
VALUES = {"net.core.somaxconn": "65535", "vm.overcommit_memory": "1", "not.there": "1", "fs.nr_open": "7"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file of the operator's in the place of one of ours, and no newline at its end."""
    path = tmp_path / "root" / SYSCTL[1:]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine\x00\xff = 2")
    path.chmod(0o604)
    return tmp_path / "root"


@pytest.fixture
def proc_sys(tmp_path: Path) -> Path:
    for key, value in {"net.core.somaxconn": "4096", "vm.overcommit_memory": "0", "fs.nr_open": "7"}.items():
        path = tmp_path / "sys" / key.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return tmp_path / "sys"


@pytest.fixture
def changes(root: Path, proc_sys: Path) -> Changes:
    return Changes(root, proc_sys)


def tree(root: Path) -> dict[str, tuple]:
    """Everything below: kind, mode, owner, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def value(proc_sys: Path, key: str) -> str:
    return (proc_sys / key.replace(".", "/")).read_text().strip()


def test_a_change_is_written_and_taken_back_to_the_byte(changes: Changes, root: Path, proc_sys: Path) -> None:
    """Files, their modes, directories that were made for them, and the kernel's values; nothing is left over."""
    before = tree(root)
    assert changes.apply(FILES, VALUES) == []
    assert [(root / file.path[1:]).read_bytes() for file in FILES] == [file.content for file in FILES]
    modes = [stat.S_IMODE((root / file.path[1:]).stat().st_mode) for file in FILES]
    assert modes == [0o644, 0o644, 0o640]
    assert [value(proc_sys, key) for key in ("net.core.somaxconn", "vm.overcommit_memory")] == ["65535", "1"]
    assert not (proc_sys / "not").exists()
    assert stat.S_IMODE((root / RECORD[1:]).stat().st_mode) == 0o600

    assert changes.undo(values=True) == []
    assert tree(root) == before
    assert [value(proc_sys, key) for key in ("net.core.somaxconn", "vm.overcommit_memory")] == ["4096", "0"]


def test_twice_is_once(changes: Changes, root: Path) -> None:
    """The second time finds nothing to do, and the way back leads to what was there before the first."""
    before = tree(root)
    changes.apply(FILES, VALUES)
    once = tree(root)
    assert changes.diff(FILES, VALUES) == "" and changes.apply(FILES, VALUES) == []
    assert tree(root) == once
    changes.undo(values=True)
    assert tree(root) == before
    assert changes.undo(values=True) == [] and tree(root) == before


def test_what_is_so_already_is_nobodys_to_take_back(root: Path, proc_sys: Path) -> None:
    """A file that the operator has put there, equal to ours, stays; there is no record."""
    changes, mine = Changes(root, proc_sys), NewFile(SYSCTL, b"mine\x00\xff = 2", 0o604)
    before = tree(root)
    assert changes.apply([mine], {"fs.nr_open": "7"}) == []
    assert tree(root) == before and not (root / RECORD[1:]).exists()


def test_several_versions_lead_back_to_the_first(changes: Changes, root: Path) -> None:
    """A newer hub writes other lines over ours; a file that came with it goes as well."""
    before = tree(root)
    changes.apply(FILES[:1], {})
    changes.apply([NewFile(SYSCTL, b"a = 2\n"), FILES[1]], {})
    assert (root / SYSCTL[1:]).read_bytes() == b"a = 2\n"
    changes.undo(values=False)
    assert tree(root) == before


def test_a_symbolic_link_comes_back_as_one(changes: Changes, root: Path, tmp_path: Path) -> None:
    """Such as one to /dev/null, which masks the file; what it leads to is never written to."""
    target = tmp_path / "elsewhere"
    target.write_text("precious")
    path = root / SYSCTL[1:]
    path.unlink()
    path.symlink_to(target)
    if os.geteuid() == 0:
        os.chown(path, 12, 34, follow_symlinks=False)
    before, owner = tree(root), target.stat().st_uid
    changes.apply(FILES, {})
    assert not path.is_symlink() and target.read_text() == "precious"
    changes.undo(values=False)
    assert tree(root) == before and target.stat().st_uid == owner


def test_the_owner_comes_back(changes: Changes, root: Path) -> None:
    """Where we may give files away."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(root / SYSCTL[1:], 12, 34)
    before = tree(root)
    changes.apply(FILES, {})
    assert (root / SYSCTL[1:]).stat().st_uid == 0
    changes.undo(values=False)
    assert tree(root) == before


# Cut short


class Cut(BaseException):
    """The process ends here."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the replacement number `step` of the next call everything ends, without any clearing up after it."""
    real, calls = os.replace, 0

    def replace(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Cut
        real(source, target)

    monkeypatch.setattr(room.os, "replace", replace)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("again", [False, True])
def test_a_change_that_was_cut_short_is_undone(
    step: int, again: bool, changes: Changes, root: Path, proc_sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the record, or any file: from there, or after it was completed, the way back is the same."""
    before = {path: what for path, what in tree(root).items() if not stat.S_ISDIR(what[0])}
    with monkeypatch.context() as patch:
        cut_at(patch, step)
        with pytest.raises(Cut):
            changes.apply(FILES, VALUES)
    if again:
        assert changes.apply(FILES, VALUES) == []
        assert (root / FILES[2].path[1:]).read_bytes() == b"x"
    changes.undo(values=True)
    assert {path: what for path, what in tree(root).items() if not stat.S_ISDIR(what[0])} == before
    assert value(proc_sys, "net.core.somaxconn") == "4096"


def test_an_undo_that_was_cut_short_goes_on(
    changes: Changes, root: Path, proc_sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come back already is no change by somebody else."""
    (root / LIMITS[1:]).parent.mkdir(parents=True)
    (root / LIMITS[1:]).write_text("mine, too")
    before = tree(root)
    changes.apply(FILES, VALUES)
    with monkeypatch.context() as patch:
        cut_at(patch, 1)
        with pytest.raises(Cut):
            changes.undo(values=True)
    assert (root / SYSCTL[1:]).read_bytes().startswith(b"mine") and (root / LIMITS[1:]).read_bytes() == FILES[1].content
    assert changes.undo(values=True) == []
    assert tree(root) == before and value(proc_sys, "net.core.somaxconn") == "4096"


def test_what_a_killed_one_left_beside_a_file_is_cleared_away(changes: Changes, root: Path) -> None:
    """The half-written file has a name that nobody reads, and goes with the next change or its undoing."""
    changes.apply(FILES, {})
    (root / SYSCTL[1:]).with_name(".60-hub.conf.hub-tune").write_text("half")
    changes.undo(values=False)
    assert not list(root.rglob("*.hub-tune"))


# What others did


@pytest.mark.parametrize("how", ["edited", "removed", "another mode"])
def test_what_somebody_has_changed_since_is_not_overwritten(how: str, changes: Changes, root: Path) -> None:
    """Neither by another apply nor by undo, and nothing else is changed then; --force does it."""
    before = tree(root)
    changes.apply(FILES, {})
    path = root / SYSCTL[1:]
    if how == "edited":
        path.write_text("theirs")
    elif how == "removed":
        path.unlink()
    else:
        path.chmod(0o600)
    theirs = tree(root)
    for act in (lambda: changes.apply(FILES, {}), lambda: changes.undo(values=False)):
        with pytest.raises(HubError, match=r"60-hub\.conf: was changed since hub tune wrote it; --force"):
            act()
        assert tree(root) == theirs
    changes.undo(values=False, force=True)
    assert tree(root) == before


def test_a_value_that_was_changed_since_is_left_and_told(changes: Changes, proc_sys: Path) -> None:
    """The others come back."""
    changes.apply([], VALUES)
    (proc_sys / "net/core/somaxconn").write_text("70000\n")
    assert changes.undo(values=True) == ["net.core.somaxconn = 70000: was changed since, and is left so"]
    assert (value(proc_sys, "net.core.somaxconn"), value(proc_sys, "vm.overcommit_memory")) == ("70000", "0")


def test_a_value_that_is_set_a_second_time_leads_back_to_the_first(changes: Changes, proc_sys: Path) -> None:
    changes.apply([], VALUES)
    (proc_sys / "net/core/somaxconn").write_text("5000\n")
    changes.apply([], VALUES)
    assert changes.undo(values=True) == [] and value(proc_sys, "net.core.somaxconn") == "4096"


def test_a_directory_that_somebody_uses_stays(changes: Changes, root: Path) -> None:
    """With their file; all that is ours is gone."""
    changes.apply(FILES, {})
    (root / "etc/new/theirs").write_text("x")
    changes.undo(values=False)
    assert [path.name for path in (root / "etc/new").iterdir()] == ["theirs"]
    assert not (root / LIMITS[1:]).parent.exists() and not (root / RECORD[1:]).parent.exists()


def test_values_wait_for_an_undo_of_their_own(changes: Changes, root: Path, proc_sys: Path) -> None:
    """Undone without them, the record keeps them, and only them."""
    before = tree(root)
    changes.apply(FILES, VALUES)
    changes.undo(values=False)
    assert changes.values_remain and value(proc_sys, "net.core.somaxconn") == "65535"
    assert (root / SYSCTL[1:]).read_bytes().startswith(b"mine")
    assert json.loads((root / RECORD[1:]).read_text())["files"] == {}
    changes.undo(values=True)
    assert not changes.values_remain and value(proc_sys, "net.core.somaxconn") == "4096"
    assert tree(root) == before


def test_a_value_that_the_kernel_refuses_is_told(changes: Changes, proc_sys: Path, monkeypatch) -> None:
    """And the others are set."""
    real = Path.write_text

    def write(path: Path, text: str) -> int:
        if path.name == "somaxconn":
            raise PermissionError(1, "Operation not permitted")
        return real(path, text)

    monkeypatch.setattr(Path, "write_text", write)
    assert changes.apply([], VALUES) == ["net.core.somaxconn = 65535: Operation not permitted"]
    assert value(proc_sys, "vm.overcommit_memory") == "1"
    assert changes.undo(values=True) == [] and value(proc_sys, "vm.overcommit_memory") == "0"


# Refusals


def test_what_is_no_file_is_refused(changes: Changes, root: Path) -> None:
    (root / LIMITS[1:]).mkdir(parents=True)
    with pytest.raises(HubError, match=r"limits\.d/60-hub\.conf: is no file"):
        changes.apply(FILES, {})
    assert (root / SYSCTL[1:]).read_bytes().startswith(b"mine") and not (root / RECORD[1:]).exists()


def test_a_link_out_of_the_root_is_not_followed(changes: Changes, root: Path, tmp_path: Path) -> None:
    """An image whose directory is an absolute link would have this machine changed."""
    (tmp_path / "outside").mkdir()
    (root / "etc" / "security").symlink_to(tmp_path / "outside")
    with pytest.raises(HubError, match="leads out of"):
        changes.apply(FILES, {})
    assert list((tmp_path / "outside").iterdir()) == []


def test_one_at_a_time(changes: Changes, root: Path) -> None:
    """A second hub tune gives up at once."""
    changes.apply(FILES[:1], {})
    fd = os.open((root / RECORD[1:]).parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # the weakest that another one's work must not pass by
        with pytest.raises(HubError, match="another hub tune is at work"):
            changes.apply(FILES, {})
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "files": []}', "[" * 99_999]
)
def test_a_record_that_is_none_is_one_line(text: str, changes: Changes, root: Path) -> None:
    (root / RECORD[1:]).parent.mkdir(parents=True)
    (root / RECORD[1:]).write_text(text)
    for act in (
        lambda: changes.undo(values=True),
        lambda: changes.apply(FILES, {}),
        lambda: changes.undo_diff(True),
        changes.check_record,
    ):
        with pytest.raises(HubError, match=r"record\.json: is no record of this hub's"):
            act()
    assert (root / SYSCTL[1:]).read_bytes().startswith(b"mine")


def test_a_file_system_that_cannot_be_written_is_one_line(changes: Changes, root: Path) -> None:
    """Here by a file where a directory has to be."""
    (root / "var").write_text("")
    with pytest.raises(HubError, match="directory"):
        changes.apply(FILES, {})
    assert (root / SYSCTL[1:]).read_bytes().startswith(b"mine")


# What it says before


def test_the_diff_says_what_would_change(changes: Changes) -> None:
    """Content, mode and values, there and back; nothing is written."""
    text = changes.diff([NewFile(SYSCTL, b"a = 1\n"), FILES[1]], VALUES)
    assert f"mode 0604 → 0644  {SYSCTL}\n--- {SYSCTL}\n+++ {SYSCTL}\n" in text
    assert "+a = 1\n" in text and "\\ No newline at end of file\n" in text
    assert f"--- /dev/null\n+++ {LIMITS}\n" in text and "+hub - nofile 9\n" in text
    assert "net.core.somaxconn = 4096 → 65535\n" in text and "fs.nr_open" not in text and "not.there" not in text
    changes.apply(FILES, VALUES)
    text = changes.undo_diff(True)
    assert f"--- {LIMITS}\n+++ /dev/null\n" in text and "net.core.somaxconn = 65535 → 4096\n" in text
    assert "somaxconn" not in changes.undo_diff(False)
