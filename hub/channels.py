"""Channels: their names, and the namespace rules that hold for them.

Does: check a channel's name, find its namespace, answer who may subscribe and publish by the namespace's rules.
Does not: know tokens, sessions or Redis. `auth` says who somebody is; `session` asks here what that one may do.
Called by: session, publish, api, ticker, with names as they came from outside.
Never break: a name that passed `Channels.resolve` is safe in a Redis key, a log line and a frame; no key is built from
any other name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from . import errors
from .errors import CommandError
from .mistakes import Number

Mode = Literal["none", "latest"]
SubscribeRule = Literal["nobody", "anyone", "user", "token"]
PublishRule = Literal["nobody", "anyone", "user", "subscriber", "token"]

MAX_NAME_LENGTH = 255
ALPHABET = "A-Z a-z 0-9 _ : . - # $"
DEFAULT_NAMESPACE = "default"
# No space, CR, LF, NUL or braces: those could split a feed line, a log line or pin a Redis Cluster slot.
NAME = re.compile(rf"[A-Za-z0-9_:.\-#$]{{1,{MAX_NAME_LENGTH}}}")
NAMESPACE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class Namespace(BaseModel):
    """The rules of one namespace; `[namespaces.NAME]` in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = Field("none", description="the promise: none = at most once, latest = the newest value per channel")
    flush_ms: Number = Field(
        0.0, ge=0, le=10_000, description="a publication waits so long for others to leave with it"
    )
    subscribe: SubscribeRule = Field("user", description="who may subscribe")
    publish: PublishRule = Field("nobody", description="who may publish over a client connection")


def namespace_of(channel: str) -> str:
    """The text before the first ':', or 'default' where there is none: 'ticker:ACME' -> 'ticker'."""
    head, separator, _ = channel.partition(":")
    return head if separator else DEFAULT_NAMESPACE


class Channels:
    """The namespaces of this hub, looked up by channel name."""

    __slots__ = ("_namespaces",)

    def __init__(self, namespaces: Mapping[str, Namespace]) -> None:
        self._namespaces = dict(namespaces)
        self._namespaces.setdefault(DEFAULT_NAMESPACE, Namespace.model_validate({}))

    def resolve(self, channel: object) -> Namespace:
        """Check a name that came from outside and return its namespace's rules.

        Raises CommandError: 107 for something that is no channel name, 102 for a namespace that is not configured.
        """
        if not isinstance(channel, str) or not NAME.fullmatch(channel):
            raise CommandError(errors.BAD_REQUEST, f"channel name: allowed are 1 to {MAX_NAME_LENGTH} of {ALPHABET}")
        namespace = self._namespaces.get(namespace_of(channel))
        if namespace is None:
            raise CommandError(errors.UNKNOWN_CHANNEL)
        return namespace


def may_subscribe(rule: SubscribeRule, user: str) -> None:
    """Return if `user` ('' is anonymous) may subscribe under `rule`; raises CommandError 103 or 108 otherwise."""
    if rule == "token":
        raise CommandError(errors.NOT_AVAILABLE, "channel tokens are not available yet")
    if rule == "nobody" or (rule == "user" and not user):
        raise CommandError(errors.PERMISSION_DENIED)


def may_publish(rule: PublishRule, user: str, subscribed: bool) -> None:
    """Return if `user` may publish under `rule`; `subscribed`: this connection holds the channel. Raises as above."""
    if rule == "token":
        raise CommandError(errors.NOT_AVAILABLE, "channel tokens are not available yet")
    allowed = rule == "anyone" or (rule == "user" and bool(user)) or (rule == "subscriber" and subscribed)
    if not allowed:
        raise CommandError(errors.PERMISSION_DENIED)
