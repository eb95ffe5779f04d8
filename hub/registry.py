"""Registry: which workers of the whole hub live, and one question asked to all of them.

Does: keep this worker's lease and description in Redis, list the live ones, ask all workers, or have them do something,
and gather their answers.
Does not: know HTTP (api), hold the control channel (ingest), know the shapes on it (control), or count (building).
Called by: building (builds it), ingest (`on_control`), api (`nodes`, `fresh_nodes`, `channels`), api_control (`order`).
Never break: `on_control` never raises and never waits, for it runs between publications; whatever is written to Redis
vanishes by itself.

A node is one worker. A new control command needs a row in CONTROLS, a new question one in ANSWERS; control has shapes.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import re
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from . import __version__, control, errors
from .control import Answer, Errand, Node, Notice, Question
from .errors import BrokerUnavailable, CommandError
from .log import Brake
from .scripts import load_script
from .store import Store

logger = logging.getLogger(__name__)

LEASE_S = 4.0
"""A worker that is dead or hung is out of the list after this."""
RENEWALS_PER_LEASE = 4
"""So three in a row may fail before a live worker is missed."""
KEEP_S = 60.0
"""The list itself vanishes so long after the last renewal, with the last hub that used it."""
SURVEY_S = 1.0
"""Who has not answered by then is silent. An answer takes milliseconds, so this one is hung or cut off."""
ANSWER_TTL_S = 5
"""Answers that nobody fetched vanish."""
MAX_SURVEYS = 16
"""At a time, asked by one worker: each is work for all workers and holds a connection to Redis."""
MAX_QUESTIONS = 256
"""Waiting in one worker for their answer; more are dropped, and to their askers the worker is silent."""
MAX_CHANNELS = 10_000
"""In the answer to one `channels` question."""

Counts = Callable[[], dict[str, int]]
Order = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Does what its params say and gives what it will answer; raises ValueError for what can't be done."""
Send = Callable[[bytes], Awaitable[int]]
"""Gives all workers a message of the control channel, and says how many have it."""
Value = TypeVar("Value")
Parsed = TypeVar("Parsed")


class Nodes(NamedTuple):
    """Live nodes by name, and the uids of those that hold a lease but did not answer in time."""

    nodes: list[Node]
    silent: list[str]


class ChannelCounts(NamedTuple):
    """Subscribers by channel over all workers that answered, and the uids of those that did not."""

    clients: dict[str, int]
    silent: list[str]


class Ordered(NamedTuple):
    """What the workers answered, each an object that is yet to be checked, and the uids of those that did not."""

    answers: list[dict[str, Any]]
    silent: list[str]


class _Survey(NamedTuple):
    answers: list[Answer]
    silent: list[str]


class _Asked(NamedTuple):
    """A question that waits for its answer; `answer`: one that is under way already."""

    question: Question
    answer: Awaitable[dict[str, Any]] | None


class Registry:
    """This worker among all workers."""

    def __init__(
        self,
        store: Store,
        slot_index: int,
        stats: Counts,
        counts: Counts,
        lease_s: float = LEASE_S,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        on_errand: Callable[[Errand], None] = lambda errand: None,
        orders: Mapping[str, Order] | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stats: num_clients, num_users, num_subs and num_channels of this worker; cheap, as it is called every second.

        counts: its subscribers by channel, none of them 0. on_notice: tells this worker's connections.
        on_errand: acts on one of them; raises ValueError for nonsense. orders: what else surveys may have done, by
        name; begun as soon as they are heard.
        """
        self._keys = store.keys
        self._describe = store.describe
        # Longer than the longest BLPOP, whatever the operator's limit for a command.
        self._redis: Redis = store.commands(timeout_s=2 * SURVEY_S)
        self._roster = self._redis.register_script(load_script("nodes"))
        self._stats = stats
        self._counts = counts
        self._lease_s = lease_s
        self._on_notice = on_notice
        self._act = on_errand
        self._new_id = new_id
        self._clock = clock
        self._began_at = clock()
        self.uid = new_id()
        self.name = f"{socket.gethostname()}:{slot_index}"
        self.malformed = 0
        """Messages of the control channel, answers and descriptions that were ignored, since the start."""
        self.reachable = True
        """Redis took the last renewal of the lease, which is tried every second."""
        self._surveys = 0
        self._orders = orders or {}
        self._questions: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._trouble = Brake()
        self._nonsense = Brake()

    def start(self) -> None:
        """Take the lease, and keep it until `close`."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Leave the list at once, if Redis answers; else the lease's end does it."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            # Not cancelled: a renewal that is under way could put us back behind the farewell.
            await self._runner
            await self._attempt(self._leave())
        await self._redis.aclose()

    # What others ask.

    async def nodes(self) -> list[Node]:
        """All live workers by name, with counts that are a few seconds old. Raises BrokerUnavailable."""
        try:
            texts = await self._roster(keys=[self._keys.leases, self._keys.nodes], args=["", "", "", ""])
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None
        return _by_name(self.readable(texts, control.parse_stored_node))

    async def fresh_nodes(self) -> Nodes:
        """All workers with the counts of this moment. Raises BrokerUnavailable, CommandError 111."""
        answers, silent = await self._survey(Question(self._new_id(), "node", ""))
        return Nodes(_by_name(self.readable((a.content.get("node") for a in answers), control.parse_node)), silent)

    async def channels(self, pattern: str = "") -> ChannelCounts:
        """Channels that have subscribers, and how many, summed over all workers.

        pattern: '' for all, or a glob of `*`, `?`, `[abc]`, `[!abc]`, such as 'ticker:*'; `*` matches ':' too.
        Raises BrokerUnavailable; CommandError 107 for another pattern, 106 for more than MAX_CHANNELS, 111.
        """
        try:
            control.check_pattern(pattern)
        except ValueError as error:
            raise CommandError(errors.BAD_REQUEST, str(error)) from None
        answers, silent = await self._survey(Question(self._new_id(), "channels", pattern))
        total: Counter[str] = Counter()
        for counts in self.readable((a.content.get("channels") for a in answers), control.parse_counts):
            total.update(counts)
        if len(total) > MAX_CHANNELS:
            raise CommandError(errors.LIMIT_EXCEEDED, f"more than {MAX_CHANNELS} channels; ask with a narrower pattern")
        return ChannelCounts(dict(total), silent)

    async def order(self, name: str, params: dict[str, Any], send: Send | None = None) -> Ordered:
        """Have all workers do something. send: another way to tell them, which does more than that.

        Raises BrokerUnavailable, and then nobody knows who has heard it; CommandError 111; ValueError for too much.
        """
        answers, silent = await self._survey(Question(self._new_id(), name, "", params), send)
        return Ordered([answer.content for answer in answers], silent)

    # What comes from outside.

    def on_control(self, payload: bytes) -> None:
        """Handle one message of the control channel; what is malformed is counted and ignored."""
        try:
            name, command = control.parse_control(payload)
            if name not in CONTROLS:
                raise ValueError("an unknown command")
            CONTROLS[name](self, command)
        except ValueError as error:
            self._ignore(error)

    def _on_survey(self, command: dict[str, Any]) -> None:
        question = control.parse_question(command)
        order = self._orders.get(question.ask)
        if order is None and question.ask not in ANSWERS:
            raise ValueError("an unknown question")
        # An order is carried out also where nobody can be told so.
        answer = None if order is None else order(question.params)
        if len(self._questions) >= MAX_QUESTIONS:
            raise ValueError(f"{MAX_QUESTIONS} questions are waiting")
        self._questions.append(_Asked(question, answer))
        self._wake.set()

    def _on_notify(self, command: dict[str, Any]) -> None:
        try:
            self._on_notice(control.parse_notice(command))
        except TypeError as error:  # orjson reads data that is nested deeper than what it writes
            raise ValueError(f"a notice that nobody can be told: {error}") from None

    def _on_errand(self, command: dict[str, Any]) -> None:
        self._act(control.parse_errand(command))

    def readable(self, values: Iterable[Value], parse: Callable[[Value], Parsed]) -> list[Parsed]:
        """What `parse` makes of those values that are well formed."""
        parsed = []
        for value in values:
            try:
                parsed.append(parse(value))
            except ValueError as error:
                self._ignore(error)
        return parsed

    def _ignore(self, error: ValueError) -> None:
        self.malformed += 1
        self._nonsense.warning(logger, "ignored what came by Redis: %s", error)

    # The one background task.

    async def _run(self) -> None:
        due = 0.0
        while not self._closing:
            now = asyncio.get_running_loop().time()
            if now >= due:
                due = now + self._lease_s / RENEWALS_PER_LEASE
                await self._attempt(self._renew())
            elif self._questions:
                await self._attempt(self._answer(self._questions.popleft()))
            else:
                await self._sleep(due)

    async def _sleep(self, due: float) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass  # time to renew
        self._wake.clear()

    async def _attempt(self, step: Awaitable[None]) -> None:
        try:
            await step
        except (RedisError, OSError) as error:
            self.reachable = False
            self._trouble.warning(logger, "registry: Redis at %s: %s", self._describe(), error)
        except Exception:
            # A fault of ours in one answer must not cost this worker its place among the living.
            logger.exception("registry: a step failed")

    async def _renew(self) -> None:
        me = orjson.dumps(self._count()._asdict())
        await self._roster(
            keys=[self._keys.leases, self._keys.nodes],
            args=[self.uid, int(self._lease_s * 1000), me, int(KEEP_S * 1000)],
        )
        self.reachable = True

    async def _leave(self) -> None:
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(self._keys.leases, self.uid)
            pipeline.hdel(self._keys.nodes, self.uid)
            await pipeline.execute()

    # Answering.

    async def _answer(self, asked: _Asked) -> None:
        question = asked.question
        content = ANSWERS[question.ask](self, question) if asked.answer is None else await asked.answer
        answer = orjson.dumps({"uid": self.uid, **content})
        key = self._keys.answers(question.survey)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.rpush(key, answer)
            pipeline.expire(key, ANSWER_TTL_S)
            await pipeline.execute()

    def _answer_node(self, question: Question) -> dict[str, Any]:
        return {"node": self._count()._asdict()}

    def _answer_channels(self, question: Question) -> dict[str, Any]:
        counts = self._counts()
        names: Iterable[str] = counts
        if question.pattern:
            names = filter(re.compile(fnmatch.translate(question.pattern)).match, counts)
        # One more than allowed, so that the asker sees that it is too many.
        return {"channels": {name: counts[name] for name in islice(names, MAX_CHANNELS + 1)}}

    def _count(self) -> Node:
        stats = self._stats()
        return Node(
            uid=self.uid,
            name=self.name,
            version=__version__,
            uptime_s=self._uptime_s(),
            num_clients=stats.get("num_clients", 0),
            num_users=stats.get("num_users", 0),
            num_subs=stats.get("num_subs", 0),
            num_channels=stats.get("num_channels", 0),
        )

    def _uptime_s(self) -> int:
        return int(self._clock() - self._began_at)

    # Asking.

    async def announce(self, notice: Notice) -> None:
        """Have all workers tell their connections. Raises BrokerUnavailable; TypeError, ValueError as encode_notice."""
        await self.send(control.encode_notice(notice))

    async def send(self, message: bytes) -> None:
        """Give all workers a message of the control channel. Raises BrokerUnavailable."""
        try:
            await self._redis.publish(self._keys.control, message)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    async def _survey(self, question: Question, send: Send | None = None) -> _Survey:
        """One question to all workers. Raises BrokerUnavailable, CommandError 111, ValueError."""
        message = control.encode_survey(question)
        if self._surveys >= MAX_SURVEYS:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{MAX_SURVEYS} surveys are under way")
        self._surveys += 1
        try:
            live = {node.uid for node in await self.nodes()}
            heard = await (send(message) if send is not None else self._redis.publish(self._keys.control, message))
            answers = await self._gather(question.survey, live, heard)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None
        finally:
            self._surveys -= 1
        return _Survey(list(answers.values()), sorted(live - answers.keys()))

    async def _gather(self, survey: str, live: set[str], heard: int) -> dict[str, Answer]:
        """Answers by uid, until all have come, SURVEY_S at most.

        All: as many as Redis handed the question to, for a worker that was just killed is still live by its lease; or
        each of `live`, for the control channel may have listeners that are no workers.
        """
        answers: dict[str, Answer] = {}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SURVEY_S
        while len(answers) < heard and not answers.keys() >= live and loop.time() < deadline:
            # Not less than 10 ms: to Redis, 0 means forever.
            left_s = max(0.01, deadline - loop.time())
            popped: Any = await self._redis.blpop([self._keys.answers(survey)], timeout=left_s)
            texts = [popped[1]] if popped else []
            answers.update((answer.uid, answer) for answer in self.readable(texts, control.parse_answer))
        return answers

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"Redis at {self._describe()}: {error}")


CONTROLS: dict[str, Callable[[Registry, dict[str, Any]], None]] = {
    "survey": Registry._on_survey,
    "notify": Registry._on_notify,
    "errand": Registry._on_errand,
}
"""What a message of the control channel may ask a worker to `do`; raises ValueError for a malformed one."""

ANSWERS: dict[str, Callable[[Registry, Question], dict[str, Any]]] = {
    "node": Registry._answer_node,
    "channels": Registry._answer_channels,
}
"""What a survey may `ask`."""


def _by_name(nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (node.name, node.uid))
