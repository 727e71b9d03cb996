"""Hostile clients get a clear error or a closed connection. Memory stays bounded, and others are served."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.e2e.process import FIXED, MOONS, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CONNECTIONS = 50
BODY_BYTES, BUFFERED_BYTES = 8_388_608, 100_000_000
MEGABYTES = 1_000_000
SETTINGS = {
    "RERANKER_MAX_CONNECTIONS": CONNECTIONS,
    "RERANKER_MAX_BUFFERED_BYTES": BUFFERED_BYTES,
    "RERANKER_BODY_TIMEOUT": 2,
    "RERANKER_LOG_LEVEL": "error",  # no one reads the log, and a full pipe would block the service
}
GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
SMALL = json.dumps({"query": "q", "documents": ["a"]}).encode()


class Target(NamedTuple):
    """The service under attack."""

    url: str
    process: subprocess.Popen[str]

    def memory(self) -> int:
        """Peak resident memory in bytes since the last call."""
        proc = Path(f"/proc/{self.process.pid}")
        peak = int(re.findall(r"VmHWM:\s+(\d+)", (proc / "status").read_text())[0]) * 1024
        (proc / "clear_refs").write_text("5")
        return peak

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, sent: bytes) -> bytes:
        """Send on a new connection; returns all data until the service closes it."""
        with self.connect() as connection:
            with suppress(OSError):  # the service may close it early
                connection.sendall(sent)
            return read(connection)

    def figure(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE))


def read(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def message(received: bytes) -> str:
    return str(json.loads(received.partition(b"\r\n\r\n")[2])["message"])


@pytest.fixture(scope="module")
def running() -> Iterator[Target]:
    with service(**FIXED, **SETTINGS) as (url, process):
        httpx.post(f"{url}/rerank", json=MOONS, timeout=60)
        yield Target(url, process)


@pytest.fixture
def target(running: Target) -> Iterator[Target]:
    """After each test, others are still served and nothing is left over."""
    running.memory()
    yield running
    assert httpx.get(f"{running.url}/health/live", timeout=10).status_code == 200
    answer = httpx.post(f"{running.url}/rerank", json=MOONS, timeout=60)
    assert answer.json()["results"][0]["index"] == 2
    deadline = time.monotonic() + 30
    left = ("open_connections", "buffered_bytes", "active_requests", "waiting_requests", "pending_pairs")
    # The one open connection reads the metrics.
    while (figures := [running.figure(f"reranker_{name}") for name in left]) != [1, 0, 0, 0, 0]:
        assert time.monotonic() < deadline, figures
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET + b"connection: close\r\n\r\n", 200),
        (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
        (POST.replace(b"1.1", b"1.0") + b"content-length: %d\r\n\r\n" % len(SMALL) + SMALL, 200),
        (b"GET http://x/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
        (b"GET /health/live HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade, close\r\n\r\n", 200),
        (b"GET /rerank HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nconnection: close\r\n\r\n", 404),
        (b"TRACE / HTTP/1.1\r\nconnection: close\r\n\r\n", 405),
        (b"GET /%00 HTTP/1.1\r\nconnection: close\r\n\r\n", 404),
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nconnection: close\r\n\r\n", 404),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET http://[::1/ HTTP/1.1\r\n\r\n", 400),
        (GET + b"a: \x00\r\n\r\n", 400),
        (GET.replace(b"\r\n", b"\n") + b"\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\n\r\n", 400),
        (b"MAKE / HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n123456", 400),
        (POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400),
        (POST + b"content-length: -5\r\n\r\n", 400),
        (POST + b"content-length: 99999999999999999999999\r\n\r\n", 400),
    ],
)
def test_unusual_requests_get_one_response_and_the_connection_closes(target: Target, sent: bytes, status: int) -> None:
    received = target.exchange(sent)
    assert statuses(received) == [status]
    assert b"connection: close" in received
    if status >= 400:
        assert message(received)


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(GET + b"a: b\r\n" * 5_000_000, id="headers"),
        pytest.param(GET + b"a: " + b"b" * 30_000_000, id="one header"),
        pytest.param(GET + b"b" * 30_000_000 + b": a", id="one name"),
        pytest.param(GET + b"a: " + b"b" * 200_000 + b"\r\n\r\n", id="complete"),
        pytest.param(b"GET /" + b"b" * 30_000_000, id="url"),
        pytest.param(CHUNKED + b"1;" + b"b" * 30_000_000, id="chunk extension"),
        pytest.param(CHUNKED + b"0\r\na: " + b"b" * 30_000_000, id="trailer"),
        pytest.param(CHUNKED + b"0\r\n" + b"a: b\r\n" * 5_000_000, id="trailers"),
    ],
)
def test_a_flood_of_headers_is_rejected(target: Target, sent: bytes) -> None:
    before = target.memory()
    received = target.exchange(sent)
    assert statuses(received) == [431]
    assert "65536" in message(received)
    assert target.memory() - before < 30 * MEGABYTES


def test_trailers_do_not_become_headers(target: Target) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(SMALL), SMALL)
    received = target.exchange(
        CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + chunk + b"content-encoding: gzip\r\n\r\n"
    )
    assert statuses(received) == [200]


def test_a_flood_of_pipelined_requests_is_cut_off_but_a_few_are_answered_in_order(target: Target) -> None:
    before = target.memory()
    target.exchange((GET + b"\r\n") * 500_000)
    assert target.memory() - before < 50 * MEGABYTES
    paths = [b"/health/live", b"/nowhere", b"/health/ready", b"/rerank"]
    received = target.exchange(
        b"".join(b"GET %b HTTP/1.1\r\n\r\n" % path for path in paths) + GET + b"connection: close\r\n\r\n"
    )
    assert statuses(received) == [200, 404, 200, 405, 200]


def test_over_the_connection_limit_only_health_is_served(target: Target) -> None:
    refused = target.figure('reranker_rejections_total{reason="connections"}')
    crowd = [target.connect() for _ in range(CONNECTIONS)]
    for connection in crowd:
        connection.sendall(GET)
    assert statuses(target.exchange(GET + b"\r\n")) == [200]
    received = target.exchange(POST + b"content-length: %d\r\n\r\n" % len(SMALL) + SMALL)
    assert statuses(received) == [503]
    assert b"retry-after: 1\r\n" in received
    assert f"All {CONNECTIONS} connections are taken (RERANKER_MAX_CONNECTIONS)" in message(received)
    more = [target.connect() for _ in range(1000)]
    for connection in more:
        assert statuses(read(connection)) in ([], [408])  # closed at once, or a spare one that sent nothing
        connection.close()
    for connection in crowd:
        connection.close()
    assert target.figure('reranker_rejections_total{reason="connections"}') > refused + 500


def test_slow_headers_are_a_408(target: Target) -> None:
    crowd = [target.connect() for _ in range(CONNECTIONS)]
    for connection in crowd:
        connection.sendall(GET)
    started = time.monotonic()
    while time.monotonic() - started < 9:
        for connection in crowd:
            connection.sendall(b"a: b\r\n")
        assert httpx.get(f"{target.url}/health", timeout=5).status_code == 200
        time.sleep(0.2)
    for connection in crowd:
        assert statuses(read(connection)) == [408]
        connection.close()


@pytest.mark.parametrize("framing", [b"content-length: 1000", b"transfer-encoding: chunked"])
def test_a_slow_body_is_a_408(target: Target, framing: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(POST + framing + b"\r\n\r\n")
        for _ in range(10):
            connection.sendall(b" " if b"length" in framing else b"1\r\n \r\n")
            time.sleep(0.1)
        received = read(connection)
    assert statuses(received) == [408]
    assert "within 2 s (RERANKER_BODY_TIMEOUT)" in message(received)


def test_bodies_over_the_memory_limit_are_rejected_at_once(target: Target) -> None:
    before = target.memory()
    size = BODY_BYTES - 1000
    head = POST + b"content-length: %d\r\n\r\n" % size

    def almost(_: int) -> list[int]:
        with target.connect() as connection:
            with suppress(OSError):
                connection.sendall(head + b" " * (size - 1))
            received = read(connection)
            found = statuses(received)
            assert found != [503] or b"retry-after:" in received
            return found

    held = []
    with ThreadPoolExecutor(40) as clients:
        sending = [clients.submit(almost, number) for number in range(40)]
        while not all(each.done() for each in sending):
            held.append(target.figure("reranker_buffered_bytes"))
            time.sleep(0.02)
    answers = [status for each in sending for status in each.result()]
    # 408: the body was accepted, but its last byte never came. 503: there was no room for it.
    assert set(answers) == {408, 503}
    assert BUFFERED_BYTES / 2 < max(held) <= BUFFERED_BYTES
    assert target.memory() - before < 3 * BUFFERED_BYTES


def with_metadata(value: str) -> bytes:
    return b'{"query": "q", "documents": [{"text": "a", "metadata": %b}]}' % value.encode()


def with_documents(*documents: str) -> bytes:
    return json.dumps({"query": "q", "documents": documents}).encode()


DEEP = "[" * 100_000 + "]" * 100_000
FULL = ",".join(["[]"] * 2_700_000)


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        pytest.param(b" " * 100_000_000, 413, "at most 8388608 bytes", id="100 MB"),
        pytest.param(with_documents("a" * 8_000_000), 413, "documents[0]: at most 100000 characters", id="long text"),
        pytest.param(DEEP.encode(), 400, "nested too deeply", id="deep"),
        pytest.param(with_metadata(DEEP), 400, "nested too deeply", id="deep metadata"),
        pytest.param(with_metadata(f'{{"a": [{FULL}]}}'), 200, "", id="full metadata"),
        pytest.param(with_metadata('{"a": 1e999}'), 200, "", id="infinite metadata"),
        pytest.param(with_metadata('{"%s": 1}' % ("k" * 8_000_000)), 200, "", id="giant key"),
        pytest.param(
            b'{"rank_fields": ["m"], "query": "q", "documents": [{"m": [%b]}]}' % FULL.encode(),
            413,
            "rank_fields: at most 100000 values are rendered",
            id="rendered",
        ),
        pytest.param(b'{"query": "q", "documents": ["a"], "top_k": 1e999}', 422, "top_k: ", id="infinite top_k"),
        pytest.param(
            b'{"query": "q", "documents": ["a"], "top_k": %b}' % (b"9" * 5000), 400, "too many digits", id="digits"
        ),
        pytest.param(b'{"query": "q", "documents": ["a"], "top_k": true}', 200, "", id="boolean top_k"),
        pytest.param(b'{"query": "q", "documents": ["a"], "score_threshold": NaN}', 422, "score_threshold: ", id="NaN"),
        pytest.param(b'{"query": "q", "documents": ["a"], "timeout_ms": Infinity}', 422, "timeout_ms: ", id="Infinity"),
        pytest.param(b'{"query": "x", "query": "q", "documents": ["a"]}', 200, "", id="duplicate keys"),
        pytest.param(b'{"query": "\\ud800", "documents": ["a"]}', 422, "query: ", id="lone surrogate"),
        pytest.param(b'{"query": "q", "documents": ["\xff\xfe"]}', 400, "not UTF-8", id="bad UTF-8"),
        pytest.param(b"\xef\xbb\xbf" + SMALL, 200, "", id="BOM"),
        pytest.param(b"", 400, "The body is empty", id="empty"),
        pytest.param(with_documents("\x00" * 1000, "a\x00b"), 200, "", id="NUL"),
        pytest.param(with_documents(*[""] * 1000), 200, "", id="empty documents"),
        pytest.param(with_documents(*[""] * 10_000), 413, "documents: at most 1000", id="too many empty documents"),
        pytest.param(
            with_documents("\u202e" * 90_000, "\u200b" * 90_000, "a" + "\u0301" * 90_000), 200, "", id="marks"
        ),
        pytest.param(with_documents("مرحبا" * 15_000, "👩‍👩‍👧‍👦" * 10_000), 200, "", id="right to left, joined"),
    ],
)
def test_extreme_bodies_get_a_clear_response(target: Target, body: bytes, status: int, expected: str) -> None:
    before = target.memory()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{target.url}/rerank", content=body, headers=headers, timeout=60)
    assert response.status_code == status, response.text
    assert status == 200 or expected in response.json()["message"]
    assert len(response.content) < 100_000
    assert target.memory() - before < 400 * MEGABYTES


def test_a_hundred_megabytes_in_chunks_are_a_413(target: Target) -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b" " * MEGABYTES

    before = target.memory()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{target.url}/rerank", content=chunks(), headers=headers, timeout=60)
    assert response.status_code == 413
    assert target.memory() - before < 50 * MEGABYTES


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-type": "application/json", "content-encoding": "gzip"}, "must not be compressed, got 'gzip'"),
        ({"content-type": "text/plain"}, "got 'text/plain'"),
        ({"content-type": "application/x-www-form-urlencoded"}, "must be JSON"),
    ],
)
def test_other_media_types_are_a_415(target: Target, headers: dict[str, str], expected: str) -> None:
    response = httpx.post(f"{target.url}/rerank", content=SMALL, headers=headers)
    assert response.status_code == 415
    assert expected in response.json()["message"]
