"""Position: how far a subscriber has read a channel, and whether the store still has all of that.

Does: give the shape of a position, read the epoch's text, compare a position with what a channel has now.
Does not: talk to Redis, mint epochs (the scripts in hub/lua do) or decide what a client is told.
Called by: streams, recovery, history.
Never break: `survives` errs on no side. True for a position beyond what survived is a silent loss, False for one within
it is a false alarm; tests/test_position.py checks both against a model of stores that lag, fail over and fail back.

An epoch is a channel's lineage: the store generations in which it was touched, oldest first, each but the last with the
offset at which it ended there. The rule is Kafka's leader epoch (KIP-101), with the whole lineage in the client's hand:

    4.k3f9x1                  born in generation 4, which goes on
    4.k3f9x1@17,5.p0x1aa      generation 4 ended at 17; what was published as 18 or later in it is gone

A token, such as 4.k3f9x1, is the generation's number and a random part, minted at the first touch of this channel in
this generation. So two stores that share a token share everything up to where it ended in either of them.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_EPOCH_LENGTH = 512
"""Of the text, in characters. The scripts keep the newest MAX_GENERATIONS, which fit."""
MAX_GENERATIONS = 8
"""In one epoch. A position older than so many failovers of its channel is taken for lost."""
MAX_OFFSET = 2**53 - 1
"""The largest integer that JavaScript's and Lua's numbers hold exactly."""


class Position(NamedTuple):
    """After the message `offset` of a channel, counted from 1; 0 is before the first. epoch '': whichever it is now."""

    epoch: str
    offset: int


def lineage(epoch: str) -> list[tuple[str, int | None]]:
    """'4.k3f9x1@17,5.p0x1aa' -> [('4.k3f9x1', 17), ('5.p0x1aa', None)]; the last one has no end yet.

    What is not of this shape comes back as a token that no store has minted.
    """
    found: list[tuple[str, int | None]] = []
    for element in epoch.split(","):
        token, at, end = element.partition("@")
        found.append((token, int(end) if at and end.isascii() and end.isdigit() else None))
    return found


def survives(position: Position, epoch: str, top: int) -> bool:
    """Whether all that a subscriber at `position` has seen is in the channel, which is at (`epoch`, `top`) now."""
    if not position.epoch or position.epoch == epoch:
        return position.offset <= top
    now = dict(lineage(epoch))
    for token, end in reversed(lineage(position.epoch)):
        if token not in now:
            continue
        # Both share this token's messages up to where it ended in either; before it they are the same.
        here = now[token]
        shared = min(top if here is None else here, position.offset if end is None else end)
        return position.offset <= shared
    return False
