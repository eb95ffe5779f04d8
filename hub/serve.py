"""Serve: from checked settings to a running hub, and in one line where it is.

Does: find what a start goes by, check what settings alone can't tell, take the state directory, open the listeners, run
the supervisor; let go of all of it.
Does not: read settings (config) or know what a worker does: `worker_main` is handed in.
Called by: cli (`hub serve`, `hub check`).
Never break: nothing is left behind when a step fails; one ready line, and only when every worker accepts. Who takes
over from an earlier version goes by what was checked for it, and by no file: one that has become bad since, or can't be
read for a moment, would end a hub that serves.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

from . import __version__, activation, inheritance, keyfiles
from .app import load as load_application
from .certificates import Certificates, read_contents
from .config import DEFAULT_PATH, Settings, load
from .deploy import Lineage, Program
from .embedded import Embedded
from .errors import BootError, ConfigError
from .listeners import Listeners
from .reloadable import Fresh, pairs_of, unpack
from .retreat import NO_RETREAT, Retreat, origin_of
from .seat import WorkerMain
from .sources import check_source, own_source
from .state import lock_state_dir, state_dir
from .supervisor import Supervisor
from .systemd import Notifier
from .urls import url
from .values import TICKER_SOURCES, Address, parse_address

logger = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Check what a start needs beyond well-formed settings: a secret, and a readable source of ticks.

    Raises ConfigError with a line for each mistake.
    """
    lines = []
    if not (settings.demo or settings.auth.has_keys or settings.api.key):
        lines.append(
            "auth.hmac_secret, api.key: found neither; allowed: at least one of them, or demo = true "
            "(`openssl rand -hex 32` makes one)"
        )
    lines += _unguarded(settings, [parse_address(text) for text in settings.internal])
    try:
        keyfiles.key_ring(settings.auth)
    except ConfigError as error:
        lines.append(str(error))
    lines += _unreadable(settings.auth.jwks_ca_file)
    if settings.app.pages and not Path(settings.app.pages, "index.html").is_file():
        lines.append(f"app.pages: found {settings.app.pages}; allowed: a directory with an index.html")
    try:
        check_source(settings.ticker)
    except BootError as error:
        lines.append(str(error))  # here it is not the machine that is at fault, but the setting that names the file
    if lines:
        raise ConfigError("\n".join(lines))


def _unreadable(path: str) -> list[str]:
    """A line for the authorities' file of the key set's server, which each fetch reads."""
    try:
        if path:
            ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = "found no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        return [f"auth.jwks_ca_file: found {path}: {reason}; allowed: certificates in PEM"]
    return []


def _unguarded(settings: Settings, addresses: list[Address]) -> list[str]:
    """A line for each internal address that others can reach although nothing guards the server API."""
    if settings.api.key:
        return []
    reached = (each for each in addresses if each.host and not ipaddress.ip_address(each.host).is_loopback)
    allowed = "allowed without api.key: loopback or a Unix socket"
    return [f"internal: found {address}, which other machines may reach; {allowed}" for address in reached]


def check_guarded(settings: Settings, internal: list[Address]) -> None:
    """Raise ConfigError where others reach one of these addresses and nothing guards the server API."""
    if lines := _unguarded(settings, internal):
        raise ConfigError("\n".join(lines))


def check_application(settings: Settings) -> None:
    """Load the application, and the ticker's source of the operator's own, where there are any. Raises ConfigError.

    Not before a start: there each worker loads its own, after the fork.
    """
    try:
        if settings.app.module:
            load_application(settings.app.module, settings.app.directory)
        if settings.ticker.source not in TICKER_SOURCES:
            own_source(settings.ticker)
    except BootError as error:
        raise ConfigError(str(error)) from None


def load_certificates(settings: Settings) -> Certificates | None:
    """Those of the settings, checked; None where there are none. Raises ConfigError."""
    pairs = pairs_of(settings)
    return Certificates(pairs) if pairs else None


def read_anew(path: Path | None) -> Fresh:
    """The settings of now with all that they name, checked as for a start. Raises ConfigError."""
    settings = load(path)
    check(settings)
    load_certificates(settings)
    return gather(settings)


def gather(settings: Settings) -> Fresh:
    """Checked settings with what the files hold that they name. Raises ConfigError."""
    pairs = pairs_of(settings)
    return Fresh(settings, keyfiles.read(settings.auth), read_contents(pairs) if pairs else None)


def present(fresh: Fresh) -> Certificates | None:
    """The certificates of `gather`; None where there are none. Raises ConfigError."""
    if fresh.certificates is None:
        return None
    return Certificates(pairs_of(fresh.settings), contents=fresh.certificates)


class Start(NamedTuple):
    """What `run` goes by. checked: what a check has found good for this start, and left; None: files are to be read.

    estate: of the version before in this process, None for one that was simply started.
    """

    settings: Settings
    checked: Fresh | None = None
    estate: inheritance.Estate | None = None
    retreat: Retreat = NO_RETREAT


def begin(read: Callable[[], Settings], environ: MutableMapping[str, str], program: Program | None = None) -> Start:
    """Find what a start goes by: what the version before has left, else what `read` finds. Once in a process.

    program: how this one was started. Goes back to the version before where anything stands in the way. Raises
    ConfigError, and BootError for an estate that can't be read.
    """
    estate = inheritance.take(environ)
    checked = None
    retreat = Retreat(estate, program)
    with retreat.guard():
        if estate is not None and estate.checked >= 0:
            try:
                checked = unpack(inheritance.take_checked(estate.checked))
            except Exception as error:
                # Whatever it was: another version was installed since the check, and a file of settings is there too.
                logger.warning("what the check has left can't be read, so the settings file is: %s", error)
        return Start(read() if checked is None else checked.settings, checked, estate, retreat)


def needs_embedded(settings: Settings) -> bool:
    """Whether the hub brings its own Valkey, as no Redis is configured."""
    return not settings.redis.url and not settings.redis.sentinels


def fixed_settings(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """By name, as texts to compare, those that only a restart can change.

    The listeners, the slots and the private Valkey outlive a deploy; and two generations on different stores would not
    hear of each other's publications.
    """
    redis = settings.redis
    fixed = {
        "listen": ", ".join(settings.listen),
        "internal": ", ".join(settings.internal),
        "workers": str(settings.worker_count()),
        "redis": inheritance.digest(redis.url, redis.master, *redis.sentinels),
        "redis.prefix": redis.prefix,
    }
    if needs_embedded(settings):
        fixed["state_dir"] = str(state_dir(settings, environ))
        fixed["embedded.maxmemory_mb"] = str(settings.embedded.maxmemory_mb)
        fixed["embedded.fsync"] = settings.embedded.fsync
    return fixed


def run(
    start: Start,
    environ: MutableMapping[str, str],
    worker_main: WorkerMain,
    announce: Callable[[str], None],
    *,
    program: Program | None = None,
    path: Path = DEFAULT_PATH,
) -> int:
    """Serve until a signal ends it; returns the exit status.

    announce: gets the ready line, once; not in a process that an earlier version has handed over. program: how this one
    was started, path: its settings file, for those that come after. Raises ConfigError, or BootError when this machine
    stands in the way.
    """
    settings, checked, estate, retreat = start
    # Before the workers are forked: one that is forked while a file is broken has what the hub was started with.
    if checked is None or estate is None:
        fixed = fixed_settings(settings, environ)
        if estate is not None:
            inheritance.check_fixed(estate.fixed, fixed)  # again, as the file may have changed since the check
        check(settings)
        keys, certificates = keyfiles.read(settings.auth), load_certificates(settings)
        fresh = Fresh(settings, keys, read_contents(pairs_of(settings)) if certificates else None)
    else:
        fixed, fresh, certificates = estate.fixed, checked, present(checked)
    with contextlib.ExitStack() as stack:
        embedded, lock = None, -1
        if needs_embedded(settings):
            embedded, lock = _take_embedded(settings, environ, stack, estate)
        if estate is not None:
            # As the check has found it, of a machine whose CPUs may be others by now.
            listeners = Listeners.inherit(settings, int(fixed["workers"]), estate.public, estate.internal)
        else:
            listeners = Listeners.open(settings, settings.worker_count(), handed=activation.take(environ))
        stack.callback(listeners.close)
        stack.enter_context(retreat.guard())  # left before the listeners are closed
        check_guarded(settings, [*listeners.combined, *listeners.internal])
        for warning in listeners.warnings:
            logger.warning("%s", warning)
        internal = [*listeners.combined, *listeners.internal]

        def reread() -> Fresh:
            fresh = read_anew(path)
            check_guarded(fresh.settings, internal)
            return fresh

        supervisor = Supervisor(
            settings,
            listeners,
            worker_main,
            notifier=Notifier(environ),
            embedded=embedded,
            certificates=certificates,
            lineage=Lineage(origin_of(estate, program), str(path.absolute()), fixed, lock, estate),
            keys=fresh.keys,
            reread=reread,
            fresh=fresh,
            retreat=retreat,
            on_ready=lambda: announce(ready_line(settings, listeners)),
        )
        return supervisor.run()


def _take_embedded(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.ExitStack, estate: inheritance.Estate | None
) -> tuple[Embedded, int]:
    """The private Valkey, and the descriptor of the state directory's lock."""
    # Locked for the embedded Valkey only: nothing else is stored there, and two hubs of one machine may well share a
    # configured Redis.
    directory = state_dir(settings, environ)
    if estate is None:
        lock = stack.enter_context(lock_state_dir(directory))
        return Embedded(settings, directory), lock.fileno()
    stack.callback(os.close, estate.state_lock)  # it is locked
    embedded = Embedded(settings, directory)
    if estate.valkey is not None:
        embedded.inherit(estate.valkey)
    return embedded, estate.state_lock


def ready_line(settings: Settings, listeners: Listeners) -> str:
    """'hub 0.1.0 ready: 4 workers; clients ws://127.0.0.1:8000/connection/websocket; server API
    http://127.0.0.1:8001/api'

    With the demo page, or the application's, its URL stands first. Several addresses of one kind are separated by
    spaces.
    """
    workers = len(listeners.slots)
    parts = [f"hub {__version__} ready: {workers} worker{'s' if workers > 1 else ''}"]
    if settings.demo or settings.app.pages:
        parts.append("page " + " ".join(url("http", address, "/") for address in listeners.public))
    parts.append("clients " + " ".join(url("ws", address) for address in listeners.public))
    if internal := [*listeners.combined, *listeners.internal]:
        parts.append("server API " + _api(settings, internal))
    return "; ".join(parts)


def _api(settings: Settings, addresses: list[Address]) -> str:
    return " ".join(url("http", address) for address in addresses) + ("" if settings.api.key else " (off: no api.key)")


def summary(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What a hub with these settings would be, as pairs for a person to read; no secrets."""
    internal = [parse_address(text) for text in settings.internal]
    ticker = settings.ticker
    return {
        "workers": str(settings.worker_count()),
        "clients": " ".join(url("ws", parse_address(text)) for text in settings.listen),
        "server_api": _api(settings, internal) if internal else "off: internal = []",
        "redis": _redis(settings, environ),
        "namespaces": ", ".join(f"{name} ({rules.mode})" for name, rules in sorted(settings.namespaces.items())),
        "app": settings.app.module or "none",
        "ticker": "off" if ticker.source == "none" else f"{ticker.source} into {ticker.namespace}",
    }


def _redis(settings: Settings, environ: Mapping[str, str]) -> str:
    if needs_embedded(settings):
        return f"embedded, in {state_dir(settings, environ)}"
    # Not the URL, which may hold a password.
    return f"{settings.redis.master} by Sentinel" if settings.redis.sentinels else "configured by redis.url"
