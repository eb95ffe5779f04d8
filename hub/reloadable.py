"""Reloadable: what of the settings can change while the hub runs, for whom, and what a change would need a restart for.

    IN_PLACE     from the next turn of each worker's loop on, for everybody
    NEWCOMERS    for connections, requests, subscriptions and channels that begin after it; who is here stays as it is
    RESTART      not at all: a reload that brings another value is refused as a whole

Does: hold the one table of all settings, find what two sets of them differ in, word what stands in a reload's way.
Does not: read settings (config), carry anything out (retune) or know processes (reload).
Called by: reload (in the process that checks new settings).
Never break: a setting that stands nowhere here is an error of the tests, not a guess; a secret's value is in no line.

Nobody is disconnected by a reload, whatever it lowers or forbids. What it means for those who are here:

    a namespace that is gone     its subscribers are unsubscribed with 2000, and its polls answered; then 102
    subscribe, subscriptions     hold until they end; who comes (again) is judged by the new rule
    publish, history, presence   the new rule holds for the next command
    lowered limits               nobody goes for them; the next one is refused
    keys                         who is in stays in until its token ends or is renewed
"""

from __future__ import annotations

import enum
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from . import __version__
from .certificates import Contents, Pair
from .channels import DEFAULT_NAMESPACE, Namespace
from .config import Settings
from .errors import ConfigError
from .mistakes import as_table, bare, short


class When(enum.Enum):
    """From when on, and for whom, another value holds."""

    IN_PLACE = "in place"
    NEWCOMERS = "for newcomers"
    RESTART = "restart"


IN_PLACE, NEWCOMERS, RESTART = When.IN_PLACE, When.NEWCOMERS, When.RESTART

SETTINGS: dict[str, When] = {
    "workers": RESTART,
    "pin": RESTART,
    "listen": RESTART,
    "internal": RESTART,
    "state_dir": RESTART,
    "demo": RESTART,
    "allowed_origins": IN_PLACE,
    "trusted_proxies": NEWCOMERS,
    "proxy_protocol": RESTART,
    "fast_upgrade": RESTART,
    "drain_window_s": IN_PLACE,
    "shutdown_delay_s": IN_PLACE,
    "log_addresses": NEWCOMERS,
    "heartbeat_timeout_s": RESTART,
    "deploy_timeout_s": IN_PLACE,
    "log_level": IN_PLACE,
    "log_format": IN_PLACE,
    "log_burst": IN_PLACE,
    "redis": RESTART,
    "redis.pending_publishes": IN_PLACE,
    "redis.pending_bytes": IN_PLACE,
    "redis.full_percent": IN_PLACE,
    "embedded": RESTART,
    "health": IN_PLACE,
    "auth": IN_PLACE,
    "auth.cookie": NEWCOMERS,
    "auth.expire_grace_s": NEWCOMERS,
    "api": IN_PLACE,
    "tls": NEWCOMERS,
    "tls.reload_s": IN_PLACE,
    "tcp": RESTART,
    "http": NEWCOMERS,
    "worker": IN_PLACE,
    "limits": IN_PLACE,
    "limits.ip_commands_per_s": NEWCOMERS,
    "limits.ip_bytes_per_s": NEWCOMERS,
    "limits.ip_loop_ms_per_s": NEWCOMERS,
    "limits.ip_offences_per_s": NEWCOMERS,
    "limits.user_commands_per_s": NEWCOMERS,
    "limits.user_bytes_per_s": NEWCOMERS,
    "limits.ip_network_bits": NEWCOMERS,
    "relay": RESTART,
    "client": NEWCOMERS,
    "client.close_timeout_s": IN_PLACE,
    "client.presence_clients": IN_PLACE,
    "client.recovery_publications": IN_PLACE,
    "client.recovery_bytes": IN_PLACE,
    "socketio": RESTART,
    "socketio.connect_timeout_ms": IN_PLACE,
    "socketio.upgrade_timeout_ms": IN_PLACE,
    "socketio.attachment_timeout_ms": IN_PLACE,
    "socketio.polling_sessions": IN_PLACE,
    "socketio.max_packets": IN_PLACE,
    "socketio.recovery_bytes": IN_PLACE,
    "mailbox": IN_PLACE,
    "app": RESTART,
    "ticker": RESTART,
    "namespaces": IN_PLACE,
}
"""By name; a table's stands for all in it that have no row of their own."""

NAMESPACES: dict[str, When] = {
    "mode": RESTART,
    "history_size": IN_PLACE,
    "history_ttl_s": IN_PLACE,
    "history_meta_ttl_s": IN_PLACE,
    "idempotency_ttl_s": IN_PLACE,
    "ack": IN_PLACE,
    "history": IN_PLACE,
    "presence": NEWCOMERS,
    "join_leave": NEWCOMERS,
    "mailbox": RESTART,
    "mailbox_ttl_s": NEWCOMERS,
    "mailbox_size": IN_PLACE,
    "mailbox_bytes": IN_PLACE,
    "mailbox_full": IN_PLACE,
    "mailbox_window": NEWCOMERS,
    "ack_timeout_s": NEWCOMERS,
    "mailbox_deliveries": NEWCOMERS,
    "flush_ms": NEWCOMERS,
    "max_hz": NEWCOMERS,
    "watch": NEWCOMERS,
    "watch_prefixes": NEWCOMERS,
    "watch_prefix_length": NEWCOMERS,
    "stale_ms": NEWCOMERS,
    "resume_s": NEWCOMERS,
    "subscribe": NEWCOMERS,
    "publish": IN_PLACE,
}
"""The rules of a namespace that stays. Where a channel's rule is for newcomers, those are its first subscribers."""


class Difference(NamedTuple):
    """One setting that is another one now. was, is_now: its values in words, without secrets."""

    key: str
    was: str
    is_now: str
    when: When

    def __str__(self) -> str:
        return f"{self.key} (was {self.was}, is {self.is_now})"


def when(key: str) -> When:
    """From when on a setting's new value holds: its own row, else its table's. 'auth.issuer' -> IN_PLACE."""
    return SETTINGS[key] if key in SETTINGS else SETTINGS[key.partition(".")[0]]


def differences(old: Settings, new: Settings) -> list[Difference]:
    """What `new` has otherwise, in the order of the settings file."""
    return [*_of_table(Settings, old, new, ""), *_of_namespaces(old.namespaces, new.namespaces)]


def refusals(found: list[Difference]) -> list[str]:
    """A line for each that stands in a reload's way: 'workers needs a restart (was 2, is 4)'."""
    return [f"{each.key} needs a restart (was {each.was}, is {each.is_now})" for each in found if each.when is RESTART]


def gone(old: Settings, new: Settings) -> frozenset[str]:
    """The names of namespaces that are configured no more; 'default' always is."""
    return frozenset(old.namespaces) - frozenset(new.namespaces) - {DEFAULT_NAMESPACE}


def _of_table(model: type[BaseModel], old: BaseModel, new: BaseModel, prefix: str) -> Iterator[Difference]:
    for name, field in model.model_fields.items():
        was, is_now = getattr(old, name), getattr(new, name)
        if was == is_now or name == "namespaces":
            continue
        key = prefix + name
        if (inner := as_table(field.annotation)) is not None:
            yield from _of_table(inner, was, is_now, f"{key}.")
        elif field.repr:
            yield Difference(key, short(was), short(is_now), when(key))
        else:
            yield Difference(key, _veiled(was), _veiled(is_now) if not is_now else "another value", when(key))


def _veiled(value: Any) -> str:
    return "not shown" if value else "none"


def _of_namespaces(old: dict[str, Namespace], new: dict[str, Namespace]) -> Iterator[Difference]:
    usual = Namespace.model_validate({})
    for name in dict.fromkeys([*old, *new]):
        was, is_now, key = old.get(name), new.get(name), f"namespaces.{bare(name)}"
        if name == DEFAULT_NAMESPACE:  # whose channels exist without a word about them
            was, is_now = was or usual, is_now or usual
        if was is None or is_now is None:
            # Who has a mailbox was promised its messages: that ends by no slip of a reload.
            held = was is not None and was.mailbox
            states = ("there", "gone") if is_now is None else ("none", "there")
            yield Difference(key, *states, RESTART if held else IN_PLACE)
            continue
        for rule in Namespace.model_fields:
            if getattr(was, rule) != getattr(is_now, rule):
                found = short(getattr(was, rule)), short(getattr(is_now, rule))
                yield Difference(f"{key}.{rule}", *found, NAMESPACES[rule])


class Counts(NamedTuple):
    """Since the hub's start. last_success_at: when a reload was done last, in seconds since 1970; 0: none was."""

    reloads: int = 0
    reloads_failed: int = 0
    last_success_at: float = 0.0


NEVER_RELOADED = Counts()


class Fresh(NamedTuple):
    """Settings that have been checked, with what the files hold that they name: nothing is left to be read.

    keys: as keyfiles.Files. certificates: None where there are none.
    """

    settings: Settings
    keys: Mapping[str, bytes]
    certificates: Contents | None


def pairs_of(settings: Settings) -> list[Pair]:
    """The files of tls.certificates."""
    return [Pair(each.cert, each.key) for each in settings.tls.certificates]


def pack(fresh: Fresh) -> bytes:
    """For another process of this hub."""
    return pickle.dumps((__version__, pickle.dumps(fresh, pickle.HIGHEST_PROTOCOL)))


def unpack(data: bytes) -> Fresh:
    """What `pack` made, in a process that is forked from the same one: nobody else can write into their pipes.

    Raises ConfigError where a deploy has failed and that one is another version now: what a setting means, and which
    there are, may have changed.
    """
    version, packed = pickle.loads(data)
    if version != __version__:
        raise ConfigError(f"they are of version {version}, and this worker is of {__version__}: deploy again")
    found = pickle.loads(packed)
    assert isinstance(found, Fresh)
    return found
