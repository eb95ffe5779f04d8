"""The fan-out, on real sockets: who receives what, and in which bytes.

What is taken up and swept when: test_gathering; subscriptions with wishes: test_pace.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub import sweep
from hub.channels import Namespace
from hub.message import Arrival
from tests.readers import LIMITS, Form, check_board, rig
from tests.support import async_test


@async_test
async def test_each_channel_reaches_its_own_audience_in_order():
    """Nobody receives a channel that it has not joined; publications of a channel come in the order of the batch."""
    async with rig() as hub:
        a, b, both = hub.client("a"), hub.client("b"), hub.client("a", "b")
        hub.publish(("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"))
        await hub.settled()
        assert hub.read(a) == "<a 1><a 3>"
        assert hub.read(b) == "<b 2>"
        assert sorted(hub.read(both).replace(">", "").split("<")) == ["", "a 1", "a 3", "b 2"]
        assert hub.fanout.deliveries == 6


@async_test
async def test_a_publication_is_encoded_once_for_each_wire_form():
    """A hundred subscribers on two wires: two encodings."""
    async with rig() as hub:
        forms = [Form(), Form()]
        ones = [hub.client("a", form=forms[i % 2]) for i in range(100)]
        hub.publish(("a", "1"))
        await hub.settled()
        assert [form.encoded for form in forms] == [1, 1]
        assert all(hub.read(one) == "<a 1>" for one in ones)


@async_test
async def test_who_joins_receives_what_comes_after_and_nothing_of_before():
    """Also within one turn: a publication, a join, a publication."""
    async with rig() as hub:
        first = hub.client("a")
        hub.publish(("a", "1"))
        second = hub.client("a")
        hub.publish(("a", "2"))
        third = hub.client("a")
        await hub.settled()
        assert [hub.read(one) for one in (first, second, third)] == ["<a 1><a 2>", "<a 2>", ""]


@async_test
async def test_who_leaves_receives_nothing_more():
    """Not even what is published later in the same turn; leaving and joining again in one turn is as if nothing was."""
    async with rig() as hub:
        one, other = hub.client("a"), hub.client("a")
        await hub.settled()
        hub.fanout.leave("a", one)
        hub.fanout.leave("a", other)
        hub.fanout.join("a", Namespace(), other)
        hub.publish(("a", "1"))
        await hub.settled()
        assert (hub.read(one), hub.read(other)) == ("", "<a 1>")


@async_test
async def test_nothing_of_a_channel_comes_behind_the_reply_to_its_unsubscribe():
    """Whatever was under way to this client comes before the reply; batches that have not begun leave it out."""
    async with rig() as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
        ones = [hub.client("a", "b") for _ in range(300)]
        await hub.settled()
        hub.publish(("a", "1"))
        hub.fanout.begin()
        hub.fanout.run()
        hub.publish(("a", "2"))
        hub.client("a")
        hub.publish(("a", "3"), ("b", "3"))
        for one in ones:
            hub.fanout.leave("a", one)
            one.put(b"<left>")
        hub.publish(("a", "4"), ("b", "4"))
        await hub.settled()
        assert {hub.read(one) for one in ones} == {"<a 1><left><b 3><b 4>"}


@async_test
async def test_who_comes_back_to_a_channel_behind_a_backlog_gets_its_newest_value_behind_its_reply():
    """A newer value does not take the place of one from before the channel was left."""
    async with rig(send_buffer=4096) as hub:
        stuck, quick = hub.client("a", mode="latest"), hub.client("a", mode="latest")
        for i in range(200):
            hub.publish(("a", f"{i:0500}"))
            await hub.settled()
            hub.read(quick)
        assert not stuck.direct
        hub.fanout.leave("a", stuck)
        stuck.put(b"<left>")
        hub.fanout.join("a", Namespace(mode="latest"), stuck)
        stuck.put(b"<joined>")
        hub.publish(("a", "new"))
        await hub.settled()
        text = ""
        while "<a new>" not in text:
            text += await hub.read_all(stuck, 1)
        assert text.index("<left>") < text.index("<joined>") < text.index("<a new>")


@async_test
async def test_a_stuck_reader_of_latest_channels_gets_the_newest_values():
    """Above the mark one value per channel waits, and the last one arrives."""
    async with rig(send_buffer=4096) as hub:
        stuck, quick = hub.client("a", "b", mode="latest"), hub.client("a", "b", mode="latest")
        for i in range(2000):
            hub.publish(("a", f"{i:050}"), ("b", f"{i:050}"))
            await hub.settled()
            hub.read(quick)
        assert stuck._outbox.size < LIMITS.conflate_bytes + 4096
        assert hub.reactor.backlog.conflated > 1000
        text = ""
        while text.count(f"{1999:050}") < 2:
            text += await hub.read_all(stuck, 1)
        for channel in "ab":
            values = [frame[2:] for frame in text.replace(">", "").split("<") if frame.startswith(channel)]
            assert values == sorted(values) and int(values[-1]) == 1999


@async_test
async def test_arrivals_go_to_watchers_only_in_one_write_and_encoded_once():
    """Together with publications of the same turn; who is only subscribed gets none, and nothing is counted twice."""
    async with rig() as hub:
        watchers, other = [hub.client("a", "b"), hub.client("a", "b")], hub.client("a", "b")
        for watcher in watchers:
            hub.fanout.watch("a", watcher)
        await hub.settled()
        before, hub.form.encoded = hub.fanout.sweep.writes, 0
        hub.publish(("a", "1"))
        hub.fanout.announce([Arrival("a", b"ann"), Arrival("a", b"bob"), Arrival("b", b"cid")])
        await hub.settled()
        for one in watchers:
            assert hub.read(one) in ("<a 1><a! ann><a! bob>", "<a! ann><a! bob><a 1>")
        assert hub.read(other) == "<a 1>"
        assert hub.fanout.sweep.writes - before == 3 and hub.form.encoded == 3
        assert hub.fanout.lines.counts() == {"a": 3, "b": 3} and (len(hub.fanout.lines), hub.fanout.subscriptions) == (
            2,
            6,
        )


@async_test
async def test_who_watches_no_more_is_told_no_more():
    """And the audience is gone with its last watcher, while the subscription stays."""
    async with rig() as hub:
        one, other = hub.client("a"), hub.client("a")
        hub.fanout.watch("a", one)
        hub.fanout.watch("a", other)
        hub.fanout.unwatch("a", one)
        await hub.settled()
        hub.fanout.announce([Arrival("a", b"ann")])
        await hub.settled()
        assert [hub.read(one), hub.read(other)] == ["", "<a! ann>"]
        hub.fanout.unwatch("a", other)
        hub.fanout.announce([Arrival("a", b"bob")])
        hub.publish(("a", "1"))
        await hub.settled()
        assert [hub.read(one), hub.read(other)] == ["<a 1>"] * 2
        assert not hub.fanout._watchers


moves = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 3), st.sampled_from("abc")),
        st.tuples(st.just("leave"), st.integers(0, 3), st.sampled_from("abc")),
        st.tuples(st.just("publish"), st.just(0), st.sampled_from("abc")),
        st.tuples(st.just("reply"), st.integers(0, 3), st.just("-")),
        st.tuples(st.just("turn"), st.just(0), st.just("-")),
        st.tuples(st.just("slice"), st.just(0), st.just("-")),
        st.tuples(st.just("go"), st.integers(4, 5), st.just("-")),
    ),
    max_size=40,
)


@settings(max_examples=250, deadline=None)
@given(moves)
def test_against_a_model_everybody_receives_what_it_should_in_order_of_each_channel(steps):
    """Any order of joins, leaves, publications, replies, disconnects, turns and slices of a sweep, which are as small
    as they can be: each channel's messages since the join and until the leave, each once, in order; what is published
    just before a leave and has not begun to be swept may be missing.
    """

    @async_test
    async def run() -> None:
        async with rig() as hub:
            hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
            here = [hub.client("a", "b", "c") for _ in range(2)]
            await hub.settled()
            ones = [hub.client() for _ in range(4)]
            inside: list[dict[str, None]] = [{} for _ in ones]
            must: list[list[tuple[str, int]]] = [[] for _ in ones]
            may: list[set[tuple[str, int]]] = [set() for _ in ones]
            fresh: list[tuple[str, int]] = []
            for number, (what, who, channel) in enumerate(steps):
                if what == "join" and channel not in inside[who]:
                    hub.fanout.join(channel, Namespace(), ones[who])
                    inside[who][channel] = None
                elif what == "leave" and channel in inside[who]:
                    hub.fanout.leave(channel, ones[who])
                    del inside[who][channel]
                    may[who] |= {item for item in fresh if item[0] == channel}
                elif what == "publish":
                    hub.publish((channel, str(number)))
                    fresh.append((channel, number))
                    for i, channels in enumerate(inside):
                        if channel in channels:
                            must[i].append((channel, number))
                elif what == "reply":
                    ones[who].put(b"<reply %d>" % number)
                    must[who].append(("reply", number))
                elif what == "turn":
                    await hub.settled()
                    fresh.clear()
                elif what == "slice":
                    hub.fanout.begin()
                    hub.fanout.run()
                elif what == "go" and here[who - 4].open:
                    for each in "abc":
                        hub.fanout.leave(each, here[who - 4])
                    here[who - 4].abort()
            await hub.settled()
            check_board(hub.fanout)
            for i, one in enumerate(ones):
                frames = [frame.split() for frame in hub.read(one).replace(">", "").split("<")[1:]]
                for name in "abc", "reply":
                    for channel in name if name != "reply" else [name]:
                        received = [int(n) for c, n in frames if c == channel]
                        wanted = [n for c, n in must[i] if c == channel]
                        surely = [n for n in wanted if (channel, n) not in may[i]]
                        assert received == sorted(set(received)) and set(surely) <= set(received) <= set(wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "CHUNK", 1)
        run()
