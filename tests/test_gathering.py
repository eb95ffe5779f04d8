"""Gathering, on real sockets: what leaves in which write, in what order with everything else, and who moves meanwhile.

What else is served in the middle of a sweep: e2e/test_fairness.
"""

from __future__ import annotations

import asyncio

import pytest

from hub.channels import Namespace
from hub.errors import CLOSE_SHUTDOWN
from tests.readers import check_board, rig
from tests.support import async_test


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
async def test_behind_a_long_sweep_what_comes_waits_for_half_as_long():
    """And leaves in one write; who joins meanwhile is inside, and a short sweep is followed at once."""
    async with rig() as hub:
        timers: list = []
        hub.fanout._call_later = lambda seconds, call: timers.append((seconds, call)) or timers[-1]
        now = [0.0]
        hub.fanout._clock = lambda: now[0]
        one = hub.client("a")
        await hub.settled()

        def publish(*bodies: str) -> None:
            for body in bodies:
                hub.publish(("a", body))
                hub.fanout.begin()
                now[0] += 0.006
                hub.fanout.run()

        before = hub.fanout.sweep.writes
        publish("1", "2", "3")
        assert hub.read(one) == "<a 1>" and [seconds for seconds, _ in timers] == [pytest.approx(0.003)]
        late = hub.client("a")
        hub.publish(("a", "4"))
        timers[0][1]()
        while hub.fanout.busy:  # the clock stands still from here on, so that no sweep is long
            await asyncio.sleep(0)
        assert hub.read(one) == "<a 2><a 3><a 4>" and hub.read(late) == "<a 4>"
        assert hub.fanout.sweep.writes - before == 2 and len(timers) == 1


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
