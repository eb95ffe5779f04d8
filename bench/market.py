"""Market: the promises of the stock ticker, by a feed that runs in the hub and clients with a watch list each.

    python bench/market.py watch     [--clients 2000] [--ticks 10000] [--thin-share 0.1] [--thin-rate 0.1] …
    python bench/market.py changes   [--clients 5000] [--ticks 1000] [--beats 10] …
    python bench/market.py kilobytes [--clients 5000] [--rate 100000] [--bytes 1024] [--workers 2] …
                                     [--rounds 5] [--seconds S] [--json] [--save [NAME]]

watch: 10,000 ticks/s of 1,000 symbols to 2,000 clients, each watching 50 drawn by Zipf; two hubs in turns, one with all
clients fast, and one where a tenth of them have links of a tenth of the bandwidth that the fast ones were sent.
changes: 5,000 clients, each of which changes its rate, or one symbol of its list, once a second; the same feed without
changes is taken off.
kilobytes: 100,000 messages of 1 KB a second through Redis to all clients; workers, Redis, publisher and clients share
all CPUs.

Does: say how late values are from the moment at which their tick was due, how old those are that clients hold, and what
it costs. Does not: measure peers, none of which has watch lists, or the hub without its ticker (ticker.py does).
Never break: what was not as asked (a source, or clients, that fell behind) stands below the table in bold.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rig import report, slots
from rig.hub import hub
from rig.population import population
from rig.processes import pick_cpus
from rig.report import Spread, spread
from rig.server import data
from rig.slots import charge, rotated
from rig.stage import KEPT_PACE, Pace, Slot, Stage, rpc, stage
from ticker import watch_lists

ALL_FAST, SOME_THIN = "all fast", "some thin"
RATES_HZ = (30, 20)
"""Both above the beats of the feed, so that as much is delivered with changes as without. All begin with the last."""
NONE = "no changes"
KINDS: Mapping[str, Sequence[str]] = {
    NONE: (),
    "rates": [rpc("hub.rate", hz=hz) for hz in RATES_HZ],
    "lists": [rpc("hub.watch", add=["%IN%"], remove=["%OUT%"])],
}
WARM_UP_S = 1.0
By = dict[str, list[Slot]]


def lists_of(arguments: argparse.Namespace) -> list[list[int]]:
    """What each client watches, and its spare."""
    found = watch_lists("zipf", arguments.symbols, arguments.clients, arguments.watched + 1)
    return [[int(name) for name in names] for names in found]


def stages(arguments: argparse.Namespace, thin: int = 0, hz: float = 0) -> contextlib.AbstractContextManager[Stage]:
    """One hub with its feed and clients."""
    settings = {"lowat": arguments.lowat, "conflate": arguments.conflate}
    return stage(pick_cpus(), lists_of(arguments), arguments.symbols, settings, thin=thin, hz=hz)


# The works.


def watch(arguments: argparse.Namespace) -> By:
    """Slots of a hub without thin links, and of one with."""
    pace = Pace(arguments.ticks, arguments.beats, arguments.seconds)
    thin = max(1, round(arguments.clients * arguments.thin_share))
    with contextlib.ExitStack() as stack:
        works = {
            ALL_FAST: stack.enter_context(stages(arguments)),
            SOME_THIN: stack.enter_context(stages(arguments, thin=thin)),
        }
        needed = works[ALL_FAST].slot(pace._replace(seconds=WARM_UP_S)).bytes_per_s
        works[SOME_THIN].slot(pace._replace(seconds=WARM_UP_S))
        works[SOME_THIN].clients.thin(needed * arguments.thin_rate)
        return _in_turns(arguments, {name: partial(work.slot, pace) for name, work in works.items()})


def changes(arguments: argparse.Namespace) -> By:
    """Slots without changes, with changes of rates, and of lists; the same clients."""
    pace = Pace(arguments.ticks, arguments.beats, arguments.seconds)
    with stages(arguments, hz=RATES_HZ[-1]) as work:
        work.slot(pace._replace(seconds=WARM_UP_S))
        return _in_turns(arguments, {kind: partial(work.slot, pace, texts) for kind, texts in KINDS.items()})


def _in_turns(arguments: argparse.Namespace, works: Mapping[str, Callable[[], Slot]]) -> By:
    results: By = {name: [] for name in works}
    for number in range(arguments.rounds):
        for name in rotated(list(works), number):
            results[name].append(works[name]())
    return results


def kilobytes(arguments: argparse.Namespace) -> dict[str, list[slots.Slot]]:
    """Slots of one hub, whose workers, Redis and clients may run on every CPU."""
    per_second = arguments.rate / arguments.clients
    messages = max(1, round(per_second * arguments.seconds))
    with _everywhere(arguments) as (server, clients):
        return {
            f"{arguments.workers} workers": [
                charge(server, partial(clients.pace, messages, per_second)) for _ in range(arguments.rounds)
            ]
        }


@contextlib.contextmanager
def _everywhere(arguments: argparse.Namespace) -> Iterator[Any]:
    with hub(None, arguments.workers) as server, population(server.load, arguments.clients) as clients:
        clients.wait_ready()
        clients.template(server.write(data(arguments.bytes)))
        clients.run(10, 1)
        yield server, clients


# Their tables.


def _ms(turns: Sequence[Slot], group: str, age: str, figure: str) -> Spread:
    return spread([getattr(slot, group)[age][figure] / 1000 for slot in turns])


def watch_text(arguments: argparse.Namespace, found: dict[str, Any], results: By) -> str:
    """The outcome as Markdown."""
    title = (
        f"Market: {arguments.symbols:,} symbols, {arguments.ticks:,} ticks/s in {arguments.beats} beats, "
        f"{arguments.clients:,} clients each watching {arguments.watched} by Zipf; {SOME_THIN}: "
        f"{arguments.thin_share:.0%} of them with links of {arguments.thin_rate:.0%} of the bandwidth that the fast "
        f"are sent. {arguments.seconds:g} s a slot, {arguments.rounds} interleaved rounds; "
        f"notsent_lowat_bytes {arguments.lowat}, outbox_conflate_bytes {arguments.conflate}. Hub, ticker and Valkey on "
        "one CPU, clients on the other. ms from when a tick was due."
    )
    head = ["clients", "p50", "p99", f"p99 × {ALL_FAST}", "max", "held: p99", "newest held: max", "delivered/s"]
    rows = [_watch_row(ALL_FAST, "fast", results), _watch_row(SOME_THIN, "fast", results)]
    rows.append(_watch_row(SOME_THIN, "thin", results))
    load = [_load_row(name, turns) for name, turns in results.items()]
    parts = [title, report.machine_text(found), "", report.table(head, rows), "", report.table(LOAD_HEAD, load), ""]
    parts.append(
        "held: the age of a client's value of a symbol when the next one takes its place. newest held: the age of the "
        "newest of all values that a client has. No value was older than the one before, none came twice, and no "
        "last value was missed, or there would be no figures."
    )
    return "\n".join([*parts, *_unmet_text(results)])


def _watch_row(name: str, group: str, results: By) -> list[str]:
    turns = results[name]
    figure = partial(_ms, turns, group)
    ratio = report.paired(p99s(turns, group), p99s(results[ALL_FAST], "fast"))
    counts = spread([getattr(slot, group)["late"]["count"] / slot.seconds for slot in turns])
    return [
        f"{name}, {group}" if name == SOME_THIN else name,
        figure("late", "p50_us").text(1),
        figure("late", "p99_us").text(1),
        ratio.text(),
        figure("late", "max_us").text(0),
        figure("held", "p99_us").text(0),
        figure("newest", "max_us").text(0),
        f"{counts.median:,.0f}",
    ]


def p99s(turns: Sequence[Slot], group: str) -> list[float]:
    """In µs, from when a tick was due to the client's read."""
    return [getattr(slot, group)["late"]["p99_us"] for slot in turns]


LOAD_HEAD = ["work", "ticks/s", "source late ms", "at most", "merged %", "bytes/s each"]
LOAD_HEAD += ["worker's CPU %", "Valkey's", "population's", "settled after ms"]


def _load_row(name: str, turns: Sequence[Slot]) -> list[str]:
    """What was done, and by whom."""
    merged = [100 * slot.merged / max(1, slot.merged + slot.delivered) for slot in turns]
    return [
        name,
        f"{spread([slot.ticks_per_s for slot in turns]).median:,.0f}",
        spread([slot.late_ms for slot in turns]).text(1),
        f"{max(slot.latest_ms for slot in turns):.0f}",
        f"{spread(merged).median:.1f}",
        f"{spread([slot.bytes_per_s for slot in turns]).median:,.0f}",
        spread([100 * slot.worker_share for slot in turns]).text(0),
        f"{spread([100 * slot.apart['valkey'] for slot in turns]).median:.0f}",
        f"{spread([100 * slot.population_share for slot in turns]).median:.0f}",
        f"{max(1000 * slot.settle_s for slot in turns):.0f}",
    ]


def _unmet_text(results: By) -> list[str]:
    lines = [
        f"{name}, round {i + 1}: {text}"
        for name, turns in results.items()
        for i, slot in enumerate(turns)
        for text in slot.unmet
    ]
    return [f"\n**Not loaded as asked:** {'; '.join(lines)}."] if lines else []


def changes_text(arguments: argparse.Namespace, found: dict[str, Any], results: By) -> str:
    """The outcome as Markdown."""
    title = (
        f"Market: {arguments.clients:,} clients, each watching {arguments.watched} of {arguments.symbols:,} symbols by "
        f"Zipf at {RATES_HZ[-1]} Hz, {arguments.ticks:,} ticks/s in {arguments.beats} beats. rates: once a second each "
        f"asks for {RATES_HZ[0]} or {RATES_HZ[1]} Hz in turn; lists: once a second one symbol leaves and one comes. "
        f"{arguments.seconds:g} s a slot, {arguments.rounds} interleaved rounds. CPU of the changes: "
        "less that of the slot of the same round without them, in % of a core."
    )
    head = [
        "work",
        "changes/s",
        "worker, % of a core",
        "µs each",
        "Valkey",
        "answered: p50 ms",
        "p99 ms",
        "delivered/s",
    ]
    rows = [_changes_row(name, results) for name in KINDS]
    load = [_load_row(name, turns) for name, turns in results.items()]
    parts = [title, report.machine_text(found), "", report.table(head, rows), "", report.table(LOAD_HEAD, load), ""]
    parts.append("At the end of each slot every client held the last value of each symbol that it watched then.")
    return "\n".join([*parts, *_unmet_text(results)])


def _changes_row(name: str, results: By) -> list[str]:
    turns = results[name]
    delivered = f"{spread([slot.delivered / slot.seconds for slot in turns]).median:,.0f}"
    if name == NONE:
        return [name, "–", "–", "–", "–", "–", "–", delivered]
    base = results[NONE]
    per_s = [slot.changes["sent"] / slot.seconds for slot in turns]
    extra = spread(extra_shares([slot.worker_share for slot in turns], [slot.worker_share for slot in base]))
    valkey = extra_shares([slot.apart["valkey"] for slot in turns], [slot.apart["valkey"] for slot in base])
    return [
        name,
        f"{spread(per_s).median:,.0f}",
        Spread(*[100 * share for share in extra]).text(0),
        f"{1e6 * extra.median / spread(per_s).median:.0f}",
        Spread(*[100 * share for share in spread(valkey)]).text(0),
        spread([slot.changes["answers"]["p50_us"] / 1000 for slot in turns]).text(1),
        spread([slot.changes["answers"]["p99_us"] / 1000 for slot in turns]).text(1),
        delivered,
    ]


def extra_shares(shares: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of a core, round by round, beyond the slot of the same round without changes."""
    return [share - other for share, other in zip(shares, base, strict=True)]


def kilobytes_text(arguments: argparse.Namespace, found: dict[str, Any], results: slots.ByServer) -> str:
    """The outcome as Markdown."""
    title = (
        f"Market: {arguments.rate:,} messages of {arguments.bytes:,} bytes a second delivered: "
        f"{arguments.rate / arguments.clients:g} publishes/s through Redis to {arguments.clients:,} subscribers of one "
        f"channel, {arguments.workers} workers. {arguments.seconds:g} s a slot, {arguments.rounds} rounds. Workers, "
        "Valkey, publisher and clients share all CPUs; ms from when a message was due."
    )
    head = ["hub", "mean ms", "p50", "p99", "p99.9", "delivered/s", "workers' CPU %", "apart", "population's"]
    rows = [_kilobytes_row(name, turns) for name, turns in results.items()]
    late = [
        f"{name}, round {i + 1}: {slot.deliveries_per_s:,.0f} messages/s of {arguments.rate:,}"
        for name, turns in results.items()
        for i, slot in enumerate(turns)
        if slot.deliveries_per_s < KEPT_PACE * arguments.rate
    ]
    parts = [title, report.machine_text(found), "", report.table(head, rows)]
    return "\n".join([*parts, *([f"\n**Not loaded as asked:** {'; '.join(late)}."] if late else [])])


def _kilobytes_row(name: str, turns: Sequence[slots.Slot]) -> list[str]:
    times = [
        spread([getattr(slot, figure) / 1000 for slot in turns]).text(1)
        for figure in ("mean_us", "p50_us", "p99_us", "p999_us")
    ]
    apart = [sum(slot.apart_us.values()) * slot.deliveries_per_s / 1e6 for slot in turns]
    return [
        name,
        *times,
        f"{slots.median(turns, 'deliveries_per_s'):,.0f}",
        f"{slots.median(turns, 'server_share') * 100:.0f}",
        f"{spread(apart).median * 100:.0f}",
        f"{slots.median(turns, 'population_share') * 100:.0f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The work and its options. Exits for ticks that its beats can't share evenly."""
    parser = argparse.ArgumentParser(description="the promises of the stock ticker; see bench/README.md")
    works = parser.add_subparsers(dest="work", required=True)
    for name, clients, ticks, beats, seconds in (
        ("watch", 2000, 10_000, 100, 4.0),
        ("changes", 5000, 1000, 10, 3.0),
    ):
        work = _options(works, name, clients, seconds)
        work.add_argument("--symbols", type=int, default=1000)
        work.add_argument("--watched", type=int, default=50, help="symbols on each client's list, up to 253")
        work.add_argument("--ticks", type=int, default=ticks, help="a second, of all symbols together")
        work.add_argument("--beats", type=int, default=beats, help="a second, in which the ticks come")
        work.add_argument("--lowat", type=int, default=2048, help="tcp.notsent_lowat_bytes of the hub")
        work.add_argument("--conflate", type=int, default=0, help="client.outbox_conflate_bytes of the hub")
        if name == "watch":
            work.add_argument("--thin-share", type=float, default=0.1, help="of the clients, whose links are slow")
            work.add_argument("--thin-rate", type=float, default=0.1, help="of the bandwidth that the fast are sent")
    work = _options(works, "kilobytes", 5000)
    work.add_argument("--rate", type=int, default=100_000, help="deliveries per second, to all together")
    work.add_argument("--bytes", type=int, default=1024, help="of application data in each message (36 or more)")
    work.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(words)
    if arguments.work != "kilobytes" and (arguments.ticks % arguments.beats or arguments.ticks < arguments.beats):
        parser.error(f"--ticks {arguments.ticks}: allowed is a multiple of --beats {arguments.beats}")
    return arguments


def _options(works: Any, name: str, clients: int, seconds: float = 4.0) -> argparse.ArgumentParser:
    work: argparse.ArgumentParser = works.add_parser(name)
    work.add_argument("--clients", type=int, default=clients)
    work.add_argument("--seconds", type=float, default=seconds, help="of each slot")
    work.add_argument("--rounds", type=int, default=5)
    report.add_options(work, f"market-{name}")
    return work


WORKS = {"watch": (watch, watch_text), "changes": (changes, changes_text), "kilobytes": (kilobytes, kilobytes_text)}


def main() -> None:
    arguments = parse()
    run, text = WORKS[arguments.work]
    report.bench("market", arguments, run, text, lambda results: {"works": report.turns(results)})


if __name__ == "__main__":
    main()
