"""Rehearsal: `hub check --boot` builds a whole worker, and nobody else notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis import Redis

from hub import serve
from hub.config import Settings
from hub.inheritance import FORMAT, VARIABLE, Estate, ListenerRecord, open_checked, seal, seal_checked, take_checked
from hub.reloadable import unpack
from tests.hubs import BASE, clean_environment, merged, to_toml
from tests.pki import Authority
from tests.test_inheritance import estate


def check(
    path: Path, settings: dict[str, object], left: Estate | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`hub check --boot --json` with settings over the tests' own; left: what a running hub would leave."""
    file = path / "hub.toml"
    file.write_text(to_toml(merged(BASE, settings)))
    words = [seal(left)] if left is not None else []
    env = {**clean_environment(), "XDG_RUNTIME_DIR": str(path), **environ}
    if words:
        env[VARIABLE] = str(words[0])
    kept = [left.checked] if left is not None and left.checked >= 0 else []
    try:
        return subprocess.run(
            [sys.executable, "-m", "hub", "check", "--boot", "--json", "--config", str(file)],
            capture_output=True, text=True, timeout=60, env=env, pass_fds=[*words, *kept],
        )  # fmt: skip
    finally:
        for descriptor in words:
            os.close(descriptor)


def test_a_worker_is_built_and_leaves_no_trace(valkey_url: str, prefix: str, tmp_path: Path) -> None:
    """With everything on: ticker, application, Socket.IO; not one key in Redis, no directory, no child."""
    application = tmp_path / "chat.py"
    application.write_text("from hub.app import App\napp = App()\n")
    settings: dict[str, object] = {
        "state_dir": str(tmp_path / "state"),
        "redis": {"url": valkey_url, "prefix": prefix},
        "ticker": {"source": "simulate"},
        "app": {"module": "chat:app"},
    }
    with Redis.from_url(valkey_url) as redis:
        before = redis.execute_command("INFO", "stats")["total_commands_processed"]
        done = check(tmp_path, settings)
        after = redis.execute_command("INFO", "stats")["total_commands_processed"]
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert (found["ok"], found["boot"], found["redis"]) == (True, True, "reached")
        assert list(redis.scan_iter(f"{prefix}:*")) == []
        # It has been asked, and not for much.
        assert 2 <= after - before < 25
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["chat.py", "hub.toml"]


def test_a_private_valkey_that_does_not_run_is_not_asked(tmp_path: Path) -> None:
    """Nor started, nor is its directory made."""
    done = check(tmp_path, {"state_dir": str(tmp_path / "state")})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["redis"] == "not running, not asked"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("settings", "status", "text"),
    [
        ({"redis": {"url": "redis://127.0.0.1:1", "start_timeout_s": 0.2}}, 3, "hub: Redis at "),
        ({"app": {"module": "nothing:app"}}, 2, "hub: app.module: "),
        (
            {"namespaces": {"x": {"mode": "none", "history_size": 5, "colour": 1}}},
            2,
            "hub: namespaces.x.colour: unknown",
        ),
    ],
)
def test_what_stands_in_the_way_is_a_line_and_a_status(tmp_path: Path, settings, status: int, text: str) -> None:
    """2 for a mistake in the settings, 3 for the machine; in JSON too."""
    done = check(tmp_path, {"state_dir": str(tmp_path / "state"), **settings})
    assert done.returncode == status and done.stderr.startswith(text), done
    found = json.loads(done.stdout)
    assert found["ok"] is False and found["errors"]


def test_a_running_hub_is_compared_with(tmp_path: Path) -> None:
    """What it would leave names settings that a deploy can't change."""
    left = estate(fixed={"workers": "7"}, valkey=None)
    done = check(tmp_path, {"workers": 3, "state_dir": str(tmp_path / "state")}, left)
    assert done.returncode == 2
    assert "hub: workers: found changed (was 7, is 3); needs a restart\n" in done.stderr
    assert "hub: redis: found changed; needs a restart\n" in done.stderr


def test_a_running_hub_gets_the_settings_that_were_checked(tmp_path: Path) -> None:
    """With what the files hold that they name, so that its heir has nothing left to read."""
    key = tmp_path / "key.pem"
    public = Ed25519PrivateKey.generate().public_key()
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    pair = Authority(tmp_path).issue().write(tmp_path)
    settings: dict[str, object] = {
        "state_dir": str(tmp_path / "state"),
        "listen": ["tls:127.0.0.1:0"],
        "auth": {"keys": [f"a={key}"]},
    }
    certificates = [{"cert": pair.cert, "key": pair.key}]
    fixed = serve.fixed_settings(Settings(**merged(BASE, {**settings, "tls": {"certificates": certificates}})), {})
    file = open_checked()
    left = estate(fixed=fixed, checked=file, valkey=None)
    done = check(tmp_path, settings, left, HUB_TLS__CERTIFICATES=json.dumps(certificates))
    assert done.returncode == 0, done.stderr
    assert seal_checked(file)
    found = unpack(take_checked(file))
    assert found.settings.auth.keys == [f"a={key}"] and found.keys == {str(key): key.read_bytes()}
    assert found.certificates is not None
    assert found.certificates.files == {str(path): Path(path).read_bytes() for path in pair}


def test_a_server_api_that_would_be_open_to_others_is_refused_here(tmp_path: Path) -> None:
    """By the addresses that the running hub has, which stand in no settings where systemd made them."""
    open_to_all = ListenerRecord(address="0.0.0.0:8001", setting="systemd:api", sockets=[3], shared=False, handed=True)
    settings: dict[str, object] = {
        "state_dir": str(tmp_path / "state"),
        "internal": ["systemd:api"],
        "api": {"key": ""},
    }
    fixed = serve.fixed_settings(Settings(**merged(BASE, settings)), {})
    for public, internal in (([], [open_to_all]), ([open_to_all], [])):
        done = check(tmp_path, settings, estate(fixed=fixed, public=public, internal=internal, valkey=None))
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("hub: internal: found 0.0.0.0:8001, which other machines may reach")


def test_what_is_left_in_another_format_is_refused(tmp_path: Path) -> None:
    """Here, where it costs nothing."""
    done = check(tmp_path, {}, estate(format=99))
    assert done.returncode == 3
    assert (
        done.stderr == f"hub: the running hub leaves its workers in format 99, this version reads {FORMAT}: restart\n"
    )
