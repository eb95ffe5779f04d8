"""The fan-out, on real sockets: who receives what, in which bytes, and in what order with everything else.

What else is served in the middle of a sweep: e2e/test_fairness.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub import sweep
from hub.channels import Namespace
from hub.connection import Connection, take_over
from hub.errors import CLOSE_SHUTDOWN, Close
from hub.fanout import Fanout
from hub.message import Arrival, Publication
from hub.outbox import Limits
from hub.reactor import Reactor
from tests.support import async_test

LIMITS = Limits(10_000, 100_000, 1_000_000, 100_000)


class Form:
    """A wire form that counts how often it encodes; frames are '<channel body>'."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        self.encoded += 1
        return b"<" + channel.encode() + b" " + body + b">"

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        self.encoded += 1
        return b"<" + channel.encode() + b"! " + body + b">"


class One(Connection):
    """A connection that only receives."""

    __slots__ = ("goes", "wire")

    def __init__(self, fd: int, reactor: Reactor, wire: Form) -> None:
        super().__init__(fd, reactor, LIMITS)
        self.wire = wire
        self.goes = None

    def on_bytes(self, data: bytes) -> None: ...

    def on_deadline(self, now: float) -> None: ...

    def on_gone(self) -> None:
        if self.goes is not None:
            self.goes()

    def last_words(self, close: Close) -> bytes:
        return b"<bye>"


class Rig:
    """A plane with a fan-out, and clients whose received bytes can be read."""

    def __init__(self, send_buffer: int = 0, max_bytes: int = 10**9) -> None:
        loop = asyncio.get_running_loop()
        self.reactor = Reactor(loop, close_timeout_s=0.2)
        self.fanout = Fanout(
            self.reactor.connections, self.reactor.arm_turn, self.reactor.clock, loop.call_later, max_bytes
        )
        self.reactor.batches = self.fanout
        self.reactor.start()
        self.form = Form()
        self.send_buffer = send_buffer
        self.theirs: dict[One, socket.socket] = {}

    def client(self, *channels: str, form: Form | None = None, mode: str = "none", flush_ms: float = 0) -> One:
        ours, theirs = socket.socketpair()
        if self.send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        theirs.setblocking(False)
        one = One(take_over(ours), self.reactor, form or self.form)
        self.theirs[one] = theirs
        self.reactor.adopt(one)
        for channel in channels:
            self.fanout.join(channel, Namespace(mode=mode, flush_ms=flush_ms), one)
        return one

    def publish(self, *pairs: tuple[str, str]) -> None:
        self.fanout.deliver([Publication(channel, body.encode()) for channel, body in pairs])

    async def settled(self) -> None:
        """Until nothing is on its way."""
        await asyncio.sleep(0)
        while self.fanout.busy or self.reactor._flush_armed:
            await asyncio.sleep(0)

    def read(self, one: One) -> str:
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := self.theirs[one].recv(1 << 20):
                data += more
        return data.decode()

    async def read_all(self, one: One, size: int) -> str:
        """As many characters as `size` says, and what came with them."""
        text = ""
        while len(text) < size:
            text += self.read(one)
            await asyncio.sleep(0.001)
        return text


@contextlib.asynccontextmanager
async def rig(send_buffer: int = 0, max_bytes: int = 10**9) -> AsyncIterator[Rig]:
    one = Rig(send_buffer, max_bytes)
    try:
        yield one
    finally:
        one.reactor.stop()
        for sock in one.theirs.values():
            sock.close()


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
async def test_what_one_turn_publishes_leaves_in_one_write_each():
    """Fifty publications, ten subscribers of the same two channels: ten system calls."""
    async with rig() as hub:
        ones = [hub.client("a", "b") for _ in range(10)]
        await hub.settled()
        before = hub.fanout.sweep.writes
        for i in range(25):
            hub.publish(("a", str(i)))
            hub.publish(("b", str(i)))
        await hub.settled()
        assert hub.fanout.sweep.writes - before == 10
        assert {len(hub.read(one)) for one in ones} == {2 * sum(len(f"<a {i}>") for i in range(25))}


@async_test
async def test_subscribers_of_the_same_channels_are_one_group_in_whatever_order_they_joined():
    """Their joined bytes are made once; another set is another group, and empty groups are gone."""
    async with rig() as hub:
        ones = [hub.client("a", "b"), hub.client("b", "a"), hub.client("a")]
        await hub.settled()
        assert len(hub.fanout._groups) == 2
        hub.fanout.leave("b", ones[0])
        hub.fanout.leave("b", ones[1])
        await hub.settled()
        assert len(hub.fanout._groups) == 1
        for one in ones:
            hub.fanout.leave("a", one)
        await hub.settled()
        assert not hub.fanout._groups and hub.fanout.lines.counts() == {}


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
async def test_who_leaves_and_comes_back_in_the_middle_of_a_sweep_is_inside():
    """The leave goes before the batches that wait, the join behind them."""
    async with rig() as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
        ones = [hub.client("a") for _ in range(300)]
        await hub.settled()
        hub.publish(("a", "1"))
        hub.fanout.begin()
        hub.fanout.run()
        hub.publish(("a", "2"))
        for one in ones:
            hub.fanout.leave("a", one)
            hub.fanout.join("a", Namespace(), one)
        hub.publish(("a", "3"))
        await hub.settled()
        assert {hub.read(one) for one in ones} == {"<a 1><a 3>"} and hub.fanout.lines.counts() == {"a": 300}


@async_test
async def test_joins_do_not_split_a_batch():
    """A join for each publication while a sweep is under way: one batch all the same, each newcomer with its part."""
    async with rig() as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
        ones = [hub.client("a") for _ in range(300)]
        await hub.settled()
        hub.publish(("a", "0"))
        hub.fanout.begin()
        hub.fanout.run()
        before, newcomers = hub.fanout.sweep.writes, []
        for i in range(1, 10):
            hub.publish(("a", str(i)))
            newcomers.append(hub.client("a"))
        await hub.settled()
        assert hub.fanout.sweep.writes - before <= 300 + 300
        assert {hub.read(one) for one in ones} == {"".join(f"<a {i}>" for i in range(10))}
        for first, one in enumerate(newcomers, 2):
            assert hub.read(one) == "".join(f"<a {i}>" for i in range(first, 10))
        hub.publish(("a", "x"))
        await hub.settled()
        assert {hub.read(one) for one in ones + newcomers} == {"<a x>"}


@async_test
async def test_who_is_sent_away_by_what_it_is_offered_in_mid_sweep_stops_nobody():
    """Stuck while its group is being swept, and the batch is more than its outbox takes: it goes, the others go on."""
    async with rig(send_buffer=4096) as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
        ones = [hub.client("a", mode="latest") for _ in range(300)]
        await hub.settled()
        hub.publish(("a", "y" * 2_000))
        hub.fanout.begin()
        hub.fanout.run()
        waiting = [one for one in ones if not hub.read(one)]
        stuck, fine = waiting[0], waiting[1]
        for _ in range(11):
            stuck.put(b"x" * 100_000)
        fine.put(b"<fine>")
        await hub.settled()
        assert stuck.closed_with.code == 3008
        assert hub.read(fine).startswith("<fine><a y")
        fine.put(b"<again>")
        await hub.settled()
        assert "<again>" in hub.read(fine)


@async_test
async def test_a_burst_in_one_turn_does_not_make_good_readers_slow():
    """A megabyte at once, to readers who read: nobody is closed; latest ones end with the newest value."""
    async with rig(send_buffer=65_536) as hub:
        none = [hub.client("a") for _ in range(5)]
        latest = [hub.client("b", mode="latest") for _ in range(5)]
        await hub.settled()
        hub.publish(*[("a", f"{i:01000}") for i in range(1500)], *[("b", f"{i:01000}") for i in range(1500)])
        texts = dict.fromkeys(none + latest, "")
        while hub.fanout.busy or any(not one.direct for one in texts) or hub.reactor._flush_armed:
            await asyncio.sleep(0.001)
            for one in texts:
                texts[one] += hub.read(one)
        assert all(one.open for one in texts) and hub.reactor.backlog.slow == 0
        for one, text in texts.items():
            values = [int(frame[2:]) for frame in text.replace(">", "").split("<")[1:]]
            assert values == sorted(set(values)) and (one in none or values[-1] == 1499)


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
async def test_a_clients_own_bytes_and_the_batch_leave_in_one_write_and_in_order():
    """A reply that was queued before a publication is not overtaken by it."""
    async with rig() as hub:
        one, other = hub.client("a"), hub.client("a")
        await hub.settled()
        before = hub.fanout.sweep.writes
        one.put(b"<reply>")
        hub.publish(("a", "1"))
        await hub.settled()
        assert hub.read(one) == "<reply><a 1>" and hub.read(other) == "<a 1>"
        assert hub.fanout.sweep.writes - before == 1, "the one that wrote its own was passed over by the sweep"


@async_test
async def test_a_stuck_reader_gets_everything_later_and_in_order_and_nobody_waits_for_it():
    """Backlog goes through its outbox; once it has drained it is written to directly again."""
    async with rig(send_buffer=4096) as hub:
        stuck, quick = hub.client("a"), hub.client("a")
        await hub.settled()
        sent = ""
        for i in range(300):
            hub.publish(("a", f"{i:050}"))
            sent += f"<a {i:050}>"
            await hub.settled()
            assert hub.read(quick) == f"<a {i:050}>"
        assert not stuck.direct and quick.direct
        assert await hub.read_all(stuck, len(sent)) == sent
        hub.publish(("a", "end"))
        await hub.settled()
        assert stuck.direct and hub.read(stuck) == "<a end>"


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
async def test_a_client_that_closes_gets_the_batch_and_then_its_last_words_and_nothing_behind():
    """A close frame is the last thing on the wire, whatever is published meanwhile."""
    async with rig() as hub:
        one, other = hub.client("a"), hub.client("a")
        await hub.settled()
        hub.publish(("a", "1"))
        hub.fanout.begin()
        one.close(CLOSE_SHUTDOWN)
        hub.publish(("a", "2"))
        await hub.settled()
        assert hub.read(one) == "<a 1><bye>"
        assert hub.read(other) == "<a 1><a 2>"


@async_test
async def test_a_dead_peer_in_the_middle_of_a_sweep_hurts_nobody():
    """Its connection ends; all others receive; its leave inside the sweep does not disturb the walk."""
    async with rig() as hub:
        ones = [hub.client("a") for _ in range(50)]
        await hub.settled()
        for one in ones[::7]:
            one.goes = lambda one=one: hub.fanout.leave("a", one)
            hub.theirs[one].close()
        hub.publish(("a", "1"))
        await hub.settled()
        alive = [one for i, one in enumerate(ones) if i % 7]
        assert all(hub.read(one) == "<a 1>" for one in alive)
        assert hub.fanout.lines.counts() == {"a": len(alive)}


@async_test
async def test_a_descriptor_that_comes_back_in_the_middle_of_a_sweep_is_not_written_to():
    """The batch was for the one that has gone; the newcomer with its number receives nothing of it."""
    async with rig() as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)  # the smallest slices
        ones = [hub.client("a") for _ in range(400)]
        await hub.settled()
        hub.publish(("a", "1"))
        hub.fanout.begin()
        hub.fanout.run()
        gone = [one for one in ones if not hub.read(one)]
        assert 200 < len(gone) < 400
        numbers = {one.fd for one in gone}
        for one in gone:
            one.abort()
        hub.reactor._bury()
        newcomers = [hub.client("a") for _ in gone]
        assert numbers & {one.fd for one in newcomers}
        await hub.settled()
        assert not any(hub.read(one) for one in newcomers)
        hub.publish(("a", "2"))
        await hub.settled()
        assert all(hub.read(one) == "<a 2>" for one in newcomers)


@async_test
async def test_a_client_that_gets_stuck_while_its_group_is_swept_loses_nothing():
    """Stuck by its own bytes between two slices: the batch goes behind them, once."""
    async with rig(send_buffer=4096) as hub:
        hub.fanout.sweep.run = lambda slice_s, run=hub.fanout.sweep.run: run(0)
        ones = [hub.client("a") for _ in range(300)]
        await hub.settled()
        hub.publish(("a", "1"))
        hub.fanout.begin()
        hub.fanout.run()
        swept = {one for one in ones if hub.read(one)}
        for one in ones:
            one.put(b"x" * 20_000)
        await hub.settled()
        for one in ones:
            expected = "x" * 20_000 + ("" if one in swept else "<a 1>")
            assert await hub.read_all(one, len(expected)) == expected


@async_test
async def test_a_pause_gathers_publications_into_one_write():
    """flush_ms: what comes in it leaves together; another channel is not held up; a joiner gets nothing of before."""
    async with rig() as hub:
        paused, other = hub.client("a", flush_ms=30), hub.client("b")
        await hub.settled()
        before = hub.fanout.sweep.writes
        for i in range(5):
            hub.publish(("a", str(i)), ("b", str(i)))
            await hub.settled()
        assert hub.read(paused) == "" and hub.read(other) == "".join(f"<b {i}>" for i in range(5))
        assert await hub.read_all(paused, 25) == "".join(f"<a {i}>" for i in range(5))
        assert hub.fanout.sweep.writes - before == 6
        hub.publish(("a", "early"))
        late = hub.client("a", flush_ms=30)
        hub.publish(("a", "late"))
        assert await hub.read_all(late, 8) == "<a late>"
        assert await hub.read_all(paused, 17) == "<a early><a late>"


@async_test
async def test_a_worker_that_is_behind_keeps_the_newest_values_and_drops_for_all():
    """Beyond max_bytes, latest channels go on with their newest value, none channels lose messages, counted both."""
    async with rig(max_bytes=1000) as hub:
        latest, none = hub.client("a", mode="latest"), hub.client("b")
        await hub.settled()
        for i in range(200):
            hub.publish(("a", f"{i:020}"), ("b", f"{i:020}"))
        assert hub.fanout.waiting_bytes <= 1100
        await hub.settled()
        values = hub.read(latest).replace(">", "").split("<a ")[1:]
        assert values == sorted(values) and int(values[-1]) == 199
        messages = hub.read(none).replace(">", "").split("<b ")[1:]
        assert messages == sorted(messages) and messages[0] == f"{0:020}"
        assert len(values) + hub.fanout.conflated == 200 and len(messages) + hub.fanout.dropped == 200
        assert hub.fanout.waiting_bytes == 0 and hub.fanout.deliveries == len(values) + len(messages)


@pytest.mark.parametrize("last", range(20, 29))
@async_test
async def test_who_joins_a_channel_that_is_conflated_behind_it_gets_the_newest_value(last):
    """The worker is behind: the values that the join was counted by are gone, the one that took their place is not."""
    async with rig(max_bytes=200) as hub:
        first = hub.client("a", mode="latest")
        await hub.settled()
        for i in range(5):
            hub.publish(("a", f"{i:020}"))
        second = hub.client("a", mode="latest")
        for i in range(5, last + 1):
            hub.publish(("a", f"{i:020}"))
        await hub.settled()
        assert hub.fanout.conflated and hub.read(first).endswith(f"<a {last:020}>")
        text = hub.read(second)
        assert text.endswith(f"<a {last:020}>")
        assert all(int(frame[2:]) >= 5 for frame in text.replace(">", "").split("<")[1:])


@async_test
async def test_a_worker_that_is_behind_holds_its_bound_however_many_channels_there_are():
    """Of a `none` channel not even the first message is taken beyond it; one that is larger than all is, by itself."""
    async with rig(max_bytes=1000) as hub:
        ones = [hub.client(f"c{i}") for i in range(100)]
        await hub.settled()
        hub.publish(*[(f"c{i}", "x" * 100) for i in range(100)])
        assert hub.fanout.waiting_bytes <= 1000
        await hub.settled()
        received = sum(bool(hub.read(one)) for one in ones)
        assert 0 < received == 100 - hub.fanout.dropped
        hub.publish(("c0", "x" * 5000))
        await hub.settled()
        assert len(hub.read(ones[0])) > 5000 and hub.fanout.waiting_bytes == 0


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


def check_board(fanout: Fanout) -> None:
    """Every slot is one audience's or nobody's, and nothing is left of a batch that is done."""
    slots = [audience.slot for line in fanout.lines.by_channel.values() for audience in line.audiences.values()]
    assert sorted(slots + fanout._board._free) == list(range(len(fanout._board.ready)))
    assert not any(fanout._board.ready)


@async_test
async def test_what_nobody_waits_for_any_more_does_not_take_anothers_place():
    """A channel that all have left while it paused, and a new one that has its slot, in the same batch."""
    async with rig() as hub:
        leaver = hub.client("a", flush_ms=1000)
        await hub.settled()
        hub.publish(("a", "1"))
        [(audience, _)] = hub.fanout._paused.items()
        hub.fanout.leave("a", leaver)
        await hub.settled()
        newcomer = hub.client("b", "c")
        hub.publish(("b", "2"))
        hub.fanout._end_pause(audience)
        assert audience.slot in {line.audiences[newcomer.wire].slot for line in hub.fanout.lines.by_channel.values()}
        await hub.settled()
        assert hub.read(newcomer) == "<b 2>" and hub.read(leaver) == ""
        hub.publish(("c", "3"))
        await hub.settled()
        assert hub.read(newcomer) == "<c 3>"
        check_board(hub.fanout)
