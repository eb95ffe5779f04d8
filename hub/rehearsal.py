"""Rehearsal: `hub check --boot`, all that a worker builds, in this process, without a client and without a trace.

Does: compare with a running hub that asks whether this version may take over, build a worker's rooms with the
application loaded, reach Redis, open the doors of no listener, take everything down.
Does not: subscribe, register, lead a ticker, start the application or write anywhere: a running hub of the same
settings notices nothing. One that asks gets the settings, so that the new version begins with these and no others.
Called by: cli (`hub check --boot`), which the supervisor of a running hub runs for a deploy.
Never break: it ends, in bounded time; what it opens is closed, and its directory removed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import quote

import uvloop

from . import __version__, inheritance
from .config import Settings
from .embedded import running_url
from .heartbeat import open_pipe
from .listeners import Listeners, Slot
from .relay import Home
from .reloadable import pack
from .seat import Seat
from .serve import check_guarded, fixed_settings, gather, needs_embedded, present
from .state import state_dir
from .worker import Worker


def rehearse(settings: Settings, environ: MutableMapping[str, str]) -> dict[str, object]:
    """What a hub that would hand over to this version wants to know: {'boot': True, 'version': …, 'redis': 'reached'}.

    The settings are already checked. Raises ConfigError for a setting that needs a restart, BootError for a worker that
    can't boot on this machine.
    """
    estate = inheritance.peek(environ)
    if estate is not None:
        inheritance.check_fixed(estate.fixed, fixed_settings(settings, environ))
        # Those of systemd stand in no settings, and an heir that found them open to others would have to end.
        check_guarded(settings, Listeners.left_internal(settings, estate.public, estate.internal))
    fresh = gather(settings)
    url = _redis_url(settings, environ, estate)
    reaches = bool(url or settings.redis.sentinels)
    home = Home.make(environ)
    pulse, heartbeat = open_pipe(0.0)
    try:
        seat = Seat(
            slot=Slot(0, (), ()),
            workers=settings.worker_count(),
            generation=0,
            respawned=False,
            # Nobody answers there, and nobody asks.
            redis_url=url or "unix:///nowhere",
            heartbeat=heartbeat,
            home=home,
            certificates=present(fresh),
            keys=fresh.keys,
        )
        uvloop.run(Worker(settings, seat).rehearse(asks_redis=reaches))
    finally:
        pulse.close()
        heartbeat.close()
        home.remove()
    if estate is not None and estate.checked >= 0:
        inheritance.write_checked(estate.checked, pack(fresh))
    return {"boot": True, "version": __version__, "redis": "reached" if reaches else "not running, not asked"}


def _redis_url(settings: Settings, environ: MutableMapping[str, str], estate: inheritance.Estate | None) -> str:
    """'' where the private Valkey does not run."""
    if not needs_embedded(settings):
        return settings.redis.url
    if estate is not None and estate.valkey is not None and estate.valkey.pid is not None:
        return f"unix://{quote(estate.valkey.socket_path)}"
    return running_url(state_dir(settings, environ))
