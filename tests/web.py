"""A web server of ill manners on 127.0.0.1: it cuts, lies, redirects and refuses as a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What lies at an address.

    Attributes:
        content: the whole of it.
        etag: tells its version; "" sends none.
        ranges: whether parts of it can be asked for.
        statuses: answers before the first good one, one a request.
        cuts: how many bytes are sent before the connection is closed, one a request; ``None`` for all.
        declared: a Content-Length other than that of the content; -1 sends none.
        location: redirects there.
        shift: a part begins this many bytes later than was asked for.
    """

    content: bytes = b""
    etag: str = '"1"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    declared: int | None = None
    location: str = ""
    shift: int = 0


@dataclass
class Site:
    """A server: its pages by path, and the requests that came, as (path, headers)."""

    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str) -> str:
        """Address of a page."""
        return self.address + path

    def ranges(self) -> list[str | None]:
        """The Range header of each request, in order."""
        return [headers.get("Range") for _, headers in self.requests]


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        """Answer as the page says."""
        self.site.requests.append((self.path, dict(self.headers)))
        page = self.site.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif page.location:
            self.send_response(302)
            self.send_header("Location", page.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif page.statuses:
            self.send_error(page.statuses.pop(0))
        else:
            self._send(page)

    def _send(self, page: Page) -> None:
        start = self._start(page)
        if start and start >= len(page.content):
            self.send_error(416)
            return
        body = page.content[start:]
        self.send_response(206 if start else 200)
        declared = len(body) if page.declared is None else page.declared
        if declared >= 0:
            self.send_header("Content-Length", str(declared))
        if start:
            first = start + page.shift
            self.send_header("Content-Range", f"bytes {first}-{len(page.content) - 1}/{len(page.content)}")
        if page.etag:
            self.send_header("ETag", page.etag)
        self.end_headers()
        cut = page.cuts.pop(0) if page.cuts else None
        self.wfile.write(body[:cut])
        self.close_connection = True

    def _start(self, page: Page) -> int:
        asked = self.headers.get("Range", "")
        current = self.headers.get("If-Range") in (None, page.etag)
        return int(asked.removeprefix("bytes=").rstrip("-")) if page.ranges and current and asked else 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at ``Site.requests``."""


@contextmanager
def serving() -> Iterator[Site]:
    """A running server."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
