"""Assets: the files that browsers get: the client module, the client library, and the demo page or the application's.

Does: serve each with its type, an ETag, how long it may be kept, and what a page may load.
Does not: know the server (httpd), or the operators' page and who may see it (admin).
Called by: doors (routes), admin (its files are served alike).
Never break: no request names a path in the file system: what is served is listed when the routes are made, or is one of
the few names of the client library.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from . import httpd

DEMO_POLICY = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"
DEMO_FILES = ("demo.js", "demo_feed.js", "demo_board.js", "demo_chart.js", "demo.css", "favicon.svg")
CONTENT_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class Alive(httpd.Handler):
    """GET / where there is no demo page: a bare 200."""

    def get(self) -> None:
        self.plain(200, "hub")

    head = get  # health checks


class StaticFile(httpd.Handler):
    """GET of one file, with an ETag."""

    CACHE_CONTROL = "no-cache"

    def initialize(self, file: Traversable) -> None:
        self._file = file

    def get(self) -> None:
        kind = CONTENT_TYPES[self._file.name.rpartition(".")[2]]
        content = self._file.read_bytes()
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", self.CACHE_CONTROL)
        self.finish(content)

    def head(self) -> None:
        """The same without the body, which Tornado leaves out: CDNs ask so."""
        self.get()


class Page(StaticFile):
    """A file of a page of ours, or of the application's."""

    def get(self) -> None:
        self.set_header("Content-Security-Policy", DEMO_POLICY)
        # Its address may carry a token, which is nobody else's business.
        self.set_header("Referrer-Policy", "no-referrer")
        super().get()


class ClientModule(StaticFile):
    """GET /hub.js: the client for web pages, which may be those of any origin."""

    # Each page view asks for it, so browsers and CDNs may keep it for a while; not for long, as it should not be much
    # older than the hub that it talks to.
    CACHE_CONTROL = "public, max-age=600"

    def set_default_headers(self) -> None:
        super().set_default_headers()
        # A module is fetched with CORS. It is the same for all and holds no secret; who may connect is decided there.
        self.set_header("Access-Control-Allow-Origin", "*")


class ClientLibrary(ClientModule):
    """GET /socket.io/socket.io.js: npm socket.io-client, as stock servers bring it along."""

    def initialize(self, directory: str) -> None:  # type: ignore[override]
        self._directory = directory

    def get(self, name: str) -> None:  # type: ignore[override]
        self._file = Path(self._directory, name)
        if self._directory and self._file.is_file():
            super().get()
        else:
            self.plain(404, "no client library; allowed for socketio.client_dir: npm socket.io-client's dist folder")

    def head(self, name: str) -> None:  # type: ignore[override]
        """A page asks first whether there is one."""
        self.get(name)


def pages(demo: bool, directory: str = "") -> httpd.Routes:
    """Routes of the client module, and of `/`: an application's pages, the demo page, or a bare 200.

    directory: of the application's; '' for none. Its files are listed now, so that no request names a path.
    """
    static = resources.files("hub").joinpath("static")
    module = (r"/hub\.js", ClientModule, {"file": static.joinpath("hub.js")})
    files: dict[str, Traversable]
    if directory:
        known = (path for path in sorted(Path(directory).iterdir()) if path.suffix[1:] in CONTENT_TYPES)
        files = {f"/{path.name}".removesuffix("index.html"): path for path in known}
    elif demo:
        names = {"/": "demo.html", **{f"/static/{name}": name for name in DEMO_FILES}}
        files = {path: static.joinpath(name) for path, name in names.items()}
    else:
        return [(r"/", Alive, {}), module]
    return [module, *((re.escape(path), Page, {"file": file}) for path, file in files.items())]


def client_library(directory: str) -> httpd.Routes:
    """Routes of npm socket.io-client; directory: its `dist`, '' where there is none."""
    return [(r"/socket\.io/(socket\.io(?:\.esm|\.msgpack)?(?:\.min)?\.js)", ClientLibrary, {"directory": directory})]
