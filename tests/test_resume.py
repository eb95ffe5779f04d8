"""Resume: what a client's last mark says of all its channels, against a model of a client that is cut anywhere."""

from __future__ import annotations

import random

import pytest

from hub.resume import STEP, Deliveries, Mark, Record, judge, parse_mark

CHANNELS = ["chat:a", "chat:b", "chat:c"]


@pytest.mark.parametrize("channel", ["chat:room", "a.b:c.d", "x"])
def test_a_mark_is_read_as_it_was_written(channel):
    """Dots in a channel's name are its own."""
    mark = Mark("9f3a61c0", 120, 17, channel)
    assert parse_mark(str(mark)) == mark


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.1", "a.1.x.c", "a.-1.2.c", "a.1.2" + "c" * 400, "a.²1.2.c"])
def test_what_is_no_mark_says_nothing(text):
    """It comes from a client."""
    assert parse_mark(text) is None


def record(streams, confirmed=-1, came="", form="f"):
    return Record("", form, came, confirmed, streams, [])


def test_a_record_is_read_as_it_was_packed():
    """By another worker."""
    one = record({"chat:a": ["4.k3", 0, 2, [5, 6]]})._replace(rooms=["chat:a"], named="ann", ids=["c1"])
    assert Record.unpack(one.pack()) == one


JUDGED = [
    # base, top and batches of a and b; the mark's batch, offset and channel; where the client is
    ((0, 2, [1, 3]), (0, 1, [2]), (1, 1, "chat:a"), {"chat:a": 1, "chat:b": 0}),
    ((0, 2, [1, 3]), (0, 1, [2]), (2, 1, "chat:b"), {"chat:a": 1, "chat:b": 1}),
    ((0, 2, [1, 3]), (0, 1, [2]), (3, 2, "chat:a"), {"chat:a": 2, "chat:b": 1}),
    ((0, 2, [1, 2]), (0, 1, [2]), (2, 1, "chat:b"), None),
    ((5, 7, [1, 3]), (9, 9, []), (1, 6, "chat:a"), {"chat:a": 6, "chat:b": 9}),
    ((0, 9, [7, 8]), (0, 1, [2]), (7, 1, "chat:z"), None),
    ((0, 9, [7, 8]), (0, 1, [2]), (9, 1, "chat:z"), {"chat:a": 9, "chat:b": 1}),
    ((0, 9, [7, 8]), (0, 1, [2]), (3, 1, "chat:b"), None),
    ((0, 2, [1, 3]), (0, 1, [2]), (9, 3, "chat:a"), None),
    # Of an earlier stay in a, which has been another life of the channel: of this one it has nothing, or nobody knows.
    ((3, 5, [7, 9]), (0, 0, []), (2, 4, "chat:a"), None),
    ((3, 5, [7, 9]), (0, 0, []), (7, 4, "chat:a"), {"chat:a": 4, "chat:b": 0}),
    ((3, 5, [7, 9]), (0, 0, []), (2, 1, "chat:a"), {"chat:a": 3, "chat:b": 0}),
]


@pytest.mark.parametrize(("a", "b", "mark", "positions"), JUDGED)
def test_a_mark_gives_every_channels_position_or_none(a, b, mark, positions):
    """Earlier batches came, later ones did not; the same batch, or what is forgotten, nobody knows."""
    streams = {"chat:a": ("e", *a), "chat:b": ("e", *b)}
    assert judge(record(streams), str(Mark("f", *mark))) == positions


def test_what_a_pong_confirmed_is_certain():
    """Also within the mark's own batch."""
    streams = {"chat:a": ("e", 0, 2, [1, 2]), "chat:b": ("e", 0, 1, [2])}
    mark = str(Mark("f", 2, 1, "chat:b"))
    assert judge(record(streams, confirmed=1), mark) is None
    assert judge(record(streams, confirmed=2), mark) == {"chat:a": 2, "chat:b": 1}


def test_who_received_nothing_is_where_it_began():
    """With the mark that it had brought, or none; a mark of somebody else says nothing."""
    streams = {"chat:a": ("e", 3, 5, [1, 2])}
    assert judge(record(streams), "") == {"chat:a": 3}
    assert judge(record(streams, came="g.1.3.chat:a"), "g.1.3.chat:a") == {"chat:a": 3}
    assert judge(record(streams, came="g.1.3.chat:a"), "") is None
    assert judge(record(streams), "g.1.3.chat:a") is None


def test_what_is_forgotten_is_not_taken_for_nothing():
    """The oldest of all channels go first; who joined before them can't be told where it is."""
    deliveries = Deliveries("f", lambda: 1, most=2)
    for offset in (1, 2, 3):
        deliveries.note("chat:a", offset)
    assert deliveries.behind("chat:a", 0, 0, 10) == (3, [1, 1])
    assert deliveries.behind("chat:a", 2, 2, 10) == (3, [1])
    assert deliveries.behind("chat:b", 7, 3, 10) == (7, [])
    for offset in (1, 2):
        deliveries.note("chat:b", offset)
    assert deliveries.behind("chat:a", 3, 3, 10) == (3, [])
    assert deliveries.behind("chat:a", 2, 2, 10) is None


def test_another_life_of_a_channel_begins_anew():
    """Offsets that do not follow are of another epoch, or of before a pause without subscribers."""
    batches = iter(range(100))
    deliveries = Deliveries("f", lambda: next(batches), most=3)
    for offset in (8, 9, 1, 2):
        deliveries.note("chat:a", offset)
    assert deliveries.behind("chat:a", 0, 0, 10) == (2, [2, 3])
    deliveries.note("chat:b", 1)
    deliveries.note("chat:b", 2)
    assert deliveries.behind("chat:a", 0, 0, 10) == (2, [3])


@pytest.mark.parametrize("seed", range(300))
def test_a_client_cut_anywhere_has_what_is_said(seed):
    """Batches of random publications, each in an order of its own; the cut is anywhere, also within a batch."""
    rng = random.Random(seed)
    turn = [0]
    deliveries = Deliveries("f", lambda: turn[0], most=rng.choice([8, 10_000]))
    tops = {channel: rng.randrange(5) for channel in CHANNELS}
    bases, sent = dict(tops), []
    for turn[0] in range(rng.randrange(12)):
        parts = []
        for channel in rng.sample(CHANNELS, rng.randrange(len(CHANNELS) + 1)):
            part = []
            for _ in range(rng.randrange(1, 3)):
                tops[channel] += 1
                part.append(deliveries.note(channel, tops[channel]))
            parts.append(part)
        rng.shuffle(parts)
        sent += [mark for part in parts for mark in part]
    received = sent[: rng.randrange(len(sent) + 1)]
    streams = {}
    truth = {**bases, **{mark.channel: mark.offset for mark in received}}
    for channel in CHANNELS:
        found = deliveries.behind(channel, bases[channel], 0, rng.choice([3, 1000]))
        if found is None:
            return
        streams[channel] = ("e", bases[channel], *found)
    positions = judge(record(streams), str(received[-1]) if received else "")
    assert positions is None or positions == truth


@pytest.mark.parametrize("seed", range(300))
def test_what_one_client_is_sent_by_itself_has_its_place(seed):
    """Missed publications when it came back, and events: before the batch that gathers, behind those before."""
    rng = random.Random(seed)
    turn = [STEP * rng.randrange(1, 4)]
    deliveries = Deliveries("f", lambda: turn[0])
    tops = {channel: rng.randrange(5) for channel in CHANNELS}
    stays, sent, alone = {}, [], 0
    for _ in range(rng.randrange(1, 8)):
        for channel in CHANNELS:
            if channel not in stays and rng.random() < 0.5:
                base, missed, batches = tops[channel], rng.randrange(3), []
                sent_before = deliveries.count
                for _ in range(missed):
                    alone += 1
                    tops[channel] += 1
                    mark = deliveries.alone(alone, channel, tops[channel])
                    sent.append((mark, mark))
                    batches.append(mark.batch)
                stays[channel] = (base, batches, sent_before)
            if rng.random() < 0.3:
                sent.append((deliveries.alone(alone), None))
        parts = []
        for channel in rng.sample(sorted(stays), rng.randrange(len(stays) + 1)):
            tops[channel] += 1
            mark = deliveries.note(channel, tops[channel])
            parts.append((mark, mark))
        if rng.random() < 0.3:
            parts.append((deliveries.passing("room:none"), None))
        rng.shuffle(parts)
        sent += parts
        turn[0] += STEP
    cut = rng.randrange(len(sent) + 1)
    truth = {channel: base for channel, (base, _, _) in stays.items()}
    truth |= {mark.channel: mark.offset for _, mark in sent[:cut] if mark is not None}
    streams = {}
    for channel, (base, batches, sent_before) in stays.items():
        top, shared = deliveries.behind(channel, base + len(batches), sent_before, 1000)
        streams[channel] = ("e", base, top, [*batches, *shared])
    shown = str(sent[cut - 1][0]) if cut else ""
    positions = judge(record(streams), shown)
    assert positions is None or positions == truth
    if cut and sent[cut - 1][1] is None and parse_mark(shown).channel == "":
        assert positions == truth  # what has no channel leaves no doubt
