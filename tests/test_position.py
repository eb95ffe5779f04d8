"""Position: a position is good exactly as long as everything seen is still there."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from hub.position import MAX_GENERATIONS, Position, lineage, survives


def test_an_epoch_is_a_lineage():
    """Tokens oldest first, each but the last with its end; anything else is a token that nobody has."""
    assert lineage("4.k3") == [("4.k3", None)]
    assert lineage("4.k3@17,5.p0") == [("4.k3", 17), ("5.p0", None)]
    assert lineage("x@y,") == [("x", None), ("", None)]


@pytest.mark.parametrize(
    ("epoch", "offset", "now", "top", "good"),
    [
        ("4.a", 17, "4.a", 17, True),
        ("4.a", 18, "4.a", 17, False),
        ("", 17, "4.a", 17, True),
        ("", 18, "4.a", 17, False),
        # A failover: generation 4 ended at 17.
        ("4.a", 17, "4.a@17,5.b", 30, True),
        ("4.a", 18, "4.a@17,5.b", 30, False),
        ("4.a@17,5.b", 20, "4.a@17,5.b", 19, False),
        # Back to the old primary, which never saw generation 5 and went on to 20.
        ("4.a@17,5.b", 17, "4.a@20,6.c", 25, True),
        ("4.a@17,5.b", 18, "4.a@20,6.c", 25, False),
        # It has lost more than the other one had.
        ("4.a@17,5.b", 17, "4.a@15,6.c", 25, False),
        # Another channel's life: evicted, flushed.
        ("4.a", 0, "4.z", 3, False),
        ("nonsense", 0, "4.a", 3, False),
    ],
)
def test_a_position_survives(epoch, offset, now, top, good):
    """Within what both lineages share; beyond it, what was seen is gone."""
    assert survives(Position(epoch, offset), now, top) is good


# The model: servers with links to both, the touch rule of hub/lua/generation.lua in Python, and what is true besides.


@dataclass
class Data:
    """What one server stores, and what replication copies: the generation record and one channel.

    epoch and seen_token are the channel's meta, '' where there is none.
    """

    identity: str = ""
    number: int = 0
    token: str = ""
    clean: str = ""
    epoch: str = ""
    seen_token: str = ""
    log: list[str] = field(default_factory=list)
    """The truth: the name of the channel's life, then every message ever numbered in it; log[17] has offset 17."""
    kept: int = 0
    """Of the log's end, so many are still in the stream."""

    @property
    def top(self) -> int:
        return len(self.log) - 1


class Server:
    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.follows: Server | None = None
        self.writes = [Data()]
        """The state after each write; a crash loses the end of them, a replica lags behind them."""
        self.read = 0
        """As a replica: which of the other's writes was the last to come."""

    @property
    def data(self) -> Data:
        return self.writes[-1]

    def write(self) -> Data:
        self.writes.append(copy.deepcopy(self.data))
        return self.data


SERVERS = st.integers(0, 1)
HISTORY_SIZE = 6


class Stores(RuleBasedStateMachine):
    """A reader that is told "recovered" has each message of the log that it reads from, and no other: no silent loss.

    It is told "lost" only if something that it knew is gone, or something that it missed is not kept: no false alarm.
    """

    failovers = restarts = True

    def __init__(self) -> None:
        super().__init__()
        self.names = itertools.count()
        # Who never fails over has one server, and so is sooner at what may happen to it.
        self.servers = [Server(self.name()) for _ in range(1 + self.failovers)]
        self.position: Position | None = None
        """Of the one reader; `known` is all that it was told the channel had, and all that it has seen since."""
        self.known: list[str] = []
        self.live: Server | None = None
        self.replicated = False

    def name(self) -> str:
        return f"n{next(self.names)}"

    def primaries(self) -> list[Server]:
        """Those that think so; there is always one, as nobody follows a replica."""
        return [server for server in self.servers if server.follows is None]

    def primary(self, number: int) -> Server:
        primaries = self.primaries()
        return primaries[number % len(primaries)]

    # What the scripts do.

    def generation(self, server: Server) -> Data:
        data = server.write()
        if data.identity != server.identity:
            data.number += 1
            data.token = f"{data.number}.{self.name()}"
            data.identity = server.identity
        data.clean = ""
        return data

    def touch(self, server: Server) -> Data:
        data = self.generation(server)
        nonce = f"{data.number}.{self.name()}"
        if not data.epoch:
            data.epoch, data.seen_token, data.log, data.kept = nonce, data.token, [self.name()], 0
        elif data.seen_token != data.token:
            elements = f"{data.epoch}@{data.top},{nonce}".split(",")
            data.epoch, data.seen_token = ",".join(elements[-MAX_GENERATIONS:]), data.token
        return data

    # What hubs and readers do, over links to whichever server says that it is the primary.

    @rule(server=SERVERS, count=st.integers(1, 3), heard=st.booleans())
    def publish(self, server: int, count: int, heard: bool) -> None:
        """heard: live, by a reader whose link goes here."""
        at = self.primary(server)
        for _ in range(count):
            data = self.touch(at)
            data.log.append(self.name())
            data.kept = min(data.kept + 1, HISTORY_SIZE)
            if heard and self.live is at:
                self.hear(data)

    def hear(self, data: Data) -> None:
        if self.position != (data.epoch, data.top - 1):
            self.live = None
            return
        self.position = Position(data.epoch, data.top)
        self.known.append(data.log[-1])
        assert self.known == data.log, "heard live what does not follow on what is known"

    @rule(read=SERVERS, live=SERVERS)
    def subscribe(self, read: int, live: int) -> None:
        """With the old position, if there is one; commands and subscriptions may go to different servers."""
        data = self.touch(self.primary(read))
        if self.position is not None:
            kept = self.position.offset + data.kept >= data.top
            intact = data.log[: len(self.known)] == self.known
            if kept and survives(self.position, data.epoch, data.top):
                assert intact, "silent loss"
            else:
                full = MAX_GENERATIONS in (len(lineage(self.position.epoch)), len(lineage(data.epoch)))
                assert not (kept and intact) or full, "false alarm"
        self.known = list(data.log)
        self.position = Position(data.epoch, data.top)
        self.live = self.servers[live % len(self.servers)]

    @rule(server=SERVERS)
    def probe(self, server: int) -> None:
        """A generation that begins with no touch of the channel."""
        self.generation(self.primary(server))

    # What happens to servers.

    @precondition(lambda self: self.failovers)
    @rule(server=SERVERS, fresh=st.booleans())
    def follow(self, server: int, fresh: bool) -> None:
        """Become a replica by a full copy; a primary's first replica gives the primary a new identity."""
        one, other = self.servers[server], self.servers[1 - server]
        if other.follows is None and not other.data.clean:
            self.replicated = True
            if fresh:
                other.identity = self.name()
            one.follows, one.read, one.writes = other, len(other.writes) - 1, [copy.deepcopy(other.data)]

    @precondition(lambda self: len(self.primaries()) < len(self.servers))
    @rule(writes=st.integers(1, 8))
    def replicate(self, writes: int) -> None:
        for one in self.servers:
            if one.follows is not None:
                one.read = min(one.read + writes, len(one.follows.writes) - 1)
                one.writes = [copy.deepcopy(one.follows.writes[one.read])]

    @precondition(lambda self: len(self.primaries()) < len(self.servers))
    @rule()
    def promote(self) -> None:
        """However far it has got; the other one goes on and knows nothing of it."""
        for one in self.servers:
            if one.follows is not None:
                one.follows, one.identity = None, self.name()

    @precondition(lambda self: self.restarts and len(self.primaries()) == len(self.servers))
    @rule(server=SERVERS, lost=st.integers(0, 4))
    def crash(self, server: int, lost: int) -> None:
        one = self.primary(server)
        one.writes = one.writes[: max(1, len(one.writes) - lost)]
        one.identity = self.name()

    @precondition(lambda self: self.restarts and not self.replicated)
    @rule(server=SERVERS, after=st.sampled_from(["", "publish", "probe"]), lost=st.integers(0, 2))
    def planned_restart(self, server: int, after: str, lost: int) -> None:
        """As the private Valkey, which has no replicas: a mark in the store, and the same in a file after a good end.

        Somebody may write after the mark; the end may be none, or the disk full, so that the newest writes are lost.
        """
        one = self.primary(server)
        data = self.generation(one)
        data.clean = paper = self.name()
        if after == "publish":
            self.publish(server, 1, True)
        if after == "probe":
            self.probe(server)
        self.crash(server, lost)
        if lost and after:
            paper = ""
        # By the supervisor, before any hub connects; the file is gone by then, and so does not outlast this start.
        if paper and one.data.clean == paper:
            data = one.write()
            data.identity, data.clean = one.identity, ""

    @precondition(lambda self: self.restarts)
    @rule(server=SERVERS, what=st.sampled_from(["all", "record", "meta", "stream", "trim"]))
    def evict(self, server: int, what: str) -> None:
        one = self.primary(server)
        data = one.write()
        if what == "all":
            one.writes[-1] = Data()
        elif what == "record":
            data.identity, data.number, data.token, data.clean = "", 0, "", ""
        elif what == "meta":
            data.epoch, data.log, data.kept = "", [], 0
        else:
            data.kept = 0 if what == "stream" else min(data.kept, 1)


class Failovers(Stores):
    """With fewer kinds of faults the search gets deeper."""

    restarts = False


class Restarts(Stores):
    failovers = False


TestStores, TestFailovers, TestRestarts = Stores.TestCase, Failovers.TestCase, Restarts.TestCase
TestStores.settings = TestFailovers.settings = TestRestarts.settings = settings(
    max_examples=300, stateful_step_count=30, derandomize=True, deadline=None
)
