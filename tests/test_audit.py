"""The audit of dependencies, against a local vulnerability service."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
VULNERABILITY = {
    "id": "PYSEC-2026-1",
    "summary": "Authentication bypass.",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "leaky"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
            "versions": ["1.0"],
        }
    ],
}


class _Osv(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"vulns": [VULNERABILITY]} if asked["package"]["name"] == "leaky" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Osv)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    server.shutdown()
    server.server_close()


def audit(folder: Path, requirement: str, service: str) -> subprocess.CompletedProcess[str]:
    (folder / "requirements.txt").write_text(requirement)
    options = ["--requirement", str(folder / "requirements.txt"), "--no-deps", "--disable-pip"]
    command = [ROOT / "scripts" / "audit", *options, "--vulnerability-service", "osv", "--osv-url", service]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_vulnerability_is_printed_and_fails(tmp_path: Path, osv: str) -> None:
    result = audit(tmp_path, "leaky==1.0", osv)
    assert (result.returncode, result.stdout) == (1, "leaky 1.0 PYSEC-2026-1 fixed in 1.1\n")


def test_packages_without_vulnerabilities_pass(tmp_path: Path, osv: str) -> None:
    result = audit(tmp_path, "sound==1.0", osv)
    assert (result.returncode, result.stdout) == (0, "")


def test_an_unreachable_service_is_reported_and_passes(tmp_path: Path) -> None:
    result = audit(tmp_path, "leaky==1.0", f"http://127.0.0.1:{free_port()}")
    assert (result.returncode, "not run" in result.stdout) == (0, True)
