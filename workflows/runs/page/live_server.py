"""Serves the page of a running search to browsers on this machine.

with live_page(search) as address:      # "http://127.0.0.1:43210/"
    ...

Python's own server in a thread: five addresses, all read-only, need no event loop in the driver. It listens on
loopback alone, and answers only requests for a name of this machine, so that no website can read it through a name
of its own that it resolves to 127.0.0.1 (DNS rebinding).
"""

import contextlib
import gzip
import socketserver
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from workflows.cluster.errors import describe_error
from workflows.runs.page.live import LivePage
from workflows.search.records import Search

_HERE = Path(__file__).parent
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_FILES = {"/page.css": "text/css", "/live.js": "text/javascript"}
_MAX_DIGITS = 8
_SECONDS_OF_CONNECTION = 30.0

_HEADERS = {
    # plotly sets styles of its own.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@contextlib.contextmanager
def live_page(search: Search) -> Iterator[str]:
    """Serve the page of a search; gives its address, or an empty text where no port can be opened."""
    try:
        server = _Server(("127.0.0.1", 0), _Handler)
    except OSError:  # a search needs no page
        yield ""
        return
    server.page = LivePage(search)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    page: LivePage
    daemon_threads = True
    block_on_close = False  # of readers that wait, none keeps the search from ending

    def server_bind(self) -> None:
        """Bind, without asking a name server for this machine's name, as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader has left; the terminal shows the search alone."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS_OF_CONNECTION
    server_version, sys_version = "rayconteur", ""

    def do_GET(self) -> None:
        """Answer a request for the page, its changing part, or one of its files."""
        if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES and self.headers.get("Host") not in _NAMES:
            self._send(403, "text/plain", b"This page is for http://127.0.0.1 and http://localhost alone.\n")
            return
        address = urlsplit(self.path)
        if address.path in ("/", "/part"):
            start, page = _start(address.query), self.server.page
            try:
                text = page.whole(start) if address.path == "/" else page.part(start)
            except Exception as error:  # the reader learns of it, and the search goes on
                self._send(500, "text/plain", f"The page cannot be made: {describe_error(error)}\n".encode())
                return
            self._send(200, "text/html", text.encode())
        elif address.path in _FILES:
            self._send(200, _FILES[address.path], (_HERE / address.path[1:]).read_bytes())
        elif address.path == "/plotly.js":
            self._send(200, "text/javascript", *_library(), caching="max-age=86400")
        else:
            self._send(404, "text/plain", b"There is no such page; the search is at /\n")

    def _send(self, status: int, kind: str, body: bytes, packed: bytes = b"", caching: str = "no-store") -> None:
        takes_gzip = "gzip" in self.headers.get("Accept-Encoding", "")
        if takes_gzip:
            body = packed or gzip.compress(body, 1, mtime=0)
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", caching)
        self.send_header("Vary", "Accept-Encoding")
        if takes_gzip:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError, TimeoutError):  # the reader has left
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal shows the search alone."""


def _start(query: str) -> int:
    """The first place that a request asks for, as in `from=200`; 0 instead of anything else."""
    start = parse_qs(query).get("from", ["0"])[0]
    is_number = start.isascii() and start.isdigit() and len(start) <= _MAX_DIGITS
    return int(start) if is_number else 0


@cache
def _library() -> tuple[bytes, bytes]:
    """plotly.js, so that the page needs no network; plain and packed."""
    from plotly.offline import get_plotlyjs

    plain = get_plotlyjs().encode()
    return plain, gzip.compress(plain, 6, mtime=0)
