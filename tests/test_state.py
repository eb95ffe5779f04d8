"""State: where the directory is, and that one hub alone has it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hub.config import Settings
from hub.errors import BootError
from hub.state import lock_state_dir, state_dir


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        ("/srv/hub", {"STATE_DIRECTORY": "/var/lib/x", "HOME": "/home/u"}, "/srv/hub"),
        ("", {"STATE_DIRECTORY": "/var/lib/hub", "XDG_STATE_HOME": "/x", "HOME": "/home/u"}, "/var/lib/hub"),
        ("", {"STATE_DIRECTORY": "/var/lib/hub:/var/lib/b", "HOME": "/home/u"}, "/var/lib/hub"),
        ("", {"XDG_STATE_HOME": "/x", "HOME": "/home/u"}, "/x/hub"),
        ("", {"XDG_STATE_HOME": "relative", "HOME": "/home/u"}, "/home/u/.local/state/hub"),
        ("", {"HOME": "/home/u"}, "/home/u/.local/state/hub"),
    ],
)
def test_the_setting_goes_before_systemd_before_xdg(setting: str, environ: dict[str, str], expected: str) -> None:
    """Each source is asked in its turn, and the answer is absolute."""
    assert state_dir(Settings(state_dir=setting), environ) == Path(expected)


def test_a_relative_setting_is_made_absolute() -> None:
    """Valkey changes its directory; a relative path would mean another place there."""
    assert state_dir(Settings(state_dir="state"), {}) == Path.cwd() / "state"


def test_a_second_hub_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """One line, naming the directory and who holds it."""
    with lock_state_dir(tmp_path), pytest.raises(BootError) as caught:
        lock_state_dir(tmp_path, wait_s=0.0)
    assert str(caught.value) == f"state_dir {tmp_path} is in use by another hub (pid {os.getpid()})"


def test_the_lock_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    """A lock file left by kill -9 is no obstacle, and a holder that is just dying is waited for."""
    code = (
        "import sys; from pathlib import Path; from hub.state import lock_state_dir\n"
        "file = lock_state_dir(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        killer = threading.Timer(0.1, holder.kill)
        killer.start()
        lock_state_dir(tmp_path, wait_s=10.0).close()
        killer.join()


def test_the_directory_is_made_private(tmp_path: Path) -> None:
    """Missing parents are made too; nobody else may look inside."""
    path = tmp_path / "a" / "b"
    lock_state_dir(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_an_unusable_directory_is_one_line(tmp_path: Path) -> None:
    """A file where the directory should be: the line names the setting, the path and the cause."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BootError, match=r"state_dir .*/file cannot be used: .*exists"):
        lock_state_dir(tmp_path / "file")
