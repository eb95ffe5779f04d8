"""The runner: handlers, their time, their threads, and what surrounds them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hub import app as apps
from hub.app import App, Call, Client, Reject
from hub.app_runner import Rejected, Runner
from hub.errors import BrokerUnavailable, CommandError
from tests.nodes import until
from tests.support import async_test

CALL = Call(apps.EVENT, "x", (1,))


def client_of(app: App) -> Client:
    return Client(app, None, "c1", "ann", "/")


async def error_of(runner: Runner, handler) -> CommandError:
    with pytest.raises(CommandError) as caught:
        await runner.run(handler, client_of(runner.app), CALL)
    return caught.value


@async_test
async def test_coroutines_run_here_and_plain_functions_in_threads():
    """Both give what they return; a plain one may return something to await."""
    runner = Runner(App())
    here = threading.get_ident()

    async def coroutine(client, value):
        return client.user, value, threading.get_ident() == here

    def plain(client, value):
        return client.user, value, threading.get_ident() == here

    for handler, inside in ((coroutine, True), (plain, False), (lambda client, value: coroutine(client, value), True)):
        assert await runner.run(handler, client_of(runner.app), CALL) == ("ann", 1, inside)
    assert await runner.run(None, client_of(runner.app), CALL) is None
    await runner.close()


@async_test
async def test_a_plain_handler_has_the_outcome_when_its_call_returns():
    """Errors as well."""
    app, published = App(), []

    class Hub:
        async def publish(self, channel, data, tags):
            await asyncio.sleep(0)
            if channel == "bad":
                raise ValueError("no")
            published.append(data)
            return len(published)

    app.bind(Hub())
    runner = Runner(app)

    def handler(client, value):
        with pytest.raises(ValueError, match="no"):
            app.publish("bad", 0)
        return app.publish("a", value), list(published)

    assert await runner.run(handler, client_of(app), CALL) == (1, [1])
    await runner.close()


@async_test
async def test_errors_become_the_clients(caplog):
    """Words of a Reject; 100 for failures, with a line that names the place; Redis that is away is no failure."""
    runner = Runner(App())

    async def reject(client, value):
        raise Reject("not now", code=409, data=[1])

    async def away(client, value):
        raise BrokerUnavailable("redis://secret")

    async def fail(client, value):
        raise KeyError("x")

    rejected = await error_of(runner, reject)
    assert isinstance(rejected, Rejected)
    assert (rejected.reply.code, str(rejected), rejected.data) == (409, "not now", [1])
    assert "secret" not in str(await error_of(runner, away))
    assert not caplog.records
    assert (await error_of(runner, fail)).reply.code == 100
    assert runner.failed == 1
    assert "the application's event 'x', client c1: KeyError: 'x' (test_app_runner.py, line" in caplog.text
    caplog.clear()
    await runner.close()


@async_test
async def test_each_handler_that_fails_has_a_line(caplog):
    """Not each failure; one that fails all the time does not hide another."""
    runner = Runner(App())

    async def fail(client, value):
        raise KeyError("often")

    async def other(client, value):
        raise KeyError("once")

    for handler in (fail, fail, other, fail):
        await error_of(runner, handler)
    assert [record.args[3].split(" (")[0] for record in caplog.records] == ["KeyError: 'often'", "KeyError: 'once'"]
    caplog.clear()
    await runner.close()


@async_test
async def test_a_handler_that_takes_too_long_is_given_up(caplog):
    """A thread that hangs keeps its place; when all do, coroutines still run, and when one ends, plain ones do."""
    runner = Runner(App(), timeout_s=0.05, threads=1)
    go = threading.Event()
    try:
        assert (await error_of(runner, lambda client, value: go.wait())).reply.code == 100
        assert (await error_of(runner, lambda client, value: 1)).reply.code == 100
        assert runner.timed_out == 2
        assert runner._pool._work_queue.qsize() == 0

        async def quick(client, value):
            return value

        assert await runner.run(quick, client_of(runner.app), CALL) == 1
    finally:
        go.set()
    await until(lambda: not runner._free.locked())
    assert await runner.run(lambda client, value: 2, client_of(runner.app), CALL) == 2
    assert "no end after 0.05 s (app.timeout_s)" in caplog.text
    caplog.clear()
    await runner.close()


@pytest.mark.expects_log
@async_test
async def test_calls_that_came_to_nothing_are_reported_once():
    """How many there were in all, when there was another one; what a handler refuses is none."""
    runner = Runner(App(), timeout_s=0.01)

    async def fails(client, value):
        raise KeyError("x")

    async def refuses(client, value):
        raise Reject("no")

    async def hangs(client, value):
        await asyncio.Event().wait()

    await error_of(runner, refuses)
    assert runner.report() == ""
    for handler in (fails, fails, hangs):
        await error_of(runner, handler)
    assert runner.report() == "application: 2 calls failed, 1 took too long"
    assert runner.report() == ""


@async_test
async def test_calls_may_share_one_time(caplog):
    """A later one has what is left of it, if that is less than its own."""
    runner = Runner(App(), timeout_s=60)
    now = asyncio.get_running_loop().time()

    async def hanging(client, value):
        await asyncio.Event().wait()

    with pytest.raises(CommandError):
        await runner.run(hanging, client_of(runner.app), CALL, now)
    assert runner.timed_out == 1
    await runner.close()
    caplog.clear()


@async_test
async def test_middlewares_surround_handlers():
    """The first registered is the outermost; each may refuse, change the answer, or be all there is."""
    app, seen = App(), []

    @app.middleware
    async def outer(client, call, proceed):
        seen.append(("outer", call))
        return [await proceed()]

    @app.middleware
    async def inner(client, call, proceed):
        seen.append("inner")
        if client.user == "eve":
            raise Reject("not you")
        return await proceed()

    runner = Runner(app)
    assert await runner.run(lambda client, value: value, client_of(app), CALL) == [1]
    assert seen == [("outer", CALL), "inner"]
    eve = client_of(app)
    eve.user = "eve"
    with pytest.raises(Rejected, match="not you"):
        await runner.run(None, eve, CALL)
    await runner.close()


@async_test
async def test_calls_are_bounded_and_end_with_the_runner():
    """One more is refused as temporary; what is left at the end is cancelled after its time."""
    runner = Runner(App(), timeout_s=0.05, pending=1)
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    runner.begin(work())
    with pytest.raises(CommandError) as caught:
        runner.begin(work())
    assert caught.value.reply.code == 111
    await runner.close()
    await until(lambda: ended == [True])


@async_test
async def test_background_tasks_live_as_long_as_the_worker(caplog):
    """One that fails is named in the log, and the others go on."""
    app, life = App(), []

    @app.task
    async def steady():
        life.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            life.append("ended")

    @app.task
    async def failing():
        raise OSError("no disk")

    runner = Runner(app)
    runner.start()
    await until(lambda: caplog.records)
    assert life == ["begun"]
    await runner.close()
    assert life == ["begun", "ended"]
    assert "the background task failing of the application failed: OSError: no disk" in caplog.text
    caplog.clear()
