"""A hub on the loopback that has one repository: owner/tiny."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Hub:
    url: str
    repository: Path
    asked: list[str] = field(default_factory=list)
    """The paths of all requests."""
    tokens: set[str] = field(default_factory=set)


@contextmanager
def serve(repository: Path) -> Iterator[Hub]:
    """Serve the files of a folder."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repository)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """As much of the hub as its client needs to list and fetch the files of one repository."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        self.hub.tokens |= set(self.headers.get("Authorization", "").split()[1:])
        repository = self.hub.repository
        files = {str(file.relative_to(repository)): file for file in repository.rglob("*") if file.is_file()}
        if self.path.startswith(f"/api/models/owner/tiny/tree/{SHA}"):
            tree = [{"type": "file", "path": name, "size": f.stat().st_size, "oid": name} for name, f in files.items()]
            return self._answer(json.dumps(tree).encode())
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
