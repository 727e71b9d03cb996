"""Replicas behind a real HAProxy with the configuration of docker/haproxy: what only HAProxy does."""

import asyncio
import csv
import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks.names import Names
from tests.conftest import free_port
from tests.e2e.process import MOONS, ROOT, service
from tests.e2e.proxies import REPLICAS, Load, Replicas, assert_error, haproxy, haproxy_process

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed"),
]


@pytest.fixture(scope="module")
def replicas(tiny: dict[str, object]) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(stack, tiny)


@pytest.mark.parametrize("settings", [{}, {"RERANKER_PROXY_ROUTING": "connections"}, {"LISTEN": "::"}], ids=str)
def test_haproxy_accepts_every_file_without_a_warning(settings: dict[str, str]) -> None:
    for file in (ROOT / "docker/haproxy").iterdir():
        command = ["haproxy", "-c", "-f", str(file)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
        assert checked.returncode == 0, checked.stderr
        assert "[WARNING]" not in checked.stderr


def rank(url: str, query: str, number: int = 0, **headers: str) -> int:
    """Rank three documents; returns how many scores the replica knew."""
    body = {"query": query, "documents": [f"moon {number} {index}" for index in range(3)]}
    response = httpx.post(f"{url}/rerank", json=body, headers=headers, timeout=30)
    assert response.status_code == 200, response.text
    return int(response.json()["meta"]["cached"])


def requests(replicas: Replicas) -> list[int]:
    """How many rankings each replica has served."""
    pages = [httpx.get(f"{url}/metrics?format=json").json() for url in replicas.urls]
    return [int(page["requests"]["total"]) for page in pages]


def served(replicas: Replicas, before: list[int]) -> list[int]:
    """How many rankings each replica has served since then."""
    return [now - then for now, then in zip(requests(replicas), before, strict=True)]


def statistics(port: int) -> dict[str, str]:
    """The address of each replica, and what is missing to its full share: the first check, or a part of its start."""
    page = httpx.get(f"http://127.0.0.1:{port}/;csv").text.removeprefix("# ")
    rows = csv.DictReader(io.StringIO(page))
    return {
        row["addr"]: row["throttle"] if row["check_status"].endswith("L7OK") else "not checked yet"
        for row in rows
        if row["svname"].startswith("replica") and row["addr"]
    }


def wait_for_full_shares(port: int) -> None:
    """Until then, queries move between the replicas."""
    while (throttles := list(statistics(port).values())) != [""] * REPLICAS:
        assert len(throttles) <= REPLICAS
        time.sleep(0.1)


def test_equal_queries_go_to_the_replica_that_has_their_scores(replicas: Replicas, tmp_path: Path) -> None:
    with haproxy(tmp_path, replicas.urls, STATS_PORT=(port := free_port())) as url:
        wait_for_full_shares(port)
        queries = [f'the "moons" of planet {number} \u00fc' for number in range(12)]
        before = requests(replicas)
        assert [rank(url, query) for query in queries] == [0] * 12
        assert [rank(url, query) for query in queries] == [3] * 12
        assert min(served(replicas, before)) > 0
        # Other documents of a query go to its replica, too.
        before = requests(replicas)
        for number in range(6):
            rank(url, queries[0], number)
        assert sorted(served(replicas, before)) == [0, 0, 6]
        before = requests(replicas)
        for query in queries:
            rank(url, query, **{"X-Reranker-Route": "tenant 7"})
        assert sorted(served(replicas, before)) == [0, 0, 12]


def test_routing_by_connections_uses_all_replicas_for_one_query(replicas: Replicas, tmp_path: Path) -> None:
    with haproxy(tmp_path, replicas.urls, RERANKER_PROXY_ROUTING="connections") as url:
        before = requests(replicas)
        for number in range(12):
            rank(url, "the moons", number)
        assert min(served(replicas, before)) > 0


async def test_a_reload_under_load_loses_no_request(replicas: Replicas, tmp_path: Path) -> None:
    addresses = [url.removeprefix("http://").split(":")[0] for url in replicas.urls]
    port = replicas.urls[0].rsplit(":", 1)[1]
    with (
        Names(addresses) as names,
        haproxy_process(tmp_path, names, UPSTREAM_PORT=port) as (url, process),
    ):
        async with Load(url) as load:
            for _ in range(3):
                await asyncio.sleep(1)
                process.send_signal(signal.SIGUSR2)
            await asyncio.sleep(2)
    assert set(load.statuses) == {200}
    assert (tmp_path / "haproxy.log").read_text().count("New worker") == 4


class Replica(BaseHTTPRequestHandler):
    """Ready, but without an answer to a POST: it waits, or closes the connection at once."""

    posts = 0
    answers = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        type(self).posts += 1
        self.answers.wait(20)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def fakes(count: int, closes: bool) -> Iterator[tuple[list[str], type[Replica]]]:
    """Replicas without answers: their addresses, and the class that counts their requests."""
    handler = type("Counted", (Replica,), {"answers": threading.Event()})
    if closes:
        handler.answers.set()
    port = free_port()
    servers = [ThreadingHTTPServer((f"127.0.0.{number}", port), handler) for number in range(2, 2 + count)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield [f"{server.server_address[0]!s}:{port}" for server in servers], handler
    finally:
        handler.answers.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def test_a_request_that_timed_out_is_not_scored_again(tmp_path: Path) -> None:
    with fakes(3, closes=False) as (upstreams, counted), haproxy(tmp_path, upstreams, RERANKER_PROXY_TIMEOUT=1) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS, timeout=20)
        assert_error(response, 504, "deadline_exceeded", "RERANKER_PROXY_TIMEOUT")
        assert counted.posts == 1


def test_a_request_that_ends_replicas_is_sent_to_three_at_most(tmp_path: Path) -> None:
    with fakes(5, closes=True) as (upstreams, counted), haproxy(tmp_path, upstreams) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS, timeout=20)
        assert_error(response, 503, "unavailable", "replica")
        assert response.headers["Retry-After"] == "2"
        assert counted.posts == 3


def test_bodies_larger_than_the_buffer_are_served_or_rejected_by_the_replica(
    tiny: dict[str, object], tmp_path: Path
) -> None:
    with service(**tiny, RERANKER_MAX_BODY_BYTES=2_000_000) as (replica, _), haproxy(tmp_path, [replica]) as url:
        body = {"query": "a", "documents": ["moon " * 300] * 200}
        assert httpx.post(f"{url}/rerank", json=body, timeout=60).status_code == 200
        for content in (b"a" * 5_000_000, iter([b"a" * 1_000_000] * 5)):
            response = httpx.post(f"{url}/rerank", content=content, timeout=60)
            assert_error(response, 413, "too_large", "RERANKER_MAX_BODY_BYTES")


def test_the_metrics_are_not_those_of_a_random_replica(tmp_path: Path) -> None:
    with haproxy(tmp_path, [f"127.0.0.1:{free_port()}"]) as url:
        assert_error(httpx.get(f"{url}/metrics"), 404, "http_error", "each replica")


def test_the_statistics_are_on_the_loopback_only(tmp_path: Path) -> None:
    port = free_port()
    with haproxy(tmp_path, ["127.0.0.2:9"], STATS_PORT=port):
        assert statistics(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))


def test_replicas_stay_when_the_lookup_fails_and_go_when_they_leave(tmp_path: Path) -> None:
    port, upstream = free_port(), free_port()

    def becomes(*addresses: str) -> None:
        deadline = time.monotonic() + 10
        while sorted(statistics(port)) != [f"{address}:{upstream}" for address in addresses]:
            assert time.monotonic() < deadline, statistics(port)
            time.sleep(0.1)

    with Names(None) as names, haproxy_process(tmp_path, names, STATS_PORT=port, UPSTREAM_PORT=upstream):
        becomes()
        names.addresses = ["127.0.0.2", "127.0.0.3"]
        becomes("127.0.0.2", "127.0.0.3")
        names.addresses = None
        time.sleep(3)  # longer than the interval of the lookup
        becomes("127.0.0.2", "127.0.0.3")
        names.addresses = ["127.0.0.3", "127.0.0.4"]
        becomes("127.0.0.3", "127.0.0.4")
