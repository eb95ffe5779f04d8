"""Channels: their names, and the namespace rules that hold for them.

Does: check a channel's name, find its namespace, say which users it is limited to.
Does not: know tokens, sessions or Redis. `auth` says who somebody is, `permissions` what that one may do.
Called by: session, publish, api, ticker, with names as they came from outside.
Never break: a name that passed `Channels.resolve` is safe in a Redis key, a log line and a frame; no key is built from
any other name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from . import errors
from .errors import CommandError
from .mistakes import Number, Whole

Mode = Literal["none", "stream", "latest"]
SubscribeRule = Literal["nobody", "anyone", "user", "token"]
PublishRule = Literal["nobody", "anyone", "user", "subscriber", "token"]
AskRule = Literal["nobody", "anyone", "user", "subscriber"]

MAX_NAME_LENGTH = 255
ALPHABET = "A-Z a-z 0-9 _ : . - # $ ,"
DEFAULT_NAMESPACE = "default"
# No space, CR, LF, NUL or braces: those could split a feed line, a log line or pin a Redis Cluster slot.
NAME = re.compile(rf"[A-Za-z0-9_:.\-#$,]{{1,{MAX_NAME_LENGTH}}}")
NAMESPACE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def _ack(text: str) -> str:
    if not re.fullmatch(r"memory|fsync|replicas:[1-9]\d?", text):
        raise ValueError('"memory", "fsync" or "replicas:N" with N from 1 to 99')
    return text


class Namespace(BaseModel):
    """The rules of one namespace; `[namespaces.NAME]` in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = Field(
        "none", description="the promise: none = at most once, stream = all, in order, latest = the newest per channel"
    )
    history_size: Whole = Field(100, ge=1, le=1_000_000, description="stream: publications kept per channel")
    history_ttl_s: Number = Field(300.0, ge=1, le=31_536_000, description="stream: kept so long after the newest one")
    history_meta_ttl_s: Number = Field(
        2_592_000.0, ge=1, le=315_360_000, description="stream: positions are known so long after the last use"
    )
    idempotency_ttl_s: Number = Field(300.0, ge=1, le=86_400, description="an idempotency key is remembered so long")
    ack: Annotated[str, AfterValidator(_ack)] = Field("memory", description="what a publisher's success means")
    history: AskRule = Field("subscriber", description="stream: which clients may ask for the history")
    presence: Literal["off"] | AskRule = Field("off", description="who is there: kept unless off, and who may ask")
    join_leave: bool = Field(False, description="tell subscribers who ask for it who comes and goes")
    mailbox: bool = Field(False, description="keep each message for its user until it is acknowledged")
    mailbox_ttl_s: Number = Field(604_800.0, ge=1, le=31_536_000, description="mailbox: kept so long at most")
    mailbox_size: Whole = Field(1000, ge=1, le=100_000, description="mailbox: messages of one user")
    mailbox_bytes: Whole = Field(1_048_576, ge=1024, le=268_435_456, description="mailbox: their bytes")
    mailbox_full: Literal["reject", "drop_oldest"] = Field("reject", description="mailbox: what a full one does")
    mailbox_window: Whole = Field(64, ge=1, le=1000, description="mailbox: sent to a user and not acknowledged")
    ack_timeout_s: Number = Field(30.0, ge=0.1, le=86_400, description="mailbox: then a message is sent again")
    mailbox_deliveries: Whole = Field(10, ge=1, le=1000, description="mailbox: times that a message is sent at most")
    flush_ms: Number = Field(
        0.0, ge=0, le=10_000, description="a publication waits so long for others to leave with it"
    )
    max_hz: Number = Field(
        0.0, ge=0, le=1000, description="latest: values of one channel that a client gets per second at most, 0: all"
    )
    watch: Whole = Field(0, ge=0, le=10_000, description="latest: channels in one watch list, 0: there are none")
    watch_prefixes: bool = Field(False, description="latest: a watch list may hold patterns: AC* is all that begin so")
    watch_prefix_length: Whole = Field(
        1, ge=0, le=64, description="latest: characters of a pattern before its * at least, 0: * alone is every symbol"
    )
    stale_ms: Number = Field(
        0.0, ge=0, le=86_400_000, description="latest: a source that is silent for so long is told as stale, 0: never"
    )
    resume_s: Number = Field(
        60.0, ge=0, le=86_400, description="latest: what a client changed of a subscription is kept so long for it"
    )
    subscribe: SubscribeRule = Field("user", description="who may subscribe; token: with a channel token alone")
    publish: PublishRule = Field("nobody", description="who may publish over a client connection")

    @model_validator(mode="after")
    def _positions_outlive_messages(self) -> Namespace:
        if self.history_meta_ttl_s < self.history_ttl_s:
            raise ValueError(
                f"history_meta_ttl_s: found {self.history_meta_ttl_s:g}; allowed: history_ttl_s or more, "
                "as a position without its channel's epoch can't be recovered"
            )
        if self.mailbox and self.mode != "none":
            raise ValueError(
                f'mailbox: found true with mode = "{self.mode}"; allowed: with mode = "none", as a mailbox keeps each '
                "message for its one user, and has no history that several could read"
            )
        if self.ack != "memory" and self.mode != "stream" and not self.mailbox:
            raise ValueError(
                f'ack: found {self.ack!r} with mode = "{self.mode}"; allowed: with mode = "stream" or a mailbox, as '
                "nothing else is kept that could be confirmed"
            )
        for name in "max_hz", "watch", "stale_ms":
            if getattr(self, name) and self.mode != "latest":
                raise ValueError(
                    f'{name}: found {getattr(self, name):g} with mode = "{self.mode}"; allowed: in "latest"'
                )
        if self.watch_prefixes and not self.watch:
            raise ValueError("watch_prefixes: found true with watch = 0; allowed: with watch lists")
        if self.join_leave and self.presence == "off":
            raise ValueError('join_leave: found true with presence = "off"; allowed: with presence kept')
        return self


def namespace_of(channel: str) -> str:
    """The text before the first ':', or 'default' where there is none: 'ticker:ACME' -> 'ticker'."""
    head, separator, _ = channel.partition(":")
    return head if separator else DEFAULT_NAMESPACE


def limited_to(channel: str) -> frozenset[str] | None:
    """The only users who may use a channel, by the list behind its first '#'; None where there is none.

    'inbox:#42' -> {'42'}, 'dialog:#42,77' -> {'42', '77'}, as in Centrifugo's user-limited channels.
    """
    _, mark, users = channel.partition("#")
    return frozenset(users.split(",")) - {""} if mark else None


def mailbox_of(namespace: str, user: str) -> str:
    """The channel of one user's mailbox: 'inbox:#42'."""
    return f"{'' if namespace == DEFAULT_NAMESPACE else namespace + ':'}#{user}"


def _is_mailbox(channel: str) -> bool:
    """Whether this is the one name of one user's mailbox: with several names for it, messages could be missed."""
    user = channel.partition("#")[2]
    return bool(user) and "," not in user and channel == mailbox_of(namespace_of(channel), user)


class Channels:
    """The namespaces of this hub, looked up by channel name."""

    __slots__ = ("_namespaces",)
    _namespaces: dict[str, Namespace]

    def __init__(self, namespaces: Mapping[str, Namespace]) -> None:
        self.retune(namespaces)

    def retune(self, namespaces: Mapping[str, Namespace]) -> None:
        """Other rules from now on; what was resolved before has its own."""
        self._namespaces = dict(namespaces)
        self._namespaces.setdefault(DEFAULT_NAMESPACE, Namespace.model_validate({}))

    def rules(self, channel: str) -> Namespace | None:
        """Those of now for a channel whose name was good before; None where its namespace is gone."""
        return self._namespaces.get(namespace_of(channel))

    def resolve(self, channel: object) -> Namespace:
        """Check a name that came from outside and return its namespace's rules.

        Raises CommandError: 107 for something that is no channel name, or no user's where there are mailboxes; 102 for
        a namespace that is not configured.
        """
        if not isinstance(channel, str) or not NAME.fullmatch(channel):
            raise CommandError(errors.BAD_REQUEST, f"channel name: allowed are 1 to {MAX_NAME_LENGTH} of {ALPHABET}")
        namespace = self._namespaces.get(namespace_of(channel))
        if namespace is None:
            raise CommandError(errors.UNKNOWN_CHANNEL)
        if namespace.mailbox and not _is_mailbox(channel):
            raise CommandError(errors.BAD_REQUEST, f"a mailbox is {namespace_of(channel)}:#USER, of exactly one user")
        return namespace

    def mailboxes(self) -> dict[str, Namespace]:
        """The namespaces with mailboxes, by name."""
        return {name: namespace for name, namespace in self._namespaces.items() if namespace.mailbox}
