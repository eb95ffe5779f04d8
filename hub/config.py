"""Settings: what the operator may choose, with unit, default and bounds, and how the values are found.

Does: merge systemd credentials > environment > TOML file, read the files that hold a secret each, check everything.
Does not: apply anything (listeners, workers and the rest take the frozen `Settings` they are handed), say what a table
may hold (sections), check a single text (values), nor word most of the messages: `mistakes` says in one line what
pydantic found.
Called by: cli, before anything is started.
Never break: `load` has no effect on the process, so that a running hub can check a new file without harm.
A new setting needs its field here or in its table (sections), its paragraph in config/hub.toml (a test compares them)
and a test of its bad values; a secret one also needs `repr=False`, which keeps it out of every message.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from .channels import NAMESPACE_NAME, Namespace
from .errors import ConfigError
from .mistakes import Number, Whole, as_table, bare, meant, sentences, short
from .origin import EVERYBODY
from .secret_files import CREDENTIALS_ENV, is_open, read_regular, read_secret
from .sections import (
    ApiSettings,
    AppSettings,
    AuthSettings,
    ClientSettings,
    EmbeddedSettings,
    HealthSettings,
    HttpSettings,
    LimitSettings,
    MailboxSettings,
    RedisSettings,
    RelaySettings,
    SocketIOSettings,
    TcpSettings,
    TickerSettings,
    TlsSettings,
    WorkerSettings,
)
from .values import (
    TICKER_SOURCES,
    AddressText,
    OriginText,
    TrustedText,
    parse_address,
)

ENV_PREFIX = "HUB_"
# Not settings: two of the command line's own, and the mark under which a skipped test fails.
ENV_OWN = frozenset({"HUB_API_KEY", "HUB_API_URL", "HUB_CI"})
CREDENTIAL_FILES = (".pem", ".key", ".crt")
DEFAULT_PATH = Path("/etc/hub/hub.toml")
MAX_FILE_BYTES = 16_777_216
"""Of the settings file: a larger one is another one, and must not fill the memory of a hub that looks at it."""


class Settings(BaseSettings):
    """All settings, checked. Frozen; a reload makes a new one."""

    # An error's own text would quote all settings, secrets included; `load` words each mistake itself.
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", hide_input_in_errors=True
    )

    workers: Literal["auto"] | Annotated[Whole, Field(ge=1, le=1024)] = Field("auto", description="auto: one per CPU")
    pin: bool = Field(False, description="tie worker i to CPU i of the affinity mask")
    listen: list[AddressText] = Field(["127.0.0.1:8000"], min_length=1, description="public listener: clients")
    internal: list[AddressText] = Field(["127.0.0.1:8001"], description="internal listener: server API")
    state_dir: str = Field("", description="empty: $STATE_DIRECTORY, else $XDG_STATE_HOME/hub")
    demo: bool = Field(False, description="the demo page at /, and no secret needed")
    allowed_origins: list[OriginText] = Field([], description="web origins besides the hub's own host")
    trusted_proxies: list[TrustedText] = Field(
        ["127.0.0.0/8", "::1/128", "unix:"], description="networks whose X-Forwarded-For is believed"
    )
    proxy_protocol: list[AddressText] = Field([], description="of listen: there a proxy sends PROXY v1 first")
    fast_upgrade: bool = Field(True, description="WebSocket handshakes without Tornado")
    drain_window_s: Number = Field(30.0, ge=0, le=3600, description="SIGTERM: clients are closed evenly over this time")
    shutdown_delay_s: Number = Field(0.0, ge=0, le=3600, description="SIGTERM: /readyz is 503 so long before the drain")
    deploy_timeout_s: Number = Field(60.0, ge=1, le=3600, description="SIGUSR2: for the check, and for the new workers")
    log_addresses: bool = Field(False, description="clients' IP addresses in the log: personal data")
    heartbeat_timeout_s: Number = Field(10.0, ge=1, le=600, description="a worker silent for so long is replaced")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: json for journald, text elsewhere")
    log_burst: Whole = Field(1000, ge=0, le=1_000_000, description="lines of a kind in 10 s, of a process. 0: no limit")
    redis: RedisSettings = RedisSettings.model_validate({})
    embedded: EmbeddedSettings = EmbeddedSettings.model_validate({})
    auth: AuthSettings = AuthSettings.model_validate({})
    api: ApiSettings = ApiSettings.model_validate({})
    tls: TlsSettings = TlsSettings.model_validate({})
    tcp: TcpSettings = TcpSettings.model_validate({})
    http: HttpSettings = HttpSettings.model_validate({})
    worker: WorkerSettings = WorkerSettings.model_validate({})
    limits: LimitSettings = LimitSettings.model_validate({})
    health: HealthSettings = HealthSettings.model_validate({})
    relay: RelaySettings = RelaySettings.model_validate({})
    client: ClientSettings = ClientSettings.model_validate({})
    socketio: SocketIOSettings = SocketIOSettings.model_validate({})
    mailbox: MailboxSettings = MailboxSettings.model_validate({})
    ticker: TickerSettings = TickerSettings.model_validate({})
    app: AppSettings = AppSettings.model_validate({})
    namespaces: dict[str, Namespace] = Field({}, description="by the text before a channel's first ':'")

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        """Put what `auth.hmac_secret_file` holds into `auth.hmac_secret`, and likewise for each secret."""
        lines: list[str] = []
        filled = dict(values)
        for table, name in _secrets(cls):
            given = filled.get(table)
            if not isinstance(given, dict):
                continue
            path = given.get(f"{name}_file")
            if not path or not isinstance(path, str):
                continue  # a value of another kind is a mistake that the field itself words
            key = f"{table}.{name}_file"
            if given.get(name):
                lines.append(f"{key}: found together with {table}.{name}; allowed: one of the two")
                continue
            try:
                filled[table] = {**given, name: read_secret(key, Path(path))}
            except ConfigError as error:
                lines.append(str(error))
        if lines:
            raise ValueError("\n".join(lines))
        return filled

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        lines = [
            *self._bad_names(),
            *self._bad_tls(),
            *self._bad_proxied(),
            *self._bad_cookie(),
            *self._bad_mailbox(),
            *(self._bad_ticker() if self.ticker.source != "none" else ()),
        ]
        if lines:
            raise ValueError("\n".join(lines))
        return self

    def _bad_names(self) -> Iterator[str]:
        for name in self.namespaces:
            if not NAMESPACE_NAME.fullmatch(name):
                yield f"namespaces: found {short(name)}; allowed: names of 1 to 64 of A-Z a-z 0-9 _ . -"

    def _bad_tls(self) -> Iterator[str]:
        speak = any(parse_address(text).tls for text in (*self.listen, *self.internal))
        if speak and not self.tls.certificates:
            yield "tls.certificates: found [] beside an address with tls:; allowed: one or more of {cert = …, key = …}"
        elif self.tls.certificates and not speak:
            yield 'tls.certificates: found beside no address with tls:; allowed: listen = ["tls:0.0.0.0:443"], say'

    def _bad_proxied(self) -> Iterator[str]:
        known = set(map(parse_address, self.listen))
        for text in self.proxy_protocol:
            if parse_address(text) not in known:
                yield f"proxy_protocol: found {short(text)}; allowed: addresses of listen"

    def _bad_cookie(self) -> Iterator[str]:
        # A browser sends a cookie whoever's page asks: without a list each page would have its visitors' rights.
        if self.auth.cookie and (not self.allowed_origins or EVERYBODY in self.allowed_origins):
            yield f"auth.cookie: found {short(self.auth.cookie)}; allowed: with a list of allowed_origins, without *"

    def _bad_mailbox(self) -> Iterator[str]:
        name = self.mailbox.namespace
        namespace = self.namespaces.get(name)
        # The default is no mistake where there are no mailboxes.
        named = name != MailboxSettings.model_fields["namespace"].default
        if named and (namespace is None or not namespace.mailbox):
            yield f"mailbox.namespace: found {short(name)}; allowed: a namespace with mailbox = true"

    def _bad_ticker(self) -> Iterator[str]:
        ticker = self.ticker
        namespace = self.namespaces.get(ticker.namespace)
        if namespace is None or namespace.mode != "latest":
            yield f'ticker.namespace: found {ticker.namespace!r}; allowed: a namespace with mode = "latest"'
        if ticker.source == "replay" and not ticker.file:
            yield "ticker.file: found ''; allowed: the path of a CSV or JSONL file, which source = \"replay\" reads"
        yield from self._bad_bars()
        # The first bad one only: the list may have 100,000 of them.
        bad = next((symbol for symbol in ticker.symbols if not NAMESPACE_NAME.fullmatch(symbol)), None)
        if bad is not None:
            yield f"ticker.symbols: found {short(bad)}; allowed: names of 1 to 64 of A-Z a-z 0-9 _ . -"

    def _bad_bars(self) -> Iterator[str]:
        name = self.ticker.bars_namespace
        rules = self.namespaces.get(name)
        if not self.ticker.bars:
            return
        if rules is None or rules.mode != "stream":
            yield f'ticker.bars_namespace: found {short(name)}; allowed: a namespace with mode = "stream"'
        elif rules.history == "nobody":
            found = f'found {short(name)}, whose history is for "nobody"'
            yield f"ticker.bars_namespace: {found}; allowed: one whose history a chart may read"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` hands the file's content in as init values, so these come last; credentials go first.
        return CredentialsSource(settings_cls), EnvironmentSource(settings_cls), init_settings

    def worker_count(self) -> int:
        """Processes to fork: the setting, or one per CPU that this process may run on."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers


class EnvironmentSource(EnvSettingsSource):
    """HUB_WORKERS, HUB_REDIS__URL and so on; lists and tables are JSON, such as HUB_LISTEN='["127.0.0.1:80"]'."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):  # the latter: nested thousands deep
            return value  # the model refuses a text there, in the same words as for a text in the file


class CredentialsSource(PydanticBaseSettingsSource):
    """systemd credentials: files in $CREDENTIALS_DIRECTORY named like the setting, such as `auth.hmac_secret`.

    But for CREDENTIAL_FILES, which a setting names, such as a private key.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the base class asks field by field; __call__ below answers for all at once

    def __call__(self) -> dict[str, Any]:
        directory = os.environ.get(CREDENTIALS_ENV)
        values: dict[str, Any] = {}
        for path in sorted(Path(directory).iterdir()) if directory else ():
            if path.suffix in CREDENTIAL_FILES:
                continue
            *tables, key = path.name.split(".")
            table = values
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"{path.name}: found beside a credential named {name!r}; allowed: one of the two")
            table[key] = path.read_text(encoding="utf-8").rstrip("\n")
        return values


def load(path: Path | None) -> Settings:
    """Read the file (None: no file), then environment and credentials over it.

    Raises ConfigError with one line for each mistake: the key, what was found, what is allowed.
    """
    values = _absolute(_read_file(path), path.parent) if path is not None else {}
    lines = _unknown_environment()
    # BaseSettings takes keys such as _env_prefix as its own options, so they never reach the unknown-key check.
    own = [key for key in values if key.startswith("_")]
    lines += [f"{bare(key)}: unknown setting; allowed: {', '.join(Settings.model_fields)}" for key in own]
    try:
        settings = Settings(**{key: value for key, value in values.items() if key not in own})
    except ValidationError as error:
        lines += sentences(Settings, error)
    except (OSError, UnicodeDecodeError) as error:
        lines.append(f"{CREDENTIALS_ENV}: found {error}; allowed: a directory of readable UTF-8 files")
    if lines:
        # A union reports each of its branches; for a person that is one mistake.
        raise ConfigError("\n".join(dict.fromkeys(lines)))
    return _resolved(settings, Path() if path is None else path.parent)


def exposed(path: Path) -> list[str]:
    """A line for each secret that stands in the settings file itself, where other users can read that."""
    values = _read_file(path)
    found = {f"{table}.{name}": values.get(table, {}).get(name, "") for table, name in _secrets(Settings)}
    held = [key for key, value in found.items() if value and (key != "redis.url" or "@" in value)]
    text = "{path}: other users can read {key} in it; chmod 0640, or give it as a credential or by {key}_file"
    return [text.format(path=path, key=key) for key in held] if held and is_open(path) else []


def _secrets(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Table and name of each secret that may stand in a file of its own."""
    for table, field in model.model_fields.items():
        inner = as_table(field.annotation)
        fields = inner.model_fields if inner is not None else {}
        yield from ((table, name) for name in fields if not fields[name].repr and f"{name}_file" in fields)


def _absolute(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """What the settings file says, with the secrets' files found from its directory."""
    for table, name in _secrets(Settings):
        key, given = f"{name}_file", values.get(table)
        if isinstance(given, dict) and isinstance(given.get(key), str) and given[key]:
            given[key] = str((base / given[key]).resolve())
    return values


def _resolved(settings: Settings, base: Path) -> Settings:
    """With the directories that it names found from `base`."""

    def found(text: str) -> str:
        return str((base / text).resolve())

    app, socketio = settings.app, settings.socketio
    pairs = [
        pair.model_copy(update={"cert": found(pair.cert), "key": found(pair.key)}) for pair in settings.tls.certificates
    ]
    tls = settings.tls.model_copy(update={"certificates": pairs})
    if app.module:
        app = app.model_copy(update={"directory": found(app.directory)})
    if app.pages:
        app = app.model_copy(update={"pages": found(app.pages)})
    if socketio.client_dir:
        socketio = socketio.model_copy(update={"client_dir": found(socketio.client_dir)})
    auth = settings.auth
    # With the sign in any case: then what is behind the first one is the path, whatever directory that is in.
    files = [f"{kid}={found(path)}" for kid, _, path in (text.rpartition("=") for text in auth.keys)]
    auth = auth.model_copy(update={"keys": files, "jwks_ca_file": auth.jwks_ca_file and found(auth.jwks_ca_file)})
    ticker = settings.ticker
    if ticker.source not in TICKER_SOURCES:
        ticker = ticker.model_copy(update={"directory": found(ticker.directory)})
    return settings.model_copy(update={"app": app, "auth": auth, "socketio": socketio, "ticker": ticker, "tls": tls})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        # The empty device says "no settings but the environment's"; any other, or a named pipe, may be without an end.
        data = b"" if os.path.realpath(path) == os.devnull else read_regular(path, MAX_FILE_BYTES)
        # As text mode has it: TOML knows no carriage return by itself.
        return tomllib.loads(data.decode().replace("\r\n", "\n"))
    except OSError as error:
        raise ConfigError(f"{path}: found {error.strerror or error}; allowed: a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: found {error}; allowed: TOML in UTF-8 (https://toml.io)") from None
    except RecursionError:
        raise ConfigError(f"{path}: found tables or lists nested hundreds deep; allowed: a settings file") from None


def _unknown_environment() -> list[str]:
    """A misspelt HUB_… variable would be without effect and without a word, so it is an error."""
    known = set(_environment_names(Settings, ENV_PREFIX))
    # What a table does not know reaches its model, which refuses it.
    tables = tuple(f"{ENV_PREFIX}{name.upper()}__" for name, field in Settings.model_fields.items() if _is_table(field))
    lines = []
    for name in sorted(os.environ):
        upper = name.upper()  # pydantic-settings reads hub_workers like HUB_WORKERS
        if upper.startswith(ENV_PREFIX) and name not in ENV_OWN and upper not in known and not upper.startswith(tables):
            hint = meant(upper, known)
            lines.append(f"{name}: unknown environment variable; {hint}allowed: HUB_KEY or HUB_TABLE__KEY of a setting")
    return lines


def _is_table(field: FieldInfo) -> bool:
    return as_table(field.annotation) is not None or get_origin(field.annotation) is dict


def _environment_names(table: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in table.model_fields.items():
        yield prefix + name.upper()
        if inner := as_table(field.annotation):
            yield from _environment_names(inner, f"{prefix}{name.upper()}__")
