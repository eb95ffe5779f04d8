"""Population: the load of one server, N WebSocket clients and a publisher, in one C process (population.c).

Does: start it, speak its commands, turn its lines into objects.
Called by: the benches.
Never break: a process that says nothing within its time is an error and never a figure.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .build import program
from .processes import BenchError, process, read_line

READY_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 120.0
STAMP = b'"t":"0000000000000000000"'
"""Where a message's time is put in; 19 digits of ns of CLOCK_MONOTONIC."""
LINE = "%LINE%"


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients of one server do.

    server: 'IP:PORT'. sends: text frames of each client after its handshake. ready_text: what the last answer contains;
    '' for ready after the handshake. refused: what an answer of no contains, which ends the measurement until a client
    is ready; '' where there is none. publish: 'IP:PORT' or 'unix:PATH', where `run` writes messages; '' for nowhere;
    publish_hello: what is written there first. ping: a message that is answered by `pong`. each: a frame holds as many
    messages as it holds this text; '' for one. post: what `post` sends. lines: one text for each client, which stands
    for LINE in its sends and its post. answers: what the message with ready_text must contain besides, for each client
    its own; any other answer is an error. watches: messages are ticks of `symbols` symbols, and these are the numbers
    of those that each client watches, its spare behind them. thin: so many clients have slow links
    (population_thin.c).
    """

    server: str
    path: str = "/"
    sends: tuple[str, ...] = ()
    ready_text: str = ""
    refused: str = ""
    publish: str = ""
    publish_hello: str = ""
    each: str = ""
    post: str = ""
    lines: Sequence[str] = ()
    answers: Sequence[str] = ()
    watches: Sequence[Sequence[int]] = ()
    symbols: int = 0
    thin: int = 0
    ping: str = "{}"
    pong: str = "{}"


class Counts(NamedTuple):
    """One line of the population; seconds and counts since its start, `reset` or the start of the run.

    cpu_seconds: the population's own. least, most: messages of the connections that got the fewest and the most.
    excess: messages beyond those published. Latencies in µs, from the publisher's write to the client's read.
    """

    event: str
    connections: int
    ready: int
    seconds: float
    cpu_seconds: float
    messages: int
    least: int
    most: int
    excess: int
    payload_bytes: int
    wire_bytes: int
    reads: int
    pings: int
    latencies: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Times(NamedTuple):
    """A histogram of the population; µs, all 0 where nothing was counted."""

    count: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


UNASKED = frozenset({"changes"})
"""Events that are told when they are over, perhaps before the answer to what was asked meanwhile."""


class Ages(NamedTuple):
    """How old ticks were at clients of one kind, by the time that each tick carries.

    late: of each value when the client read it. held: of the one that it replaced, at that moment, so this is the
    greatest age that a client's value of one symbol came to. newest: of the newest value of any symbol that the client
    had until then.
    """

    late: Times
    held: Times
    newest: Times


class Ticks(NamedTuple):
    """What has reached clients since the last `reset`; fast and thin (slow links) apart.

    merged: values left out for newer ones, by the jumps in `seq`. added: newest values of symbols just added to a list.
    The next three must be 0: an older value behind a newer one, the same value twice, one of a symbol that is not
    watched.
    """

    delivered: int
    merged: int
    added: int
    older: int
    repeated: int
    foreign: int
    fast: Ages
    thin: Ages


class Held(NamedTuple):
    """Watched symbols of all clients, by what is held of each: the newest value, an older one, or one beyond it.

    clients: those that hold an older one.
    """

    held: int
    behind: int
    ahead: int
    clients: int


class Changes(NamedTuple):
    """asked: changes that were due; missed: those that were not sent, as the client's one before was not answered."""

    asked: int
    sent: int
    missed: int
    seconds: float
    answers: Times


class Population:
    """A running population."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._process = started
        self._early: dict[str, dict[str, Any]] = {}
        """Lines that came before they were waited for, by their event."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Counts:
        """Return when every client is ready; counts from the first connect on."""
        return self._answer("ready", timeout_s)

    def template(self, text: bytes) -> None:
        """What is written to `Load.publish` for each batch; see STAMP."""
        self._say(b"template %d\n" % len(text) + text)

    def run(self, batches: int, in_flight: int, each: int = 1, timeout_s: float = RUN_TIMEOUT_S) -> Counts:
        """Publish in a closed loop until everybody has everything: `each` messages of every batch.

        Raises BenchError when somebody has not, as do the next two.
        """
        self._say(b"run %d %d %d\n" % (batches, in_flight, each))
        return self._everything(batches * each, timeout_s)

    def pace(self, messages: int, per_second: float, timeout_s: float = RUN_TIMEOUT_S) -> Counts:
        """Publish by the clock; latencies count from the moment at which a message was due."""
        self._say(b"pace %d %f\n" % (messages, per_second))
        return self._everything(messages, timeout_s)

    def post(self, messages: int, each: int, timeout_s: float = RUN_TIMEOUT_S) -> Counts:
        """Let every client publish `messages`, the next one when it has received `each` for each that it sent."""
        self._say(b"post %d %d\n" % (messages, each))
        return self._everything(messages * each, timeout_s)

    def stall(self, clients: int) -> None:
        """The first so many read nothing from now on and are not waited for."""
        self._say(b"stall %d\n" % clients)

    def thin(self, bytes_per_s: float) -> None:
        """So fast are the links of the first `Load.thin` clients from now on."""
        self._say(b"thin %f\n" % bytes_per_s)

    def ticks(self) -> Ticks:
        """What ticks were like since the last `reset`."""
        self._say(b"ticks\n")
        line = self._line("ticks", READY_TIMEOUT_S)
        groups = {name: Ages(*(Times(**times) for times in line.pop(name).values())) for name in ("fast", "thin")}
        return Ticks(**line, **groups)

    def held(self, newest: Sequence[int]) -> Held:
        """Compare what clients hold with the newest `seq` of each symbol."""
        text = b" ".join(b"%d" % seq for seq in newest)
        self._say(b"held %d\n" % len(text) + text)
        return Held(**self._line("held", READY_TIMEOUT_S))

    def change(self, texts: Sequence[str], per_s: float, seconds: float) -> None:
        """Let every client send these in turn, by the clock; `changed` waits for the end of it."""
        body = b"".join(text.encode() + b"\0" for text in texts)
        self._say(b"change %f %f %d %d\n" % (per_s, seconds, len(texts), len(body)) + body)

    def changed(self, timeout_s: float = RUN_TIMEOUT_S) -> Changes:
        """Return when all changes are answered."""
        line = self._line("changes", timeout_s)
        names = [name for name in line if name.endswith("_us")]
        answers = Times(line.pop("answers"), *(line.pop(name) for name in names))
        return Changes(**line, answers=answers)

    def _everything(self, messages: int, timeout_s: float) -> Counts:
        counts = self._answer("run", timeout_s)
        if not (counts.least == counts.most == messages) or counts.excess:
            raise BenchError(f"{messages} published, received from {counts.least} to {counts.most}: {counts}")
        return counts

    def reset(self) -> None:
        self._say(b"reset\n")

    def stats(self) -> Counts:
        """What was counted since the last `reset`."""
        self._say(b"stats\n")
        return self._answer("stats", READY_TIMEOUT_S)

    def _say(self, command: bytes) -> None:
        assert self._process.stdin is not None
        # One that has died says why in the line that is read next.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command)

    def _answer(self, event: str, timeout_s: float) -> Counts:
        return Counts(event, **self._line(event, timeout_s))

    def _line(self, event: str, timeout_s: float) -> dict[str, Any]:
        early = self._early.pop(event, None)
        if early is not None:
            return early
        while True:
            line: dict[str, Any] = json.loads(read_line(self._process.stdout, timeout_s, "the population"))
            found = line.pop("event")
            if found == event:
                return line
            if found not in UNASKED:
                raise BenchError(f"the population: {line.get('reason', line)}")
            self._early[found] = line


@contextlib.contextmanager
def population(
    load: Load, connections: int, cpu: int | None = None, opening: int = 128, sources: int = 8
) -> Iterator[Population]:
    """Start `connections` clients, at most `opening` of them in their handshake at a time. See `wait_ready`.

    sources: addresses that they connect from. Each has 28,000 ports; the kernel's search for a free one is the longer,
    the fewer there are.
    """
    command = [program("population"), "--server", load.server, "--path", load.path]
    command += [
        "--connections",
        str(connections),
        "--opening",
        str(opening),
        "--sources",
        str(sources),
        "--ping",
        load.ping,
        "--pong",
        load.pong,
    ]
    for text in load.sends:
        command += ["--send", text]
    for name in ("ready_text", "refused", "publish", "publish_hello", "each", "post"):
        if value := getattr(load, name):
            command += ["--" + name.replace("_", "-"), value]
    for name, number in (("--symbols", load.symbols), ("--thin", load.thin)):
        if number:
            command += [name, str(number)]
    watches = [" ".join(map(str, numbers)) for numbers in load.watches]
    with contextlib.ExitStack() as stack:
        for name, lines in (("--lines", load.lines), ("--answers", load.answers), ("--watches", watches)):
            if lines:
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="hub-bench-"))
                file.write(b"".join(line.encode() + b"\0" for line in lines))
                file.flush()
                command += [name, file.name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        yield Population(stack.enter_context(process(command, cpu, bufsize=0, **pipes)))
