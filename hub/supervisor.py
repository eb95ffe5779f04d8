"""Supervisor: the parent of all; it forks the workers, watches them, replaces them, and ends everything in order.

    BOOTING ── every worker ready ──▶ SERVING ── SIGTERM or SIGINT ──▶ STOPPING ── all gone ──▶ exit status
       └────────── a worker cannot boot, or a stop signal ───────────────▲

SIGUSR2 while SERVING: deploy; the next version takes over this process, with all that an Estate names, and begins in
SERVING, with the workers of the old one and a new generation that boots beside them.

Does: one blocking loop over signals, heartbeat pipes and due times, and what each means in each stage; tells systemd.
Does not: accept, read settings or know what a worker does: `worker_main` is handed in. Its rooms know how a reload goes
(reload), how a deploy does (deploy) and what an heir is left (bequest).
Called by: serve.
Never break: no thread and no event loop here. A forked copy of either is broken in ways that tests miss, and a process
that does nothing hard is one that can be trusted to kill those that hang.
"""

from __future__ import annotations

import enum
import gc
import itertools
import logging
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from . import __version__, bequest, reload
from .balance import Loads
from .bequest import Bequest
from .certificates import Certificates, Loaded
from .config import Settings
from .deploy import NO_LINEAGE, Deploy, Lineage
from .embedded import Embedded
from .errors import EXIT_BOOT, EXIT_FAILED, EXIT_OK, BootError
from .facts import Facts
from .heartbeat import Heartbeat, Pulse
from .inheritance import Estate, Tally
from .instructions import Instructions
from .listeners import Listeners
from .processes import NEVER, Ended, KeptValkey, WorkerProcess
from .relay import Home
from .reload import Reload, Reread
from .reloadable import Fresh, pairs_of
from .retreat import Retreat
from .seat import Seat, WorkerMain, fork_task, fork_worker
from .signals import Signals
from .systemd import Notifier, Watchdog

__all__ = ["Seat", "Supervisor", "WorkerMain"]

logger = logging.getLogger(__name__)

TURN_S = 1.0
"""The longest sleep of the loop."""
PAUSE_S = 4.0
"""A longer gap between two turns means that we were stopped, and perhaps the whole machine."""
GRACE_S = 10.0
"""Beyond drain_window_s and client.close_timeout_s: for what was published and the end itself."""
FAST_GRACE_S = 5.0
"""After a second stop signal or a failed boot."""
WATCHDOG_SLACK_S = 2.0
"""A silent worker is killed; only one that outlives that for so long keeps the watchdog unfed."""


class Stage(enum.Enum):
    BOOTING = enum.auto()
    SERVING = enum.auto()
    STOPPING = enum.auto()


class Supervisor:
    """Runs `worker_main` in one process per slot until it is told to stop.

    embedded: the private Valkey, or None with a configured Redis. on_ready: called once, when every worker accepts.
    lineage: whom it inherits from, and what its own heir needs. fresh: the settings with all that they name, for a way
    back; retreat: our own. The listeners are the supervisor's from here on: it closes them.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Listeners,
        worker_main: WorkerMain,
        *,
        notifier: Notifier,
        embedded: Embedded | None,
        on_ready: Callable[[], None],
        certificates: Certificates | None = None,
        lineage: Lineage = NO_LINEAGE,
        keys: Mapping[str, bytes] | None = None,
        reread: Reread | None = None,
        fresh: Fresh | None = None,
        retreat: Retreat | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._worker_main = worker_main
        self._notifier = notifier
        self._embedded = embedded
        self._on_ready = on_ready
        self._certificates = certificates
        self._lineage = lineage
        self._keys = keys
        self._fresh = fresh
        self._retreat = retreat or Retreat(None, None)
        self._clock = clock
        self._stage = Stage.BOOTING
        self._status = EXIT_OK
        self._failure = ""
        self._stop_s = NEVER
        """When a stop begins that was asked for, and waits for balancers to notice (shutdown_delay_s)."""
        self._home: Home | None = None
        self._valkey: KeptValkey | None = None
        self._kill_all_s = NEVER
        self._turned_s = clock()
        self._loads = Loads(len(listeners.slots)) if len(listeners.slots) > 1 else None
        self._workers = [WorkerProcess(slot, settings) for slot in listeners.slots]
        self._signals = Signals(self._handle)
        self._facts = Facts(clock)
        self._watchdog = Watchdog(notifier, self._well, TURN_S)
        self._reload = self._make_reload(reread)
        self._generations = itertools.count(lineage.estate.next_generation if lineage.estate else 1)
        self._bequest = self._make_bequest()
        self._deploy = self._make_deploy()

    def _make_reload(self, reread: Reread | None) -> Reload:
        host = reload.Host(
            workers=lambda: self._workers,
            settings=lambda: self._settings,
            serving=lambda: self._stage is Stage.SERVING and not self._deploy.rising,
            stopping=lambda: self._stage is Stage.STOPPING,
            fork=lambda work: fork_task(work, self._leave),
            prepare=self._prepare,
            adopt=self._adopt,
            ended=self._note_reload,
        )
        return Reload(host, reread, self._notifier, self._clock, config=self._lineage.config)

    def _make_bequest(self) -> Bequest:
        host = bequest.Host(
            listeners=self._listeners,
            signals=self._signals,
            watchdog=self._watchdog,
            facts=self._facts,
            workers=lambda: self._workers,
            next_generation=lambda: next(self._generations),
            board=lambda: self._reload.board,
            valkey=lambda: self._embedded.record() if self._embedded else None,
            tally=lambda: self._deploy.tally,
            version=lambda: self._deploy.version,
            fresh=lambda: self._fresh,
        )
        return Bequest(self._lineage, host, self._retreat)

    def _make_deploy(self) -> Deploy:
        left, program = self._lineage.estate, self._lineage.program
        tally = left.tally if left else Tally()
        ours = self._bequest
        version = left.version if left else __version__
        return Deploy(self._settings, program, ours.estate, ours.replace, ours.note, ours.go_back, tally, version)

    def run(self) -> int:
        """Serve until stopped; returns the exit status of the process.

        EXIT_OK: every worker ended well. EXIT_FAILED: one had to be killed or failed in the stop. EXIT_BOOT: the first
        start failed, and standard error has the one line that says why.
        """
        self._open_loop()
        try:
            try:
                self._boot()
            except BootError as error:
                self._fail_boot(str(error))
            while self._stage is not Stage.STOPPING or self._living():
                self._turn(self._wait_s())
        finally:
            self._close()
        if self._failure:
            sys.stderr.write(f"hub: {self._failure}\n")
        return self._status

    # Start and end

    def _open_loop(self) -> None:
        _raise_file_limit()
        self._cpus = sorted(os.sched_getaffinity(0))
        self._selector = selectors.DefaultSelector()
        self._signals.open(self._selector)
        # A collection writes to every object's head, and so would copy every page that parent and children share.
        gc.disable()

    def _boot(self) -> None:
        if self._lineage.estate is not None:
            with self._retreat.guard(self._signals.held, self._end_rising):
                self._inherit(self._lineage.estate)
                self._turn(0.0)
            self._retreat.close_copies()
            return
        try:
            self._home = Home.make(os.environ)
        except OSError as error:
            raise BootError(f"no directory for the workers' private sockets: {error}") from None
        self._open_for_others()
        if self._embedded is not None:
            if not self._embedded.wait_ready(self._settings.redis.start_timeout_s, self._keep_waiting):
                return
            self._embedded.resume()
            self._valkey = KeptValkey(self._embedded, self._clock())
        self._bequest.tell("", busy=False)
        # Once, not before each fork: what dies between two freezes would never be freed.
        gc.freeze()
        for worker in self._workers:
            self._fork(worker, self._clock())

    def _open_for_others(self) -> None:
        """Be found by commands of this machine, and keep what workers tell of us."""
        assert self._home is not None
        self._bequest.open(self._home)
        self._facts.open(self._home.directory)
        try:
            self._reload.open(self._selector, self._lineage.estate.board if self._lineage.estate is not None else -1)
        except OSError as error:
            raise BootError(f"no memory for the status that `hub reload` reads: {error.strerror}") from None

    def _inherit(self, estate: Estate) -> None:
        """Go on where the version before was, and have a generation of our own boot beside its workers."""
        now = self._clock()
        self._home = Home(estate.home.hub, estate.home.directory, estate.home.lock)
        self._open_for_others()
        if self._embedded is not None:
            self._valkey = KeptValkey(self._embedded, now, running=self._embedded.pid is not None)
        for record in estate.workers:
            worker = WorkerProcess.inherit(self._listeners.slots[record.slot], self._settings, record, now)
            self._workers[record.slot] = worker
            self._watch(worker)
        self._stage = Stage.SERVING
        self._watchdog.begin(now)
        gc.freeze()
        if estate.back:
            self._go_on(estate, now)
        else:
            self._raise_generation(estate, now)
        for worker in self._workers:
            if not worker.pid:
                worker.fork_s = now  # once there is no generation on its way to take its place

    def _go_on(self, estate: Estate, now: float) -> None:
        """After a version that could not: with the workers that there are."""
        logger.info("version %s is back, with its own workers", __version__)
        if estate.failure:
            self._bequest.note(estate.failure)

    def _raise_generation(self, estate: Estate, now: float) -> None:
        logger.info("version %s goes on as %s; a new generation of workers starts", estate.version, __version__)
        rising = [WorkerProcess(slot, self._settings) for slot in self._listeners.slots]
        self._deploy.rise(rising, now)
        for worker in rising:
            if self._deploy.rising:  # no fork has failed
                self._fork(worker, now)

    def _end_rising(self) -> None:
        """Before a way back: nobody has come to them yet, and who is there then knows nothing of them."""
        for worker in self._deploy.rising:
            worker.tell(signal.SIGKILL)
            worker.reap(self._clock(), options=0)
            if self._home is not None:
                self._home.clear(worker.slot.index, worker.generation)

    def _keep_waiting(self, seconds: float) -> bool:
        self._turn(seconds)
        return self._stage is not Stage.STOPPING

    def _close(self) -> None:
        # No worker is left here, unless the loop itself failed; then none may be left behind.
        for worker in self._living():
            worker.tell(signal.SIGKILL)
            worker.reap(self._clock(), options=0)
        self._listeners.close()
        self._facts.close()
        if self._home is not None:
            self._home.remove()
        if self._embedded is not None:
            self._embedded.stop()
        self._reload.close()
        self._signals.close()
        self._close_loop()
        gc.enable()

    def _close_loop(self) -> None:
        for worker in self._all():
            worker.close_pipes()
        self._selector.close()

    # The loop

    def _turn(self, timeout_s: float) -> None:
        events = self._selector.select(timeout_s)
        now = self._clock()
        self._forgive_pause(now)
        for key, _ in events:
            key.data(now)
        self._judge(now)
        if self._stage is Stage.SERVING and not self._is_reloading() and self._stop_s == NEVER:
            self._deploy.turn(now, GRACE_S)
        self._start_due(now)
        self._reload.turn(now)
        self._watchdog.turn(now)
        self._facts.beat()

    def _wait_s(self) -> float:
        """Seconds to sleep: until the first thing is due, at most TURN_S."""
        valkey_s = self._valkey.start_s if self._valkey else NEVER
        once_s = min(self._stop_s, self._kill_all_s, self._watchdog.due_s, self._reload.due_s())
        deploy_s = NEVER if self._is_reloading() or self._stop_s < NEVER else self._deploy.due_s()
        # Who is due to be forked waits for a generation that boots, and is no reason to be awake meanwhile.
        heeded = (worker for worker in self._all() if worker.pid or not self._deploy.rising)
        due_s = min(once_s, valkey_s, deploy_s, *(worker.due_s() for worker in heeded))
        return max(0.0, min(due_s - self._clock(), TURN_S))

    def _is_reloading(self) -> bool:
        """A deploy waits for a reload, whose outcome somebody waits for; a reload for a generation that boots."""
        return self._reload.busy and not self._deploy.rising

    def _forgive_pause(self, now: float) -> None:
        # Ctrl-Z stops the whole group, a snapshot the whole machine: the workers' silence then is not their fault.
        if now - self._turned_s > PAUSE_S:
            for worker in self._living():
                worker.forgive(now)
        self._turned_s = now

    def _judge(self, now: float) -> None:
        for worker in self._living():
            worker.judge(now)
        if self._stop_s <= now:
            self._say_goodbye(now)
        if self._kill_all_s <= now:
            self._kill_all()

    def _start_due(self, now: float) -> None:
        for worker in self._workers:
            if worker.fork_s <= now and not self._deploy.rising:
                self._fork(worker, now)
            if self._stage is Stage.SERVING:
                worker.note_vacancy(now)
        if self._valkey is not None:
            self._valkey.start_if_due(now)

    def _well(self, now: float) -> bool:
        return not any(worker.silent(now, WATCHDOG_SLACK_S) for worker in self._living())

    def _handle(self, number: int, now: float) -> None:
        """What a signal means."""
        if number == signal.SIGCHLD:
            self._reap(now)
            self._reload.reap()
        elif number == signal.SIGUSR2:
            self._deploy.ask()
        elif number == signal.SIGHUP and not self._signals.hung_up:
            self._reload.ask()
        else:
            self._stop(signal.Signals(number), now)

    def _prepare(self, fresh: Fresh) -> Loaded | None:
        """The certificates for workers that are forked later. Raises ConfigError."""
        if self._certificates is None or fresh.certificates is None:
            return None
        return self._certificates.prepare(pairs_of(fresh.settings), fresh.certificates)

    def _adopt(self, fresh: Fresh, loaded: Loaded | None) -> None:
        """Who is forked from now on has these."""
        self._settings, self._keys, self._fresh = fresh.settings, fresh.keys, fresh
        self._deploy.retune(fresh.settings)
        for worker in self._workers:
            worker.retune(fresh.settings)
        if self._certificates is not None and loaded is not None:
            self._certificates.take(loaded)

    def _note_reload(self, done: bool) -> None:
        self._deploy.check_again()
        self._facts.count("reloads", "ok" if done else "failed")
        self._facts.note(reload_ok=int(done))
        if done:
            self._facts.note(reloaded_at=time.time())

    # Workers

    def _all(self) -> Iterable[WorkerProcess]:
        """Of all generations that there are."""
        return itertools.chain(self._workers, self._deploy.rising, self._deploy.leaving)

    def _living(self) -> list[WorkerProcess]:
        return [worker for worker in self._all() if worker.pid]

    def _fork(self, worker: WorkerProcess, now: float) -> None:
        worker.retune(self._settings)
        try:
            pulse = worker.fork(partial(self._fork_into_seat, worker), now)
        except OSError as error:
            text = f"cannot fork worker {worker.slot.index}: {error.strerror}"
            if self._stage is Stage.BOOTING:
                raise BootError(text) from None
            if worker in self._deploy.rising:
                self._deploy.fail(text, now, GRACE_S)
                return
            delay_s = worker.plan_next(0.0, now)
            logger.error("cannot fork worker %d: %s; next try in %.1f s", worker.slot.index, error.strerror, delay_s)
            return
        assert worker.pulse is pulse
        self._watch(worker)
        self._reload.joined(worker)
        logger.info("worker %d started, pid %d", worker.slot.index, worker.pid)

    def _watch(self, worker: WorkerProcess) -> None:
        assert worker.pulse is not None
        self._selector.register(worker.pulse.fd, selectors.EVENT_READ, partial(self._read_pulse, worker))

    def _fork_into_seat(self, worker: WorkerProcess, heartbeat: Heartbeat, instructions: Instructions) -> int:
        assert self._home is not None  # made before the first fork
        worker.generation = next(self._generations)
        seat = Seat(
            slot=worker.slot,
            workers=len(self._workers),
            generation=worker.generation,
            # A generation that is to take over must be whole, as at a start; the old one serves meanwhile.
            respawned=self._stage is not Stage.BOOTING and worker not in self._deploy.rising,
            redis_url=self._embedded.url if self._embedded else self._settings.redis.url,
            heartbeat=heartbeat,
            home=self._home,
            certificates=self._certificates,
            loads=self._loads,
            keys=self._keys,
            instructions=instructions,
            counts=self._reload.counts,
        )
        leave = partial(self._leave, worker.slot.index)
        return fork_worker(self._settings, seat, self._worker_main, leave, self._cpus)

    def _leave(self, index: int = -1) -> None:
        """In the child: close what is the supervisor's, and the listeners of the other slots; -1: of all."""
        self._reload.leave()
        self._deploy.leave()
        self._retreat.close()
        self._signals.leave()
        self._close_loop()
        self._facts.close()
        self._listeners.keep_only(index)

    def _read_pulse(self, worker: WorkerProcess, now: float) -> None:
        # None: reaped earlier in this turn, when the pipe was read too.
        if worker.pulse is None:
            return
        if not worker.pulse.read(now):
            # The worker has closed its end; its death follows, or its silence will be judged.
            self._selector.unregister(worker.pulse.fd)
        self._reload.heard(worker, worker.pulse.take_answers())
        if self._stage is Stage.BOOTING and all(each.ready for each in self._workers):
            self._serve(now)
        elif self._stage is Stage.SERVING and self._deploy.risen:
            self._workers = self._deploy.succeed(self._workers, now, GRACE_S)
            self._retreat.close()
            self._notifier.status(f"{len(self._workers)} workers")

    def _serve(self, now: float) -> None:
        self._stage = Stage.SERVING
        self._watchdog.begin(now)
        logger.info("all %d workers are ready", len(self._workers))
        self._notifier.ready(f"{len(self._workers)} workers")
        self._on_ready()

    def _reap(self, now: float) -> None:
        for worker in self._living():
            if (ended := worker.reap(now)) is not None:
                self._forget(ended.pulse)
                worker.forget(self._selector)
                self._reload.gone(worker)
                if self._home is not None:
                    self._home.clear(worker.slot.index, ended.generation)
                self._mourn(worker, ended, now)
        if self._valkey is not None:
            self._valkey.reap(now)

    def _forget(self, pulse: Pulse) -> None:
        if pulse.fd in self._selector.get_map():
            self._selector.unregister(pulse.fd)
        pulse.close()

    def _mourn(self, worker: WorkerProcess, ended: Ended, now: float) -> None:
        """What a worker's death means in this stage."""
        if self._stage is Stage.BOOTING:
            self._fail_boot(ended.pulse.failure or f"{ended}, before it was ready")
        elif self._stage is Stage.STOPPING:
            self._note_end(ended)
        elif worker in self._deploy.leaving:
            self._deploy.gone(worker, ended)
        elif worker in self._deploy.rising:
            self._deploy.fail(ended.pulse.failure or f"{ended}, before all were ready", now, GRACE_S)
        else:
            self._facts.count("worker_restarts", ended.reason)
            delay_s = worker.plan_next(ended.lived_s, now)
            cause = f": {ended.pulse.failure}" if ended.pulse.failure else ""
            logger.warning("%s%s; the next one starts in %.1f s", ended, cause, delay_s)

    # Stop

    def _stop(self, number: signal.Signals, now: float) -> None:
        delay_s = self._settings.shutdown_delay_s
        if self._stage is Stage.STOPPING:
            logger.info("%s: stopping at once", number.name)
            self._tell_workers(signal.SIGTERM)
            self._kill_all_s = min(self._kill_all_s, now + FAST_GRACE_S)
        elif self._stage is Stage.SERVING and delay_s and self._stop_s == NEVER:
            self._stop_s = now + delay_s
            self._facts.note(stopping=1)
            logger.info("%s: /readyz answers 503, and the hub serves on for %g s", number.name, delay_s)
            self._deploy.abandon()
            self._notifier.stopping()
        else:
            logger.info("%s: stopping, clients are closed within %g s", number.name, self._settings.drain_window_s)
            self._say_goodbye(now)

    def _say_goodbye(self, now: float) -> None:
        goodbye_s = max((worker.goodbye_s for worker in self._living()), default=0.0)
        self._begin_stop(now, goodbye_s + GRACE_S)

    def _fail_boot(self, text: str) -> None:
        self._failure = text
        self._status = EXIT_BOOT
        self._begin_stop(self._clock(), FAST_GRACE_S)

    def _begin_stop(self, now: float, grace_s: float) -> None:
        self._stage, self._stop_s = Stage.STOPPING, NEVER
        self._deploy.abandon()
        self._notifier.stopping()
        self._kill_all_s = now + grace_s
        for worker in self._workers:
            worker.fork_s = NEVER
        self._tell_workers(signal.SIGTERM)
        # A listener that nobody accepts from would take new clients in and leave them waiting; closed here and in the
        # workers, it refuses them, and a balancer goes elsewhere.
        self._listeners.close()

    def _tell_workers(self, number: signal.Signals) -> None:
        for worker in self._living():
            worker.tell(number)

    def _kill_all(self) -> None:
        self._kill_all_s = NEVER
        for worker in self._living():
            logger.error("worker %d (pid %d) did not stop in time and is killed", worker.slot.index, worker.pid)
            worker.tell(signal.SIGKILL)

    def _note_end(self, ended: Ended) -> None:
        # One that was still booting has no handler for SIGTERM yet, and nobody to say goodbye to.
        early = ended.code == -signal.SIGTERM and not ended.pulse.ready
        if ended.code == EXIT_OK or early:
            logger.info("%s", ended)
            return
        logger.warning("%s", ended)
        if self._status == EXIT_OK:
            self._status = EXIT_FAILED


def _raise_file_limit() -> None:
    """Raise the soft limit of descriptors to the hard one; workers inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("cannot raise the limit of open files to %d: %s", hard, error)
