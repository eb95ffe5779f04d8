"""Metric names: what workers tell, under Prometheus' names, and where in the figures it stands.

Does: hold one table.
Does not: read figures by itself, or keep numbers (metrics); what is told of all workers together, or of the machine, is
named in exposition.
Called by: metrics.
Never break: base units, seconds and bytes; counters end in `_total`, which prometheus_client adds; no channel's, user's
or address' name becomes a label, and no label's values come from outside.
A new metric needs its row here, and one in the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SUM, LEAST = "livesum", "livemin"
"""Of a gauge over all live workers."""
HANDSHAKE_REASONS = frozenset(
    {
        "handshakes",
        "draining",
        "ip_handshakes",
        "ip_connections",
        "ip_sockets",
        "user_connections",
        "connections",
        "tokens",
        "origins",
        "proxy_lines",
        "descriptors",
        "polls",
    }
)
"""Of refusals.REASONS: those that keep somebody out."""


class Metric(NamedTuple):
    """One name. find: its part of the figures, a number, one for each value of `label`, or a histogram; None: it is of
    something that this hub has not.
    """

    name: str
    kind: str
    text: str
    find: Callable[[Mapping[str, Any]], Any]
    label: str = ""
    by_worker: bool = False
    """Each worker has its own, by the number of its slot."""
    over: str = SUM


def _at(*path: str) -> Callable[[Mapping[str, Any]], Any]:
    """Finds figures["a"]["b"]."""

    def find(figures: Mapping[str, Any]) -> Any:
        found: Any = figures
        for name in path:
            found = found[name]
        return found

    return find


def _refused(figures: Mapping[str, Any], handshakes: bool) -> dict[str, int]:
    refused = figures["connections"]["refused"]
    return {name: count for name, count in refused.items() if (name in HANDSHAKE_REASONS) == handshakes}


def _of_ticker(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """None without a source."""
    return lambda figures: figures["ticker"] and figures["ticker"][name]


METRICS = (
    Metric(
        "hub_connections",
        GAUGE,
        "Clients connected now, by transport; long_poll: requests that wait",
        _at("connections", "open"),
        "transport",
        by_worker=True,
    ),
    Metric(
        "hub_connections_opened",
        COUNTER,
        "Clients that have connected, by transport",
        _at("connections", "opened"),
        "transport",
    ),
    Metric(
        "hub_disconnects",
        COUNTER,
        "Clients that are gone, by close code; 3000: went without a word, or by their own; other: codes of "
        "applications and clients",
        _at("connections", "closed"),
        "code",
    ),
    Metric(
        "hub_handshake_rejected",
        COUNTER,
        "Newcomers that were turned away, by reason",
        lambda figures: _refused(figures, True),
        "reason",
    ),
    Metric(
        "hub_refused",
        COUNTER,
        "What connected clients asked for and did not get, by reason",
        lambda figures: _refused(figures, False),
        "reason",
    ),
    Metric(
        "hub_handshake_seconds",
        HISTOGRAM,
        "From the accept of a WebSocket to the answer of its handshake",
        _at("connections", "handshake_s"),
    ),
    Metric("hub_users", GAUGE, "Users connected now, those on several workers more than once", _at("users"), "", True),
    Metric("hub_subscriptions", GAUGE, "Subscriptions now", _at("subscriptions"), "", True),
    Metric("hub_channels", GAUGE, "Channels with subscribers now", _at("channels"), "", True),
    Metric(
        "hub_publishes",
        COUNTER,
        "Publications by what became of them: taken, duplicate, refused (no room), unconfirmed, unavailable (Redis)",
        _at("publishes"),
        "result",
    ),
    Metric(
        "hub_deliveries",
        COUNTER,
        "Publications on their way to subscribers, each once for each",
        _at("delivery", "deliveries"),
    ),
    Metric(
        "hub_delivery_latency_seconds",
        HISTOGRAM,
        "From a publication to the last socket write of its batch, through Redis; a probe of each worker every 1.5 s",
        _at("delivery", "latency_s"),
    ),
    Metric(
        "hub_fanout_seconds",
        HISTOGRAM,
        "From the first socket write of a batch of publications to its last",
        _at("delivery", "sweep_s"),
    ),
    Metric(
        "hub_conflated",
        COUNTER,
        "Values that a newer one of their channel has replaced; slow: for one slow reader, behind: for all, as the "
        "worker was behind",
        _at("delivery", "conflated"),
        "cause",
    ),
    Metric(
        "hub_dropped",
        COUNTER,
        "Messages of `none` channels that were left out; causes as of hub_conflated_total",
        _at("delivery", "dropped"),
        "cause",
    ),
    Metric(
        "hub_queue_bytes",
        GAUGE,
        "Bytes that wait: in outboxes of slow readers, for the sweep, for Redis; and those kept in rings",
        _at("waiting"),
        "queue",
        by_worker=True,
    ),
    Metric(
        "hub_recoveries",
        COUNTER,
        "Clients that came back with a position, by whether they got all that they had missed",
        lambda figures: {"true": figures["streams"]["recovered"], "false": figures["streams"]["lost"]},
        "recovered",
    ),
    Metric(
        "hub_recovered_messages",
        COUNTER,
        "Publications that they got so",
        _at("streams", "recovered_publications"),
    ),
    Metric(
        "hub_gaps",
        COUNTER,
        "Times that something did not come from Redis; feed: seen by the next one's number, link: by the loopback",
        lambda figures: {"feed": figures["streams"]["gaps"], "link": figures["redis"]["missed"]},
        "cause",
    ),
    Metric(
        "hub_displaced",
        COUNTER,
        "Subscribers that were told to subscribe anew, with the position that they had",
        _at("streams", "displaced"),
    ),
    Metric(
        "hub_position_checks",
        COUNTER,
        "Reads of a followed channel's position: ok, behind (something had not come), lost (can't be had any more)",
        _at("streams", "checks"),
        "result",
    ),
    Metric(
        "hub_store_fence",
        COUNTER,
        "Times that a worker found another generation of the store",
        _at("redis", "generations"),
    ),
    Metric(
        "hub_redis_up",
        GAUGE,
        "Whether Redis answers, by role of the connection",
        lambda figures: {
            "commands": float(figures["redis"]["commands_up"]),
            "subscriber": float(figures["redis"]["subscriber_up"]),
        },
        "role",
        by_worker=True,
    ),
    Metric("hub_redis_commands_seconds", HISTOGRAM, "Round trips of publications to Redis", _at("redis", "command_s")),
    Metric(
        "hub_redis_reconnects",
        COUNTER,
        "Times that a subscriber connection came up again",
        lambda figures: max(0, figures["redis"]["links"] - 1),
    ),
    Metric(
        "hub_redis_pubsub_lag_seconds",
        HISTOGRAM,
        "From publishing a token to its arrival on the same worker's subscriber connection",
        _at("redis", "lags_s"),
    ),
    Metric("hub_event_loop_lag_seconds", HISTOGRAM, "How late a timer of 50 ms came", _at("loop", "lag_s")),
    Metric(
        "hub_event_loop_lag_worst_seconds", GAUGE, "The latest of the last 5 to 10 s", _at("loop", "worst_s"), "", True
    ),
    Metric("hub_open_fds", GAUGE, "Open descriptors", _at("process", "fds"), "", True),
    Metric("hub_max_fds", GAUGE, "Descriptors that may be open", _at("process", "max_fds"), "", True),
    Metric(
        "process_resident_memory_bytes",
        GAUGE,
        "Resident memory, shared pages included",
        _at("process", "memory_bytes"),
        "",
        True,
    ),
    Metric("process_cpu_seconds", COUNTER, "CPU time, user and system", _at("process", "cpu_s"), "", True),
    Metric(
        "process_start_time_seconds",
        GAUGE,
        "When the worker was started, in seconds since 1970",
        _at("started_at"),
        "",
        True,
    ),
    Metric(
        "hub_tls_cert_expiry_seconds",
        GAUGE,
        "When the first certificate ends, in seconds since 1970; without TLS there is none",
        lambda figures: figures["tls_ends_at"] or None,
        over=LEAST,
    ),
    Metric(
        "hub_ticker_leader",
        GAUGE,
        "1 of the worker that reads the source of live prices; over all machines one has it",
        _of_ticker("leader"),
        "",
        True,
    ),
    Metric("hub_ticker_ticks", COUNTER, "Ticks of the source, by what became of them", _of_ticker("ticks"), "result"),
    Metric("hub_ticker_bars", COUNTER, "Bars that were closed and published", _of_ticker("bars")),
)
"""What workers write. What is told of all of them together is exposition's."""
