"""Monitoring: the pages that machines look at: /metrics, /livez and /readyz of the internal listener.

Does: say who may ask, answer in the right form.
Does not: gather (exposition) or judge (health).
Called by: worker (routes, on the internal listener).
Never break: each answers while Redis is away, and whoever asks is never kept waiting for it beyond exposition.STORE_S.

    GET /metrics   text for Prometheus, of all workers, whichever one is asked
    GET /livez     200 {"status":"ok"}, or 503 {"status":"unavailable","reasons":{…}}; of the worker that is asked
    GET /readyz    the same of whether clients should be sent here; "degraded" says what is amiss and tolerated

The two of health are for anybody who reaches the internal listener. /metrics is for those on this machine, by loopback
or a Unix socket, and for whoever has `api.key`, as `X-API-Key: KEY` or `Authorization: apikey KEY`. Who comes by a
proxy on this machine is not from here; and where an address is both public and internal the key is asked of everybody,
as a proxy that passes all on need not say that it is one.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from . import httpd
from .exposition import Exposition
from .handshake import Headers
from .health import Health, Verdict
from .sections import HealthSettings

Judge = Callable[[], Verdict]
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""What proxies put in."""


@dataclass(slots=True)
class Monitoring:
    """What the pages stand on.

    key: '' for none, and then nobody has it. guarded: who is on this machine needs it, too. workers: how many there are
    to be; not asked of the settings, where "auto" means the CPUs of whoever asks: a pinned worker has one.
    """

    exposition: Exposition
    health: Health
    key: str
    guarded: bool
    workers: int

    def retune(self, key: str, health: HealthSettings) -> None:
        """Another key and other bounds from now on."""
        self.key = key
        self.health.min_workers, self.health.needs_redis = min(health.min_workers, self.workers), health.needs_redis


def routes(monitoring: Monitoring) -> httpd.Routes:
    """Of the internal listener."""
    health = monitoring.health
    return [
        (r"/metrics", MetricsHandler, {"monitoring": monitoring}),
        (r"/livez", HealthHandler, {"judge": health.live}),
        (r"/readyz", HealthHandler, {"judge": health.ready}),
    ]


class MetricsHandler(httpd.Handler):
    """GET /metrics."""

    def initialize(self, monitoring: Monitoring) -> None:
        self._monitoring = monitoring

    async def get(self) -> None:
        if not self._may_ask():
            self.plain(401, "X-API-Key: missing or wrong; without it only from this machine")
            return
        text, kind = await self._monitoring.exposition.text(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.finish(text)

    def _may_ask(self) -> bool:
        headers = self.request.headers
        if not self._monitoring.guarded and is_local(self.peer, headers):
            return True
        return has_key(headers, self._monitoring.key)


class HealthHandler(httpd.Handler):
    """GET /livez and /readyz."""

    def initialize(self, judge: Judge) -> None:
        self._judge = judge

    def get(self) -> None:
        verdict = self._judge()
        self.set_status(200 if verdict.good else 503)
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(verdict.about()))

    head = get  # what some balancers ask


def is_local(peer: object, headers: Headers) -> bool:
    """Whether a request comes from this machine and from no proxy on it. peer: as `socket.accept` has it."""
    if any(headers.get(name, "") for name in FORWARDED):
        return False
    if not isinstance(peer, tuple):
        return True  # a Unix socket
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def has_key(headers: Headers, key: str) -> bool:
    """Whether a request shows the key, as one of the server API does."""
    scheme, _, offer = headers.get("authorization", "").partition(" ")
    offers = [headers.get("x-api-key", ""), offer.strip() if scheme.lower() == "apikey" else ""]
    # Tornado reads headers as Latin-1, so this gives back the client's bytes.
    return bool(key) and any(hmac.compare_digest(each.encode("latin-1"), key.encode()) for each in offers)
