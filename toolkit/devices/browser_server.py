"""A server for one page, on this machine's loopback and for the time of a block: it has the files that it is given and
no other, and the page that it serves can reach nothing else.

The headers are those that a page needs for threads and for an exact clock (cross-origin isolation), and forbid every
request to another place (`connect-src` and the others of the content security policy).
"""

from __future__ import annotations

import http.server
import secrets
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript"}
_TYPES[".wasm"] = "application/wasm"
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # What the engines' own loaders do needs the words beside 'self'; all of it comes from this server.
    "Content-Security-Policy": "default-src 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'",
    "Cache-Control": "no-store",  # every load is a first visit
    "X-Content-Type-Options": "nosniff",
}

Content = Mapping[str, Path | bytes]  # by the path in the address, which begins with no slash


@contextmanager
def serving(content: Content) -> Iterator[str]:
    """Serve `content`; gives the address that it is below. It holds a word that nobody else knows, for others may use
    this machine too."""
    word = secrets.token_urlsafe(16)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            prefix, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
            found = content.get(name) if prefix == word else None
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES.get(Path(name).suffix, "application/octet-stream"))
            size = len(found) if isinstance(found, bytes) else found.stat().st_size
            self.send_header("Content-Length", str(size))
            for header, value in _HEADERS.items():
                self.send_header(header, value)
            self.end_headers()
            self._send(found)

        def _send(self, found: Path | bytes) -> None:
            if isinstance(found, bytes):
                self.wfile.write(found)
                return
            with found.open("rb") as stream:
                while part := stream.read(1 << 20):
                    self.wfile.write(part)

        def log_message(self, *said: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            """Without the look-up of the host's name that `http.server` makes."""
            socketserver.TCPServer.server_bind(self)

        def handle_error(self, *_: object) -> None:
            """A browser that is gone in the midst of an answer is told of by who waits for it."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{word}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
