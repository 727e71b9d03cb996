"""Replicas behind a real nginx with the configuration of docker/nginx."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import MOONS, ROOT, service, start, wait_until_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed"),
]

REPLICAS = 3
# No one reads the logs, and a full pipe would block the service.
QUIET = {"RERANKER_LOG_LEVEL": "warning"}


@contextmanager
def proxy(folder: Path, upstreams: Sequence[str], **settings: object) -> Iterator[str]:
    port = free_port()
    environment = os.environ | {
        "RUN_DIR": str(folder),
        "RERANKER_PROXY_PORT": str(port),
        "UPSTREAM_SERVERS": " ".join(upstream.removeprefix("http://") for upstream in upstreams),
        **{name: str(value) for name, value in settings.items()},
    }
    log = folder / "nginx.log"
    with log.open("w") as output:
        process = subprocess.Popen([ROOT / "docker/nginx/start.sh"], env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_a_request_passes_the_proxy_with_its_id(tmp_path: Path) -> None:
    with service() as (replica, _), proxy(tmp_path, [replica]) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS, headers={"X-Request-Id": "from-far-away"})
        assert response.json()["results"][0]["index"] == 2
        assert response.headers["x-request-id"] == "from-far-away"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "nginx/" not in response.headers["server"]
        assert httpx.get(f"{url}/health").json()["status"] == "ok"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the system has no IPv6")
def test_ipv6_clients_and_replicas_are_served(tmp_path: Path) -> None:
    with service(RERANKER_HOST="::") as (replica, _):
        port = replica.rsplit(":", 1)[1]
        with proxy(tmp_path, [f"[::1]:{port}"]) as url:
            for address in (url, url.replace("127.0.0.1", "[::1]")):
                assert httpx.post(f"{address}/rerank", json=MOONS).json()["results"][0]["index"] == 2


def test_an_invalid_request_id_is_replaced(tmp_path: Path) -> None:
    with service() as (replica, _), proxy(tmp_path, [replica]) as url:
        for wrong in ('a"b', "a b", "x" * 129, "ä"):
            response = httpx.post(f"{url}/rerank", json=MOONS, headers={"X-Request-Id": wrong.encode()})
            assert response.headers["x-request-id"] == response.json()["id"] != wrong
            assert len(response.json()["id"]) == 32


def test_errors_of_the_proxy_have_the_format_of_the_service(tmp_path: Path) -> None:
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"], RERANKER_MAX_BODY_BYTES=4096) as url:
        assert_error(httpx.get(f"{url}/metrics"), 404, "http_error", "each replica")
        assert_error(httpx.post(f"{url}/rerank", content=b"a" * 5000), 413, "too_large", "RERANKER_MAX_BODY_BYTES")
        assert_error(
            httpx.post(f"{url}/rerank", content=iter([b"a" * 5000])), 413, "too_large", "RERANKER_MAX_BODY_BYTES"
        )
        assert_error(httpx.get(url, headers={"x-long": "a" * 70_000}), 431, "head_too_large", "65536")
        assert_error(httpx.request("TRACE", url), 405, "http_error", "Method")
        assert_error(httpx.get(url, headers={"host": "a b"}), 400, "http_error", "HTTP")
        for line, status in ((b"nonsense", 400), (b"GET /%b HTTP/1.1" % (b"a" * 70_000), 431)):
            with socket.create_connection(address(url), timeout=10) as connection:
                connection.sendall(line + b"\r\n\r\n")
                head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d" % status)
            assert json.loads(body)["error"]["code"] == status


def test_a_replica_that_does_not_respond_in_time_is_a_504(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"127.0.0.1:{silent.getsockname()[1]}"
        with proxy(tmp_path, [upstream], RERANKER_PROXY_TIMEOUT=1) as url:
            answer = httpx.post(f"{url}/rerank", json=MOONS, timeout=20)
            assert_error(answer, 504, "deadline_exceeded", "RERANKER_PROXY_TIMEOUT")


def assert_error(response: httpx.Response, status: int, kind: str, words: str) -> None:
    """The response has the error format of the service, with headers that nginx adds."""
    body = response.json()
    assert (response.status_code, body["error"]["code"], body["error"]["type"]) == (status, status, kind)
    assert words in body["message"] == body["detail"] == body["error"]["message"]
    assert body["id"] == response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-frame-options"] == "DENY"


def test_errors_of_a_replica_are_passed_on_unchanged(tmp_path: Path) -> None:
    limits = {"RERANKER_MAX_BODY_BYTES": 2048}
    with service(**limits) as (replica, _), proxy(tmp_path, [replica]) as url:
        for path, content in (("/rerank", b"{"), ("/nowhere", b"{}"), ("/rerank", b"a" * 3000)):
            headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}
            there, here = (httpx.post(f"{at}{path}", content=content, headers=headers) for at in (replica, url))
            assert (here.status_code, here.json()) == (there.status_code, there.json())
            assert here.headers.get_list("x-request-id") == ["mine"]


def test_the_proxy_applies_its_own_body_limit(tmp_path: Path) -> None:
    with service() as (replica, _), proxy(tmp_path, [replica], RERANKER_MAX_BODY_BYTES=4096) as url:
        body = {"query": "a", "documents": ["b" * 5000]}
        assert httpx.post(f"{url}/rerank", json=body).status_code == 413
        assert httpx.post(f"{replica}/rerank", json=body).status_code == 200


def test_rejections_of_full_replicas_are_passed_on_unchanged(tmp_path: Path) -> None:
    full = {"RERANKER_MAX_PARALLEL": 1, "RERANKER_MAX_QUEUE": 0, "RERANKER_OVERLOAD_STATUS": 429}
    with service(**full) as (replica, _), proxy(tmp_path, [replica]) as url:
        found = asyncio.run(burst(url, 40))
    assert set(found) == {200, 429}


async def burst(url: str, count: int) -> Counter[int]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        bodies = [{"query": f"q {n}", "documents": [f"{n} {m} moon " * 40 for m in range(20)]} for n in range(count)]
        responses = await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json()["message"].startswith("Queue is full")
    return Counter(response.status_code for response in responses)


def test_without_a_replica_the_proxy_responds_like_the_service(tmp_path: Path) -> None:
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"]) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
        assert_error(response, 503, "unavailable", "No replica")
        assert httpx.get(f"{url}/health/ready").status_code == 503


def test_replicas_stay_when_the_lookup_fails_and_go_when_they_leave(tmp_path: Path) -> None:
    lookup = tmp_path / "getent"
    lookup.write_text(f"#!/bin/sh\ncat {tmp_path}/names\n")
    lookup.chmod(0o755)
    one, other = "server 10.0.0.1:8000 max_fails=0;", "server 10.0.0.2:8000 max_fails=0;"
    upstream, names, leaving = tmp_path / "upstream.conf", tmp_path / "names", tmp_path / "leaving"

    def becomes(*servers: str) -> None:
        deadline = time.monotonic() + 10
        while upstream.read_text().splitlines() != list(servers):
            assert time.monotonic() < deadline, upstream.read_text()
            time.sleep(0.1)

    with proxy(tmp_path, [], PATH=f"{tmp_path}:{os.environ['PATH']}"):
        becomes("server 127.0.0.1:1 max_fails=0;")
        names.write_text("10.0.0.1 STREAM replica\n10.0.0.2 STREAM\n")
        becomes(one, other)
        names.unlink()
        time.sleep(3)  # longer than the interval of the lookup
        becomes(one, other)
        leaving.write_text("10.0.0.1:8000\n")
        becomes(other)
        leaving.write_text("10.0.0.1:8000\n10.0.0.2:8000\n")
        time.sleep(3)
        becomes(other)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1, in the layout of TLS_DIR."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_with_a_certificate_the_proxy_serves_https_and_http(tmp_path: Path, certificate: Path) -> None:
    tls = {"TLS_DIR": certificate, "TLS_PORT": free_port()}
    trust = ssl.create_default_context(cafile=certificate / "tls.crt")
    with service() as (replica, _), proxy(tmp_path, [replica], **tls) as url:
        response = httpx.post(f"https://127.0.0.1:{tls['TLS_PORT']}/rerank", json=MOONS, verify=trust)
        assert response.json()["results"][0]["index"] == 2
        assert response.headers["x-frame-options"] == "DENY"
        assert httpx.post(f"{url}/rerank", json=MOONS).status_code == 200


def test_tls_before_1_2_is_rejected(tmp_path: Path, certificate: Path) -> None:
    port = free_port()
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"], TLS_DIR=certificate, TLS_PORT=port):
        assert handshake(port, certificate, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert handshake(port, certificate, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"), pytest.deprecated_call():
            handshake(port, certificate, ssl.TLSVersion.TLSv1_1)


def handshake(port: int, certificate: Path, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=certificate / "tls.crt")
    # By default, current libraries do not offer old versions.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version()


class Load:
    """Clients that send requests all the time. Counts statuses and transport errors."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[object] = Counter()
        self._url, self._number, self._going = url, 0, True

    async def __aenter__(self) -> "Load":
        self._clients = [asyncio.create_task(self._ask()) for _ in range(6)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._going = False
        await asyncio.gather(*self._clients)

    async def _ask(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            while self._going:
                self._number += 1
                body = {"query": f"moons {self._number}", "documents": [f"moon {self._number} {n}" for n in range(10)]}
                try:
                    self.statuses[(await client.post("/rerank", json=body)).status_code] += 1
                except httpx.TransportError as error:
                    self.statuses[repr(error)] += 1


class Replicas:
    """Services on different ports, which can be restarted."""

    def __init__(self, stack: ExitStack) -> None:
        self.ports = [free_port() for _ in range(REPLICAS)]
        self.processes: list[Any] = [start(port, **QUIET) for port in self.ports]
        stack.callback(self._end)
        for index in range(REPLICAS):
            self.wait(index)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def wait(self, index: int) -> None:
        wait_until_ready(self.urls[index], self.processes[index])

    def restart(self, index: int) -> None:
        self.processes[index].terminate()
        self.processes[index].communicate(timeout=60)
        assert self.processes[index].returncode == 0
        self.processes[index] = start(self.ports[index], **QUIET)
        self.wait(index)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    with ExitStack() as stack:
        yield await asyncio.to_thread(Replicas, stack)


async def test_a_rolling_restart_loses_no_request(replicas: Replicas, tmp_path: Path) -> None:
    with proxy(tmp_path, replicas.urls) as url:
        async with Load(url) as load:
            for index in range(REPLICAS):
                await asyncio.to_thread(replicas.restart, index)
                await asyncio.sleep(0.5)
    assert set(load.statuses) == {200}
    assert load.statuses[200] > 100


def test_a_response_is_sent_in_one_piece() -> None:
    """A proxy that got the headers then has the body too, even if the replica is killed."""
    with service() as (replica, _), socket.create_connection(address(replica), timeout=30) as connection:
        for _ in range(50):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            head, _, body = connection.recv(65_536).partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
            assert body


def address(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rsplit(":", 1)[1])


async def test_a_killed_replica_loses_at_most_its_own_requests(replicas: Replicas, tmp_path: Path) -> None:
    with proxy(tmp_path, replicas.urls) as url:
        async with Load(url) as load:
            await asyncio.sleep(1)
            replicas.processes[0].send_signal(signal.SIGKILL)
            await asyncio.sleep(2)
            before = load.statuses[200]
            await asyncio.sleep(1)
    assert set(load.statuses) <= {200, 502, 503, 504}
    assert sum(load.statuses.values()) - load.statuses[200] <= 6
    assert load.statuses[200] > before
