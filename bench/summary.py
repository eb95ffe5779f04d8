"""Summary: the newest outcome of every work as one table, one picture, and what must be reached beside what was.

    python bench/summary.py

Does: read results/*-NAME.json, print and write results/DATE-summary.md, DATE-must-reach.md and results/picture.svg.
Does not: measure. A work that was never run is left out.
Called by: suite, or by hand.
Never break: a figure's own file is named where it stands alone; a limit that is not met says so.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rig import report, servers
from rig.build import BENCH
from rig.picture import Bar, Panel, svg
from rig.report import Spread, paired, spread

RESULTS = BENCH / "results"
Record = Mapping[str, Any]


def newest(name: str) -> Record | None:
    """The last outcome of one work."""
    found = sorted(RESULTS.glob(f"????-??-??-{name}.json"))
    return json.loads(found[-1].read_text()) if found else None


def slots_of(record: Record | None, in_flight: int | None = None) -> Mapping[str, Sequence[Record]]:
    """Its slots by server."""
    if record is None:
        return {}
    found: Mapping[str, Sequence[Record]] = (
        record["servers"] if in_flight is None else record["in_flight"][str(in_flight)]
    )
    return found


def values(slots: Mapping[str, Sequence[Record]], name: str, figure: str) -> list[float]:
    return [slot[figure] for slot in slots.get(name, ())]


# The table


class Column(NamedTuple):
    """One work of the table: its heading, its slots, and the cell of one server's."""

    head: str
    slots: Mapping[str, Sequence[Record]]
    figure: str
    text: Callable[[float], str]


def columns() -> list[Column]:
    """What the table shows."""
    us, million = "{:.2f}".format, lambda value: f"{1 / value:.1f}"
    milliseconds, thousand = lambda value: f"{value / 1000:.1f}", lambda value: f"{value:,.0f}"
    return [
        Column("1 → 1,000: µs", slots_of(newest("broadcast-1000"), 1), "server_us", us),
        Column("1 → 5,000, 2 in flight: µs", slots_of(newest("broadcast-5000"), 2), "server_us", us),
        Column("60,000/s to 5,000: p99 ms", slots_of(newest("pace-all") or newest("pace")), "p99_us", milliseconds),
        Column("100 symbols → 1,000 of all: M/s", slots_of(newest("ticker-all")), "server_us", million),
        Column("101 → 1,010 of 20: M/s", slots_of(newest("ticker-some")), "server_us", million),
        Column("chat, rooms of 10: µs", slots_of(newest("chat")), "server_us", us),
        Column("new connections: per CPU s", slots_of(newest("storm")), "per_cpu_s", thousand),
        Column("idle: KB", _idle(), "kb", "{:.1f}".format),
    ]


def _idle() -> dict[str, list[Record]]:
    record = newest("idle")
    return {name: [{"kb": idle["pss_bytes"] / 1024}] for name, idle in record["servers"].items()} if record else {}


def summary_table() -> str:
    """A row for each server; µs are CPU time per delivery, M/s updates delivered per second of CPU time."""
    shown = [column for column in columns() if column.slots]
    names = [name for name in servers.SERVERS if any(name in column.slots for column in shown)]
    rows = []
    for name in names:
        found = [values(column.slots, name, column.figure) for column in shown]
        rows.append([name, *[c.text(spread(v).median) if v else "–" for c, v in zip(shown, found, strict=True)]])
    return report.table(["server", *[column.head for column in shown]], rows)


# The picture


def picture() -> str:
    """Three panels; shorter is better in the first and the last."""
    panels = [
        _panel("CPU µs per delivery, 1 channel to 1,000 subscribers (less is better)", "broadcast-1000", 1),
        _panel(
            "Million symbol updates per CPU second, 100 symbols to 1,000 subscribers (more is better)", "ticker-all"
        ),
        _idle_panel(),
    ]
    machine = newest("broadcast-1000") or {"machine": {"cpus": 0, "cpu": "unknown", "kernel": ""}}
    found = machine["machine"]
    footer = f"Medians and spreads of interleaved rounds; {found['cpus']} × {found['cpu']}, Linux {found['kernel']}."
    return svg([panel for panel in panels if panel.bars], footer)


def _panel(title: str, work: str, in_flight: int | None = None) -> Panel:
    bars = []
    for name, slots in slots_of(newest(work), in_flight).items():
        own = [slot["server_us"] for slot in slots]
        figures = spread(own if in_flight else [1 / value for value in own])
        bars.append(Bar(name, *figures, text=f"{figures.median:.{2 if in_flight else 1}f}"))
    return Panel(title, sorted(bars, key=lambda bar: bar.value if in_flight else -bar.value))


def _idle_panel() -> Panel:
    bars = [Bar(name, s[0]["kb"], s[0]["kb"], s[0]["kb"], f"{s[0]['kb']:.1f}") for name, s in _idle().items()]
    bars = [bar for bar in bars if bar.name not in ("c-loop", "hub-limits")]  # nothing at all, and hub's once more
    return Panel("KB of user memory per idle connection (less is better)", sorted(bars, key=lambda bar: bar.value))


# What must be reached


class Goal(NamedTuple):
    """One line: the work and its limit in words, what was found, whether that is enough, the outcome's name."""

    work: str
    limit: str
    found: Spread
    reached: bool
    name: str
    digits: int = 2


def _most(work: str, limit: float, unit: str, found: Spread, name: str) -> Goal:
    return Goal(work, f"≤ {limit:g} {unit}", found, found.median <= limit, name)


def _least(work: str, limit: float, unit: str, found: Spread, name: str) -> Goal:
    return Goal(work, f"≥ {limit:,.0f} {unit}", found, found.median >= limit, name, 2 if limit < 100 else 0)


def _ratio(slots: Mapping[str, Sequence[Record]], name: str, other: str, figure: str = "server_us") -> Spread | None:
    own, others = values(slots, name, figure), values(slots, other, figure)
    return paired(own, others) if own and others else None


def _broadcast_goals() -> list[Goal]:
    goals = []
    slots = slots_of(newest("broadcast-1000"), 1)
    work = "broadcast to 1,000, CPU per delivery"
    others = [name for name in slots if name not in ("hub", "hub-socketio", "c-loop", "bun")]
    for other, limit in [("c-loop", 1.25), ("bun", 1.1), *[(name, 1.0) for name in others]]:
        if ratio := _ratio(slots, "hub", other):
            goals.append(_most(work, limit, f"× {other}", ratio, "broadcast-1000"))
    work = "broadcast to 1,000 Socket.IO clients, CPU per delivery"
    if ratio := _ratio(slots, "hub-socketio", "hub"):
        goals.append(_most(work, 1.3, "× hub's own protocol", ratio, "broadcast-1000"))
    for other, limit in (("socket.io", 2), ("python-socketio", 8)):
        if ratio := _ratio(slots, other, "hub-socketio"):
            goals.append(_least(work, limit, f"times less than {other}", ratio, "broadcast-1000"))
    if ratio := _ratio(slots_of(newest("broadcast-5000"), 2), "hub", "bun"):
        goals.append(_most("broadcast to 5,000, 2 in flight", 1.1, "× bun", ratio, "broadcast-5000"))
    if ratio := _ratio(slots_of(newest("pace")), "hub", "c-loop", "p99_us"):
        goals.append(_most("60,000 deliveries/s to 5,000 clients, p99", 1.2, "× c-loop", ratio, "pace"))
    return goals


def _ticker_goals() -> list[Goal]:
    goals = []
    slots = slots_of(newest("ticker-all"))
    if own := values(slots, "hub", "server_us"):
        found = spread([1 / value for value in own])
        goals.append(
            _least("100 symbols × 1,000 subscribers of all", 10, "M updates per CPU second", found, "ticker-all")
        )
    if ratio := _ratio(slots, "bun", "hub"):
        goals.append(_least("100 symbols × 1,000 subscribers of all", 2, "× bun's rate", ratio, "ticker-all"))
    if ratio := _ratio(slots_of(newest("ticker-some")), "hub", "bun"):
        goals.append(_most("101 symbols, 20 each, CPU per update (level)", 1.1, "× bun", ratio, "ticker-some"))
    return goals


def _market_goals() -> list[Goal]:
    """Of market.py; a work that could not be loaded as asked reaches nothing."""
    return [*_watch_goals(), *_changes_goals(), *_kilobytes_goals()]


def _watch_goals() -> list[Goal]:
    """Behind thin links the oldest value decides."""
    name = "market-watch"
    record = newest(name)
    if record is None:
        return []
    asked, fast, thin = record["arguments"], *record["works"].values()
    work = f"{asked['ticks']:,} ticks/s, {asked['clients']:,} clients × {asked['watched']} of {asked['symbols']:,}"
    p99s = [[slot["fast"]["late"]["p99_us"] / 1000 for slot in turns] for turns in (fast, thin)]
    links = f"{work}, {asked['thin_share']:.0%} with {asked['thin_rate']:.0%} of the bandwidth"
    goals = [
        _most(f"{work}, p99", 50, "ms source → socket", spread(p99s[0]), name),
        _most(f"{links}: others' p99", 1.5, "× all fast", paired(p99s[1], p99s[0]), name),
    ]
    for age, words in (("newest", "newest value held"), ("late", "any value that arrives")):
        found = spread([slot["thin"][age]["max_us"] / 1000 for slot in thin])
        goals.append(Goal(f"{links}: {words}", "≤ 1000 ms old, always", found, found.high <= 1000, name, 0))
    goals.append(_no_faults(work, [*fast, *thin], name))
    return [_loaded(goal, [*fast, *thin]) for goal in goals]


def _changes_goals() -> list[Goal]:
    name = "market-changes"
    record = newest(name)
    if record is None:
        return []
    asked, works = record["arguments"], record["works"]
    base, goals = works["no changes"], []
    for kind in ("rates", "lists"):
        extra = [slot["worker_share"] - other["worker_share"] for slot, other in zip(works[kind], base, strict=True)]
        found = spread([100 * share for share in extra])
        work = f"{asked['clients']:,} clients change {kind} once a second"
        of_kind = [_most(work, 30, "% of a core", found, name), _no_faults(work, works[kind], name)]
        goals += [_loaded(goal, works[kind]) for goal in of_kind]
    return goals


def _kilobytes_goals() -> list[Goal]:
    name = "market-kilobytes"
    record = newest(name)
    if record is None:
        return []
    asked, (turns,) = record["arguments"], record["works"].values()
    work = f"{asked['rate']:,} × {asked['bytes']:,} bytes/s to {asked['clients']:,} clients, all on the same CPUs"
    mean = spread([slot["mean_us"] / 1000 for slot in turns])
    per_s = spread([slot["deliveries_per_s"] for slot in turns])
    return [
        _most(f"{work}, mean", 67, "ms publisher → socket", mean, name),
        _least(f"{work}, delivered", 0.95 * asked["rate"], "per second", per_s, name),
    ]


def _no_faults(work: str, turns: Sequence[Record], name: str) -> Goal:
    """Stored by a work that ends without figures when it finds one."""
    found = float(sum(slot["faults"] for slot in turns))
    unit = "values older than the one before, doubled or not asked for; every last value there"
    return Goal(work, f"0 {unit}", Spread(found, found, found), not found, name, 0)


def _loaded(goal: Goal, turns: Sequence[Record]) -> Goal:
    """Not reached by a load that was smaller than asked for."""
    if not any(slot["unmet"] for slot in turns):
        return goal
    return goal._replace(limit=f"{goal.limit} (not loaded as asked)", reached=False)


def _connection_goals() -> list[Goal]:
    goals = []
    if record := newest("idle-heartbeats"):
        idle = record["servers"]["hub"]
        kb, share = idle["pss_bytes"] / 1024, idle["cpu_ms_per_s"] / 10
        work = f"idle, {idle['connections']:,} connections"
        goals.append(_most(work, 2, "KB PSS each", Spread(kb, kb, kb), "idle-heartbeats"))
        goals.append(_most(f"{work}, heartbeats", 3, "% of a core", Spread(share, share, share), "idle-heartbeats"))
        if limited := record["servers"].get("hub-limits"):
            kb = limited["pss_bytes"] / 1024
            goals.append(_most(f"{work}, every limit on", 2, "KB PSS each", Spread(kb, kb, kb), "idle-heartbeats"))
    slots = slots_of(newest("storm"))
    for name, limit in (("hub", 12_000), ("hub-token", 8_000)):
        if own := values(slots, name, "per_cpu_s"):
            work = "handshake, connect and subscribe" + (", a token each" if name == "hub-token" else "")
            goals.append(_least(work, limit, "per CPU second", spread(own), "storm"))
    return goals + _token_goals()


def _token_goals() -> list[Goal]:
    record = newest("tokens")
    if record is None:
        return []
    works = record["works"]
    first = {name: spread([turn["first_us"] for turn in works[name]]) for name in ("HS256", "RS256")}
    goals = [_most(f"a token, {name}", 60, "µs of CPU", own, "tokens") for name, own in first.items()]
    again = spread([turn["again_us"] for turns in works.values() for turn in turns])
    return [*goals, _most("a token that is remembered", 3, "µs of CPU", again, "tokens")]


def _recovery_goals() -> list[Goal]:
    """Over all hubs of the work; of counts the highest decides, as one storm that asks for each client is too many."""
    record = newest("recovery")
    if record is None:
        return []
    goals = []
    who = f"{record['arguments']['connections']:,} clients come back at once"
    for kind, workers, limit in (("back", "workers that served them", 1), ("respawned", "new workers", 2)):
        storms = [storm for kinds in record["works"].values() for storm in kinds[kind]]
        plain = [storm for kinds in record["works"].values() for storm in kinds["plain"]]
        reads = spread([storm["most_reads"] for storm in storms])
        asked = spread([storm["most_reads"] + storm["subscribes"] for storm in storms])
        work = f"{who} to {workers}"
        for what, most, found in (("reads", 1, reads), ("reads and SUBSCRIBEs", limit, asked)):
            unit = f"Redis {what} per channel and worker"
            goals.append(Goal(work, f"≤ {most} {unit}", found, found.high <= most, "recovery"))
        ratio = paired([storm["worker_us"] for storm in storms], [storm["worker_us"] for storm in plain])
        goals.append(_most(f"{work}, CPU", 1.3, "× without recovery", ratio, "recovery"))
    return goals


def _other_goals() -> list[Goal]:
    goals = []
    for name in ("workers-1000", "workers-5000"):
        if ratio := _ratio(slots_of(newest(name)), "8 workers", "1 worker"):
            work = f"8 workers on two cores, CPU per delivery to {name.removeprefix('workers-')}"
            goals.append(_most(work, 1.15, "× one worker", ratio, name))
    if record := newest("slow"):
        goals += _slow_goals(record)
    if record := newest("ingest"):
        for (name, turns), limit in zip(record["works"].items(), (300_000, 1_000_000), strict=True):
            own = spread([turn["per_s"] for turn in turns])
            goals.append(_least(f"Redis ingest, {name}", limit, "per second", own, "ingest"))
    if record := newest("history"):
        # Of Valkey's core and not of the clock: the publisher shares the machine.
        own = spread([1e6 / turn["valkey_us"] for turn in record["works"]["stream"]])
        goals.append(_least("history publish, batched", 50_000, "per second of Redis' core", own, "history"))
    return goals


def _session_goals() -> list[Goal]:
    """Of `make wires`: all faults of all clients of one wire together."""
    record = newest("sessions")
    if record is None:
        return []
    arguments = record["arguments"]
    load = f"{arguments['clients']:,} Socket.IO clients × {arguments['events']} events, {arguments['workers']} workers"
    goals = []
    for wire, outcome in record["wires"].items():
        faults = sum(group[fault] for group in outcome["groups"].values() for fault in record["faults"])
        found = float(faults + len(outcome["findings"]))
        unit = "lost, doubled, out of order, unknown or cut off"
        goals.append(Goal(f"{load}, {wire}", f"0 {unit}", Spread(found, found, found), not found, "sessions", 0))
    return goals


def _slow_goals(record: Record) -> list[Goal]:
    goals = []
    for name, work in record["works"].items():
        if name.endswith(" 0 stalled"):
            continue
        own = [slot["p99_us"] for slot in work["slots"]]
        others = [slot["p99_us"] for slot in record["works"][f"{name.split(',')[0]}, 0 stalled"]["slots"]]
        goals.append(_most(f"others' p99, {name}", 1.5, "× none stalled", paired(own, others), "slow"))
        grown = work["grown"] / 2**20
        goals.append(_most(f"memory grown, {name}", 256, "MB (backlog_bytes)", Spread(grown, grown, grown), "slow"))
    return goals


def must_reach() -> str:
    """Every line of the goals with its figure."""
    goals = [
        *_broadcast_goals(),
        *_ticker_goals(),
        *_market_goals(),
        *_connection_goals(),
        *_recovery_goals(),
        *_other_goals(),
    ]
    goals += _session_goals()
    rows = [
        [
            goal.work,
            goal.limit,
            goal.found.text(goal.digits),
            "yes" if goal.reached else "**no**",
            _commit(goal.name),
            _command(goal.name),
        ]
        for goal in goals
    ]
    return report.table(["work", "must be", "found: median (lowest–highest)", "reached", "commit", "command"], rows)


def _commit(name: str) -> str:
    """Of the tree in which it was measured, which need not be today's."""
    record = newest(name) or {}
    return str(record.get("machine", {}).get("commit", "unknown"))


def _command(name: str) -> str:
    return "`make wires`" if name == "sessions" else f"`python bench/suite.py --only {name}`"


def main() -> None:
    stem = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    machine = report.machine_text(report.machine())
    outcomes = {
        "summary": "µs: CPU time of the delivering process per delivery. M/s: updates delivered per second of it.",
        "must-reach": "Ratios are formed inside a round; a lone figure was taken once. Below: the machine now; in the "
        "rows: the commit of the tree that was measured, -dirty where files were changed and not committed.",
    }
    texts = {"summary": summary_table(), "must-reach": must_reach()}
    for name, words in outcomes.items():
        text = "\n".join([words, machine, "", texts[name], ""])
        (RESULTS / f"{stem}-{name}.md").write_text(text)
        print(text)
    (RESULTS / "picture.svg").write_text(picture())


if __name__ == "__main__":
    main()
