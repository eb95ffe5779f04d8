"""Settings: where values come from, that each mistake is one line, and that config/hub.toml says what the code does."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from hub.channels import Namespace
from hub.config import Settings, load
from hub.errors import ConfigError
from hub.mistakes import as_table
from hub.values import ALGORITHMS, parse_address

CONFIG = Path(__file__).parent.parent / "config"
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.upper().startswith("HUB_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a settings file and return its path."""

    def write(toml: str) -> Path:
        path = tmp_path / "hub.toml"
        path.write_text(toml)
        return path

    return write


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    return directory


def mistakes(path: Path | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).split("\n")


# -- where values come from --


def test_no_file_gives_the_defaults() -> None:
    """Without file, environment and credentials every setting has its default."""
    assert load(None).model_dump() == Settings.model_construct().model_dump()


def test_environment_goes_before_the_file_and_credentials_before_both(
    file: Any, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three sources of one key the credential wins; keys that only one source has stay."""
    path = file('[redis]\nprefix = "file"\nmaster = "m"\nsentinels = ["a:1"]\ncommand_timeout_s = 3')
    assert load(path).redis.prefix == "file"
    monkeypatch.setenv("HUB_REDIS__PREFIX", "env")
    assert load(path).redis.prefix == "env"
    (credentials / "redis.prefix").write_text("credential")
    settings = load(path)
    assert (settings.redis.prefix, settings.redis.master, settings.redis.command_timeout_s) == ("credential", "m", 3.0)


def test_a_credential_loses_its_last_newline(credentials: Path) -> None:
    """A secret written by an editor or by `echo` is the text without the newline."""
    (credentials / "auth.hmac_secret").write_text(SECRET + "\n")
    assert load(None).auth.hmac_secret == SECRET


def test_environment_gives_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, switches and texts stand as they are, lists and tables as JSON."""
    monkeypatch.setenv("HUB_WORKERS", "3")
    monkeypatch.setenv("HUB_DEMO", "true")
    monkeypatch.setenv("HUB_LISTEN", '["[::1]:9000"]')
    monkeypatch.setenv("HUB_TICKER__RATE_HZ", "2.5")
    monkeypatch.setenv("HUB_TICKER__SYMBOLS", '["A", "B"]')
    monkeypatch.setenv("HUB_NAMESPACES__TICKER__MODE", "latest")
    settings = load(None)
    assert (settings.workers, settings.demo, settings.listen) == (3, True, ["[::1]:9000"])
    assert (settings.ticker.rate_hz, settings.ticker.symbols) == (2.5, ["A", "B"])
    assert settings.namespaces == {"ticker": Namespace(mode="latest")}


@pytest.mark.parametrize("name", ["HUB_API_KEY", "HUB_API_URL", "HUB_CI", "HUBBLE", "OTHER"])
def test_the_command_lines_own_variables_are_no_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not ours, and the three names that are but hold no setting, are let alone."""
    monkeypatch.setenv(name, "x")
    assert load(None).api.key == ""


def test_worker_count_follows_the_affinity_mask() -> None:
    """ "auto" counts the CPUs that this process may use; a number is itself."""
    assert load(None).worker_count() == len(os.sched_getaffinity(0))
    assert load(None).model_copy(update={"workers": 7}).worker_count() == 7


def test_settings_are_frozen() -> None:
    """Nobody can change a value, in a table neither, after it was checked."""
    settings = load(None)
    with pytest.raises(ValueError, match="frozen"):
        settings.workers = 2
    with pytest.raises(ValueError, match="frozen"):
        settings.redis.prefix = "x"


# -- mistakes of the sources --


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    """A path that leads nowhere is named, and never means 'defaults'."""
    path = tmp_path / "none.toml"
    assert mistakes(path) == [f"{path}: found No such file or directory; allowed: a readable TOML file"]


def test_an_unreadable_file_is_a_mistake(tmp_path: Path) -> None:
    """So is what cannot be read as a file; nobody waits for who writes into a pipe, or for the end of a device."""
    assert mistakes(tmp_path) == [f"{tmp_path}: found Is a directory; allowed: a readable TOML file"]
    os.mkfifo(pipe := tmp_path / "pipe")
    (endless := tmp_path / "endless").symlink_to("/dev/zero")
    for path in (pipe, endless):
        assert mistakes(path) == [f"{path}: found Not a regular file; allowed: a readable TOML file"]


def test_a_link_and_the_empty_device_are_files(tmp_path: Path) -> None:
    """One may lead to the settings; the other says that there are none but the environment's."""
    (real := tmp_path / "real.toml").write_text("workers = 3")
    (link := tmp_path / "hub.toml").symlink_to(real)
    assert load(link).workers == 3 and load(Path("/dev/null")) == load(None)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "listen = " + "{b=" * 900 + "1" + "}" * 900])
def test_what_is_nested_too_deep_is_a_mistake(text: str, tmp_path: Path) -> None:
    """One line, as for any other bad file."""
    (path := tmp_path / "hub.toml").write_text(text)
    assert mistakes(path) == [f"{path}: found tables or lists nested hundreds deep; allowed: a settings file"]


@pytest.mark.parametrize(
    ("content", "found"), [(b"workers = = 2", "at line 1, column 11"), (b"# \xff", "can't decode byte")]
)
def test_bad_toml_is_a_mistake(content: bytes, found: str, tmp_path: Path) -> None:
    """A syntax error is one line with its place."""
    path = tmp_path / "hub.toml"
    path.write_bytes(content)
    [line] = mistakes(path)
    assert (
        line.startswith(f"{path}: found ")
        and found in line
        and line.endswith("allowed: TOML in UTF-8 (https://toml.io)")
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HUB_REDIS_URL", "did you mean 'HUB_REDIS__URL'? "),
        ("HUB_WORKERS__X", "did you mean 'HUB_WORKERS'? "),
        ("hub_wrkers", "did you mean 'HUB_WORKERS'? "),
        ("HUB_QQQ", ""),
    ],
)
def test_an_unknown_variable_is_a_mistake(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HUB_… that is no setting is named, with the nearest name that is one."""
    monkeypatch.setenv(name, "x")
    tail = "allowed: HUB_KEY or HUB_TABLE__KEY of a setting"
    assert mistakes(None) == [f"{name}: unknown environment variable; {hint}{tail}"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("HUB_WORKERS", "many", "workers: found 'many'; allowed: 'auto' or a whole number from 1 to 1024"),
        ("HUB_LISTEN", "127.0.0.1:1", "listen: found '127.0.0.1:1'; allowed: a list of texts, length from 1"),
        ("HUB_LISTEN", "[" * 99_999, f"listen: found '{'[' * 79}…; allowed: a list of texts, length from 1"),
        ("HUB_AUTH", f"{{{SECRET}", "auth: found a value that is not shown; allowed: a table"),
        ("HUB_NAMESPACES__A__X", "x", f"namespaces.a.x: unknown setting; allowed: {', '.join(Namespace.model_fields)}"),
        ("HUB_API__KEYS", "x", "api.keys: unknown setting; did you mean 'key'? allowed: key, key_file"),
    ],
)  # fmt: skip
def test_a_bad_value_of_the_environment(name: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's values are held to the file's rules, in the same words."""
    monkeypatch.setenv(name, value)
    assert mistakes(None) == [line]


def test_mistakes_of_credentials(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name, two that exclude each other, a file that is no text, and no directory: each is one line."""
    (credentials / "api.kez").write_text("x")
    assert mistakes(None) == ["api.kez: unknown setting; did you mean 'key'? allowed: key, key_file"]
    (credentials / "api").write_text("x")
    assert mistakes(None) == ["api.kez: found beside a credential named 'api'; allowed: one of the two"]
    (credentials / "api.kez").unlink()
    (credentials / "api").write_bytes(b"\xff")
    [line] = mistakes(None)
    assert line.startswith("CREDENTIALS_DIRECTORY: found 'utf-8' codec") and "allowed: a directory of readable" in line
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/nowhere/at/all")
    [line] = mistakes(None)
    assert "No such file or directory: '/nowhere/at/all'" in line


def test_every_mistake_is_told_at_once(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three mistakes in two places are three lines, not three attempts."""
    monkeypatch.setenv("HUB_QQQ", "x")
    lines = mistakes(file('workers = 0\n[redis]\nprefix = "a b"'))
    assert [line.split(":")[0] for line in lines] == ["HUB_QQQ", "workers", "redis.prefix"]


# -- mistakes of values --

NAMES = "names of 1 to 64 of A-Z a-z 0-9 _ . -"
ADDRESS = (
    "HOST:PORT with an IP address, [IPv6]:PORT, unix:/PATH of at most 107 bytes or systemd:NAME; with TLS tls:HOST:PORT"
    " and so on"
)
ORIGIN = (
    "SCHEME://HOST[:PORT] with http or https and no path, SCHEME://*.DOMAIN[:PORT] for its subdomains"
    ', or "*" for all origins'
)
REDIS_URL = "redis://…, rediss://… or unix:///…, with no options but db and ssl_ca_certs"
HIDDEN = "a value that is not shown"
REDIS = (
    "url, url_file, sentinels, master, prefix, start_timeout_s, command_timeout_s, pending_publishes, pending_bytes"
    ", full_percent"
)
SENTINEL = "HOST:PORT with a port from 1 to 65535"
BOTH = "found one of redis.sentinels and redis.master; allowed: both or neither"
ONE = "found together with redis.sentinels; allowed: one of the two"
EITHER = "found one of relay.url and relay.secret; allowed: both or neither"
HTTP_URL = "http://HOST:PORT or https://HOST:PORT, or empty"
KEY = "at least 16 characters (`openssl rand -hex 32` makes some), or empty"
LONG = "at least 32 bytes (RFC 7518 §3.2), or empty"
FILE = 'the path of a CSV or JSONL file, which source = "replay" reads'
LATEST = '[namespaces.t]\nmode = "latest"\n[ticker]\nnamespace = "t"\n'
BARS = LATEST + 'source = "simulate"\nbars = ["1m"]\n'
UNREAD = "found 'bars', whose history is for \"nobody\""
STREAM = 'allowed: a namespace with mode = "stream"'
TRUSTED = 'a network such as "10.0.0.0/8" without host bits, an IP address, or "unix:" for those of Unix listeners'
SOURCES = '"none", "simulate", "replay", "stream", or "FILE:NAME" of your own, as in Python, without .py'
MAILBOX = "a namespace with mailbox = true"
KEY_FILE = "PATH, or KID=PATH for tokens whose header has that kid; no more = in it"
JWKS = "https://HOST[:PORT]/PATH, or http:// on loopback, or empty"
OLD = "found without auth.hmac_secret; allowed: beside the newer one"
COOKIE = "a cookie's name, 1 to 64 of A-Z a-z 0-9 ! # $ % & ' * + - . ^ _ ` | ~, or empty"
LISTED = "found 't'; allowed: with a list of allowed_origins, without *"
BAD_VALUES = [
    ("workers = 0", "workers: found 0; allowed: 'auto' or a whole number from 1 to 1024"),
    ("workers = 1025", "workers: found 1025; allowed: 'auto' or a whole number from 1 to 1024"),
    ("workers = true", "workers: found True; allowed: 'auto' or a whole number from 1 to 1024"),
    ('pin = "maybe"', "pin: found 'maybe'; allowed: true or false"),
    ("demo = 2", "demo: found 2; allowed: true or false"),
    ("listen = []", "listen: found []; allowed: a list of texts, length from 1"),
    ("listen = [8000]", "listen[0]: found 8000; allowed: a list of texts, length from 1"),
    ('listen = ["127.0.0.1:1", "host:80"]', f"listen[1]: found 'host:80'; allowed: {ADDRESS}"),
    ('internal = ["8001"]', f"internal[0]: found '8001'; allowed: {ADDRESS}"),
    ("state_dir = 1979-05-27", "state_dir: found datetime.date(1979, 5, 27); allowed: text"),
    ('allowed_origins = ["https://*.org"]', f"allowed_origins[0]: found 'https://*.org'; allowed: {ORIGIN}"),
    ('allowed_origins = ["https://a/b"]', f"allowed_origins[0]: found 'https://a/b'; allowed: {ORIGIN}"),
    ('allowed_origins = ["https://a*.b.org"]', f"allowed_origins[0]: found 'https://a*.b.org'; allowed: {ORIGIN}"),
    ('allowed_origins = ["null"]', f"allowed_origins[0]: found 'null'; allowed: {ORIGIN}"),
    ('allowed_origins = ["*.org"]', f"allowed_origins[0]: found '*.org'; allowed: {ORIGIN}"),
    ('trusted_proxies = ["10.0.0.1/8"]', f"trusted_proxies[0]: found '10.0.0.1/8'; allowed: {TRUSTED}"),
    ('proxy_protocol = ["127.0.0.1:1"]', "proxy_protocol: found '127.0.0.1:1'; allowed: addresses of listen"),
    ("drain_window_s = -1", "drain_window_s: found -1; allowed: a number from 0 to 3600"),
    ("drain_window_s = nan", "drain_window_s: found nan; allowed: a number from 0 to 3600"),
    ("drain_window_s = inf", "drain_window_s: found inf; allowed: a number from 0 to 3600"),
    ("shutdown_delay_s = -1", "shutdown_delay_s: found -1; allowed: a number from 0 to 3600"),
    ("deploy_timeout_s = 0.5", "deploy_timeout_s: found 0.5; allowed: a number from 1 to 3600"),
    ("drain_window_s = false", "drain_window_s: found False; allowed: a number from 0 to 3600"),
    ('log_level = "loud"', "log_level: found 'loud'; allowed: one of 'debug', 'info', 'warning', 'error'"),
    ('log_format = "xml"', "log_format: found 'xml'; allowed: one of 'auto', 'text', 'json'"),
    ("log_burst = -1", "log_burst: found -1; allowed: a whole number from 0 to 1000000"),
    ("client = 3", "client: found 3; allowed: a table"),
    ("[client]\nchannels = 1.5", "client.channels: found 1.5; allowed: a whole number from 1 to 100000"),
    ("[client]\ndeflate = 6", "client.deflate: found 6; allowed: true or false"),
    (
        "[client]\ndeflate_min_bytes = -1",
        "client.deflate_min_bytes: found -1; allowed: a whole number from 0 to 16777216",
    ),
    ("[client]\ndeflate_level = 0", "client.deflate_level: found 0; allowed: a whole number from 1 to 9"),
    ("[client]\nclose_timeout_s = 0", "client.close_timeout_s: found 0; allowed: a number above 0 to 60"),
    (
        "[client]\npong_timeout_s = 30",
        "client.pong_timeout_s: found 30; allowed: less than client.ping_interval_s",
    ),
    ("[tcp.backlog]\nx = 1", "tcp.backlog: found {'x': 1}; allowed: a whole number from 1 to 65535"),
    ('[embedded]\nfsync = "never"', "embedded.fsync: found 'never'; allowed: one of 'always', 'everysec', 'no'"),
    ('redis = "redis://:hidden@h"', f"redis: found {HIDDEN}; allowed: a table"),
    ('[redis]\nurl = "http://:hidden@h"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "redis://h:99999/0"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "redis://[::1/x"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "redis://h/x"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "redis://h?foo=bar"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "redis://h?db=x"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nurl = "unix://rel.sock"', f"redis.url: found {HIDDEN}; allowed: {REDIS_URL}"),
    ('[redis]\nprefix = ""', "redis.prefix: found ''; allowed: 1 to 64 of A-Z a-z 0-9 _ . -"),
    ('[redis]\nprefix = "{a}"', "redis.prefix: found '{a}'; allowed: 1 to 64 of A-Z a-z 0-9 _ . -"),
    ('[redis]\nprfx = "a"\n', f"redis.prfx: unknown setting; did you mean 'prefix'? allowed: {REDIS}"),
    ('[redis]\nmaster = "m"\nsentinels = ["a"]', "redis.sentinels[0]: found 'a'; allowed: HOST:PORT of a Sentinel"),
    ('[redis]\nmaster = "m"\nsentinels = ["a:0"]', f"redis.sentinels[0]: found 'a:0'; allowed: {SENTINEL}"),
    ('[redis]\nmaster = "m"', f"redis.master: {BOTH}"),
    ('[redis]\nurl = "redis://h"\nmaster = "m"\nsentinels = ["a:1"]', f"redis.url: {ONE}"),
    ('auth = "hidden"', f"auth: found {HIDDEN}; allowed: a table"),
    ('[auth]\nhmac_secret = "hidden"', f"auth.hmac_secret: found {HIDDEN}; allowed: {LONG}"),
    ('[auth]\nhmac_secret = ["hidden"]', f"auth.hmac_secret: found {HIDDEN}; allowed: text"),
    (f'[auth]\nhmac_secret_old = "{SECRET}"', f"auth.hmac_secret_old: {OLD}"),
    ('[auth]\nkeys = ["a=b=c"]', f"auth.keys[0]: found 'a=b=c'; allowed: {KEY_FILE}"),
    ('[auth]\njwks_url = "http://h/k"', f"auth.jwks_url: found 'http://h/k'; allowed: {JWKS}"),
    ('[auth]\njwks_url = "http://127.0.0.1.x/"', f"auth.jwks_url: found 'http://127.0.0.1.x/'; allowed: {JWKS}"),
    ('[auth]\njwks_url = "https://u:p@h/"', f"auth.jwks_url: found 'https://…@h/'; allowed: {JWKS}"),
    ('[auth]\njwks_url = "https://h:99999/"', f"auth.jwks_url: found 'https://h:99999/'; allowed: {JWKS}"),
    ('[auth]\nalgorithms = ["none"]', f"auth.algorithms[0]: found 'none'; allowed: {', '.join(ALGORITHMS)}"),
    ("[auth]\nleeway_s = 31", "auth.leeway_s: found 31; allowed: a number from 0 to 30"),
    ('[auth]\ncookie = "a b"', f"auth.cookie: found 'a b'; allowed: {COOKIE}"),
    ('[auth]\ncookie = "t"', f"auth.cookie: {LISTED}"),
    ('allowed_origins = ["*"]\n[auth]\ncookie = "t"', f"auth.cookie: {LISTED}"),
    ("[api]\nkey = 12345", f"api.key: found {HIDDEN}; allowed: text"),
    (f'[api]\nkey = "{"k" * 15}"', f"api.key: found {HIDDEN}; allowed: {KEY}"),
    ('[relay]\nurl = "h:1"', f"relay.url: found 'h:1'; allowed: {HTTP_URL}"),
    ('[relay]\nurl = "http://h:99999"', f"relay.url: found 'http://h:99999'; allowed: {HTTP_URL}"),
    ('[relay]\nurl = "http://u:p@h:1"', f"relay.url: found 'http://…@h:1'; allowed: {HTTP_URL}"),
    ('[relay]\nsecret = "hidden"', f"relay.secret: found {HIDDEN}; allowed: {LONG}"),
    ('[relay]\nurl = "http://h:1"', f"relay.secret: {EITHER}"),
    ("[relay]\ntimeout_s = 0", "relay.timeout_s: found 0; allowed: a number above 0 to 60"),
    ("[relay]\npending = 0", "relay.pending: found 0; allowed: a whole number from 1 to 1000000"),
    ("namespaces = 3", "namespaces: found 3; allowed: a table"),
    ("namespaces.a = 3", "namespaces.a: found 3; allowed: a table"),
    ('[namespaces.a]\nmode = "log"', "namespaces.a.mode: found 'log'; allowed: one of 'none', 'stream', 'latest'"),
    ("[namespaces.a.b]", f"namespaces.a.b: unknown setting; allowed: {', '.join(Namespace.model_fields)}"),
    ('[namespaces."a b"]', f"namespaces: found 'a b'; allowed: {NAMES}"),
    ("[ticker]\nsymbols = []", "ticker.symbols: found []; allowed: a list of texts, length from 1 to 100000"),
    ('[mailbox]\nnamespace = "a"', "mailbox.namespace: found 'a'; allowed: a namespace with mailbox = true"),
    ('[mailbox]\nnamespace = "a"\n[namespaces.a]', f"mailbox.namespace: found 'a'; allowed: {MAILBOX}"),
    ('[ticker]\nsource = "simulate"', "ticker.namespace: found 'ticker'; allowed: a namespace with mode = \"latest\""),
    (LATEST + 'source = "replai"', f"ticker.source: found 'replai'; allowed: {SOURCES}"),
    (LATEST + 'source = "a/b:C"', f"ticker.source: found 'a/b:C'; allowed: {SOURCES}"),
    ("[ticker]\noptions = 3", "ticker.options: found 3; allowed: a table"),
    ("[ticker]\nmax_source_hz = -1", "ticker.max_source_hz: found -1; allowed: a number from 0 to 10000"),
    ("[ticker]\nbars_wait_s = 3601", "ticker.bars_wait_s: found 3601; allowed: a number from 0 to 3600"),
    ('[ticker]\nbars = "1m"', "ticker.bars: found '1m'; allowed: a list of texts, length from 0 to 6"),
    ('[ticker]\nbars = ["2m"]', 'ticker.bars[0]: found \'2m\'; allowed: "1s", "5s", "1m", "5m", "1h", "1d"'),
    (BARS, f"ticker.bars_namespace: found 'bars'; {STREAM}"),
    (BARS + '[namespaces.bars]\nmode = "latest"', f"ticker.bars_namespace: found 'bars'; {STREAM}"),
    (
        BARS + '[namespaces.bars]\nmode = "stream"\nhistory = "nobody"',
        f"ticker.bars_namespace: {UNREAD}; allowed: one whose history a chart may read",
    ),
    (LATEST + 'source = "replay"', f"ticker.file: found ''; allowed: {FILE}"),
    (LATEST + 'source = "simulate"\nsymbols = ["A", "B C", "D E"]', f"ticker.symbols: found 'B C'; allowed: {NAMES}"),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "line"), BAD_VALUES, ids=[toml for toml, _ in BAD_VALUES])
def test_a_bad_value_is_one_line(toml: str, line: str, file: Any) -> None:
    """Each mistake is exactly one line: the key, what was found, what is allowed; and no secret is in it."""
    assert mistakes(file(toml)) == [line]
    assert "hidden" not in line


@pytest.mark.parametrize("toml", ["wrkers = 1", '_env_prefix = "X_"', '"a\\nb" = 1'])
def test_an_unknown_key_lists_what_is_known(toml: str, file: Any) -> None:
    """Any top-level key that is no setting is refused, whatever its characters, and the known ones are named."""
    [line] = mistakes(file(toml))
    assert "unknown setting" in line and line.endswith("allowed: " + ", ".join(Settings.model_fields))


def test_secrets_stay_out_of_the_settings_text() -> None:
    """A logged Settings object shows no secret."""
    relay = {"url": "http://h:1", "secret": SECRET}
    redis = {"url": "redis://:hidden@h"}
    text = repr(Settings(auth={"hmac_secret": SECRET}, api={"key": "hidden-hidden-hidden"}, redis=redis, relay=relay))
    assert SECRET not in text and "hidden" not in text
    with pytest.raises(ValidationError) as caught:
        Settings(auth={"hmac_secret": SECRET}, listen=["tls:127.0.0.1:443"])
    assert SECRET not in str(caught.value)


# -- secrets in files --

SECRETS = [("auth", "hmac_secret"), ("api", "key"), ("relay", "secret"), ("redis", "url")]


@pytest.mark.parametrize(("table", "name"), SECRETS)
def test_a_secret_may_stand_in_a_file_of_its_own(table: str, name: str, file: Any, tmp_path: Path) -> None:
    """Found from the settings file's directory; what others can read is one line, without the content."""
    text = "redis://:hidden-hidden-hidden-hidden-hidden@h/1" if name == "url" else SECRET
    secret = tmp_path / "secret"
    secret.write_text(text + "\n")
    secret.chmod(0o600)
    more = 'url = "http://h:1"\n' if table == "relay" else ""
    path = file(f'[{table}]\n{more}{name}_file = "secret"\n')
    settings = load(path)
    assert getattr(getattr(settings, table), name) == text
    assert text not in repr(settings)
    secret.chmod(0o644)
    key = f"{table}.{name}_file: found {secret}"
    assert mistakes(path) == [f"{key} with mode 0644; allowed: 0600, or 0640 where its owner is not the hub's user"]
    secret.unlink()
    assert mistakes(path) == [f"{key}: No such file or directory; allowed: a file that the hub can read"]


def test_mistakes_of_secret_files(file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the secret itself, wherever that comes from; a bad one inside; a file that is no text. All at once."""
    secret = tmp_path / "secret"
    secret.write_text("short")
    secret.chmod(0o600)
    assert mistakes(file('[auth]\nhmac_secret_file = "secret"')) == [
        f"auth.hmac_secret: found {HIDDEN}; allowed: at least 32 bytes (RFC 7518 §3.2), or empty"
    ]
    monkeypatch.setenv("HUB_API__KEY", "k" * 16)
    assert mistakes(file('[auth]\nhmac_secret_file = "none"\n[api]\nkey_file = "secret"')) == [
        f"auth.hmac_secret_file: found {tmp_path}/none: No such file or directory; allowed: a file that the hub can"
        " read",
        "api.key_file: found together with api.key; allowed: one of the two",
    ]
    assert mistakes(file("[auth]\nhmac_secret_file = 1")) == ["auth.hmac_secret_file: found 1; allowed: text"]


def test_a_credential_may_be_a_file_that_a_setting_names(file: Any, credentials: Path) -> None:
    """A private key, say: it is no setting."""
    for name in ("hub.pem", "hub.key", "hub.crt"):
        (credentials / name).write_text("x")
    assert load(None) == Settings()


# -- TLS --


def test_certificates_and_their_listeners_belong_together(file: Any, tmp_path: Path) -> None:
    """One without the other is a mistake; the files are found from the settings file."""
    pair = '[tls]\ncertificates = [{ cert = "a.pem", key = "/b.pem" }]'
    [none] = mistakes(file('listen = ["tls:127.0.0.1:443"]'))
    assert none.startswith("tls.certificates: found [] beside an address with tls:; allowed: one or more")
    [no_use] = mistakes(file(pair))
    assert no_use.startswith("tls.certificates: found beside no address with tls:; allowed: listen = ")
    for key in ("listen", "internal"):
        [found] = load(file(f'{key} = ["tls:127.0.0.1:443"]\n{pair}')).tls.certificates
        assert (found.cert, found.key) == (f"{tmp_path}/a.pem", "/b.pem")


# -- the files under config/ --

HUB_TOML = (CONFIG / "hub.toml").read_text()
UNCOMMENTED = re.sub(r"^# (?=\[|[a-z_]+ = )", "", HUB_TOML, flags=re.MULTILINE)


def keys(table: Any, prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def fields(model: Any = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if name == "namespaces" and not prefix:
            yield from fields(Namespace, "namespaces.default.")
        elif inner := as_table(field.annotation):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def test_hub_toml_as_shipped_changes_nothing() -> None:
    """The file with every line commented out is the same as no file."""
    assert load(CONFIG / "hub.toml") == load(None)


def test_hub_toml_shows_the_defaults(file: Any) -> None:
    """Uncommented, the file gives the code's defaults; the namespace "default" exists with its own in any case."""
    settings = load(file(UNCOMMENTED))
    assert settings.namespaces == {"default": Namespace()}
    assert settings.model_copy(update={"namespaces": {}}) == load(None)


def test_hub_toml_has_every_setting_and_nothing_else() -> None:
    """The file's keys are the code's, in the code's order."""
    assert [*keys(tomllib.loads(UNCOMMENTED))] == [name for name, _ in fields()]


def test_hub_toml_names_bounds_and_choices() -> None:
    """The paragraph above a setting carries each bound and each choice that the code has."""
    known = dict(fields())
    table, missing = "", []
    for paragraph in re.split(r"\n\n+", UNCOMMENTED):
        if header := re.search(r"^\[(.+)\]$", paragraph, re.MULTILINE):
            table = f"{header[1]}."
        for name in re.findall(r"^([a-z_]+) = ", paragraph, re.MULTILINE):
            comment = "\n".join(line for line in paragraph.splitlines() if line.startswith("#"))
            field = known[table + name]
            words = [str(getattr(m, side)) for m in field.metadata for side in ("ge", "gt", "le") if hasattr(m, side)]
            words += [f'"{word}"' for word in get_args(field.annotation) if isinstance(word, str)]
            missing += [(table + name, word) for word in words if word not in comment]
    assert missing == []


def test_the_examples_of_namespaces_are_valid(file: Any) -> None:
    """Whoever uncomments the indented examples gets what they say."""
    examples = "\n".join(re.findall(r"^#     (.*)$", HUB_TOML, re.MULTILINE))
    namespaces = load(file(examples)).namespaces
    assert namespaces["ticker"] == Namespace(mode="latest", subscribe="anyone")
    assert namespaces["chat"] == Namespace(publish="subscriber")


def test_the_demo_is_embedded_quick_and_open() -> None:
    """config/demo.toml simulates prices that anybody may watch, on loopback and without an outside Redis."""
    settings = load(CONFIG / "demo.toml")
    assert settings.demo and not settings.redis.url and settings.drain_window_s < 1
    assert settings.ticker.source == "simulate" and len(settings.ticker.symbols) == 20
    assert "ACME" in settings.ticker.symbols
    assert settings.ticker.bars == ["1s", "1m"]
    assert (settings.namespaces["bars"].mode, settings.namespaces["bars"].history) == ("stream", "anyone")
    ticker = Namespace(mode="latest", subscribe="anyone", watch=100, stale_ms=3000)
    assert settings.namespaces["ticker"] == ticker
    open_to_all = {"subscribe": "anyone", "publish": "anyone", "presence": "subscriber", "join_leave": True}
    assert settings.namespaces["chat"] == Namespace(mode="stream", **open_to_all)
    assert settings.namespaces["inbox"] == Namespace(mailbox=True)
    assert all(parse_address(text).host == "127.0.0.1" for text in [*settings.listen, *settings.internal])


def test_the_demo_state_is_ignored_by_git() -> None:
    """What the demo writes into the working directory can't be committed by accident."""
    ignored = (CONFIG.parent / ".gitignore").read_text().splitlines()
    assert load(CONFIG / "demo.toml").state_dir + "/" in ignored


def test_a_source_of_ones_own_is_found_from_the_settings_file(file: Any) -> None:
    """As the application is; with other sources nothing is looked for."""
    path = file(LATEST + 'source = "own:Quotes"\noptions = { path = "/x", ports = [1] }')
    ticker = load(path).ticker
    assert (ticker.source, ticker.directory) == ("own:Quotes", str(path.parent.resolve()))
    assert ticker.options == {"path": "/x", "ports": [1]}
    assert load(file(LATEST + 'source = "own:Quotes"\ndirectory = "code"')).ticker.directory.endswith("/code")
    assert load(file(LATEST + 'source = "simulate"')).ticker.directory == ""


def test_the_application_is_found_from_the_settings_file(file: Any) -> None:
    """Wherever the hub is started; without one nothing is looked for."""
    path = file('[app]\nmodule = "chat:app"')
    assert load(path).app.directory == str(path.parent.resolve())
    assert load(file('[app]\nmodule = "chat:app"\ndirectory = "code"')).app.directory.endswith("/code")
    assert load(file('[app]\nmodule = "chat:app"\ndirectory = "/srv"')).app.directory == "/srv"
    assert load(file("")).app.directory == ""
    assert (load(file("")).app.pages, load(file("")).socketio.client_dir) == ("", "")
    found = load(file('[app]\npages = "page"\n[socketio]\nclient_dir = "../dist"'))
    assert found.app.pages == str(path.parent.resolve() / "page")
    assert found.socketio.client_dir == str(path.parent.parent.resolve() / "dist")
    for module in ("chat", "../chat:app", ":app"):
        allowed = 'allowed: "FILE:NAME" or "PACKAGE.FILE:NAME", as in Python, without .py'
        [line] = mistakes(file(f'[app]\nmodule = "{module}"'))
        assert line == f"app.module: found {module!r}; {allowed}"


def test_files_of_auth_are_found_from_the_settings_file(file: Any) -> None:
    """Keys with and without a kid, also below a directory whose name has the sign between the two."""
    path = file('[auth]\nkeys = ["a.pem", "new=keys/b.pem"]\njwks_ca_file = "ca.pem"')
    base = path.parent.resolve()
    assert load(path).auth.keys == [f"={base}/a.pem", f"new={base}/keys/b.pem"]
    assert load(path).auth.jwks_ca_file == f"{base}/ca.pem"
    assert load(file("")).auth.jwks_ca_file == ""


def test_a_cookie_goes_with_a_list_of_origins(file: Any) -> None:
    """Then it is taken as it stands."""
    assert load(file('allowed_origins = ["https://a.example"]\n[auth]\ncookie = "t"')).auth.cookie == "t"


@pytest.mark.parametrize("url", ["https://idp.example/.well-known/jwks.json?v=2", "http://localhost:8080", ""])
def test_a_key_set_is_fetched_safely(url: str, file: Any) -> None:
    """Over TLS, or from this machine."""
    assert load(file(f'[auth]\njwks_url = "{url}"')).auth.jwks_url == url
