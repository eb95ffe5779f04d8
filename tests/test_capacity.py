"""Capacity: the figures agree with each other, and with the acceptor's own."""

from __future__ import annotations

import random
import statistics

import pytest

from hub import acceptor, capacity
from hub.capacity import before_one_is_full, clients_of, connections_in, fullest, limit_for, memory_for


def test_the_margin_is_the_acceptors() -> None:
    assert capacity.DESCRIPTOR_MARGIN == acceptor.DESCRIPTOR_MARGIN


@pytest.mark.parametrize("clients", [1, 30, 64, 100, 1000, 200_000])
@pytest.mark.parametrize("listeners", [2, 5])
def test_the_needed_limit_holds_just_so_many(clients: int, listeners: int) -> None:
    """And one less does not, where half of the limit is not more."""
    limit = limit_for(clients, listeners)
    assert clients_of(limit, listeners) >= clients
    if limit > capacity.SMALLEST_LIMIT:
        assert clients_of(limit - 1, listeners) < clients


def test_a_limit_too_low_for_the_hub_itself_holds_nobody() -> None:
    assert clients_of(40, 2) == 0


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("clients", [200, 20_000, 1_000_000])
def test_both_ways_of_the_spread_agree(workers: int, clients: int) -> None:
    """So many connections that the fullest worker is full, and no more."""
    most = before_one_is_full(clients, workers)
    assert fullest(most - workers, workers) <= clients <= fullest(most + workers, workers)
    assert most == clients if workers == 1 else most < workers * clients


@pytest.mark.parametrize(("workers", "clients"), [(2, 200), (8, 500)])
def test_the_spread_is_that_of_chance(workers: int, clients: int) -> None:
    """Drawn at random, the first worker is full within a few per cent of the prediction, and hardly ever before."""
    chance, firsts = random.Random(1), []
    for _ in range(200):
        load, total = [0] * workers, 0
        while True:
            slot = chance.randrange(workers)
            if load[slot] == clients:
                break
            load[slot] += 1
            total += 1
        firsts.append(total)
    predicted = before_one_is_full(clients, workers)
    assert predicted * 0.98 < statistics.median(firsts) < predicted * 1.08
    assert sum(first < predicted * 0.95 for first in firsts) < 10


def test_memory_and_connections_are_inverse() -> None:
    each = capacity.connection_bytes("websocket", tls=True, sockets=3)
    assert each == 1710 + 15_000 + 3 * 4096
    assert connections_in(memory_for(12_345, 4, each), 4, each) == 12_345
    assert connections_in(1000, 4, each) == 0
