"""What the names promise, and what the table in the design asks for."""

from __future__ import annotations

import re

from hub.metric_names import COUNTER, GAUGE, HANDSHAKE_REASONS, HISTOGRAM, LEAST, METRICS, SUM
from hub.refusals import REASONS


def test_names_are_prometheus_own():
    """One each; base units; `_total` is added by the library, to counters alone."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"(hub|process)_[a-z_]+", metric.name)
        assert not metric.name.endswith(("_total", "_ms", "_kb", "_sum", "_count", "_bucket"))
        assert metric.kind in (COUNTER, GAUGE, HISTOGRAM) and metric.over in (SUM, LEAST)
        assert metric.kind != HISTOGRAM or metric.name.endswith("_seconds")
        assert metric.text and not metric.text.endswith(".") and "\n" not in metric.text


def test_no_label_is_a_clients_own_name():
    """A channel, a user or an address as a label would make a time series for each."""
    assert {metric.label for metric in METRICS} <= {
        "", "transport", "code", "reason", "result", "cause", "queue", "recovered", "role",
    }  # fmt: skip


def test_each_refusal_is_of_newcomers_or_of_clients():
    """A reason that is not in REASONS any more would be nobody's."""
    assert set(REASONS) > HANDSHAKE_REASONS


def test_a_hub_without_a_source_tells_nothing_of_a_ticker():
    """A zero would look like a ticker that stands still."""
    mine = [metric for metric in METRICS if metric.name.startswith("hub_ticker_")]
    assert len(mine) == 3 and [metric.find({"ticker": None}) for metric in mine] == [None] * 3
    figures = {"ticker": {"leader": 1, "ticks": {"published": 5}, "bars": 2}}
    assert [metric.find(figures) for metric in mine] == [1, {"published": 5}, 2]
