"""Secret files: who may read them, and that nothing of a secret is ever seen."""

from __future__ import annotations

import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from hub import auth
from hub.errors import ConfigError
from hub.secret_files import MAX_BYTES, check_private, is_open, read_regular, read_secret
from tests.hubs import HubProcess, run_hub

CANARY = "canary-canary-canary-canary-canary"


def secret(path: Path, mode: int = 0o600, data: bytes = CANARY.encode() + b"\r\n") -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def special(kind: str, directory: Path) -> Path:
    """What is at a path, and is no file."""
    path = directory / "special"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path, 0o600)
    if kind == "link to a pipe":
        (directory / "link").symlink_to(path)
        return directory / "link"
    return path


def mistake(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_secret("auth.hmac_secret_file", path)
    assert CANARY not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "PATH")


def test_a_private_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """However it ends."""
    assert read_secret("k", secret(tmp_path / "a")) == CANARY
    assert read_secret("k", secret(tmp_path / "b", 0o400, b"one\n\n")) == "one"


def test_a_file_is_open_where_others_get_to_it(tmp_path: Path) -> None:
    """By its own mode, and those of all directories above."""
    with tempfile.TemporaryDirectory() as directory:
        path = secret(Path(directory, "a"), 0o644)
        assert not is_open(path)
        Path(directory).chmod(0o711)
        assert is_open(path)
        path.chmod(0o640)
        assert not is_open(path)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o640, 0o620, 0o610, 0o644, 0o777])
def test_what_others_can_read_or_write_is_refused(mode: int, tmp_path: Path) -> None:
    """Its group too, as it is the hub's own."""
    assert mistake(secret(tmp_path / "a", mode)) == (
        f"auth.hmac_secret_file: found PATH with mode {mode:04o}; allowed: 0600, or 0640 where its owner is not the"
        " hub's user"
    )


def test_the_group_may_read_what_belongs_to_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root leaves it for the hub: but not write it, and nobody else."""
    path = secret(tmp_path / "a", 0o640)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert read_secret("k", path) == CANARY
    for mode in (0o660, 0o644):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
            check_private("k", path)


def test_credentials_of_systemd_are_private_by_their_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0440 there; a file elsewhere gains nothing by it, nor by a link."""
    inside, outside = tmp_path / "credentials", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(inside))
    assert read_secret("k", secret(inside / "key.pem", 0o440)) == CANARY
    (inside / "link.pem").symlink_to(secret(outside / "a", 0o644))
    assert "with mode 0644" in mistake(inside / "link.pem")


def test_what_is_no_secret_is_told_without_its_content(tmp_path: Path) -> None:
    """Away, too large, no text, a directory."""
    here = "auth.hmac_secret_file: found PATH"
    assert mistake(tmp_path / "a") == f"{here}: No such file or directory; allowed: a file that the hub can read"
    large = secret(tmp_path / "b", data=CANARY.encode() * (MAX_BYTES // 30))
    assert mistake(large) == f"{here}: More than {MAX_BYTES} bytes; allowed: a file that the hub can read"
    assert mistake(secret(tmp_path / "c", data=CANARY.encode() + b"\xff")) == (
        f"{here}, which is no UTF-8; allowed: a text"
    )
    for nothing in (b"", b"\n"):
        assert mistake(secret(tmp_path / "e", data=nothing)) == f"{here}, which is empty; allowed: a secret"
    (tmp_path / "d").mkdir(mode=0o700)
    assert mistake(tmp_path / "d") == f"{here}: Is a directory; allowed: a file that the hub can read"


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """At once: nobody waits for who may write into a pipe, and no device is read without end."""
    path = special(kind, tmp_path)
    assert (
        mistake(path) == "auth.hmac_secret_file: found PATH: Not a regular file; allowed: a file that the hub can read"
    )
    with pytest.raises(OSError, match=r"Not a regular file|No such device"):
        read_regular(path, 100)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 100)
    assert read_regular(secret(tmp_path / "good", data=b"x" * 100), 100) == b"x" * 100
    with pytest.raises(OSError, match="More than 99 bytes"):
        read_regular(tmp_path / "good", 99)


def test_no_secret_is_ever_seen(tmp_path: Path) -> None:
    """A canary in each: not in what `hub check` prints, not in errors, not in the log at its loudest, not in argv."""
    own = ("auth.hmac_secret_file", "auth.hmac_secret_old_file", "auth.subscription_secret_file")
    names = (*own, "api.key_file", "relay.secret_file")
    canaries = {name: f"{CANARY}-{at}" for at, name in enumerate(names)}
    for name, text in canaries.items():
        secret(tmp_path / name, data=text.encode())
    settings = {
        "log_level": "debug",
        "workers": 1,
        "auth": {name.removeprefix("auth."): str(tmp_path / name) for name in own},
        "api": {"key_file": str(tmp_path / "api.key_file")},
        "relay": {"secret_file": str(tmp_path / "relay.secret_file"), "url": "http://127.0.0.1:1"},
        "namespaces": {"chat": {"subscribe": "anyone"}},
    }
    base = {"listen": ["127.0.0.1:0"], "internal": ["127.0.0.1:0"], "drain_window_s": 0.0}
    with HubProcess(base | settings, base=False) as hub:
        seen = [hub.ready_line]
        for words in (["check"], ["check", "--json"], ["token", "--user", "ann"], ["publish", "chat:a", "1"]):
            done = run_hub(*words, "--config", str(hub.config_path))
            seen += [done.stdout, done.stderr]
        token = auth.make("ann", canaries["auth.hmac_secret_old_file"], 60.0, time.time())
        door = hub.ws_url.replace("ws:", "http:").removesuffix("/connection/websocket")
        ways = (f"token={token}x", f"ticket={CANARY}", f"channel_token={token}x")
        urls = [f"{door}/{wire}?channel=chat:a&wait=0&{way}" for wire in ("poll", "sse") for way in ways]
        urls += [f"{hub.ws_url.replace('ws:', 'http:')}?{way}" for way in ways[:2]]
        with urllib.request.urlopen(f"{door}/poll?channel=chat:a&wait=0&token={token}", timeout=5) as good:
            assert good.status == 204  # of the secret before
        for url in (f"{hub.api_url}/publish?key={CANARY}", *urls):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(url, headers={"X-API-Key": CANARY}), timeout=5)
            seen.append(caught.value.read().decode())
        for pid in [hub.pid, *Path(f"/proc/{hub.pid}/task/{hub.pid}/children").read_text().split()]:
            seen.append(Path(f"/proc/{pid}/cmdline").read_text())
            seen.append(Path(f"/proc/{pid}/environ").read_text())
        seen.append(hub.logged("GET /poll 401"))  # it is at its loudest
        text = hub.config_path.read_text()
        hub.config_path.write_text(text + f"\n[tls]\nhandshakes = 0\n[auth.{CANARY[:6]}]\n")
        for words in (["check"], ["check", "--json"], ["serve"]):
            done = run_hub(*words, "--config", str(hub.config_path))
            assert done.returncode == 2
            seen += [done.stdout, done.stderr]
        assert token not in "".join(seen)
    for text in seen:
        assert CANARY not in text
