"""Patterns: what a list of names and patterns holds, whatever is asked, appears, is missed or fails."""

from __future__ import annotations

import asyncio
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub import symbols as room
from hub.audience import Terms
from hub.channels import Namespace
from hub.errors import LIMIT_EXCEEDED, BrokerUnavailable, CommandError
from hub.message import Publication
from hub.patterns import Follower, PatternList, new_list
from hub.recovery import Joined
from hub.store import Keys
from hub.stream import GIVEN_UP
from hub.symbols import RETRY_S, Symbols
from hub.watch import WatchList
from tests.support import async_test

MOST = 5
RULES = Namespace(mode="latest", watch=MOST, watch_prefixes=True, watch_prefix_length=0)
AWAY = BrokerUnavailable("away")
PAUSED, FAST = object(), object()


class Timer:
    def __init__(self, timers: list, call: object) -> None:
        self.timers, self.call = timers, call

    def cancel(self) -> None:
        self.timers.remove(self)


class Store:
    """Redis, and what of it reaches the list: values by symbol, and answers when the test says so, or at once."""

    paused = PAUSED

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.at_once = True
        self.waiting: dict[str, tuple] = {}
        self.scans: list = []
        self.retries: list[Timer] = []
        self.symbols = Symbols(self, Keys("hub"), self.call_later)
        self.symbols.feeds = self
        self.known: set[str] = set()
        """Those whose newest values are here: they come in without being asked for."""
        self.entrance: list[str] = []
        """Those that are in, but get nothing yet."""
        self.inside: dict[str, Terms] = {}
        self.client: dict[str, int] = {}
        """The newest value of each symbol, as the client has it."""
        self.live: list[str] = []
        """What it was sent as it came."""
        self.room = 1000
        """Symbols that the worker may have."""

    # What symbols asks.

    def call_later(self, seconds, call, book) -> Timer:
        timers = self.retries if seconds == RETRY_S else []
        timers.append(Timer(timers, lambda: call(book)))
        return timers[-1]

    def hold(self, channel, namespace, ready) -> None:
        ready(None)

    def release(self, channel, namespace) -> None: ...

    def command(self, command, size, replied) -> None:
        found = [f"hub:last:{{t}}:{symbol}".encode() for symbol in self.values]
        self.scans.append(lambda error: replied(error or (0, found)))
        if self.at_once:
            self.answer_scan()

    def answer_scan(self, error=None) -> None:
        self.scans.pop(0)(error)

    # What a list asks.

    def subscribe(self, channel, namespace, subscriber, done, since, terms) -> None:
        assert terms.pace is PAUSED
        symbol = channel[2:]
        if symbol in self.waiting:
            self.waiting.pop(symbol)[0](GIVEN_UP)
        self.waiting[symbol] = done, terms
        if self.at_once:
            self.answer(symbol)

    def answer(self, symbol: str, error=None) -> None:
        done, _ = self.waiting.pop(symbol)
        if error is None:
            self.entrance.append(symbol)
        done(error or Joined())

    def fitting(self, channels) -> list[str]:
        here = {*self.inside, *self.entrance, *self.waiting}
        new = [channel for channel in channels if channel[2:] not in here]
        left_out = new[max(0, self.room - len(here)) :]
        return [channel for channel in channels if channel not in left_out]

    def knows(self, channels, namespace) -> bool:
        return bool(channels) and all(channel[2:] in self.known for channel in channels)

    def enter(self, channel, namespace, subscriber, terms) -> bytes | None:
        self.join_new(channel, namespace, subscriber, terms)
        return self.told(channel, terms)

    def bundle(self, channels, terms) -> tuple:
        assert all(self.inside[channel[2:]] == terms for channel in channels)
        return [channel[2:] for channel in channels], terms

    def change_all(self, bundle, namespace, subscriber, new) -> tuple:
        symbols, old = bundle
        assert sorted(symbols) == sorted(self.inside) and all(self.inside[symbol] == old for symbol in symbols)
        self.inside.update(dict.fromkeys(symbols, new))
        return symbols, new

    def join_new(self, channel, namespace, subscriber, terms) -> None:
        assert channel[2:] not in self.inside
        self.inside[channel[2:]] = terms

    def unsubscribe(self, channel, namespace, subscriber, terms) -> None:
        if terms.pace is PAUSED:
            self.entrance.remove(channel[2:])
        else:
            assert self.inside.pop(channel[2:]) == terms
            self.client.pop(channel[2:], None)

    def change(self, channel, namespace, subscriber, old, new, told=False) -> None:
        self.entrance.remove(channel[2:])
        assert channel[2:] not in self.inside
        self.inside[channel[2:]] = new

    def told(self, channel, terms) -> bytes | None:
        value = self.values.get(channel[2:])
        return b"%b %d" % (channel[2:].encode(), value) if value is not None else None

    # What others do.

    def publish(self, symbol: str, heard: bool = True) -> None:
        self.values[symbol] = self.values.get(symbol, 0) + 1
        if not heard:
            return
        if self.symbols.listening:
            self.symbols.heard([Publication(f"t:{symbol}", b"{}")])
        if symbol in self.inside:
            self.client[symbol] = self.values[symbol]
            self.live.append(symbol)


class Rig:
    def __init__(self, *symbols: str, lenient: bool = False, most: int = 0, raw: bool = False) -> None:
        self.store = Store()
        self.store.values = dict.fromkeys(symbols, 1)
        terms = Terms("view", raw, FAST)
        self.list = new_list(self.store, "t", RULES, object(), terms, self, lenient, most)
        self.answers: list = []
        self.notes: list = []
        self.failures = 0

    def change(self) -> None:
        """Another rate for all that it holds."""
        self.list.change(self.list.terms._replace(pace=object()))
        assert all(terms == self.list.terms for terms in self.store.inside.values())

    def alter(self, add: str = "", remove: str = "") -> object:
        """Its answer, if it has come already."""
        before = len(self.answers)
        self.list.alter(add.split(), remove.split(), self._answered)
        return self.answers[before] if len(self.answers) > before else None

    def _answered(self, outcome) -> None:
        self.answers.append(outcome)
        if isinstance(outcome, list):
            self.told(outcome)

    def told(self, bodies) -> None:
        for body in bodies:
            symbol, value = body.decode().split()
            self.store.client[symbol] = int(value)

    def left_out(self, count: int, allowed: int) -> None:
        self.notes.append((count, allowed))

    def failed(self) -> None:
        self.failures += 1
        self.list.close()

    @property
    def inside(self) -> str:
        return " ".join(sorted(self.store.inside))


def test_only_where_the_namespace_has_patterns_is_a_list_one_of_these():
    """All others cost what they did."""
    plain = RULES.model_copy(update={"watch_prefixes": False})
    assert type(new_list(Store(), "t", plain, object(), Terms("view"), None, False)) is WatchList
    assert type(new_list(Store(), "t", RULES, object(), Terms("view"), None, False)) is PatternList


@async_test
async def test_names_alone_do_not_ask_which_symbols_there_are():
    """Nor does what appears concern them."""
    rig = Rig("A", "B")
    assert rig.alter("A NONE") == [b"A 1"]
    assert not rig.store.symbols.listening and rig.list.asked == ("A", "NONE")
    assert rig.alter("", "A NONE") == [] and rig.inside == ""


@async_test
async def test_a_list_is_asked_for_again_as_it_was():
    """By its patterns, and not by what they hold now."""
    rig = Rig("A1", "A2")
    rig.alter("A* B")
    assert rig.list.asked == ("A*", "B") and len(rig.list) == 3
    rig.alter("C", "A*")
    assert rig.list.asked == ("B", "C") and rig.inside == "B C"


@async_test
async def test_what_appears_before_the_first_answer_comes_behind_it():
    """The client must not be sent anything of a list that it does not hold yet."""
    rig = Rig("A1")
    rig.store.at_once = False
    rig.alter("A*")
    rig.store.answer_scan()
    rig.store.publish("A2")
    assert rig.inside == "" and rig.store.live == []
    rig.store.answer("A1")
    assert rig.answers == [[b"A1 1"]] and rig.store.client == {"A1": 1}
    rig.store.answer("A2")
    rig.store.publish("A2")
    assert rig.store.client == {"A1": 1, "A2": 2} and rig.store.live == ["A2"]


@async_test
async def test_nested_and_overlapping_entries_count_once():
    """Against the bound, and in what is told."""
    rig = Rig("A1", "A2", "AB1", "AB2")
    assert rig.alter("A* AB* ABB* AB1 X") == [b"AB1 1", b"A1 1", b"A2 1", b"AB2 1"]
    assert rig.inside == "A1 A2 AB1 AB2 X" and rig.notes == []
    assert isinstance(rig.alter("Y"), CommandError)


@async_test
async def test_what_the_worker_has_no_room_for_is_left_out():
    """As it appears, and as a list comes back; by a call, all of it is refused, by whoever lets symbols in."""
    rig = Rig("A1")
    rig.store.room = 2
    rig.alter("A*")
    rig.store.publish("A2")
    rig.store.publish("A3")
    await asyncio.sleep(0)
    assert rig.inside == "A1 A2" and rig.notes == [(1, 2)]
    rig.store.room = 3
    rig.list.recheck()
    await asyncio.sleep(0)
    assert rig.inside == "A1 A2 A3" and rig.notes[-1][0] == 0
    back = Rig("A1", "A2", "A3", lenient=True)
    back.store.room = 2
    back.alter("A*")
    await asyncio.sleep(0)
    assert back.inside == "A1 A2" and back.notes == [(1, 2)] and back.failures == 0


class Counted(str):
    """A name that counts what it is compared with."""

    __slots__ = ()
    looks = 0

    def startswith(self, *prefixes) -> bool:
        Counted.looks += sum(len(one) if isinstance(one, tuple) else 1 for one in prefixes)
        return super().startswith(*prefixes)


@async_test
async def test_a_change_of_a_long_list_does_not_try_each_pattern_on_each_name(monkeypatch):
    """One client's list of thousands of both, to which it adds one, must not stop the worker for a second."""
    monkeypatch.setattr(Counted, "looks", 0)
    rules = Namespace(mode="latest", watch=1000, watch_prefixes=True)
    store = Store()
    one = new_list(store, "t", rules, object(), Terms("view", False, FAST), None, False)
    names = [Counted(f"N{i:03}") for i in range(300)]
    one.alter([*names, *(f"P{i:03}*" for i in range(300)), "N1*"], [], lambda outcome: None)
    store.publish("N150")
    assert len(one) == 300
    one.alter([Counted("X")], [], lambda outcome: None)
    assert len(one) == 301 and Counted.looks < 10 * len(names)


@async_test
async def test_a_symbol_without_a_value_is_held_by_its_name_alone():
    """Until its first value comes."""
    rig = Rig()
    rig.alter("A* A1 A2")
    rig.store.publish("A1")
    rig.alter("", "A1 A2")
    assert rig.inside == "A1" and rig.store.client == {"A1": 1}


@async_test
async def test_calls_are_carried_out_in_their_order():
    """Also those that wait for the symbols, and whatever is behind them."""
    rig = Rig("A1", "B1")
    rig.store.at_once = False
    rig.alter("A* B1")
    rig.alter("C", "A*")
    rig.alter("B*")
    assert rig.answers == []
    rig.store.answer_scan()
    for symbol in list(rig.store.waiting):
        rig.store.answer(symbol)
    assert rig.answers == [[], [b"B1 1"], []] and rig.inside == "B1 C"
    rig.store.at_once = True
    rig.store.publish("B2")
    rig.store.publish("A2")
    assert rig.inside == "B1 B2 C"


@async_test
async def test_a_store_that_does_not_answer_fails_the_call_that_needs_it():
    """Those behind it are carried out, and the next one asks again."""
    rig = Rig("A1")
    rig.store.at_once = False
    rig.alter("A*")
    rig.alter("B")
    rig.store.answer_scan(AWAY)
    assert rig.answers == [AWAY] and rig.list.asked == ("B",)
    rig.store.at_once = True
    rig.store.answer("B")
    assert rig.alter("A*") == [b"A1 1"] and rig.inside == "A1 B"


@async_test
async def test_a_refused_call_is_none_for_those_behind_it():
    """A list that has no patterns again asks for the symbols again."""
    rig = Rig(*(f"A{i}" for i in range(MOST + 1)), "B1")
    rig.store.at_once = False
    rig.alter("A*")
    rig.alter("B*")
    rig.store.at_once = True
    rig.store.answer_scan()
    assert rig.answers[0].reply is LIMIT_EXCEEDED and rig.answers[1] == [b"B1 1"] and rig.inside == "B1"


@async_test
async def test_values_that_cant_be_had_take_the_call_back():
    """And what else holds one of its symbols makes the client come again, as nobody may miss it."""
    rig = Rig("A1", "A2", "B1")
    rig.alter("B*")
    rig.store.at_once = False
    rig.alter("A*")
    rig.store.answer("A1")
    rig.store.answer("A2", AWAY)
    assert rig.answers[1] is AWAY and rig.inside == "B1" and rig.list.asked == ("B*",)
    rig.alter("A1")
    rig.alter("A*")
    rig.store.answer("A1", AWAY)
    assert rig.answers[2] is AWAY and rig.list.asked == ("B*", "A*") and rig.failures == 0
    rig.store.answer("A1", AWAY)
    assert rig.failures == 1 and rig.list.asked == ()
    rig.store.answer("A2")
    assert rig.inside == ""


@async_test
async def test_the_end_answers_those_who_wait():
    """And nothing is held or told any more."""
    rig = Rig("A1")
    rig.alter("B")
    rig.store.at_once = False
    rig.alter("A*")
    rig.list.close()
    assert rig.answers[1] == [] and rig.inside == ""
    rig.store.answer_scan()
    rig.store.publish("A2")
    assert rig.inside == "" and rig.store.waiting == {}


@async_test
async def test_who_comes_back_is_let_in_with_what_fits():
    """And is told of the rest once, behind the answer."""
    rig = Rig(*(f"A{i}" for i in range(8)), lenient=True)
    assert len(rig.alter("Z A*")) == 4 and rig.inside == "A0 A1 A2 A3 Z" and rig.notes == []
    await asyncio.sleep(0)
    assert rig.notes == [(4, MOST)]
    assert isinstance(rig.alter("Y"), CommandError)
    rig.alter("", "Z")
    rig.store.publish("A9")
    await asyncio.sleep(0)
    assert rig.notes == [(4, MOST)] and rig.inside == "A0 A1 A2 A3 A4"
    rig.alter("", "A*")
    await asyncio.sleep(0)
    assert rig.notes == [(4, MOST), (0, MOST)]


@async_test
async def test_a_wire_may_hold_less():
    """But never more than the namespace allows."""
    rig = Rig("A1", "A2", "A3", lenient=True, most=2)
    rig.alter("A*")
    assert rig.inside == "A1 A2"
    wide = Rig(*(f"A{i}" for i in range(8)), lenient=True, most=100)
    wide.alter("A*")
    assert len(wide.list) == MOST


@pytest.mark.expects_log
@async_test
async def test_all_that_wait_for_a_namespace_with_too_many_symbols_are_refused(monkeypatch):
    """However many a client has under way: they are answered one after the other, and Redis is read once."""
    monkeypatch.setattr(room, "MAX_SYMBOLS", 1)
    rig = Rig("A1", "A2")
    rig.store.at_once = False
    for _ in range(1000):
        rig.alter("A*")
    rig.store.answer_scan()
    assert [error.reply for error in rig.answers] == [LIMIT_EXCEEDED] * 1000 and rig.store.scans == []
    rig.store.at_once = True
    assert rig.alter("B") == [] and rig.inside == "B"


@async_test
async def test_too_many_symbols_have_the_client_come_again(monkeypatch):
    """Where it is told why."""
    rig = Rig("A1")
    rig.alter("A*")
    rig.list.overfull()
    assert rig.failures == 1 and rig.inside == ""


class Wire:
    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return channel.encode() + b" " + body

    def encode_message(self, message: bytes) -> bytes:
        return message


class Client:
    wire = Wire()

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def put(self, frame: bytes) -> None:
        self.frames.append(frame)


def test_a_client_is_told_on_the_lists_channel():
    """What does not fit, as a message from the hub."""
    client, again = Client(), []
    follower = Follower("t:$watch", client, lambda: again.append(1))
    follower.told([b"a", b"b"])
    follower.left_out(3, 5)
    follower.failed()
    notice = b'{"push":{"message":{"data":{"hub":{"left_out":{"channel":"t:$watch","count":3,"allowed":5}}}}}}'
    assert client.frames == [b"t:$watch a", b"t:$watch b", notice] and again == [1]


# The model: what the rules say.

SYMBOLS = [f"{a}{b}{c}" for a in "AB" for b in "XY" for c in ("", "1", "2")]
ENTRIES = [*SYMBOLS, "A*", "B*", "AX*", "AY*", "BX*", "*"]
some = st.lists(st.sampled_from(ENTRIES), max_size=3, unique=True)
STEP = st.one_of(
    st.tuples(st.just("alter"), some, some),
    st.tuples(st.just("publish"), st.sampled_from(SYMBOLS), st.just(True)),
    st.tuples(st.just("gap"), st.lists(st.sampled_from(SYMBOLS), max_size=3, unique=True), st.none()),
    st.tuples(st.just("knows"), st.sampled_from(SYMBOLS), st.none()),
    st.tuples(st.just("rate"), st.none(), st.none()),
)


class Model:
    """A list, by the words at the top of hub/patterns.py."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.held: set[str] = set()

    def matches(self, known, entries) -> set[str]:
        heads = tuple(entry[:-1] for entry in entries if entry.endswith("*"))
        return {symbol for symbol in known if symbol.startswith(heads)} if heads else set()

    def alter(self, known, add, remove) -> bool:
        entries = [entry for entry in self.entries if entry not in remove]
        new = [entry for entry in add if entry not in entries]
        names = {entry for entry in (*entries, *new) if not entry.endswith("*")}
        if new and len(names | self.matches(known, [*entries, *new])) > MOST:
            return False
        self.entries = entries + new
        self.fill(known)
        return True

    def fill(self, known) -> None:
        names = {entry for entry in self.entries if not entry.endswith("*")}
        matches = self.matches(known, self.entries)
        held = names | (self.held & matches)
        for symbol in sorted(matches - held):
            if len(held) < MOST:
                held.add(symbol)
        self.held = held

    def appeared(self, known, symbol) -> None:
        if symbol in self.matches(known, self.entries) and len(self.held) < MOST:
            self.held.add(symbol)


@settings(max_examples=300, deadline=None)
@given(st.sets(st.sampled_from(SYMBOLS), max_size=4), st.lists(STEP, max_size=25))
def test_a_list_holds_what_the_rules_say(there, steps):
    """After each step, with the newest value of all that it holds, and with how many are left out."""

    async def run() -> None:
        rig, model = Rig(*sorted(there)), Model()
        rig.alter()
        for what, one, two in steps:
            known = rig.store.values
            if what == "alter":
                add = [entry for entry in one if entry not in two]
                outcome = rig.alter(" ".join(add), " ".join(two))
                assert model.alter(known, add, two) == isinstance(outcome, list)
            elif what == "publish":
                rig.store.publish(one)
                model.appeared(known, one)
            elif what == "knows":
                rig.store.known |= {one} & known.keys()
            elif what == "rate":
                rig.change()
            else:
                for symbol in one:
                    rig.store.publish(symbol, heard=False)
                    rig.store.client.pop(symbol, None)  # subscribe gives the newest of those that are in
                rig.store.symbols.check_all()
                model.fill(known)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held = model.held
            assert set(rig.store.inside) == set(rig.list.symbols) == held
            assert rig.store.entrance == []
            for symbol, value in rig.store.client.items():
                assert value == known[symbol]
            names = {entry for entry in model.entries if not entry.endswith("*")}
            count = len(names | model.matches(known, model.entries)) - len(held)
            assert (rig.notes[-1] if rig.notes else (0, MOST)) == (count, MOST)
            assert rig.list.asked == tuple(model.entries) and rig.list.asked_count == len(model.entries)

    asyncio.run(run())


ANSWERS = st.tuples(st.just("answer"), st.integers(0, 9), st.sampled_from([None, None, None, AWAY]))


@example(
    set(),
    [
        ("alter", ["AY1", "A*"], []),
        ("answer", 0, None),
        ("gap", [], None),
        ("publish", "AX", True),
        ("alter", ["AX", "AX1", "AY"], []),
        ("alter", ["AX2", "AY2"], []),
    ],
)
@example(
    {"AX1", "AX"},
    [
        ("alter", ["AY2", "A*"], []),
        ("answer", 0, None),
        ("gap", [], None),
        ("publish", "AX2", True),
        ("alter", ["AX2", "AY1"], []),
        ("alter", ["AY"], []),
    ],
)
@settings(max_examples=300, deadline=None)
@given(st.sets(st.sampled_from(SYMBOLS), max_size=4), st.lists(st.one_of(STEP, ANSWERS, ANSWERS), max_size=30))
def test_late_and_failing_answers_leave_nothing_wrong(there, steps):
    """In the end the list holds its names and whatever fits, each with its newest value, or its client was ended."""

    async def run() -> None:
        rig = Rig(*sorted(there))
        rig.alter()
        store = rig.store
        store.at_once = False

        def answer(number: int, error) -> None:
            choices = [*store.waiting, *(["scan"] if store.scans else [])]
            if choices:
                choice = choices[number % len(choices)]
                store.answer_scan(error) if choice == "scan" else store.answer(choice, error)

        asked = 1
        for what, one, two in steps:
            if rig.failures:
                break
            if what == "alter":
                asked += 1
                rig.alter(" ".join(entry for entry in one if entry not in two), " ".join(two))
            elif what == "publish":
                store.publish(one)
            elif what == "knows":
                store.known |= {one} & store.values.keys()
            elif what == "rate":
                rig.change()
            elif what == "gap":
                store.symbols.check_all()
            else:
                answer(one, two)
            await asyncio.sleep(0)
        while store.waiting or store.scans or store.retries or store.symbols._rechecks:
            if store.retries and not store.scans:
                store.retries.pop().call()
            answer(0, None)
            await asyncio.sleep(0)
        assert len(rig.answers) == asked
        entries = rig.list.asked
        assert store.entrance == []
        if rig.failures:
            assert entries == () and store.inside == {}
            return
        names = {entry for entry in entries if not entry.endswith("*")}
        matches = Model().matches(store.values, entries)
        inside = set(store.inside)
        assert names <= inside <= names | matches and len(inside) <= MOST
        assert inside == names | matches or len(inside) == MOST
        assert {symbol: store.client.get(symbol) for symbol in inside if symbol in store.values} == {
            symbol: store.values[symbol] for symbol in inside if symbol in store.values
        }
        rig.list.close()
        assert store.inside == {}
        assert not list(chain(*(book.watchers for book in store.symbols._books.values())))
        assert not any(book.prefixes for book in store.symbols._books.values())

    asyncio.run(run())


@async_test
async def test_who_appears_between_two_rates_gets_the_second_one_too():
    """A list remembers where its symbols are while only its rate changes."""
    rig = Rig("A1")
    rig.alter("A*")
    rig.change()
    rig.store.publish("A2")
    rig.change()
    assert rig.inside == "A1 A2"
