"""`python -m tests.hostile`, which is `make hostile`: what each attack costs clients who do nothing wrong (P5).

    --only NAME …    these attacks; --list names all          --rounds N    of each, 3
    --from WHERE …   "one" address, "many" (200), or both, which is the default
    --seconds S      of a slot, 10                            --clients N   normal ones, 200
    --short          the load of `make test`: one calm slot for all; times are printed and not judged
    --json           figures as JSON                          --save        into bench/results/DATE-hostile.*

Exit status 1 if in any attack a normal client was disconnected or missed something, the worker's memory grew beyond its
budget, or the median over the rounds of (p99 under attack / p99 in the slot before it) is above 2, or can't be told as
the calm p99 itself is above 50 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

from bench.rig import report

from .attackers import SOURCES
from .rig import ATTACKER_NICE, ATTACKS, Attack, Pair, Rig

MOST_RATIO = 2.0
MOST_CALM_MS = 50.0
"""The time between two publications. Beyond it the machine does something else, and a ratio says nothing."""
HEAD = (
    "attack",
    "p99 ms, calm",
    "p99 ms, attacked",
    "ratio",
    "most ms",
    "lost",
    "missing",
    "worker's CPU %, calm",
    "attacked",
    "MB grown",
    "budget",
    "verdict",
)
ROUNDS, SECONDS, CLIENTS = 3, 10.0, 200
SHORT_SECONDS, SHORT_CLIENTS = 1.5, 50


def faults(attack: Attack, pairs: list[Pair], timed: bool) -> list[str]:
    """What was missed in an attack; empty: nothing. timed: latencies are judged."""
    attacked = [pair.attacked for pair in pairs]
    found = []
    if lost := sum(slot.lost for slot in attacked):
        words = sorted({word for slot in attacked for word in slot.words})
        found.append(f"{lost} normal clients disconnected {words}")
    if missing := sum(slot.missing + slot.refused for slot in attacked):
        found.append(f"{missing} receipts missing or publications refused")
    if (grown := max(slot.peak_mb for slot in attacked)) > attack.budget_mb:
        found.append(f"memory grew by {grown:g} MB, budget {attack.budget_mb} MB: {attack.why}")
    for slot in attacked:
        if not any(slot.counts.get(name) for name in attack.did):
            found.append(f"the attack did not take place: {slot.counts}")
        elif attack.source != "one" and (held := slot.counts.get("held", 0)) < attack.held:
            found.append(f"the attack had {held} connections of {attack.held}: {slot.counts}")
    ratio = statistics.median(pair.ratio for pair in pairs)
    calm_ms = statistics.median(pair.calm.p99_ms for pair in pairs)
    if timed and calm_ms > MOST_CALM_MS:
        found.append(f"nothing can be told of times: the calm p99 is {calm_ms:g} ms; allowed: {MOST_CALM_MS:g}")
    elif timed and ratio > MOST_RATIO:
        found.append(f"p99 is {ratio:.2f} × the calm one; allowed: {MOST_RATIO:g}")
    return found


def run(arguments: argparse.Namespace, chosen: list[Attack]) -> dict[str, list[Pair]]:
    """All rounds; those of different attacks take turns."""
    pairs: dict[str, list[Pair]] = {attack.label: [] for attack in chosen}
    # Beside other tests a nice attacker would not get anywhere.
    nice = 0 if arguments.short else ATTACKER_NICE
    with Rig(arguments.clients, nice) as rig:
        calm = rig.calm(1, arguments.seconds)
        for number in range(arguments.rounds):
            for attack in chosen:
                if not arguments.short:
                    calm = rig.calm(attack.processes, arguments.seconds)
                pair = Pair(calm, rig.attacked(attack, arguments.seconds))
                pairs[attack.label].append(pair)
                where = f"{time.strftime('%H:%M:%S')} {attack.label} {number + 1}/{arguments.rounds}"
                figures = f"{pair.calm.p99_ms:g} → {pair.attacked.p99_ms:g} ms, {pair.attacked.counts}"
                print(f"{where}: {figures}", file=sys.stderr, flush=True)
    return pairs


def row(attack: Attack, pairs: list[Pair], timed: bool) -> list[str]:
    attacked = [pair.attacked for pair in pairs]
    return [
        attack.label,
        report.spread([pair.calm.p99_ms for pair in pairs]).text(1),
        report.spread([slot.p99_ms for slot in attacked]).text(1),
        report.spread([pair.ratio for pair in pairs]).text(),
        f"{max(slot.most_ms for slot in attacked):.1f}",
        str(sum(slot.lost for slot in attacked)),
        str(sum(slot.missing for slot in attacked)),
        f"{statistics.median(pair.calm.cpu for pair in pairs):.0f}",
        f"{statistics.median(slot.cpu for slot in attacked):.0f}",
        f"{max(slot.peak_mb for slot in attacked):.1f}",
        str(attack.budget_mb),
        "missed" if faults(attack, pairs, timed) else "reached",
    ]


def text_of(arguments: argparse.Namespace, chosen: list[Attack], pairs: dict[str, list[Pair]], machine: Any) -> str:
    timed = not arguments.short
    title = (
        f"# Hostile\n\n{arguments.clients} normal clients, a publication to all of them every 50 ms, by the clock; the "
        "hub (supervisor, one worker, Valkey) on one core, attackers and clients on the other; "
        f"{arguments.rounds} rounds of {arguments.seconds:g} s, each behind a slot in which the attackers only burn. "
        "Attackers come from one address, or from 200 in turn, so that no limit by address is of any help. "
        "p99 from the moment at which a publication was due to each receipt; median (lowest–highest) over the rounds; "
        "the ratio is formed in a round."
    )
    table = report.table(HEAD, [row(attack, pairs[attack.label], timed) for attack in chosen])
    lines = [title, "", report.machine_text(machine), "", table]
    missed = [f"- {attack.label}: {fault}" for attack in chosen for fault in faults(attack, pairs[attack.label], timed)]
    if missed:
        lines += ["", "Missed:", "", *missed]
    lines += ["", "What the attackers did in their last slot:", ""]
    for attack in chosen:
        counts = pairs[attack.label][-1].attacked.counts
        lines.append(f"- {attack.label}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    return "\n".join(lines)


def chosen_of(names: list[str] | None, sources: list[str]) -> list[Attack]:
    known = {attack.name: attack for attack in ATTACKS}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"hostile: no attack {name!r}; there are: {', '.join(known)}")
    chosen = [attack for attack in ATTACKS if attack.name in (names or known)]
    return [attack._replace(source=source) for attack in chosen for source in sources]


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--from", dest="sources", nargs="+", choices=tuple(SOURCES), default=list(SOURCES))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="hostile", default="", metavar="NAME")
    arguments = parser.parse_args(words)
    arguments.rounds = arguments.rounds or (1 if arguments.short else ROUNDS)
    arguments.seconds = arguments.seconds or (SHORT_SECONDS if arguments.short else SECONDS)
    arguments.clients = arguments.clients or (SHORT_CLIENTS if arguments.short else CLIENTS)
    return arguments


def main(words: list[str] | None = None) -> int:
    arguments = parsed(words)
    if arguments.list:
        print(*(attack.name for attack in ATTACKS), sep="\n")
        return 0
    chosen = chosen_of(arguments.only, arguments.sources)
    machine = report.machine()
    pairs = run(arguments, chosen)
    timed = not arguments.short
    record = {
        "bench": "hostile",
        "arguments": vars(arguments),
        "machine": machine,
        "attacks": {
            name: [{"calm": asdict(pair.calm), "attacked": asdict(pair.attacked)} for pair in rounds]
            for name, rounds in pairs.items()
        },
        "missed": {attack.label: faults(attack, pairs[attack.label], timed) for attack in chosen},
    }
    report.finish(record, text_of(arguments, chosen, pairs, machine), arguments)
    return 1 if any(record["missed"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
