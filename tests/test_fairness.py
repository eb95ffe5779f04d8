"""Whose bytes are read later: on a fake clock with fake connections, and through a plane's sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hub.connection import BUSY_READ_BYTES, READ_BYTES, take_over
from hub.fairness import LENT_S, MOST_OWED_S, MOST_OWN_S, OWED_S, PIECE_S, Fairness, Rates
from hub.limits import Account
from hub.outgoing import OPEN
from hub.reactor import Reactor
from tests.support import FakeClock, async_test
from tests.test_connection import Recorder, read, until

EACH = Rates(connection=0.1)
DEFAULT = Rates.of_ms(50, 100, 200)


class One:
    """A connection that has always something to say, which takes `work_s`."""

    def __init__(self, room: Fairness, clock: FakeClock, work_s: float, account: Account | None = None) -> None:
        self.busy_at = self.watched_until = 0.0
        self.account = account
        self.state = OPEN
        self.room, self.clock, self.work_s = room, clock, work_s
        self.reads = 0
        self.waits = False
        self._deaf, self.read_bytes, self.usual_read_bytes = 0, READ_BYTES, READ_BYTES

    def calm(self) -> None:
        self.watched_until = 0.0

    def put_off(self) -> None:
        self.waits = True

    def read_again(self) -> None:
        self.waits = False
        self.read()

    def read(self) -> None:
        """As Connection.on_readable does it."""
        assert not self.waits
        self.reads += 1
        now = self.clock()
        self.clock.advance(self.work_s)
        self.room.pay(self, now, self.work_s)


class Loop:
    """Timers on a fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.timers: list[tuple[float, object]] = []

    def call_later(self, delay_s: float, callback: object) -> None:
        self.timers.append((self.clock() + delay_s, callback))

    def run(self, seconds: float, busy: list[One]) -> None:
        """So long, in which everybody who is not put off reads as often as it can, and nothing else happens."""
        end = self.clock() + seconds
        while self.clock() < end:
            for timer in [timer for timer in self.timers if timer[0] <= self.clock()]:
                self.timers.remove(timer)
                timer[1]()
            before = self.clock()
            for one in busy:
                if not one.waits:
                    one.read()
            if self.clock() == before:
                self.clock.advance(0.0005)


def make(rates: Rates = EACH) -> tuple[Fairness, FakeClock, Loop, list[str]]:
    clock = FakeClock()
    loop, noted = Loop(clock), []
    return Fairness(clock, loop.call_later, rates, lambda: noted.append("put off")), clock, loop, noted


def test_who_has_much_to_say_gets_its_share_of_the_loop():
    """A tenth, and once half a second's worth of it in advance."""
    room, clock, loop, noted = make()
    one = One(room, clock, 0.001)
    loop.run(10.0, [one])
    assert 0.9 < one.reads * one.work_s < 10 * 0.1 + OWED_S * 0.1 + 0.01
    assert len(noted) > 500 and room.waiting <= 1


def test_without_a_rate_nothing_is_counted():
    """0 is any number."""
    room, clock, loop, noted = make(Rates())
    one = One(room, clock, 0.001)
    loop.run(1.0, [one])
    assert one.reads * one.work_s == pytest.approx(1.0, abs=0.01) and not noted


def test_busy_connections_of_one_address_share_its_time():
    """Eight of a tenth each would be most of the loop."""
    room, clock, loop, _ = make(Rates(connection=0.1, ip=0.2))
    account = Account("203.0.113.7")
    crowd = [One(room, clock, 0.001, account) for _ in range(8)]
    other = One(room, clock, 0.001, Account("203.0.113.8"))
    loop.run(10.0, [*crowd, other])
    taken = sum(one.reads for one in crowd) * 0.001
    # Until the address owes too much each has half a second's worth of its own rate.
    assert 1.0 < taken < 10 * 0.2 + OWED_S * (0.2 + 8 * 0.1) + 0.05
    assert other.reads * 0.001 > 0.9, "another address has its own"
    assert max(one.reads for one in crowd) < 2 * min(one.reads for one in crowd), "and each its part of it"


def test_many_who_keep_just_below_their_own_rate_are_no_way_round():
    """Twenty with a twelfth of the loop each, in small pieces."""
    room, clock, loop, _ = make(Rates(connection=0.1, ip=0.2))
    account = Account("203.0.113.7")
    crowd = [One(room, clock, 0.0001, account) for _ in range(20)]
    for _ in range(5000):
        loop.run(0.0001, [])
        for one in crowd:
            if not one.waits and clock() >= one.busy_at - 0.0005:
                one.read()
    begin, before = clock(), sum(one.reads for one in crowd)
    for _ in range(5000):
        loop.run(0.0001, [])
        for one in crowd:
            if not one.waits and clock() >= one.busy_at - 0.0005:
                one.read()
    taken = (sum(one.reads for one in crowd) - before) * 0.0001
    assert taken < 0.3 * (clock() - begin)


def test_an_address_owes_so_much_at_the_most():
    """Whoever has it next is not kept waiting for minutes."""
    room, clock, *_ = make(Rates(connection=0.1, ip=0.001))
    account = Account("203.0.113.7")
    One(room, clock, 0.5, account).read()
    assert account.busy_at <= clock() + MOST_OWED_S


def test_one_costly_message_keeps_its_client_waiting_for_two_seconds_and_not_for_a_minute():
    """A watch list of 1,000 symbols that are new to the worker; the default rates, and an address that owes nothing."""
    room, clock, loop, _ = make(DEFAULT)
    one = One(room, clock, 0.3, Account("203.0.113.7"))
    one.read()
    assert one.waits, "it is much all the same"
    assert one.busy_at - OWED_S <= clock() + 2.0
    one.work_s = 0.0001
    loop.run(2.01, [])
    assert one.reads > 1


def test_the_first_of_an_address_pays_no_price_that_is_meant_for_many():
    """What it asks for makes its address owe much; it owes for that what anybody else would."""
    room, clock, *_ = make(Rates(connection=0.1, ip=0.01))
    one = One(room, clock, 0.02, Account("203.0.113.7"))
    now = clock()
    one.read()
    assert one.account.busy_at > now + OWED_S
    assert one.busy_at == pytest.approx(now + 0.2) and not one.waits


def test_a_storm_of_those_who_ask_for_much_keeps_nobody_waiting_for_minutes():
    """A thousand clients come back to a new worker, each with a hundred channels: what that takes has been taken."""
    room, clock, loop, _ = make(DEFAULT)
    crowd = [One(room, clock, 0.03, Account(str(number))) for number in range(1000)]
    for one in crowd:
        one.read()
        one.work_s = 0.00002
    assert room.waiting > 900
    loop.run(MOST_OWED_S + 1.0, [])
    assert not room.waiting


def test_no_connection_owes_more_than_it_may():
    """However many reads, and whatever its address owes."""
    room, clock, *_ = make(Rates(connection=0.001, ip=0.001))
    one = One(room, clock, 0.5, Account("203.0.113.7"))
    for _ in range(3):
        one.waits = False
        one.read()
        assert one.busy_at <= clock() + MOST_OWN_S


def test_who_takes_little_is_never_put_off_for_its_neighbours():
    """Behind one NAT there may be a flood and a hundred clients who do nothing wrong."""
    room, clock, loop, _ = make(Rates(connection=0.1, ip=0.2))
    account = Account("203.0.113.7")
    crowd = [One(room, clock, 0.001, account) for _ in range(8)]
    quiet = One(room, clock, 0.0001, account)
    for _ in range(100):
        loop.run(0.05, crowd)
        quiet.read()
        assert not quiet.waits
    assert account.busy_at > clock(), "the address owes something all the time"


def test_all_busy_connections_together_have_a_share():
    """Many addresses are no way round it, and none of them is forgotten."""
    room, clock, loop, _ = make(Rates(connection=0.1, ip=0.2, worker=0.25))
    crowd = [One(room, clock, 0.001, Account(str(number))) for number in range(9)]
    loop.run(2.0, crowd)  # until each is busy
    before = [one.reads for one in crowd]
    loop.run(10.0, crowd)
    reads = [one.reads - old for one, old in zip(crowd, before, strict=True)]
    assert 2.0 < sum(reads) * 0.001 < 10 * 0.25 + 0.1
    assert min(reads) > 0, "first come, first served"


def test_who_becomes_busy_waits_behind_all_others_who_are():
    """Also with little of its own to earn back."""
    room, clock, *_ = make(Rates(connection=0.1, worker=0.25))
    first, second = One(room, clock, 0.5), One(room, clock, 0.02)
    first.read()
    second.read()
    assert first.waits and second.waits and second.busy_at < clock() + OWED_S


def test_an_even_publisher_has_twice_its_rate_while_there_is_room():
    """A thousand commands a second of 0.1 ms each, as limits.commands_per_s has it: none of them is read later."""
    room, clock, loop, noted = make(DEFAULT)
    one = One(room, clock, 0.0001, Account("203.0.113.7"))
    for _ in range(10_000):
        loop.run(0.0009, [])
        one.read()
    assert not noted


def test_a_flood_that_is_alone_has_a_connections_share():
    """It uses the room up at once, and again and again."""
    room, clock, loop, _ = make(DEFAULT)
    flood = One(room, clock, 0.001, Account("203.0.113.7"))
    loop.run(2.0, [flood])
    before = flood.reads
    loop.run(20.0, [flood])
    assert 20 * 0.045 < (flood.reads - before) * 0.001 < 20 * 0.055


def test_an_even_publisher_goes_on_at_its_own_rate_when_a_flood_comes():
    """It does not pay for what it was let have before, and the flood has no more than it would have alone."""
    room, clock, loop, _ = make(DEFAULT)
    even, flood = (One(room, clock, work_s, Account(str(work_s))) for work_s in (0.0001, 0.001))
    waited_s = most_s = 0.0
    for number in range(10_000):
        began = clock()
        loop.run(0.0009, [flood] if number >= 5000 else [])
        if not even.waits:
            even.read()
        waited_s = waited_s + clock() - began if even.waits else 0.0
        most_s = max(most_s, waited_s)
        if number == 5000:
            before, since = even.reads, clock()
    took_s = clock() - since
    assert most_s < LENT_S + 0.1
    assert (even.reads - before) * 0.0001 > took_s * 0.045
    assert flood.reads * 0.001 < (took_s + OWED_S) * 0.06


def test_without_a_rate_of_all_there_is_no_room():
    """Nobody has said what the hub can spare."""
    room, clock, loop, noted = make(Rates.of_ms(50, 100, 0))
    one = One(room, clock, 0.0001, Account("203.0.113.7"))
    loop.run(2.0, [one])
    assert noted and one.reads * 0.0001 < (2.0 + OWED_S) * 0.05 + 0.01


def test_those_who_were_put_off_come_back_in_small_pieces():
    """A hundred whose time has come at once don't hold the loop for all of their reads."""
    room, clock, loop, _ = make()
    crowd = [One(room, clock, 0.06) for _ in range(100)]
    for one in crowd:
        one.read()
    assert all(one.waits for one in crowd)
    clock.advance(10.0)
    for one in crowd:
        one.work_s = 0.0002
    [(_, callback)] = loop.timers
    loop.timers.clear()
    callback()
    again = sum(not one.waits for one in crowd)
    assert again == -(-PIECE_S // 0.0002)
    assert len(loop.timers) == 1, "the others have their turn in the next"


# On the plane.


class Costly(Recorder):
    """One whose every read takes a while of the plane's clock, or costs something later."""

    __slots__ = ("later_s", "work_s")

    def on_bytes(self, data: bytes) -> None:
        super().on_bytes(data)
        self.reactor.clock.advance(self.work_s)
        self.reactor.fairness.charge(self.later_s)


@pytest.mark.parametrize(("work_s", "later_s"), [(0.06, 0.0), (0.0, 0.06)])
@async_test
async def test_a_connection_that_costs_too_much_is_left_unread_and_then_read_on(work_s, later_s):
    """Its bytes wait in its socket, whether they cost time now or later; nothing of them is lost."""
    clock = FakeClock()
    timers: list[object] = []
    room = Fairness(clock, lambda delay_s, callback: timers.append(callback), EACH)
    reactor = Reactor(asyncio.get_running_loop(), clock=clock, fairness=room)
    reactor.start()
    ours, theirs = socket.socketpair()
    connection = Costly(take_over(ours), reactor)
    connection.work_s, connection.later_s = work_s, later_s
    reactor.adopt(connection)
    text = b"x" * (READ_BYTES + BUSY_READ_BYTES + 5)
    theirs.send(text)
    await until(lambda: connection.received)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(connection.received) == READ_BYTES and room.waiting == 1
    # What is for it goes out all the same.
    connection.put(b"hello")
    theirs.setblocking(False)
    assert await read(theirs, 5) == b"hello"
    clock.advance(10.0)
    timers.pop()()
    assert len(connection.received) == READ_BYTES + BUSY_READ_BYTES, "a smaller piece, as it is known now"
    clock.advance(10.0)
    timers.pop()()
    assert connection.received == text
    connection.work_s = connection.later_s = 0.0
    clock.advance(10.0)
    timers.pop()()
    theirs.send(b"calm")
    await until(lambda: connection.received.endswith(b"calm"))
    assert connection.read_bytes == READ_BYTES, "it is not busy any more"
    theirs.send(b"end")
    await until(lambda: connection.received.endswith(b"end"))
    theirs.close()
    await until(lambda: connection.gone)
    reactor.stop()


@async_test
async def test_who_was_busy_is_read_as_usual_once_a_reload_has_taken_the_rates_away():
    """With the next read."""
    clock = FakeClock()
    timers: list[object] = []
    room = Fairness(clock, lambda delay_s, callback: timers.append(callback), EACH)
    reactor = Reactor(asyncio.get_running_loop(), clock=clock, fairness=room)
    reactor.start()
    ours, theirs = socket.socketpair()
    connection = Costly(take_over(ours), reactor)
    connection.work_s, connection.later_s = 0.06, 0.0
    reactor.adopt(connection)
    theirs.send(b"much")
    await until(lambda: connection.received)
    assert connection.read_bytes == BUSY_READ_BYTES
    room.retune(Rates())
    clock.advance(10.0)
    timers.pop()()
    theirs.send(b"more")
    await until(lambda: connection.received.endswith(b"more"))
    assert connection.read_bytes == READ_BYTES
    theirs.close()
    await until(lambda: connection.gone)
    reactor.stop()


@pytest.mark.parametrize(("work_s", "later_s"), [(0.06, 0.0), (0.0, 0.06)])
@async_test
async def test_what_came_before_it_was_on_the_plane_costs_as_much(work_s, later_s):
    """What is pipelined behind a handshake is no way round."""
    clock = FakeClock()
    room = Fairness(clock, lambda delay_s, callback: None, EACH)
    reactor = Reactor(asyncio.get_running_loop(), clock=clock, fairness=room)
    ours, theirs = socket.socketpair()
    connection = Costly(take_over(ours), reactor)
    connection.work_s, connection.later_s = work_s, later_s
    reactor.adopt(connection)
    room.charge(99.0)  # what somebody else was read for
    clock.advance(1.0)
    connection.hear_early(b"x")
    assert connection.received == b"x" and connection.heard_at == clock() - work_s
    assert room.waiting == 1 and connection.busy_at == pytest.approx(clock() - work_s + 0.6)
    theirs.close()
    reactor.stop()


@async_test
async def test_one_that_goes_while_it_is_not_read_is_let_go():
    """Nothing is called on it behind its end."""
    clock = FakeClock()
    timers: list[object] = []
    room = Fairness(clock, lambda delay_s, callback: timers.append(callback), EACH)
    reactor = Reactor(asyncio.get_running_loop(), clock=clock, fairness=room)
    reactor.start()
    ours, theirs = socket.socketpair()
    connection = Costly(take_over(ours), reactor)
    connection.work_s, connection.later_s = 0.06, 0.0
    reactor.adopt(connection)
    theirs.send(b"x")
    await until(lambda: room.waiting)
    connection.abort()
    clock.advance(10.0)
    timers.pop()()
    assert connection.gone == 1 and not room.waiting
    theirs.close()
    reactor.stop()


@async_test
async def test_the_clients_of_a_small_socket_buffer_are_written_to_while_they_are_not_read():
    """Room to write is told again and again, though the end of what it sends is told but once."""
    clock = FakeClock()
    room = Fairness(clock, lambda delay_s, callback: None, EACH)
    reactor = Reactor(asyncio.get_running_loop(), clock=clock, fairness=room)
    reactor.start()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = Costly(take_over(ours), reactor)
    connection.work_s, connection.later_s = 0.06, 0.0
    reactor.adopt(connection)
    theirs.send(b"x")
    await until(lambda: room.waiting)
    text = b"y" * 200_000
    connection.put(text)
    theirs.setblocking(False)
    assert await asyncio.wait_for(read(theirs, len(text)), 5) == text
    theirs.close()
    reactor.stop()
