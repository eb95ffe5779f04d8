"""Sections: the tables of the settings file, each with its values, their units, defaults and bounds.

Does: say for each table what may stand in it, and what of it does not fit together.
Does not: find values or put tables together (config), nor check a single text (values).
Called by: config, and by every room that is handed a table.
Never break: a secret has `repr=False`, which keeps it out of every message.
A new setting: as config says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .mistakes import Number, Whole
from .values import (
    AlgorithmText,
    ApiKeyText,
    CookieText,
    HttpUrl,
    IntervalText,
    JwksUrl,
    KeyFileText,
    ModuleText,
    PrefixText,
    RedisUrl,
    SecretText,
    SentinelText,
    SocketIONamespace,
    SourceText,
)

SECRET_FILE = "the same in a file of its own, which nobody else may read; relative to the settings file"


class Section(BaseModel):
    """A table of the settings file: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(Section):
    url: RedisUrl = Field("", description="empty: the embedded one", repr=False)
    url_file: str = Field("", description=SECRET_FILE)
    sentinels: list[SentinelText] = Field([], description="Sentinel addresses HOST:PORT, instead of url")
    master: str = Field("", description="name of the primary that the Sentinels watch")
    prefix: PrefixText = Field("hub", description="begins every key and Redis channel")
    start_timeout_s: Number = Field(10.0, ge=0, le=3600, description="how long the start waits for Redis")
    command_timeout_s: Number = Field(2.0, gt=0, le=60, description="after this a command has failed as temporary")
    pending_publishes: Whole = Field(10_000, ge=1, le=10_000_000, description="publishes waiting for Redis, per worker")
    pending_bytes: Whole = Field(67_108_864, ge=65_536, le=1_099_511_627_776, description="their bodies, in one worker")
    full_percent: Whole = Field(90, ge=0, le=99, description="of maxmemory; beyond, nothing more is kept for clients")

    @model_validator(mode="after")
    def _one_way_in(self) -> RedisSettings:
        if self.url and self.sentinels:
            raise ValueError("redis.url: found together with redis.sentinels; allowed: one of the two")
        if bool(self.sentinels) != bool(self.master):
            raise ValueError("redis.master: found one of redis.sentinels and redis.master; allowed: both or neither")
        return self


class EmbeddedSettings(Section):
    maxmemory_mb: Whole = Field(256, ge=16, le=1_048_576, description="full: publishes fail, nothing is evicted")
    fsync: Literal["always", "everysec", "no"] = Field("everysec", description="of the append-only file")


class AuthSettings(Section):
    hmac_secret: SecretText = Field("", description="key of HS256, HS384 and HS512 tokens", repr=False)
    hmac_secret_file: str = Field("", description=SECRET_FILE)
    hmac_secret_old: SecretText = Field("", description="the one before, still good", repr=False)
    hmac_secret_old_file: str = Field("", description=SECRET_FILE)
    keys: list[KeyFileText] = Field([], max_length=16, description="PEM files of public keys: PATH or KID=PATH")
    jwks_url: JwksUrl = Field("", description="an identity provider's key set")
    jwks_refresh_s: Number = Field(300.0, ge=60, le=86_400, description="between two fetches of the key set")
    jwks_ca_file: str = Field("", description="who signs that server's certificate; relative to the settings file")
    algorithms: list[AlgorithmText] = Field([], description="allowed ones; empty: all that the keys can do")
    audience: str = Field("", description="must be among a token's aud; empty: a token must have none")
    issuer: str = Field("", description="must be a token's iss; empty: any")
    leeway_s: Number = Field(0.0, ge=0, le=30, description="for clocks that differ")
    expire_grace_s: Number = Field(25.0, ge=0, le=3600, description="token ended and not refreshed; then 3005")
    cookie: CookieText = Field("", description="name of a cookie that may hold the token; needs allowed_origins")
    cache: Whole = Field(10_000, ge=0, le=10_000_000, description="good tokens remembered by one worker; 0 = none")
    subscription_secret: SecretText = Field("", description="of channel tokens; empty: same keys", repr=False)
    subscription_secret_file: str = Field("", description=SECRET_FILE)
    subscription_audience: str = Field("", description="aud of channel tokens; empty: auth.audience")
    revocations: Whole = Field(
        100_000, ge=1, le=10_000_000, description="tokens and users that are kept out; more: 106"
    )

    @property
    def has_keys(self) -> bool:
        """Some token could be good."""
        return bool(self.hmac_secret or self.keys or self.jwks_url)

    @model_validator(mode="after")
    def _newer_first(self) -> AuthSettings:
        if self.hmac_secret_old and not self.hmac_secret:
            raise ValueError("auth.hmac_secret_old: found without auth.hmac_secret; allowed: beside the newer one")
        return self


class ApiSettings(Section):
    key: ApiKeyText = Field("", description="what X-API-Key must carry; empty: the server API is off", repr=False)
    key_file: str = Field("", description=SECRET_FILE)


class CertificateSettings(Section):
    cert: str = Field(min_length=1, description="certificate and chain, PEM; relative to the settings file")
    key: str = Field(min_length=1, description="its key, PEM; likewise")


class TlsSettings(Section):
    certificates: list[CertificateSettings] = Field([], max_length=1000, description="of listeners with tls:")
    reload_s: Number = Field(10.0, ge=0.1, le=86_400, description="so often the files are looked at")
    handshakes: Whole = Field(1000, ge=1, le=1_000_000, description="unfinished, per worker; the oldest is cut")


class TcpSettings(Section):
    backlog: Whole = Field(65_535, ge=1, le=65_535, description="accept queue per listener, capped by somaxconn")
    keepalive_idle_s: Whole = Field(60, ge=1, le=7200, description="silence before the first TCP keepalive probe")
    keepalive_interval_s: Whole = Field(15, ge=1, le=600, description="between probes")
    keepalive_count: Whole = Field(3, ge=1, le=20, description="unanswered probes until the connection is dead")
    user_timeout_s: Whole = Field(60, ge=1, le=3600, description="data unacknowledged for so long: it is dead")
    send_buffer_bytes: Whole = Field(131_072, ge=4096, le=16_777_216, description="SO_SNDBUF of a client's socket")
    receive_buffer_bytes: Whole = Field(16_384, ge=4096, le=16_777_216, description="SO_RCVBUF of a client's socket")
    notsent_lowat_bytes: Whole = Field(2048, ge=1024, le=16_777_216, description="its TCP_NOTSENT_LOWAT")


class HttpSettings(Section):
    header_timeout_s: Number = Field(10.0, gt=0, le=600, description="from accept to the end of the request's head")
    body_timeout_s: Number = Field(10.0, gt=0, le=600, description="for a request's body")
    idle_timeout_s: Number = Field(75.0, gt=0, le=3600, description="between two requests of a kept-alive connection")
    answer_timeout_s: Number = Field(60.0, gt=0, le=3600, description="for a client to read an answer")
    header_bytes: Whole = Field(16_384, ge=1024, le=1_048_576, description="size of a request's head; more: 431, 414")
    body_bytes: Whole = Field(1_048_576, ge=1024, le=1_073_741_824, description="size of a request's body; more: 413")
    header_fields: Whole = Field(100, ge=16, le=10_000, description="of a request's head; more: 431")
    query_fields: Whole = Field(256, ge=16, le=1000, description="parameters of a request's query; more: 400")


class WorkerSettings(Section):
    handshakes_per_s: Whole = Field(10_000, ge=0, le=1_000_000, description="in one worker; more: 503. 0 = no limit")
    busy_ms_per_s: Whole = Field(200, ge=0, le=1000, description="of the loop, for all busy connections. 0 = any")
    polls: Whole = Field(10_000, ge=1, le=1_000_000, description="long polls that wait in one worker; more: 429")
    batch_bytes: Whole = Field(67_108_864, ge=65_536, le=1_099_511_627_776, description="waiting for the fan-out")
    ring_bytes: Whole = Field(67_108_864, ge=0, le=1_099_511_627_776, description="recent messages kept in a worker")
    linger_s: Number = Field(5.0, ge=0, le=3600, description="a stream channel is followed on without subscribers")
    resubscribes_per_s: Whole = Field(2000, ge=1, le=1_000_000, description="clients told to resubscribe, paced")
    presence_grace_s: Number = Field(
        5.0, ge=0, le=30, description="a lost connection's leave push waits for its return"
    )
    backlog_bytes: Whole = Field(268_435_456, ge=1024, le=1_099_511_627_776, description="unsent, all of a worker")


class LimitSettings(Section):
    commands_per_s: Whole = Field(1000, ge=0, le=1_000_000, description="of one connection; more: 111. 0 = no limit")
    bytes_per_s: Whole = Field(1_048_576, ge=0, le=1_073_741_824, description="of its messages; more: 111. 0 = none")
    user_commands_per_s: Whole = Field(0, ge=0, le=10_000_000, description="of one user, in one worker. 0 = no limit")
    user_bytes_per_s: Whole = Field(0, ge=0, le=1_099_511_627_776, description="of their messages. 0 = no limit")
    ip_commands_per_s: Whole = Field(0, ge=0, le=10_000_000, description="of one address, in one worker. 0 = no limit")
    ip_bytes_per_s: Whole = Field(0, ge=0, le=1_099_511_627_776, description="of their messages. 0 = no limit")
    tolerated_s: Number = Field(5.0, ge=0, le=3600, description="over a rate for longer: 3013; over channels: 3505")
    ip_handshakes_per_s: Whole = Field(100, ge=0, le=1_000_000, description="in one worker; more: 429. 0 = no limit")
    ip_offences_per_s: Whole = Field(
        5, ge=0, le=1_000_000, description="connections closed for what they sent; more: no handshakes. 0 = any"
    )
    loop_ms_per_s: Whole = Field(
        50, ge=0, le=1000, description="a connection may keep the loop busy; then unread. 0 = any"
    )
    ip_loop_ms_per_s: Whole = Field(100, ge=0, le=1000, description="the same, busy ones of an address. 0 = any")
    ip_connections: Whole = Field(1000, ge=0, le=10_000_000, description="of one address; more: 429. 0 = no limit")
    user_connections: Whole = Field(0, ge=0, le=1_000_000, description="of one user; more: 3504. 0 = no limit")
    connections: Whole = Field(0, ge=0, le=10_000_000, description="of one worker; more: 503. 0 = by descriptors")
    channels: Whole = Field(1_000_000, ge=0, le=100_000_000, description="with subscribers in one worker; more: 111")
    ip_network_bits: Whole = Field(64, ge=16, le=128, description="bits by which IPv6 addresses are told apart")
    remembered: Whole = Field(65_536, ge=1, le=10_000_000, description="addresses, and users, of which nobody is here")


class HealthSettings(Section):
    min_workers: Whole = Field(1, ge=1, le=1024, description="that live, or /readyz is 503; all, where there are fewer")
    needs_redis: bool = Field(True, description="/readyz is 503 while Redis is away; /livez never is")


class RelaySettings(Section):
    timeout_s: Number = Field(5.0, gt=0, le=60, description="for the answer of the worker where a session lives")
    pending: Whole = Field(10_000, ge=1, le=1_000_000, description="asked at a time, by one worker of another")
    message_bytes: Whole = Field(8_388_608, ge=65_536, le=1_073_741_824, description="one request or answer")
    buffer_bytes: Whole = Field(67_108_864, ge=65_536, le=1_099_511_627_776, description="unsent, to one worker")
    url: HttpUrl = Field("", description="how other machines reach internal")
    secret: SecretText = Field("", description="the same on all machines", repr=False)
    secret_file: str = Field("", description=SECRET_FILE)

    @model_validator(mode="after")
    def _both_or_neither(self) -> RelaySettings:
        if bool(self.url) != bool(self.secret):
            raise ValueError("relay.secret: found one of relay.url and relay.secret; allowed: both or neither")
        return self


class ClientSettings(Section):
    connect_timeout_s: Number = Field(10.0, gt=0, le=600, description="handshake to connect command; then 3502")
    ping_interval_s: Number = Field(25.0, ge=1, le=3600, description="between the hub's pings")
    pong_timeout_s: Number = Field(10.0, ge=1, le=3600, description="silence after a ping; then 3012")
    close_timeout_s: Number = Field(5.0, gt=0, le=60, description="for the client's answer to a close frame")
    message_timeout_s: Number = Field(20.0, gt=0, le=600, description="first byte to last of a message; then 1008")
    message_bytes: Whole = Field(65_536, ge=128, le=16_777_216, description="one message from a client; more: 1009")
    fragments: Whole = Field(64, ge=1, le=65_536, description="frames that one message may be split into; more: 1008")
    deflate: bool = Field(False, description="compress for clients that offer permessage-deflate (RFC 7692)")
    deflate_min_bytes: Whole = Field(1024, ge=0, le=16_777_216, description="shorter messages go uncompressed")
    deflate_level: Whole = Field(1, ge=1, le=9, description="zlib's: 1 is the fastest, 9 the smallest")
    json_depth: Whole = Field(32, ge=2, le=128, description="nesting of published data; deeper: 107")
    json_values: Whole = Field(10_000, ge=100, le=1_000_000, description="values in one command; more: 3501")
    pings_per_s: Whole = Field(10, ge=0, le=1_000_000, description="pings and pongs of its own; more: 1008. 0 = none")
    commands_per_message: Whole = Field(256, ge=1, le=10_000, description="commands joined in one message; more: 3501")
    pending_commands: Whole = Field(256, ge=1, le=10_000, description="a client's, waiting for Redis; more: 111")
    recovery_publications: Whole = Field(300, ge=1, le=10_000, description="missed ones in one reply; more: lost")
    recovery_bytes: Whole = Field(1_048_576, ge=1024, le=1_073_741_824, description="of them in one reply; more: lost")
    history_publications: Whole = Field(300, ge=1, le=10_000, description="in one answer to a history command")
    presence_clients: Whole = Field(1000, ge=1, le=10_000, description="in one answer to presence; more: 106")
    subscription_grace_s: Number = Field(25.0, ge=0, le=3600, description="for a channel token's renewal; then 2501")
    channels: Whole = Field(128, ge=1, le=100_000, description="subscriptions of one connection; more: 106")
    outbox_conflate_bytes: Whole = Field(0, ge=0, le=1_073_741_824, description="from here on latest is conflated")
    outbox_drop_bytes: Whole = Field(524_288, ge=0, le=1_073_741_824, description="from here on none is dropped")
    outbox_bytes: Whole = Field(1_048_576, ge=1024, le=1_073_741_824, description="unsent, per connection; more: 3008")
    outbox_frames: Whole = Field(10_000, ge=1, le=10_000_000, description="unsent, per connection; more: 3008")

    @model_validator(mode="after")
    def _pong_before_next_ping(self) -> ClientSettings:
        if self.pong_timeout_s >= self.ping_interval_s:
            raise ValueError(
                f"client.pong_timeout_s: found {self.pong_timeout_s:g}; allowed: less than client.ping_interval_s"
            )
        return self


class SocketIOSettings(Section):
    enabled: bool = Field(True, description="Socket.IO clients at /socket.io/")
    namespaces: list[SocketIONamespace] = Field([], max_length=100, description="Socket.IO namespaces besides /")
    ping_interval_ms: Whole = Field(25_000, ge=200, le=3_600_000, description="pingInterval: between two pings")
    ping_timeout_ms: Whole = Field(20_000, ge=200, le=3_600_000, description="pingTimeout: for the pong")
    connect_timeout_ms: Whole = Field(45_000, ge=200, le=3_600_000, description="connectTimeout: to join a namespace")
    upgrade_timeout_ms: Whole = Field(10_000, ge=200, le=3_600_000, description="upgradeTimeout: of a WebSocket probe")
    recovery_ms: Whole = Field(0, ge=0, le=86_400_000, description="a lost client's state is kept so long; 0 = off")
    recovery_bytes: Whole = Field(67_108_864, ge=65_536, le=1_099_511_627_776, description="of those, from one worker")
    attachment_timeout_ms: Whole = Field(10_000, ge=200, le=600_000, description="for all attachments of a packet")
    polling_sessions: Whole = Field(100_000, ge=1, le=10_000_000, description="of one worker at a time; more: 503")
    max_packets: Whole = Field(10_000, ge=16, le=1_000_000, description="messages in one polling request of a client")
    max_payload_bytes: Whole = Field(1_000_000, ge=1024, le=16_777_216, description="maxHttpBufferSize: one message")
    client_dir: str = Field("", description="npm socket.io-client's dist, served to pages; relative to the file")


class MailboxSettings(Section):
    namespace: str = Field("inbox", description="where /api/notify leaves its messages; mailbox = true there")
    total_bytes: Whole = Field(67_108_864, ge=1024, le=1_099_511_627_776, description="in all mailboxes")
    dead_letters: Whole = Field(10_000, ge=1, le=1_000_000, description="kept; beyond, the oldest is forgotten")
    dead_bytes: Whole = Field(16_777_216, ge=1024, le=1_099_511_627_776, description="of dead letters")


class AppSettings(Section):
    module: ModuleText = Field("", description="the application, such as chat:app")
    directory: str = Field("", description="where it is found; relative to the settings file")
    pages: str = Field("", description="its pages, served at /; relative to the settings file")
    timeout_s: Number = Field(5.0, gt=0, le=600, description="for one call of a handler")
    threads: Whole = Field(8, ge=1, le=1000, description="of handlers that are plain functions, per worker")
    pending: Whole = Field(10_000, ge=1, le=1_000_000, description="calls of handlers at a time, per worker")
    claims_bytes: Whole = Field(4096, ge=2, le=1_048_576, description="a client's claims, as JSON")


class TickerSettings(Section):
    namespace: str = Field("ticker", description="namespace of the symbols' channels; its mode must be latest")
    source: SourceText = Field("none", description="where ticks come from; FILE:NAME is a class of your own")
    symbols: list[str] = Field(["ACME"], min_length=1, max_length=100_000, description="simulate: the symbols")
    rate_hz: Number = Field(10.0, gt=0, le=10_000, description="simulate: batches of ticks per second")
    share: Number = Field(0.5, gt=0, le=1, description="simulate: part of the symbols that move in each batch")
    seed: Whole = Field(1, ge=0, le=4_294_967_295, description="simulate: the same seed gives the same walk")
    file: str = Field("", description="replay: CSV or JSONL of time, symbol, price, volume")
    speed: Number = Field(1.0, ge=0, le=1_000_000_000, description="replay: times real time; 0 = unpaced")
    loop: bool = Field(False, description="replay: begin again at the end")
    stream_key: str = Field("", description="stream: Redis stream that a producer XADDs to")
    directory: str = Field("", description="where FILE:NAME is found; relative to the settings file")
    options: dict[str, Any] = Field({}, description="what the class of FILE:NAME is made with")
    max_source_hz: Number = Field(0.0, ge=0, le=10_000, description="of each symbol; more is merged. 0 = no limit")
    bars: list[IntervalText] = Field([], min_length=0, max_length=6, description="OHLC intervals; values.BAR_INTERVALS")
    bars_namespace: str = Field("bars", description="namespace of the bars' channels; its mode must be stream")
    bars_wait_s: Number = Field(5.0, ge=0, le=3600, description="a silent symbol's bar waits so long after its end")
    batch: Whole = Field(500, ge=1, le=10_000, description="ticks in one script call; replay and stream are cut to it")
    lease_ttl_s: Number = Field(3.0, ge=0.5, le=60, description="a leader silent for so long is replaced")
