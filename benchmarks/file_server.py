"""A file server that answers ranges, as publishers' do, and fails as they do: breaks off, sends other bytes, is down."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer(ThreadingHTTPServer):
    """Serves a folder on a port of its own.

    Args:
        folder: What to serve.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.break_after: int | None = None
        """Bytes after which every answer ends."""
        self.num_down = 0
        """So many requests are answered with 503."""
        self.spoilt: set[str] = set()
        """Names of files whose bytes are changed on the way."""
        self.sent: list[tuple[str, int, int]] = []
        """Name, first byte and number of bytes of each answer."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        if self.server.num_down > 0:
            self.server.num_down -= 1
            self.send_error(503)
            return
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        if path.name in self.server.spoilt:
            data = data[:-1] + bytes([data[-1] ^ 255])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data) if self.server.break_after is None else min(len(data), start + self.server.break_after)
        self.server.sent.append((path.name, start, end - start))
        self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server that runs until the block ends."""
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
