"""Bench figures: buckets, sums and verdicts."""

from __future__ import annotations

import random

import orjson
import pytest

from hub.bench_figures import MAX_REASONS, OTHER, Crew, Latencies, Outcome, add_reason


def outcome(**crew: object) -> Outcome:
    """A run of two clients in which all went well, but for `crew`."""
    found = Crew(**{"ready": 2, "received": 20, **crew})
    return Outcome(2, 10.0, found, connect_s=2.0, publish_s=1.0, deliver_s=2.0, wanted=10, published=10, idle=0.5)


def test_a_latency_is_known_to_a_fifth_of_a_percent():
    """Exact below a millisecond; the longest of a bucket above; nothing and absurdities have their place."""
    for us in [0, 1, 1023, 1024, 1025, 5000, 123_456, 98_765_432, 2**39]:
        one = Latencies()
        one.add(us)
        assert us - 0.01 <= one.quantile(1.0) * 1000 <= us * 1.002 + 0.5
    odd = Latencies()
    odd.add(-5)
    odd.add(2**60)
    assert odd.quantile(0.5) == 0.0 and odd.quantile(1.0) * 1000 >= 2**40
    assert Latencies().quantile(0.99) == 0.0


def test_quantiles_are_those_of_the_values():
    """Compared with sorting, also when they were counted by two processes and sent as JSON."""
    values = [random.Random(7).lognormvariate(7, 2) for _ in range(5000)]
    halves = [Latencies(), Latencies()]
    for i, us in enumerate(values):
        halves[i % 2].add(int(us))
    whole = Latencies(map(tuple, orjson.loads(orjson.dumps(halves[0].pairs()))))
    whole.merge(halves[1])
    assert whole.count == 5000
    for share in (0.5, 0.9, 0.99, 0.999, 1.0):
        expected = int(sorted(values)[min(4999, round(share * 5000) - 1)]) / 1000
        assert whole.quantile(share) == pytest.approx(expected, rel=0.002, abs=0.001)


def test_memory_does_not_grow_with_messages():
    """All that a week can bring fits into a few thousand buckets."""
    found = Latencies()
    for us in range(0, 10**12, 10**8 + 7):
        found.add(us)
    assert len(found.pairs()) < 20_000 and found.count == 10_000


def test_reasons_are_bounded():
    """Those beyond the most share one name; what is known goes on."""
    found = Crew().errors
    for i in range(2 * MAX_REASONS):
        add_reason(found, f"reason {i}")
    add_reason(found, "reason 0", 5)
    assert len(found) == MAX_REASONS + 1
    assert (found[OTHER], found["reason 0"]) == (MAX_REASONS, 6)


def test_crews_are_added_and_travel_as_json():
    """Counts are sums, the CPU share is the busiest one's."""
    one, other = Crew(ready=3, lost=1, cpu=0.2), Crew(ready=4, duplicates=2, cpu=0.9)
    one.latencies.add(100)
    other.latencies.add(300)
    add_reason(other.errors, "HTTP 503", 2)
    one.add(Crew.of(orjson.loads(orjson.dumps(other.record()))))
    assert (one.ready, one.lost, one.duplicates, one.cpu) == (7, 1, 2, 0.9)
    assert one.errors == {"HTTP 503": 2}
    assert (one.latencies.count, one.latencies.quantile(1)) == (2, 0.3)


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (outcome(), True),
        (outcome(ready=1, failed=1), False),
        (outcome(closed=1), False),
        (outcome(lost=1), False),
        (outcome(duplicates=1), False),
    ],
)
def test_a_run_is_good_when_everybody_came_and_everything_arrived_once(found: Outcome, good: bool):
    assert found.good is good
    assert found.record()["ok"] is good


def test_what_a_latest_channel_passes_over_may_be_no_failure():
    """But only that."""
    passed, gone = outcome(lost=5), outcome(lost=5, closed=1)
    passed.lossy = gone.lossy = True
    assert passed.good and not gone.good
    unpublished = outcome()
    unpublished.unpublished = 1
    assert not unpublished.good


def test_it_says_when_the_load_was_the_limit():
    """A process without CPU left, a machine without any, a rate that was not reached; the hub's share is no excuse."""
    assert outcome().limits == []
    busy = outcome(cpu=0.9)
    assert len(busy.limits) == 1 and busy.limits[0].startswith("the load generator was the limit")
    publishing = outcome()
    publishing.cpu_publisher = 0.95
    assert publishing.limits == busy.limits
    crowded = outcome()
    crowded.idle = 0.01
    assert crowded.limits[0].startswith("this machine had no CPU left")
    slow = outcome()
    slow.published = 5
    assert slow.limits == ["50% of the wanted rate was published"]
    assert slow.lines()[-1] == "warning     50% of the wanted rate was published"


def test_lines_and_record_tell_the_same():
    """For people and for programs."""
    found = outcome()
    add_reason(found.crew.errors, "HTTP 429", 3)
    record = orjson.loads(orjson.dumps(found.record()))
    assert (record["connects_per_s"], record["deliveries"]["per_s"], record["published"]["per_s"]) == (1.0, 10.0, 10.0)
    text = "\n".join(found.lines())
    for part in (
        "2 of 2 connected and subscribed, 1/s",
        "20, 10/s; 0 lost, 0 twice",
        "10 messages, 10/s",
        "3 × HTTP 429",
    ):
        assert part in text
