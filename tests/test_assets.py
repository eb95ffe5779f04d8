"""What browsers are served: pages with a policy, the client module for any origin, and nothing that is not listed."""

from __future__ import annotations

import pytest

from tests.support import async_test
from tests.test_httpd import ask, serving


@async_test
async def test_the_root_is_a_bare_200_without_the_demo():
    """A balancer can probe it."""
    async with serving() as port:
        answer = await ask(port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nhub\n")


@async_test
async def test_the_demo_page_and_its_files_are_served_with_a_policy():
    """Page, script and style have their types and a policy that allows no foreign script."""
    async with serving(demo=True) as port:
        for path, kind in (
            (b"/", b"text/html"),
            (b"/static/demo.js", b"text/javascript"),
            (b"/static/demo_feed.js", b"text/javascript"),
            (b"/static/demo_board.js", b"text/javascript"),
            (b"/static/demo_chart.js", b"text/javascript"),
            (b"/static/demo.css", b"text/css"),
            (b"/static/favicon.svg", b"image/svg+xml"),
        ):
            answer = await ask(port, b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ") and kind in answer
            assert b"default-src 'self'" in answer and b"Referrer-Policy: no-referrer\r\n" in answer
        answer = await ask(port, b"GET /static/../config.py HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("demo", [False, True])
@async_test
async def test_the_client_module_is_served_to_pages_of_any_origin(demo):
    """With or without the demo; it may be kept for a while, and asked for again by its tag."""
    async with serving(demo=demo) as port:
        answer = await ask(port, b"GET /hub.js HTTP/1.1\r\nHost: h\r\nOrigin: https://elsewhere.test\r\n\r\n")
        head = answer.partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 200 ") and b"text/javascript" in head and b"export class Hub " in answer
        assert b"Access-Control-Allow-Origin: *" in head and b"Cache-Control: public, max-age=600" in head
        assert b"Content-Security-Policy" not in head
        tag = next(line.split(b" ", 1)[1] for line in head.split(b"\r\n") if line.startswith(b"Etag: "))
        answer = await ask(port, b"GET /hub.js HTTP/1.1\r\nHost: h\r\nIf-None-Match: " + tag + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 304 ") and b"export" not in answer


@async_test
async def test_an_applications_pages_are_served_with_a_policy(tmp_path):
    """index.html at /, the others under their names; what is no page's file, or came later, is not there."""
    files = {
        "index.html": "<p>",
        "a.b.js": "1",
        "c.css": "p{}",
        "i.svg": "<svg/>",
        "app.py": "SECRET",
        ".env": "SECRET",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    async with serving(demo=True, pages=str(tmp_path)) as port:
        (tmp_path / "late.js").write_text("2")
        for path, kind, text in (
            (b"/", b"text/html", b"<p>"),
            (b"/a.b.js", b"text/javascript", b"1"),
            (b"/c.css", b"text/css", b"p{}"),
            (b"/i.svg", b"image/svg+xml", b"<svg/>"),
        ):
            answer = await ask(port, b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ") and kind in answer and answer.endswith(b"\r\n\r\n" + text)
            assert b"default-src 'self'" in answer and b"nosniff" in answer
        for path in (
            b"/app.py",
            b"/.env",
            b"/axb.js",
            b"/late.js",
            b"/../secret.js",
            b"/%2e%2e/secret.js",
            b"/static/demo.js",
        ):
            answer = await ask(port, b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 404 ") and b"SECRET" not in answer
        assert b"export class Hub " in await ask(port, b"GET /hub.js HTTP/1.1\r\nHost: h\r\n\r\n")


@async_test
async def test_the_client_library_is_served_where_the_settings_say_that_it_is(tmp_path):
    """As stock servers have it, to pages of any origin; without it one line says what to set."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "secret.js").write_text("SECRET")
    for name in ("socket.io.js", "socket.io.esm.min.js", "socket.io.js.map", "other.js"):
        (tmp_path / "dist" / name).write_text(f"// {name}")
    async with serving(library=str(tmp_path / "dist")) as port:
        for name in (b"socket.io.js", b"socket.io.esm.min.js"):
            answer = await ask(port, b"GET /socket.io/" + name + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (
                answer.startswith(b"HTTP/1.1 200 ") and b"text/javascript" in answer and answer.endswith(b"// " + name)
            )
            assert b"Access-Control-Allow-Origin: *" in answer and b"max-age=600" in answer
            answer = await ask(port, b"HEAD /socket.io/" + name + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n")
        for name in (b"socket.io.min.js", b"socket.io.js.map", b"other.js", b"../secret.js", b"%2e%2e/secret.js"):
            answer = await ask(port, b"GET /socket.io/" + name + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 404 ") and b"SECRET" not in answer
    async with serving() as port:
        answer = await ask(port, b"GET /socket.io/socket.io.js HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ") and b"socketio.client_dir" in answer


@async_test
async def test_without_a_directory_there_is_no_client_library(tmp_path, monkeypatch):
    """Though a file of its name lies where the hub was started."""
    (tmp_path / "socket.io.js").write_text("var io;")
    monkeypatch.chdir(tmp_path)
    async with serving() as port:
        answer = await ask(port, b"GET /socket.io/socket.io.js HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ") and b"no client library" in answer
