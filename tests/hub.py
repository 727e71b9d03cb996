"""A hub with one repository, `owner/tiny`."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client needs to list and fetch the files of one repository."""

    repository: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        files = {str(file.relative_to(self.repository)): file for file in self.repository.rglob("*") if file.is_file()}
        if self.path.startswith("/api/models/owner/tiny"):
            listing = {"id": "owner/tiny", "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
            return self._answer(json.dumps(listing).encode())
        revision, _, name = self.path.removeprefix("/owner/tiny/resolve/").partition("/")
        if revision in (SHA, "main") and name in files:
            return self._answer(files[name].read_bytes())
        self.send_error(404)
        return None

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub(repository: Path) -> Iterator[str]:
    """Serve the folder as the files of `owner/tiny`. Yields the endpoint."""
    Hub.repository, Hub.asked = repository, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
