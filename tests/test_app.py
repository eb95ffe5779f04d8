"""Apps: registering handlers, and loading the file that they stand in."""

from __future__ import annotations

import sys

import pytest

from hub import app as apps
from hub.app import App, Reject, load
from hub.errors import BootError
from tests.support import async_test


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to load from, of which nothing stays behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_nearest_handler_is_found():
    """That of the namespace, else that of all."""
    app = App()
    every, custom = lambda client, data: None, lambda client, data: None
    assert app.on_connect()(every) is every
    app.on_connect("/custom")(custom)
    assert app.handler(apps.CONNECT, "/custom") is custom
    assert app.handler(apps.CONNECT, "/") is every
    assert app.handler(apps.CONNECT, "") is every
    assert app.handler(apps.EVENT, "/", "x") is None
    app.on("x")(every)
    assert app.handler(apps.EVENT, "/", "x") is every
    assert app.handler(apps.EVENT, "/custom", "x") is None
    assert app.namespaces() == {"/", "/custom"}


def test_messages_have_addresses_of_their_own():
    """No Socket.IO namespaces, also where other handlers name them; none of the hub's own, and no odd ones."""
    app = App()
    app.on_message("/engine.io/")(print)
    app.on_message("/raw/feed")(print)
    app.on_connect("/engine.io/")(print)
    app.on("x", "/chat")(print)
    assert app.message_paths() == {"/engine.io/", "/raw/feed/"}
    assert app.namespaces() == {"/chat"}
    assert app.handler(apps.MESSAGE, "", "/raw/feed/") is print
    with pytest.raises(ValueError, match="second handler"):
        app.on_message("/engine.io")
        app.on_message("/engine.io")(print)
    for path in (
        "",
        "/",
        "engine.io",
        "/a b/",
        "/%2e/",
        "/" + "x" * 64,
        "/socket.io",
        "/connection/x",
        "/api/",
        "/sse",
    ):
        with pytest.raises(ValueError, match="path: found"):
            app.on_message(path)


def test_mistakes_of_the_author_are_told_at_once():
    """A second handler, a hub's own method, and what is no coroutine function."""
    app = App()
    app.on("x")(print)
    with pytest.raises(ValueError, match="second handler for event 'x'"):
        app.on("x")(print)
    with pytest.raises(ValueError, match="hub's own"):
        app.on_rpc("hub.ack")
    for register in (app.middleware, app.task):
        with pytest.raises(TypeError, match="coroutine function"):
            register(print)
    with pytest.raises(RuntimeError, match="not running yet"):
        app.publish("a", 1)
    assert Reject("no").code == 103


def test_a_file_is_loaded_with_what_stands_beside_it(place):
    """Also from a package."""
    (place / "loaded_words.py").write_text("WORD = 'hi'\n")
    (place / "loaded_app.py").write_text("from hub.app import App\nfrom loaded_words import WORD\napp = App()\n")
    assert isinstance(load("loaded_app:app", str(place)), App)
    (place / "loaded_package").mkdir()
    (place / "loaded_package" / "chat.py").write_text("from hub.app import App\nmain = App()\n")
    assert isinstance(load("loaded_package.chat:main", str(place)), App)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("app = 1", r"found no App named 'app' in broken_app; allowed: app = App\(\)"),
        ("1/0", r"ZeroDivisionError: division by zero \(broken_app.py, line 1\)"),
        ("def (", r"SyntaxError: invalid syntax \(broken_app.py, line 1\)"),
        ("import nothing_of_that_name", r"ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit('bye\\nbye')", r"SystemExit: bye bye \(broken_app.py, line 1\)"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_in_one_line(place, text, wanted):
    """With the place of the mistake; also what leaves Python."""
    (place / "broken_app.py").write_text(text)
    with pytest.raises(BootError, match=wanted) as caught:
        load("broken_app:app", str(place))
    assert "\n" not in str(caught.value)


def test_a_module_of_another_place_is_not_taken_for_it(place):
    """Such as one of Python's own, which is there already."""
    with pytest.raises(BootError, match="a module of another place"):
        load("json:app", str(place))
    with pytest.raises(BootError, match="ModuleNotFoundError"):
        load("missing_app:app", str(place))


@async_test
async def test_what_an_app_does_is_awaited_in_the_loop():
    """And only there: a plain handler has the outcome when the call returns (test_app_runner)."""
    app, done = App(), []

    class Hub:
        async def publish(self, channel, data, tags):
            done.append((channel, data, tags))

        async def emit(self, name, args, to, namespace, skip, volatile):
            done.append((name, args, to, namespace, skip, volatile))

        async def call(self, client, name, args, timeout_s):
            return client, name, args, timeout_s

        async def disconnect(self, client):
            done.append(client)

    app.bind(Hub())
    await app.publish("a", 1, tags={"x": "y"})
    await app.emit("said", 1, 2, to="room:a")
    await app.emit("typing", to="room:a", volatile=True)
    client = "0f8fad5b-d9cb-469f-a165-70867728950e"
    assert await app.call(client, "question", 6, timeout_s=1) == (client, "question", (6,), 1)
    await app.disconnect(client)
    assert done == [
        ("a", 1, {"x": "y"}),
        ("said", (1, 2), "room:a", "/", "", False),
        ("typing", (), "room:a", "/", "", True),
        client,
    ]
    for wrong in ("ann", "room:a", 7):
        with pytest.raises(ValueError, match="a client's id"):
            app.disconnect(wrong)
        with pytest.raises(ValueError, match="a client's id"):
            app.call(wrong, "question")
