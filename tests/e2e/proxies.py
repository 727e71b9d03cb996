"""nginx and HAProxy in front of the replicas, with the configurations of docker/, and a load on them."""

import asyncio
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.names import Names
from tests.conftest import NO_CERTIFICATES, free_port
from tests.e2e.process import ROOT, start, wait_until_ready

# `proxy(folder, replicas, **environment)`: starts the proxy and yields its URL.
Proxy = Callable[..., AbstractContextManager[str]]
REPLICAS = 3
# No one reads the logs, and a full pipe would block the service.
QUIET = {"RERANKER_LOG_LEVEL": "warning"}


@contextmanager
def nginx(folder: Path, upstreams: Sequence[str], **settings: object) -> Iterator[str]:
    servers = " ".join(upstream.removeprefix("http://") for upstream in upstreams)
    environment = {"RUN_DIR": folder, "UPSTREAM_SERVERS": servers, **settings}
    with _running([ROOT / "docker/nginx/start.sh"], folder / "nginx.log", environment) as (url, _):
        yield url


@contextmanager
def haproxy(folder: Path, upstreams: Sequence[str], **settings: object) -> Iterator[str]:
    """The upstreams have the same port. A name server gives their addresses."""
    addresses, ports = zip(*(upstream.removeprefix("http://").rsplit(":", 1) for upstream in upstreams), strict=True)
    (port,) = set(ports)
    with (
        Names([address.strip("[]") for address in addresses]) as names,
        haproxy_process(folder, names, UPSTREAM_PORT=port, **settings) as (url, _),
    ):
        yield url


@contextmanager
def haproxy_process(folder: Path, names: Names, **settings: object) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """HAProxy with this name server: its URL and its master process."""
    command = ["haproxy", "-W", "-db", "-f", ROOT / "docker/haproxy/haproxy.cfg"]
    environment = {"RESOLVER": f"127.0.0.1:{names.port}", "STATS_PORT": free_port(), **settings}
    with _running(command, folder / "haproxy.log", environment) as found:
        yield found


@contextmanager
def _running(
    command: Sequence[str | Path], log: Path, environment: dict[str, object]
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    texts = {name: str(value) for name, value in {"RERANKER_PROXY_PORT": port, **environment}.items()}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | texts, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live", verify=NO_CERTIFICATES).status_code == 200
    except httpx.TransportError:
        return False


def address(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rsplit(":", 1)[1])


def assert_error(response: httpx.Response, status: int, kind: str, words: str) -> None:
    """The response has the error format of the service, with headers that the proxy adds."""
    body = response.json()
    assert (response.status_code, body["error"]["code"], body["error"]["type"]) == (status, status, kind)
    assert words in body["message"] == body["detail"] == body["error"]["message"]
    assert body["id"] == response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-frame-options"] == "DENY"


class Load:
    """Clients that send requests all the time. Counts statuses and transport errors."""

    pause = 0.05
    """Seconds between two requests of a client."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[object] = Counter()
        self._url, self._number, self._going = url, 0, True

    async def __aenter__(self) -> "Load":
        self._clients = [asyncio.create_task(self._ask()) for _ in range(6)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._going = False
        await asyncio.gather(*self._clients)

    async def serves(self, count: int) -> None:
        """Wait until this many further requests are served."""
        wanted = self.statuses[200] + count
        while self.statuses[200] < wanted:  # noqa: ASYNC110 (the clients only count)
            await asyncio.sleep(0.05)

    async def _ask(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60, verify=NO_CERTIFICATES) as client:
            while self._going:
                self._number += 1
                body = {"query": f"moons {self._number}", "documents": [f"moon {self._number} {n}" for n in range(10)]}
                try:
                    self.statuses[(await client.post("/rerank", json=body)).status_code] += 1
                except httpx.TransportError as error:
                    self.statuses[repr(error)] += 1
                await asyncio.sleep(self.pause)


class Replicas:
    """Services at different addresses of the loopback, which can be stopped and started."""

    def __init__(self, stack: ExitStack, settings: dict[str, object]) -> None:
        port = free_port()
        self.urls = [f"http://127.0.0.{number}:{port}" for number in range(2, 2 + REPLICAS)]
        self._settings = settings
        self.processes: list[Any] = [self._start(url) for url in self.urls]
        stack.callback(self._end)
        for index in range(REPLICAS):
            self._wait(index)

    def stop(self, index: int) -> None:
        self.processes[index].terminate()
        self.processes[index].communicate(timeout=60)
        assert self.processes[index].returncode == 0

    def start(self, index: int) -> None:
        self.processes[index].communicate()  # it has ended
        self.processes[index] = self._start(self.urls[index])
        self._wait(index)

    def _wait(self, index: int) -> None:
        wait_until_ready(self.urls[index], self.processes[index])

    def _start(self, url: str) -> "subprocess.Popen[str]":
        host, port = url.removeprefix("http://").split(":")
        return start(int(port), RERANKER_HOST=host, **QUIET, **self._settings)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
