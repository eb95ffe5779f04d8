"""Tokens: what judging one costs a worker, with a signature to check and remembered.

    python bench/tokens.py [--tokens 2000] [--rounds 9] [--json] [--save [NAME]]

Does: in each round have an authenticator judge tokens of each algorithm that it has never seen, and the same again.
Does not: include what a handshake costs besides; storm.py does, in its row hub-token.
Never break: no token is judged twice where a signature is meant to be checked, and all are let in.

In one process, on one CPU: µs of its CPU time per token. The tokens are of the size that applications make.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from rig import report
from rig.processes import pick_cpus

from hub import auth, keys
from hub.auth import Authenticator
from hub.keys import KeyRing

SECRET = "bench-secret-of-at-least-32-bytes-0"
TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Cost:
    """One turn: µs of CPU per token, when it is seen first and afterwards."""

    first_us: float
    again_us: float


Results = dict[str, list[Cost]]


def signers() -> dict[str, tuple[Any, keys.Key]]:
    """By algorithm: what signs, and what the hub has of it."""
    pairs = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    found: dict[str, tuple[Any, keys.Key]] = {"HS256": (SECRET, keys.of_secret(SECRET))}
    return found | {name: (pair, keys.of_public(pair.public_key())) for name, pair in pairs.items()}


def make(algorithm: str, key: object, number: int) -> list[str]:
    """Tokens of as many users, with what applications usually put into them."""
    now, info = time.time(), {"name": "Ann of Green Gables"}
    return [
        auth.make(f"user-{i}", key, TTL_S, now, algorithm, aud="hub", jti=f"{i:08x}", info=info) for i in range(number)
    ]


def measure(ring: KeyRing, tokens: Sequence[str]) -> Cost:
    """Judge all of them twice; they fit into what is remembered."""
    judge = Authenticator(ring, time.time, auth.Rules(audience="hub"), cache=len(tokens))
    costs = []
    for _ in range(2):
        before_s = time.process_time()
        for token in tokens:
            judge.verify(token)
        costs.append((time.process_time() - before_s) / len(tokens) * 1e6)
    return Cost(*costs)


def run(arguments: argparse.Namespace) -> Results:
    """All rounds of all algorithms, interleaved."""
    cpu, _ = pick_cpus()
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    found = signers()
    ring = KeyRing([key for _, key in found.values()])
    tokens = {name: make(name, key, arguments.tokens) for name, (key, _) in found.items()}
    results: Results = {name: [] for name in found}
    for _ in range(arguments.rounds):
        for name in found:
            results[name].append(measure(ring, tokens[name]))
    return results


def text(arguments: argparse.Namespace, found: dict[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    title = f"Tokens: {arguments.tokens:,} of each kind are judged, then once more; {arguments.rounds} rounds."
    rows = [_row(name, turns) for name, turns in results.items()]
    return "\n".join(
        [title, report.machine_text(found), "", report.table(["algorithm", "CPU µs", "CPU µs, again"], rows)]
    )


def _row(name: str, turns: Sequence[Cost]) -> list[str]:
    return [
        name,
        report.spread([turn.first_us for turn in turns]).text(1),
        report.spread([turn.again_us for turn in turns]).text(2),
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="µs per token; see bench/README.md")
    parser.add_argument("--tokens", type=int, default=2000, help="of each algorithm")
    parser.add_argument("--rounds", type=int, default=9)
    report.add_options(parser, "tokens")
    return parser.parse_args(words)


def main() -> None:
    report.bench("tokens", parse(), run, text, lambda results: {"works": report.turns(results)})


if __name__ == "__main__":
    main()
